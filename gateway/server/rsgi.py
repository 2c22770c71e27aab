"""RSGI, granian's interface: the same service, without ASGI's messages in between.

https://github.com/emmett-framework/granian/blob/master/docs/spec/RSGI.md
"""

from __future__ import annotations

import asyncio
from typing import Any

from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]

from gateway.errors import GatewayError
from gateway.openai_api.errors import BodyTooLarge, RequestTimedOut, envelope
from gateway.openai_api.words import Body, Call, Reply
from gateway.server.asgi import plain_path
from gateway.server.options import ServerOptions
from gateway.server.pings import Pings
from gateway.server.refusals import ShuttingDown
from gateway.server.service import Service
from gateway.server.watch import Watch


class RSGI:
    """A service as an RSGI application.

    Args:
        service: answers.
        options: bounds on what is taken in.

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
        try:
            call.body = await self._read(call, protocol)
        except GatewayError as error:
            _send(self._service.error(call, error), protocol)
            return
        watch = Watch(protocol.client_disconnect, task)
        try:
            reply = await self._service.handle(call)
            if isinstance(reply[2], bytes):
                _send(reply, protocol)
            else:
                await self._stream(reply, reply[2], call, protocol, watch)
        except ProtocolClosed:  # gone before the watch saw it
            return
        except asyncio.CancelledError:
            if watch.gone:
                return
            if not self._service.stopping:
                raise
            _send(self._service.refusal(call, ShuttingDown("the service stops")), protocol)
        finally:
            watch.stop()

    async def _stream(
        self, reply: Reply, body: Body, call: Call, protocol: Any, watch: Watch
    ) -> None:
        if call.method == "HEAD":
            await body.aclose()
            protocol.response_empty(reply[0], reply[1])
            return
        stream = protocol.response_stream(reply[0], reply[1])
        pings = Pings(stream.send_bytes, self._options.ping_s)
        try:
            async for piece in body:
                pings.pause()
                await stream.send_bytes(piece)
                pings.resume()
        except asyncio.CancelledError:
            if watch.gone or not self._service.stopping:
                raise
            if call.generation_id:
                error = envelope(ShuttingDown("the service stops"))
                await stream.send_bytes(b"data: " + error + b"\n\n")  # and no [DONE]
        finally:
            pings.stop()
            await body.aclose()

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


def _call(scope: Any) -> Call:
    return Call(
        scope.method,
        plain_path(scope.path),
        dict(scope.headers.items()),
        query=scope.query_string,
        peer=scope.client.rpartition(":")[0].strip("[]"),
    )


def _send(reply: Reply, protocol: Any) -> None:
    status, headers, body = reply
    protocol.response_bytes(status, headers, body)
