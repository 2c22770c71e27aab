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

Deadlines are plain numbers that one sweep compares now and then: a request needs no timer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.errors import GatewayError
from gateway.openai_api.errors import RequestTimedOut
from gateway.openai_api.words import Call, Reply
from gateway.server.asgi import RESPOND
from gateway.server.options import ServerOptions
from gateway.server.refusals import BadHTTP, HeadTooLarge, TooManyConnections

MAX_HEAD_BYTES: Final = 65_536
MAX_FIELDS: Final = 100
_MAX_AHEAD: Final = 8
_SPARE: Final = 256  # connections past the limit that are still told why
_LINGER_S: Final = 2.0

_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}

Refuse = Callable[[Call, GatewayError], Reply]


class Connection(HttpToolsProtocol):
    """A client's connection.

    Args:
        options: its bounds.
        refuse: the reply to what never became a request; `Service.error`.
        parts: what uvicorn hands to a protocol.
    """

    def __init__(self, options: ServerOptions, refuse: Refuse, **parts: Any) -> None:
        super().__init__(**parts)
        self._options = options
        self._refuse = refuse
        self._why: GatewayError | None = None
        self._running: RequestResponseCycle | None = None
        self._deaf = False  # what still comes in is thrown away
        self._over = False
        self._in_head = True
        self._head_bytes = 0
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
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self._deaf:
            self._turn_away(_too_long())

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
        if len(self.pipeline) >= _MAX_AHEAD:
            raise self._reason(BadHTTP("too many requests ahead of their answers"))
        self._in_head = False
        self._head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
        if self.cycle is self._running:
            self._deadline = math.inf

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn when the parser, or one of the callbacks above, gave up."""
        self._turn_away(self._why or BadHTTP("this is not HTTP/1.1"))

    def _unsupported_upgrade_warning(self) -> None:
        """A websocket, or another protocol: answered as the plain request it also is, once."""
        self._deaf = True
        if self._running is not None:
            self._running.keep_alive = False

    # -- from request to answer -----------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        # A request without a body is complete within the very read that brought its head.
        self._deadline = self.loop.time() + self._options.body_s if cycle.more_body else math.inf
        cycle.scope[RESPOND] = partial(self._respond, cycle)  # type: ignore[typeddict-unknown-key]
        super()._start_asgi_task(cycle, app)

    def _respond(
        self,
        cycle: RequestResponseCycle,
        status: int,
        headers: list[tuple[str, str]],
        body: bytes,
    ) -> bool:
        """Send a whole answer in one write, if that can be done now.

        `cycle.send` takes it in two messages and searches each header twice for what must not be
        there; here one count over the head finds a line too many. In doubt it is left to `send`.
        """
        if cycle.disconnected or self.flow.write_paused:
            return False
        lines = [f"{name}: {value}\r\n" for name, value in headers]
        lines += [f"{n.decode()}: {v.decode()}\r\n" for n, v in cycle.default_headers]
        lines.append(f"content-length: {len(body)}\r\n")
        if not cycle.keep_alive:
            lines.append("connection: close\r\n")
        head = "".join(lines)
        if head.count("\n") != len(lines) or head.count("\r") != len(lines) or "\0" in head:
            return False
        text = f"HTTP/1.1 {status} {_PHRASES[status]}\r\n{head}\r\n".encode("latin-1")
        self.transport.write(text if cycle.scope["method"] == "HEAD" else text + body)
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()
        return True

    def on_response_complete(self) -> None:
        if self.transport.is_closing():
            self._deadline = self.loop.time() + _LINGER_S
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        options = self._options
        wait_s = options.header_s if self._head_bytes else options.keep_alive_s
        self._deadline = self.loop.time() + wait_s

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # uvicorn tells only the latest request, which may stand behind another one.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        self.pipeline.clear()

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
        self.pipeline.clear()
        running = self._running
        if running is not None and not running.response_complete:
            if not self._receiving():
                running.keep_alive = False
                return
            running.disconnected = True
            running.message_event.set()
        peer = self.client[0] if self.client else ""
        self.transport.write(_raw(self._refuse(Call("", "", peer=peer), error)))
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


def _raw(reply: Reply) -> bytes:
    status, headers, body = reply
    assert isinstance(body, bytes)
    fields = [*headers, ("content-length", str(len(body))), ("connection", "close")]
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"HTTP/1.1 {status} {_PHRASES[status]}\r\n{head}\r\n".encode("latin-1") + body
