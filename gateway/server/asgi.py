"""ASGI: a request comes in as a `Call`, its reply goes out. One callable for every route.

How long a client may take is not watched here but where its connection is: see `connection.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from gateway.openai_api.errors import BodyTooLarge, envelope
from gateway.openai_api.words import Body, Call, Reply
from gateway.server.options import ServerOptions
from gateway.server.pings import Pings
from gateway.server.refusals import ShuttingDown
from gateway.server.service import Service
from gateway.server.watch import Watch

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Respond = Callable[[int, list[tuple[str, str]], bytes], bool]

RESPOND: Final = "gateway.respond"
"""Where a scope may hold a way to send a whole answer at once; see `Connection`."""

# A body that is refused is still taken in for a while: a client that is busy sending would never
# read why, and a connection closed with bytes unread is reset, answer and all (RFC 9112, 9.6).
_LINGER_BYTES: Final = 64 * 1024 * 1024


class ASGI:
    """A service as an ASGI application.

    Args:
        service: answers.
        options: bounds on what is taken in.
        wrapped: whether something around it must see each message.
    """

    def __init__(self, service: Service, options: ServerOptions, *, wrapped: bool = False) -> None:
        self._wrapped = wrapped
        self._service = service
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "http":
            respond = None if self._wrapped else scope.get(RESPOND)
            await self._http(_call(scope), receive, send, respond)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})  # before it was accepted: 403

    async def _http(
        self, call: Call, receive: Receive, send: Send, respond: Respond | None
    ) -> None:
        try:
            call.body = await self._read(call, receive)
        except _GoneError:
            return
        except BodyTooLarge as error:
            await _send(self._service.error(call, error), send, receive)
            return
        task = asyncio.current_task()
        assert task is not None
        watch = Watch(lambda: _left(receive), task)
        try:
            reply = await self._service.handle(call)
            body = reply[2]
            if isinstance(body, bytes):
                if respond is not None and respond(reply[0], reply[1], body):
                    return
                await send(_head(reply, (b"content-length", b"%d" % len(body))))
                await send({"type": "http.response.body", "body": body})
            else:
                await self._stream(reply, body, call, send, watch)
        except asyncio.CancelledError:
            if watch.gone:
                return
            if not self._service.stopping:
                raise
            await _send(self._service.refusal(call, ShuttingDown("the service stops")), send)
        finally:
            watch.stop()

    async def _stream(self, reply: Reply, body: Body, call: Call, send: Send, watch: Watch) -> None:
        try:
            await send(_head(reply))
        except BaseException:
            await body.aclose()
            raise
        if call.method == "HEAD":
            await body.aclose()
        pings = Pings(lambda ping: send(_piece(ping)), self._options.ping_s)
        try:
            async for piece in body:
                pings.pause()
                await send(_piece(piece))
                pings.resume()
        except asyncio.CancelledError:
            if watch.gone or not self._service.stopping:
                raise
            if call.generation_id:
                error = envelope(ShuttingDown("the service stops"))
                await send(_piece(b"data: " + error + b"\n\n"))  # and no [DONE]
        finally:
            pings.stop()
            await body.aclose()
        await send({"type": "http.response.body", "body": b""})

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
        message = await receive()
        body: bytes = message.get("body", b"")
        if not message.get("more_body") and message["type"] == "http.request":
            return _within(body, limit)
        pieces, length = [body], len(body)
        while message.get("more_body"):
            message = await receive()
            pieces.append(message.get("body", b""))
            length += len(pieces[-1])
            if length > limit:
                raise BodyTooLarge(f"the body is longer than {limit} bytes")
        if message["type"] == "http.disconnect":
            raise _GoneError
        return b"".join(pieces)


class _GoneError(Exception):
    """The client left before its request was whole."""


async def _left(receive: Receive) -> None:
    """Return once the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _call(scope: Scope) -> Call:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    client = scope.get("client")
    return Call(
        scope["method"],
        plain_path(scope["path"]),
        headers,
        query=scope["query_string"].decode("latin-1"),
        peer=client[0] if client else "",
    )


def plain_path(path: str) -> str:
    """A path as routes are written: without `/v1` in front and without a slash at the end."""
    if path.startswith("/v1/"):
        path = path[3:]
        if path == "/":
            return "/v1"
    return path if len(path) < 2 or path[-1] != "/" else path.rstrip("/") or "/"


def _within(body: bytes, limit: int) -> bytes:
    if len(body) > limit:
        raise BodyTooLarge(f"the body is longer than {limit} bytes")
    return body


def _head(reply: Reply, *more: tuple[bytes, bytes]) -> Message:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply[1]]
    headers += more
    return {"type": "http.response.start", "status": reply[0], "headers": headers}


def _piece(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _send(reply: Reply, send: Send, receive: Receive | None = None) -> None:
    """Send a refusal and close; what is left of the request is taken in first, and dropped."""
    body = reply[2]
    assert isinstance(body, bytes)
    length = (b"content-length", b"%d" % len(body))
    await send(_head(reply, length, (b"connection", b"close")))
    await send(_piece(body))
    left = _LINGER_BYTES
    while receive is not None and left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.body", "body": b""})
