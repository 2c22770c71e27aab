"""RSGI, granian's interface: the same service, without ASGI's messages in between.

https://github.com/emmett-framework/granian/blob/master/docs/spec/RSGI.md
"""

from __future__ import annotations

import asyncio
from typing import Any

from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]

from gateway.errors import GatewayError
from gateway.openai_api.errors import BodyTooLarge, RequestTimedOut
from gateway.openai_api.words import Call
from gateway.server.edge import Headers, answer, plain_path
from gateway.server.options import ServerOptions
from gateway.server.refusals import TooManyConnections
from gateway.server.service import Service
from gateway.server.watch import Watch


class RSGI:
    """A service as an RSGI application.

    Args:
        service: answers.
        options: bounds on what is taken in. RSGI shows no connections, so `max_connections` bounds
            the requests under way: at most one on each.

    Attributes:
        tasks: requests being answered.
    """

    def __init__(self, service: Service, options: ServerOptions) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        self._service = service
        self._options = options

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Serve one request; a websocket is refused."""
        if scope.proto != "http":
            protocol.close(403)
            return
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self._http(_call(scope), protocol, task)
        finally:
            self.tasks.discard(task)

    async def _http(self, call: Call, protocol: Any, task: asyncio.Task[Any]) -> None:
        out = _Out(protocol, call)
        try:
            if len(self.tasks) > self._options.max_connections:
                raise TooManyConnections("too many requests under way; try again in a moment")
            call.body = await self._read(call, protocol)
        except GatewayError as error:
            status, headers, body = self._service.error(call, error)
            assert isinstance(body, bytes)
            out.whole(status, [*headers, ("connection", "close")], body)
            return
        out.watch = watch = Watch(protocol.client_disconnect, task)
        try:
            await answer(self._service, call, out, self._options.ping_s)
        except ProtocolClosed:  # gone before the watch saw it
            return
        finally:
            watch.stop()
            out.end()

    async def _read(self, call: Call, protocol: Any) -> bytes:
        """The whole body.

        Raises:
            BodyTooLarge: it is, or says it will be, longer than is taken.
            RequestTimedOut: it was not there in time.
        """
        headers, limit = call.headers, self._options.max_body_bytes
        said = headers.get("content-length")
        if said is None and "transfer-encoding" not in headers:
            return b""
        too_long = BodyTooLarge(f"at most {limit} bytes of body are taken")
        if said is not None and int(said) > limit:
            raise too_long
        pieces, length = [], 0
        try:
            async with asyncio.timeout(self._options.body_s):
                async for piece in protocol:
                    length += len(piece)
                    if length > limit:
                        raise too_long
                    pieces.append(piece)
        except TimeoutError:
            wait_s = self._options.body_s
            raise RequestTimedOut(f"the body was not there after {wait_s:g} s") from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Out:
    """An `edge.Out`."""

    def __init__(self, protocol: Any, call: Call) -> None:
        self._protocol = protocol
        self._call = call
        self._stream: Any = None
        self.watch: Watch | None = None

    @property
    def gone(self) -> bool:
        return self.watch is not None and self.watch.gone

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        self._protocol.response_bytes(status, headers, body)

    def begin(self, status: int, headers: Headers) -> None:
        if self._call.method == "HEAD":
            self._protocol.response_empty(status, headers)
        else:
            self._stream = self._protocol.response_stream(status, headers)

    async def send(self, piece: bytes) -> None:
        """Send a piece. A coroutine so that nobody keeps what granian returns: it holds the error
        of a client that left, which holds the frames that hold it, unseen by the collector.
        """
        if self._stream is not None:
            await self._stream.send_bytes(piece)

    def end(self) -> None:
        """Let go of the stream: granian ends it when nobody holds it any more."""
        self._stream = None


def _call(scope: Any) -> Call:
    return Call(
        scope.method,
        plain_path(scope.path),
        dict(scope.headers.items()),
        query=scope.query_string,
        peer=scope.client.rpartition(":")[0].strip("[]"),
    )
