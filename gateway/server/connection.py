"""One client's connection: uvicorn's HTTP/1.1 protocol, with the bounds that it lacks.

| bound | what happens past it |
|---|---|
| `header_s` for a request's head | 408; closed without a word if nothing was sent |
| `body_s` for its body | 408 |
| 64 KiB or 100 fields of head | 431 |
| not HTTP | 400 |
| 8 requests sent ahead of their answers | closed after the answer under way |
| `max_connections` | 503; far beyond it, closed at once |
| `keep_alive_s` idle | closed |
| `send_s` with a full buffer nobody reads | cut off |

Deadlines are plain numbers that one sweep compares now and then: a request needs no timer. A body
is gathered here, and what answers begins when it is whole: nothing waits for it, and uvicorn's
ASGI messages, a third of what a bare request costs, are not made.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import GatewayError
from gateway.openai_api.errors import BodyTooLarge, RequestTimedOut
from gateway.openai_api.words import Call
from gateway.server.edge import LINGER_BYTES, answer, fields_of, plain_path
from gateway.server.exchange import Exchange
from gateway.server.options import ServerOptions
from gateway.server.refusals import BadHTTP, HeadTooLarge, TooManyConnections
from gateway.server.service import Service, log_fault

MAX_HEAD_BYTES: Final = 65_536
MAX_FIELDS: Final = 100
_MAX_AHEAD: Final = 8
# Less is read on, for who reads nothing does not hear that a client left.
_AHEAD_BYTES: Final = 65_536
_SPARE: Final = 256  # connections past the limit that are still told why
_LINGER_S: Final = 2.0


class Connection(HttpToolsProtocol):
    """A client's connection.

    Args:
        options: its bounds.
        service: answers.
        parts: what uvicorn hands to a protocol.
    """

    def __init__(self, options: ServerOptions, service: Service, **parts: Any) -> None:
        super().__init__(**parts)
        self._options = options
        self._service = service
        self._why: GatewayError | None = None
        self._running: Exchange | None = None
        self._latest: Exchange | None = None  # whose body comes in
        self._ahead: deque[Exchange] = deque()
        self._deaf = False  # what still comes in is thrown away
        self._again = False  # the head is read once more, without its wish for another protocol
        self._over = False
        self._in_head = True
        self._head_bytes = 0
        self._peer = ""
        self._deadline = math.inf  # of the head, the body or the silence, on the loop's clock
        self._send_by = math.inf

    # -- bounds in time -------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Act on what is overdue at `now` on the loop's clock."""
        if now >= self._send_by:
            self.transport.abort()
        elif now < self._deadline:
            return
        elif self.transport.is_closing():
            self.transport.abort()  # whoever reads nothing would keep it for good
        elif self._head_bytes:
            self._turn_away(
                RequestTimedOut(f"the head was not there after {self._options.header_s:g} s")
            )
        elif self._receiving():
            self._turn_away(
                RequestTimedOut(f"the body was not there after {self._options.body_s:g} s")
            )
        else:
            self._close()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._peer = self.client[0] if self.client else ""
        self._deadline = self.loop.time() + self._options.header_s
        self._over = len(self.connections) > self._options.max_connections
        if len(self.connections) > self._options.max_connections + _SPARE:
            transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_by = self.loop.time() + self._options.send_s

    def resume_writing(self) -> None:
        super().resume_writing()
        self._send_by = math.inf

    # -- what comes in --------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._in_head:
            if not self._head_bytes and not self._busy():
                self._deadline = self.loop.time() + self._options.header_s
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:  # the parser, or one of the callbacks below, gave up
            self._turn_away(self._why or BadHTTP("this is not HTTP/1.1"))
        except httptools.HttpParserUpgrade as upgrade:
            if self._again:
                self._read_plainly(data[upgrade.args[0] :])
                return
            # A websocket, or another protocol: answered as the plain request it also is, once.
            self._deaf = True
            if self._running is not None:
                self._running.keep_alive = False
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self._deaf:
            self._turn_away(_too_long())

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._over:
            raise self._reason(TooManyConnections("too many connections; try again in a moment"))
        headers = self.headers
        if len(headers) > MAX_FIELDS:
            raise self._reason(HeadTooLarge(f"at most {MAX_FIELDS} header fields are taken"))
        if self._head_bytes > MAX_HEAD_BYTES:  # with what of the body came along
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in headers)
            if size > MAX_HEAD_BYTES:
                raise self._reason(_too_long())
        if len(self._ahead) >= _MAX_AHEAD:
            raise self._reason(BadHTTP("too many requests ahead of their answers"))
        exchange = self._exchange()
        fields = exchange.call.headers
        said = fields.get("content-length", "0")
        body = said != "0" or "transfer-encoding" in fields
        if body and "upgrade" in fields and self.parser.should_upgrade():
            self._again = True  # the parser takes what follows for the other protocol's
            return
        self._in_head = False
        self._head_bytes = 0
        self._latest = exchange
        if int(said) > self._options.max_body_bytes:
            self._too_large(exchange, f"the body has {said} bytes")
        if self._busy():
            self._ahead.append(exchange)
        else:
            self._turn(exchange)

    def on_body(self, body: bytes) -> None:
        exchange = self._latest
        assert exchange is not None
        exchange.size += len(body)
        if exchange.error is not None:
            if exchange.size > LINGER_BYTES:
                self._close()
        elif exchange.size > self._options.max_body_bytes:
            self._too_large(exchange, "the body is longer")
            if exchange is self._running:
                self._refuse_body(exchange)
        else:
            exchange.pieces.append(body)
            if exchange.size > _AHEAD_BYTES and exchange is not self._running:
                self.flow.pause_reading()  # until it is its turn

    def on_message_complete(self) -> None:
        if self._again:
            return
        exchange = self._latest
        assert exchange is not None
        self._in_head = True
        exchange.more_body = False
        if exchange is not self._running:
            return
        if exchange.error is None:
            self._begin(exchange)
        else:
            self._refuse_body(exchange)

    def _read_plainly(self, rest: bytes) -> None:
        """Read a head again as if it asked for no other protocol (RFC 9110, 7.8: a server may
        ignore that): Java's client asks for h2c with every request, and its body follows.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        kept = [b"%b: %b" % field for field in self.headers if field[0].lower() != b"upgrade"]
        head = b"\r\n".join([b"%b %b HTTP/%b" % (method, self.url, version), *kept, b"", b""])
        self.parser = httptools.HttpRequestParser(self)
        self._again, self._head_bytes = False, 0
        self.data_received(head + rest)

    # -- from request to answer -----------------------------------------------------------------

    def _exchange(self) -> Exchange:
        """What the head says."""
        url, query = self.url, ""
        if not url.startswith(b"/") or b"#" in url:  # whole, as for a proxy, or no target at all
            parsed = httptools.parse_url(url)
            url = (parsed.path or b"/") + (b"?" + parsed.query if parsed.query else b"")
        path = url.decode("ascii")
        if "?" in path:
            path, _, query = path.partition("?")
        if "%" in path:
            path = unquote(path)
        version, parser = self.parser.get_http_version(), self.parser
        call = Call(
            parser.get_method().decode("latin-1"),
            plain_path(path),
            fields_of(self.headers),
            b"",
            query,
            self._peer,
        )
        return Exchange(
            call,
            self.transport,
            self.flow,
            self._answered,
            _lines_of(self.server_state.default_headers),
            keep_alive=version != "1.0" and parser.should_keep_alive(),
            chunked=version != "1.0",
        )

    def _turn(self, exchange: Exchange) -> None:
        """It is this exchange's turn, whether its body is complete or not."""
        self._running = exchange
        if exchange.error is not None:
            self._refuse_body(exchange)
        elif not exchange.more_body:
            self._begin(exchange)
        else:
            self._deadline = self.loop.time() + self._options.body_s
            if "expect" in exchange.call.headers and not exchange.size and exchange.chunked:
                self._go_on(exchange.call.headers["expect"])

    def _begin(self, exchange: Exchange) -> None:
        """The request is whole: answer it."""
        self._deadline = math.inf
        call, pieces = exchange.call, exchange.pieces
        call.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        task = self.loop.create_task(answer(self._service, call, exchange, self._options.ping_s))
        exchange.task = task
        self.tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: Any) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log_fault(task.exception())
        running = self._running
        if running is not None and running.task is task and not running.response_complete:
            self.transport.close()  # half an answer must not look whole

    def _go_on(self, expectation: str) -> None:
        if expectation.lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _too_large(self, exchange: Exchange, what: str) -> None:
        limit = self._options.max_body_bytes
        exchange.error = BodyTooLarge(f"{what}; at most {limit} bytes are taken")
        exchange.pieces.clear()

    def _refuse_body(self, exchange: Exchange) -> None:
        """Say at once that a body is too long, and close when it is in: see `LINGER_BYTES`."""
        assert exchange.error is not None
        if not exchange.response_started:
            exchange.refuse(self._service.error(exchange.call, exchange.error))
            self._deadline = self.loop.time() + self._options.body_s
        # Who asked whether to go on will not send it.
        if not exchange.more_body or "expect" in exchange.call.headers:
            self._close()

    def _answered(self) -> None:
        """The answer of `_running` is out."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._deadline = self.loop.time() + _LINGER_S
            return
        self.flow.resume_reading()
        if self._ahead:
            self._turn(self._ahead.popleft())
            return
        options = self._options
        wait_s = options.header_s if self._head_bytes else options.keep_alive_s
        self._deadline = self.loop.time() + wait_s

    def shutdown(self) -> None:
        """The service stops: the answer under way is the last one."""
        if self._busy():
            assert self._running is not None
            self._running.keep_alive = False
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._ahead.clear()
        if self._running is not None:
            self._running.leave()

    def _busy(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _receiving(self) -> bool:
        """Whether a request's body is on its way and nothing was answered yet."""
        running = self._running
        return running is not None and running.more_body and not running.response_started

    # -- turning away ---------------------------------------------------------------------------

    def _reason(self, error: GatewayError) -> _TurnedAwayError:
        self._why = error
        return _TurnedAwayError()

    def _turn_away(self, error: GatewayError) -> None:
        """Refuse what came in and close; an answer under way is finished first."""
        self._deaf = True
        self._ahead.clear()
        running = self._running
        if self._busy() and not self._receiving():
            assert running is not None
            running.keep_alive = False
            return
        call = Call("", "", peer=self._peer)
        fixed = _lines_of(self.server_state.default_headers)
        last = Exchange(
            call, self.transport, self.flow, self._answered, fixed, keep_alive=False, chunked=True
        )
        last.refuse(self._service.error(call, error))
        self._close()

    def _close(self) -> None:
        self.transport.close()
        self._deadline = self.loop.time() + _LINGER_S


class _TurnedAwayError(Exception):
    """Stops the parser in the middle of what it was given."""


def sweep(connections: Iterable[Any], now: float) -> None:
    """Act on all that is overdue."""
    for connection in list(connections):
        connection.check(now)


def _too_long() -> HeadTooLarge:
    return HeadTooLarge(f"at most {MAX_HEAD_BYTES} bytes of request line and headers are taken")


_fixed: tuple[list[tuple[bytes, bytes]], str] = ([], "")


def _lines_of(headers: list[tuple[bytes, bytes]]) -> str:
    """uvicorn's own headers (the date) as lines; it makes a new list of them once a second."""
    global _fixed  # noqa: PLW0603 - what all connections of a process share
    if headers is not _fixed[0]:
        _fixed = headers, "".join(f"{n.decode()}: {v.decode()}\r\n" for n, v in headers)
    return _fixed[1]
