"""The edge in one process: what is sent in which order, and that nothing unread stays open."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from gateway.openai_api.words import Call, Reply
from gateway.server.asgi import ASGI
from gateway.server.edge import plain_path
from gateway.server.options import ServerOptions
from gateway.server.pings import PING, Pings
from gateway.simulator.clock import run


class Body:
    """A streamed body that says whether it was let go."""

    def __init__(self) -> None:
        self.freed = False
        self.left = [b"one"]

    def __aiter__(self) -> Body:
        return self

    async def __anext__(self) -> bytes:
        if self.freed:
            raise StopAsyncIteration
        if self.left:
            return self.left.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def aclose(self) -> None:
        self.freed = True


class Service:
    """Answers with one body."""

    stopping = False

    def __init__(self, body: Body) -> None:
        self.body = body

    async def handle(self, call: Call) -> Reply:
        return 200, [("content-type", "text/event-stream")], self.body


def scope(method: str = "GET") -> dict[str, Any]:
    return {"type": "http", "method": method, "path": "/x", "headers": [], "query_string": b""}


async def nothing_more() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


def edge(body: Body) -> ASGI:
    return ASGI(Service(body), ServerOptions())  # type: ignore[arg-type]


async def test_head_of_a_stream_is_its_head_alone() -> None:
    body, sent = Body(), []

    async def send(message: Any) -> None:
        sent.append(message)

    await edge(body)(scope("HEAD"), nothing_more, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert not sent[1]["body"]
    assert body.freed


async def test_a_stream_cancelled_before_its_first_piece_frees_what_it_held() -> None:
    body, blocked = Body(), asyncio.Event()

    async def send(message: Any) -> None:
        blocked.set()
        await asyncio.Event().wait()  # a client that does not read

    task = asyncio.create_task(edge(body)(scope(), nothing_more, send))
    await blocked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert body.freed


def test_no_comment_while_something_else_is_sent_and_none_after_the_end() -> None:
    sent: list[float] = []

    async def send(ping: bytes) -> None:
        assert ping == PING
        sent.append(asyncio.get_running_loop().time())

    async def stream() -> None:
        pings = Pings(send, 15.0)
        await asyncio.sleep(10)
        pings.paused = True
        await asyncio.sleep(100)  # a slow reader: what is sent first must go first
        pings.paused, pings.quiet_since = False, asyncio.get_running_loop().time()
        await asyncio.sleep(50)
        pings.stop()
        await asyncio.sleep(100)

    run(stream)
    assert len(sent) == 3
    assert 125 <= sent[0] <= 140
    assert [later - earlier for earlier, later in itertools.pairwise(sent)] == [15.0, 15.0]


def test_paths_are_written_as_routes_are() -> None:
    for path, plain in {
        "/v1/models": "/models",
        "/v1/models/": "/models",
        "/models": "/models",
        "/": "/",
        "//": "/",
        "/v1": "/v1",
        "/v1/": "/v1",
        "/v10/models": "/v10/models",
    }.items():
        assert plain_path(path) == plain
