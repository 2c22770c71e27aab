"""One HTTP/1.1 connection on httptools: a request out, a response in, again and again.

A plain asyncio protocol, so it runs on asyncio's own loop and on uvloop, and TLS is asyncio's. The
pool that owns connections is `gateway.transport.pool`.

Strict by intent: a connection is used again only if the request was written out, its response was
taken off the wire to the very end, and nothing followed (RFC 9112, 9.3 and 11.2). Headers, trailers
and unread bytes are bounded: an upstream is not to be trusted with our memory.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import httptools

from gateway.errors import ErrorKind, StreamInterrupted, UpstreamError, UpstreamUnavailable
from gateway.transport.base import Origin, Response

MAX_HEADERS = 256
LINGER_S = 0.1
"""How long a released connection may wait for the end of its message."""

_SLICE = 64 * 1024  # a larger request body is written in pieces, as the peer takes them


class Keeper(Protocol):
    """The owner of connections: hears when one is free again, and when one is gone."""

    def free(self, connection: Connection) -> None:
        """Its response is complete; it may be used again."""
        ...

    def gone(self, connection: Connection) -> None:
        """Its socket is closed."""
        ...


class _Refused(Exception):
    """A response that is well formed but not acceptable."""


class Connection(asyncio.Protocol):
    """One socket, one exchange at a time. The `Source` of its response.

    Args:
        origin: where it leads.
        keeper: its owner.
        max_header_bytes: most that response headers, or trailers, may take.
    """

    __slots__ = (
        "_aborted",
        "_body",
        "_done",
        "_headers",
        "_keep",
        "_keeper",
        "_linger",
        "_max_header_bytes",
        "_no_body",
        "_outgoing",
        "_overhead",
        "_parser",
        "_response",
        "_transport",
        "_write_paused",
        "exchanges",
        "idle_since",
        "on_body",
        "origin",
        "usable",
    )

    def __init__(self, origin: Origin, keeper: Keeper, max_header_bytes: int) -> None:
        self.origin = origin
        self.exchanges = 0
        self.idle_since = 0.0
        self.usable = False  # whether a request could be sent now
        self._keeper = keeper
        self._max_header_bytes = max_header_bytes
        self._transport: asyncio.Transport | None = None
        self._aborted = False
        self._response: Response | None = None  # the exchange under way
        self._headers: list[tuple[bytes, bytes]] = []
        self._overhead = 0  # bytes of headers, trailers and framing since the last byte of body
        self._no_body = False  # a HEAD request: the response ends with its headers
        self._done = False  # the response has arrived to its end
        self._keep = False  # and leaves the connection fit for another
        self._linger: asyncio.TimerHandle | None = None
        self._outgoing = memoryview(b"")  # request body not yet given to the transport
        self._write_paused = False
        self._body: list[bytes] = []
        self.on_body = self._body.append  # called by the parser: no Python frame per chunk
        self._parser = httptools.HttpResponseParser(self)

    @property
    def silent(self) -> bool:
        """Whether the exchange brought not a single byte."""
        return self._overhead == 0

    def send(self, head: bytes, body: bytes | None) -> Response:
        """Write a request; return its response, whose headers are still to come."""
        response = self._response = Response(self)
        self._headers = []
        self._overhead = 0
        self._done = False
        self._no_body = head.startswith(b"HEAD ")
        self.exchanges += 1
        transport = self._transport
        if transport is None or not self.usable:
            self._fail(self._broken(None))
        elif body is None:
            transport.write(b"%b\r\n" % head)
        elif len(body) <= _SLICE:
            transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        else:
            transport.write(b"%bcontent-length: %d\r\n\r\n" % (head, len(body)))
            self._outgoing = memoryview(body)
            self._write_on()
        return response

    # Asked by the response.

    def resume_reading(self) -> None:
        if self._transport is not None and self.usable:
            self._transport.resume_reading()

    def release(self) -> None:
        response = self._response
        if response is None or response.full or not _chunked(response.headers):
            self.abort()
        else:
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self.abort)

    def abort(self) -> None:
        self._aborted = True
        self.usable = False
        self._fail(StreamInterrupted(f"the connection to {self.origin} was closed by this side"))
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._transport is not None:
            # not close(): that waits for the peer to take what is unsent and to agree on TLS's end
            self._transport.abort()

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.usable = not self._aborted
        if self._aborted:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:  # nobody asked: a late or smuggled response
            self.abort()
            return
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._done:
                self._fail(self._malformed(error.__context__ or error))
                self.abort()
                return
            self._keep = False  # something follows the end
        body, full = self._body, None  # None: no body came
        if body:
            self._overhead = 0
            if self._linger is None:
                full = response.push(body, len(data))
            elif not self._done:  # released, but more than the end was missing
                self.abort()
            body.clear()
        if self._done:
            self._complete(response)
        elif self._overhead > self._max_header_bytes:
            self._fail(self._malformed("headers or trailers too large"))
            self.abort()
        elif full is None:
            if response.status:
                response.wake()
        elif full and self._transport is not None:
            self._transport.pause_reading()

    def eof_received(self) -> None:
        self.usable = False  # returning None lets the transport close
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        self._end(exc)
        self._transport = None
        del self._parser  # it holds our methods: without this the two wait for the collector
        self._keeper.gone(self)

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._write_on()

    # Called by the parser; what these raise comes out of feed_data.

    def on_message_begin(self) -> None:
        if self._done:
            raise _Refused("more than one response")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value.rstrip()))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        headers = self._headers
        if len(headers) > MAX_HEADERS or (
            self._overhead > self._max_header_bytes
            and sum(len(name) + len(value) + 4 for name, value in headers) > self._max_header_bytes
        ):
            raise _Refused("too many or too large headers")
        self._headers = []
        if status >= 200:
            response = self._response
            if response is not None:
                response.status = status
                response.headers = headers
            self._overhead = 0
            if self._no_body:
                self._done, self._keep = True, False  # the parser still expects a body
        elif status == 101:
            raise _Refused("the protocol was switched though nobody asked")

    def on_message_complete(self) -> None:
        if self._response is not None and self._response.status:  # otherwise a 1xx: more follows
            self._done = True
            self._keep = self._parser.should_keep_alive()

    # Turns of the exchange.

    def _write_on(self) -> None:
        while self._outgoing and not self._write_paused and self._transport is not None:
            piece, self._outgoing = self._outgoing[:_SLICE], self._outgoing[_SLICE:]
            self._transport.write(piece)

    def _complete(self, response: Response) -> None:
        self._response = None
        response.finish()
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._keep and not self._outgoing:
            self._keeper.free(self)
        else:
            self.abort()

    def _end(self, error: Exception | None) -> None:
        """The peer sends no more."""
        response = self._response
        if response is None:
            return
        if error is None and response.status and not _delimited(response.headers):
            self._keep = False
            self._complete(response)  # RFC 9112, 6.3, 8: the end of the connection is the end
        else:
            self._fail(self._broken(error))
            self.abort()

    def _fail(self, error: UpstreamError) -> None:
        self._outgoing = memoryview(b"")
        response, self._response = self._response, None
        if response is not None:
            response.finish(error)

    def _broken(self, error: Exception | None) -> UpstreamError:
        reason = f" ({error})" if error is not None else ""
        if self._response is not None and self._response.status:
            return StreamInterrupted(f"{self.origin} cut the answer short{reason}")
        if self.silent:
            message, kind = "closed the connection without an answer", ErrorKind.CONNECT
        else:
            message, kind = "closed the connection within the headers", ErrorKind.INTERRUPTED
        return UpstreamUnavailable(f"{self.origin} {message}{reason}", kind=kind)

    def _malformed(self, reason: object) -> UpstreamError:
        return UpstreamUnavailable(
            f"{self.origin} does not speak HTTP/1.1: {reason}", kind=ErrorKind.MALFORMED
        )


def _chunked(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"transfer-encoding" and value.lower().endswith(b"chunked")
        for name, value in headers
    )


def _delimited(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether the message itself says where its body ends."""
    return _chunked(headers) or any(name == b"content-length" for name, _ in headers)
