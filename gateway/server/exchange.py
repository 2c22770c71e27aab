"""One request on a connection, and the way of its answer: HTTP/1.1 (RFC 9112), written at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from gateway.errors import GatewayError
from gateway.openai_api.words import Call, Reply

if TYPE_CHECKING:
    from uvicorn.protocols.http.flow_control import FlowControl

Headers = list[tuple[str, str]]

_STARTS: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}" for s in HTTPStatus}
_NEVER_IN_A_LINE: Final = str.maketrans("\r\n\0", "   ")


class Exchange:
    """A request that comes in, and its answer that goes out; an `edge.Out`.

    Args:
        call: the request; its body grows until `more_body` is False.
        transport, flow: the connection's.
        done: called when the answer is out.
        keep_alive: whether the connection may be used again.
        fixed: header lines that every answer bears.
        chunked: whether the client knows pieces of a body from its end (HTTP/1.0 does not).

    Attributes:
        error: why it is refused, before it became whole; None if it is not.
        more_body: whether some of its body is still to come.
        response_started, response_complete: how far the answer is.
        gone: the client has left, and `task` was cancelled for it.
        task: what answers, once it began.
    """

    __slots__ = (
        "_done",
        "_fixed",
        "_flow",
        "_transport",
        "call",
        "chunked",
        "error",
        "gone",
        "keep_alive",
        "more_body",
        "pieces",
        "response_complete",
        "response_started",
        "size",
        "task",
    )

    def __init__(
        self,
        call: Call,
        transport: asyncio.Transport,
        flow: FlowControl,
        done: Callable[[], None],
        fixed: str,
        *,
        keep_alive: bool,
        chunked: bool,
    ) -> None:
        self.call = call
        self._transport = transport
        self._flow = flow
        self._done = done
        self._fixed = fixed
        self.keep_alive = keep_alive
        self.chunked = chunked
        self.error: GatewayError | None = None
        self.more_body = True
        self.pieces: list[bytes] = []
        self.size = 0  # of what has come of the body
        self.response_started = self.response_complete = self.gone = False
        self.task: asyncio.Task[None] | None = None

    # -- edge.Out -------------------------------------------------------------------------------

    def whole(self, status: int, headers: Headers, body: bytes) -> Awaitable[object] | None:
        """Send the whole answer in one write."""
        if self._flow.write_paused:  # an answer before this one is not read yet
            return self._whole_later(status, headers, body)
        if self.response_complete or self.gone:
            return None
        if self.response_started:  # a stream broken off before its first piece
            return self.end()
        self.response_started = True
        head = self._head(status, headers, f"content-length: {len(body)}\r\n")
        self._transport.write(head if self.call.method == "HEAD" else head + body)
        self._complete()
        return None

    def begin(self, status: int, headers: Headers) -> Awaitable[object] | None:
        """Send the head of a stream."""
        if not self.chunked:
            self.keep_alive = False  # its end is the connection's
        self.response_started = True
        chunked = self.chunked and self.call.method != "HEAD"
        more = "transfer-encoding: chunked\r\n" if chunked else ""
        self._transport.write(self._head(status, headers, more))
        return None

    def send(self, piece: bytes) -> Awaitable[object] | None:
        """Send a piece; held up while 64 KiB wait for the client to read."""
        if self._flow.write_paused:
            return self._send_later(piece)
        # A piece of no bytes would be the end of the body.
        if piece and not self._transport.is_closing():
            self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self.chunked else piece)
        return None

    def end(self) -> Awaitable[object] | None:
        """The stream is over."""
        if not self.response_complete:
            if self.chunked and self.call.method != "HEAD":
                self._transport.write(b"0\r\n\r\n")
            self._complete()
        return None

    # -- for the connection ---------------------------------------------------------------------

    def refuse(self, reply: Reply) -> None:
        """Send a reply after which the connection is closed, now or once the body is in."""
        status, headers, body = reply
        assert isinstance(body, bytes)
        self.keep_alive = False
        self.response_started = True
        length = f"content-length: {len(body)}\r\n"
        head = self._head(status, headers, length)
        self._transport.write(head if self.call.method == "HEAD" else head + body)

    def leave(self) -> None:
        """The client has gone: whoever works for it stops."""
        if not self.response_complete and self.task is not None and not self.task.done():
            self.gone = True
            self.task.cancel()

    # -- inside ---------------------------------------------------------------------------------

    def _complete(self) -> None:
        self.response_complete = True
        if not self.keep_alive:
            self._transport.close()
        self._done()

    def _head(self, status: int, headers: Headers, more: str) -> bytes:
        """Status line and fields. All of a line is ours but its value, which may not end it: one
        count over the whole finds a line too many.
        """
        close = "" if self.keep_alive else "connection: close\r\n"
        start = _STARTS.get(status) or f"HTTP/1.1 {status} "
        head = "\r\n".join([start, *map(": ".join, headers)])  # in C: there are a dozen fields
        lines = len(headers)
        if head.count("\n") != lines or head.count("\r") != lines or "\0" in head:
            clean = [(name, value.translate(_NEVER_IN_A_LINE)) for name, value in headers]
            return self._head(status, clean, more)
        return f"{head}\r\n{self._fixed}{more}{close}\r\n".encode("latin-1", "replace")

    async def _send_later(self, piece: bytes) -> None:
        await self._flow.drain()
        waits = self.send(piece)
        if waits is not None:
            await waits

    async def _whole_later(self, status: int, headers: Headers, body: bytes) -> None:
        await self._flow.drain()
        self.whole(status, headers, body)
