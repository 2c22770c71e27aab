"""The end of every request is told once, however its stream ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.config import Config
from gateway.events import HTTPFinished
from gateway.openai_api.words import Body, Call, Reply
from gateway.server.app import App
from gateway.server.refusals import ShuttingDown
from gateway.server.service import Service

CONFIG = Config.from_dict(
    {
        "modes": {"fast": {"targets": [{"kind": "simulated"}]}},
        "server": {"log": "off", "usage_path": ":memory:"},
    }
)


class Broken(Exception):
    """A fault of ours."""


class Stream:
    """Two pieces, then an end as told; counts how often it was closed."""

    def __init__(self, end: BaseException) -> None:
        self.closed = 0
        self.coming: list[bytes | BaseException] = [b"one", b"two", end]

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        piece = self.coming.pop(0)
        if isinstance(piece, BaseException):
            raise piece
        return piece

    async def aclose(self) -> None:
        self.closed += 1


@pytest.fixture
async def app() -> AsyncIterator[App]:
    app = App(CONFIG)
    yield app
    await app.stop()


async def begun(app: App, stream: Stream, told: list[HTTPFinished]) -> tuple[Service, Body]:
    """The body of a stream that was asked for and not read yet."""

    async def handler(call: Call) -> Reply:
        return 200, [("content-type", "text/event-stream")], stream

    service = Service(
        app.gateway, app.service.access, {("GET", "/stream"): handler}, tell=told.append
    )
    call = Call("GET", "/stream", {"host": "localhost"}, peer="127.0.0.1")
    _, _, body = await service.handle(call)
    assert not isinstance(body, bytes)
    assert service.in_flight == 1
    assert not told
    return service, body


async def test_a_stream_read_to_its_end_is_told_once(app: App) -> None:
    told: list[HTTPFinished] = []
    stream = Stream(StopAsyncIteration())
    service, body = await begun(app, stream, told)
    assert [piece async for piece in body] == [b"one", b"two"]
    await body.aclose()
    await body.aclose()
    assert [(end.status, end.error, end.client_disconnected) for end in told] == [(200, "", False)]
    assert stream.closed == 1
    assert service.in_flight == 0


async def test_a_stream_is_broken_off_in_the_words_of_its_route(app: App) -> None:
    error = ShuttingDown("the service stops")
    stream = Stream(StopAsyncIteration())
    _, body = await begun(app, stream, [])
    assert body.last_words(error).startswith(b'data: {"error":')  # type: ignore[attr-defined]
    stream.last_words = lambda error: b"event: error\n\n"  # type: ignore[attr-defined]
    assert body.last_words(error) == b"event: error\n\n"  # type: ignore[attr-defined]
    await body.aclose()


async def test_a_stream_closed_before_it_was_begun_frees_what_it_holds(app: App) -> None:
    told: list[HTTPFinished] = []
    stream = Stream(StopAsyncIteration())
    service, body = await begun(app, stream, told)
    await body.aclose()
    assert [(end.error, end.client_disconnected) for end in told] == [("client_disconnected", True)]
    assert stream.closed == 1
    assert service.in_flight == 0


@pytest.mark.parametrize(
    ("end", "said"),
    [(asyncio.CancelledError(), "client_disconnected"), (Broken(), "internal_error")],
)
async def test_how_a_stream_broke_is_told(app: App, end: BaseException, said: str) -> None:
    told: list[HTTPFinished] = []
    stream = Stream(end)
    service, body = await begun(app, stream, told)
    with pytest.raises(type(end)):
        async for _ in body:
            pass
    await body.aclose()
    assert [one.error for one in told] == [said]
    assert stream.closed == 1
    assert service.in_flight == 0
