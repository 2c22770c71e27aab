"""ASGI: a request comes in as a `Call`, its reply goes out. One callable for every route."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from gateway.openai_api.errors import BodyTooLarge, RequestTimedOut
from gateway.openai_api.words import Call, Reply
from gateway.server.options import ServerOptions
from gateway.server.service import Service

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# Most answers are there sooner; for them nobody need watch whether the client is still there.
_WATCH_AFTER_S = 0.2
_PING = b": ping\n\n"


class ASGI:
    """A service as an ASGI application.

    Args:
        service: answers.
        options: bounds on what is taken in.
        start, stop: awaited around the application's life.
    """

    def __init__(
        self,
        service: Service,
        options: ServerOptions,
        *,
        start: Callable[[], Awaitable[None]],
        stop: Callable[[], Awaitable[None]],
    ) -> None:
        self._service = service
        self._options = options
        self._start = start
        self._stop = stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:  # a websocket: refused before it is accepted
            await send({"type": "websocket.close", "code": 1000})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = _call(scope)
        try:
            call.body = await self._read(call, receive)
        except _GoneError:
            return
        except (BodyTooLarge, RequestTimedOut) as error:
            reply = self._service.error(call, error)
            await _send(reply, send, close=True)
            return
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        watch = _Watch(receive, task)
        timer = loop.call_later(_WATCH_AFTER_S, watch.start)
        try:
            reply = await self._service.handle(call)
            if isinstance(reply[2], bytes):
                await _send(reply, send)
            else:
                await self._stream(reply, reply[2], send)
        except asyncio.CancelledError:
            if not watch.gone:
                raise
        finally:
            timer.cancel()
            watch.stop()

    async def _stream(self, reply: Reply, body: AsyncIterator[bytes], send: Send) -> None:
        pinger = _Pinger(send, self._options.ping_s)
        try:
            await send(_head(reply))
            async for piece in body:
                pinger.spoke()
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            pinger.stop()
            await send({"type": "http.response.body", "body": b""})
        finally:
            pinger.stop()
            await body.aclose()  # type: ignore[attr-defined]

    async def _read(self, call: Call, receive: Receive) -> bytes:
        limit = self._options.max_body_bytes
        said = call.headers.get("content-length", "")
        if said.isdigit() and int(said) > limit:
            raise BodyTooLarge(f"the body has {said} bytes; at most {limit} are taken")
        message = await receive()
        body: bytes = message.get("body", b"")
        if not message.get("more_body") and message["type"] == "http.request":
            if len(body) > limit:
                raise BodyTooLarge(f"the body is longer than {limit} bytes")
            return body
        return await self._read_on(message, receive)

    async def _read_on(self, message: MutableMapping[str, Any], receive: Receive) -> bytes:
        limit, pieces, length = self._options.max_body_bytes, [], 0
        try:
            async with asyncio.timeout(self._options.body_s):
                while True:
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    pieces.append(message.get("body", b""))
                    length += len(pieces[-1])
                    if length > limit:
                        raise BodyTooLarge(f"the body is longer than {limit} bytes")
                    if not message.get("more_body"):
                        return b"".join(pieces)
                    message = await receive()
        except TimeoutError:
            wait_s = self._options.body_s
            raise RequestTimedOut(f"the body was not there after {wait_s:g} s") from None

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._start()
        except Exception as error:  # noqa: BLE001 - the server must say so and stop
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stop()
        await send({"type": "lifespan.shutdown.complete"})


class _GoneError(Exception):
    """The client left before its request was whole."""


class _Watch:
    """Cancels a task when its client goes away."""

    def __init__(self, receive: Receive, task: asyncio.Task[Any]) -> None:
        self.gone = False
        self._receive = receive
        self._task = task
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._watching = asyncio.get_running_loop().create_task(self._wait())

    def stop(self) -> None:
        """Stop watching."""
        if self._watching is not None:
            self._watching.cancel()

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._task.cancel()


class _Pinger:
    """Sends a comment into a stream that has said nothing for a while."""

    def __init__(self, send: Send, every_s: float) -> None:
        self._send = send
        self._every_s = every_s
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if every_s > 0:
            self._timer = self._loop.call_later(every_s, self._look)

    def spoke(self) -> None:
        """Something was sent."""
        self._last = self._loop.time()

    def stop(self) -> None:
        """No more comments."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        if now >= self._last + self._every_s - 0.001:
            self._last = now
            self._task = self._loop.create_task(self._ping())
        self._timer = self._loop.call_at(self._last + self._every_s, self._look)

    async def _ping(self) -> None:
        await self._send({"type": "http.response.body", "body": _PING, "more_body": True})


def _call(scope: Scope) -> Call:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    path = scope["path"]
    if path.startswith("/v1/"):
        path = path[3:]
    if len(path) > 1 and path.endswith("/"):
        path = path.rstrip("/") or "/"
    client = scope.get("client")
    return Call(
        scope["method"],
        path,
        headers,
        query=scope["query_string"].decode("latin-1"),
        peer=client[0] if client else "",
    )


def _head(reply: Reply, *more: tuple[bytes, bytes]) -> MutableMapping[str, Any]:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply[1]]
    return {"type": "http.response.start", "status": reply[0], "headers": [*headers, *more]}


async def _send(reply: Reply, send: Send, *, close: bool = False) -> None:
    body = reply[2]
    assert isinstance(body, bytes)
    more = [(b"content-length", str(len(body)).encode())]
    if close:  # what is left of the request is not read
        more.append((b"connection", b"close"))
    await send(_head(reply, *more))
    await send({"type": "http.response.body", "body": body})
