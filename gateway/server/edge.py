"""From a call to its client's ear: what is the same whichever interface carries it.

Each interface (`connection.py`, `rsgi.py`, `asgi.py`) has an `Out` of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Final, Protocol

from gateway.openai_api.words import Body, Call
from gateway.server.pings import Pings
from gateway.server.refusals import ShuttingDown
from gateway.server.service import Service, error_event

Headers = list[tuple[str, str]]

# A body that is refused is still taken in for a while: a client that is busy sending would never
# read why, and a connection closed with bytes unread is reset, answer and all (RFC 9112, 9.6).
LINGER_BYTES: Final = 64 * 1024 * 1024


class Out(Protocol):
    """One request's way back. What a call returns, if anything, is to be awaited."""

    @property
    def gone(self) -> bool:
        """Whether the client has left, and the task that answers it was cancelled for that."""

    def whole(self, status: int, headers: Headers, body: bytes) -> Awaitable[object] | None:
        """Send an answer in one piece."""

    def begin(self, status: int, headers: Headers) -> Awaitable[object] | None:
        """Send the head of an answer in pieces."""

    def send(self, piece: bytes) -> Awaitable[object] | None:
        """Send a piece. Whoever waits here is held up by a client that does not read."""

    def end(self) -> Awaitable[object] | None:
        """Nothing more comes."""


async def answer(service: Service, call: Call, out: Out, ping_s: float) -> None:
    """Answer a call, and see to it that a stop of the service is said and not only done.

    Args:
        service: knows the answer.
        call: the request, its body complete.
        out: the way back.
        ping_s: silence allowed in a stream, seconds; 0 is without bound.
    """
    waits: Awaitable[object] | None
    try:
        status, headers, body = await service.handle(call)
        if isinstance(body, bytes):
            waits = out.whole(status, headers, body)
            if waits is not None:
                await waits
        else:
            await _stream(service, call, out, status, headers, body, ping_s)
    except asyncio.CancelledError:
        if out.gone:
            return
        if not service.stopping:
            raise
        status, headers, body = service.refusal(call, ShuttingDown("the service stops"))
        assert isinstance(body, bytes)
        waits = out.whole(status, headers, body)
        if waits is not None:
            await waits


def fields_of(given: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Header fields by lower-case name. Several of one name are one list (RFC 9110, 5.3): a
    `no-store` is not undone by a `max-age` that a proxy adds.
    """
    fields: dict[str, str] = {}
    for raw_name, raw_value in given:
        name, value = raw_name.lower().decode("latin-1"), raw_value.decode("latin-1")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def plain_path(path: str) -> str:
    """A path as routes are written: without `/v1` in front and without a slash at the end."""
    if path[:4] == "/v1/":
        path = path[3:]
        if path == "/":
            return "/v1"
    return path if path[-1:] != "/" else path.rstrip("/") or "/"


async def _stream(
    service: Service,
    call: Call,
    out: Out,
    status: int,
    headers: Headers,
    body: Body,
    ping_s: float,
) -> None:
    try:
        await _sent(out.begin(status, headers))
    except BaseException:
        await body.aclose()
        raise
    if call.method == "HEAD":
        await body.aclose()
    pings = Pings(lambda ping: _sent(out.send(ping)), ping_s)
    now = asyncio.get_running_loop().time
    try:
        async for piece in body:
            waits = out.send(piece)
            if waits is not None:
                pings.paused = True
                await waits
                pings.paused = False
            pings.quiet_since = now()
    except asyncio.CancelledError:
        if out.gone or not service.stopping:
            raise
        if call.generation_id:
            words = getattr(body, "last_words", error_event)
            await _sent(out.send(words(ShuttingDown("the service stops"))))  # and no [DONE]
    finally:
        pings.stop()
        await body.aclose()
    await _sent(out.end())


async def _sent(waits: Awaitable[object] | None) -> None:
    if waits is not None:
        await waits
