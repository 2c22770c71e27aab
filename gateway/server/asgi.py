"""ASGI: the service as an application for any ASGI server, or for a test without a socket.

What it lacks are bounds on a slow client: those are where a connection is, see `connection.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gateway.openai_api.errors import BodyTooLarge
from gateway.openai_api.words import Call
from gateway.server.edge import LINGER_BYTES, Headers, answer, fields_of, plain_path
from gateway.server.options import ServerOptions
from gateway.server.service import Service
from gateway.server.watch import Watch

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ASGI:
    """A service as an ASGI application.

    Args:
        service: answers.
        options: bounds on what is taken in.
    """

    def __init__(self, service: Service, options: ServerOptions) -> None:
        self._service = service
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "http":
            await self._http(_call(scope), receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})  # before it was accepted: 403

    async def _http(self, call: Call, receive: Receive, send: Send) -> None:
        out = _Out(send)
        try:
            call.body = await self._read(call, receive)
        except _GoneError:
            return
        except BodyTooLarge as error:
            status, headers, body = self._service.error(call, error)
            assert isinstance(body, bytes)
            await out.whole(status, [*headers, ("connection", "close")], body)
            await _drop(receive)
            return
        task = asyncio.current_task()
        assert task is not None
        out.watch = watch = Watch(lambda: _left(receive), task)
        try:
            await answer(self._service, call, out, self._options.ping_s)
        finally:
            watch.stop()

    async def _read(self, call: Call, receive: Receive) -> bytes:
        """The whole body.

        Raises:
            BodyTooLarge: it is, or says it will be, longer than is taken.
            _GoneError: the client left.
        """
        limit = self._options.max_body_bytes
        said = call.headers.get("content-length")
        if said is not None and int(said) > limit:
            raise BodyTooLarge(f"the body has {said} bytes; at most {limit} are taken")
        pieces, length, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            more = message.get("more_body", False)
            pieces.append(message.get("body", b""))
            length += len(pieces[-1])
            if length > limit:
                raise BodyTooLarge(f"the body is longer than {limit} bytes")
        return b"".join(pieces)


class _Out:
    """An `edge.Out`."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.watch: Watch | None = None

    @property
    def gone(self) -> bool:
        return self.watch is not None and self.watch.gone

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        await self.begin(status, [*headers, ("content-length", str(len(body)))])
        await self._send({"type": "http.response.body", "body": body})

    async def begin(self, status: int, headers: Headers) -> None:
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def send(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})


class _GoneError(Exception):
    """The client left before its request was whole."""


async def _left(receive: Receive) -> None:
    """Return once the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _drop(receive: Receive) -> None:
    """Take in what is left of a request, for a while."""
    left = LINGER_BYTES
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if not message.get("more_body"):
            return


def _call(scope: Scope) -> Call:
    client = scope.get("client")
    return Call(
        scope["method"],
        plain_path(scope["path"]),
        fields_of(scope["headers"]),
        query=scope["query_string"].decode("latin-1"),
        peer=client[0] if client else "",
    )
