"""Stop signals: not ready at once, answers under way end within the bound, and it exits with 0."""

from __future__ import annotations

import asyncio
import signal

import pytest

from gateway.simulator.scripted.exchange import Exchange
from gateway.simulator.scripted.server import ScriptedUpstream
from tests.server.conftest import Serve
from tests.server.live import Client, Live, chat, post


class Held:
    """An answer that is begun, and goes on when it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.stream:
            exchange.head()
            exchange.role()
            exchange.say("begun ")
        await self.go.wait()
        if exchange.stream:
            exchange.say("ended")
            exchange.finish()
        else:
            exchange.json(exchange.completion({"content": "ended"}))


async def begun(live: Live, upstream: ScriptedUpstream, held: Held, *, stream: bool) -> Client:
    upstream.script("creative-model", [held])
    client = await live.connect()
    before = upstream.stats("creative-model").in_flight
    client.send(post("/v1/chat/completions", chat("creative", stream=stream)))
    await upstream.until(lambda: upstream.stats("creative-model").in_flight == before + 1)
    return client


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_answers_under_way_are_finished_first(
    serve: Serve, upstream: ScriptedUpstream, number: signal.Signals
) -> None:
    held = Held()
    async with serve() as live:
        stream = await begun(live, upstream, held, stream=True)
        whole = await begun(live, upstream, held, stream=False)
        await stream.head()
        live.send_signal(number)
        await live.refuses()
        held.go.set()
        body = b"".join([piece async for piece in stream.chunks()])
        assert b"ended" in body
        assert body.endswith(b"data: [DONE]\n\n")
        answer = await whole.answer()
        assert answer.status == 200
        assert b"ended" in answer.body
        assert await live.ended() == 0


@pytest.mark.parametrize("twice", [False, True])
async def test_what_does_not_end_in_time_is_broken_off_in_words(
    serve: Serve, upstream: ScriptedUpstream, twice: bool
) -> None:
    async with serve(shutdown_s=60 if twice else 0.3) as live:
        stream = await begun(live, upstream, Held(), stream=True)
        whole = await begun(live, upstream, Held(), stream=False)
        idle = await live.connect()
        await stream.head()
        live.send_signal(signal.SIGTERM)
        if twice:
            await live.refuses()
            live.send_signal(signal.SIGTERM)
        body = b"".join([piece async for piece in stream.chunks()])
        assert b'"shutting_down"' in body
        assert b"[DONE]" not in body
        answer = await whole.answer()
        assert answer.status == 503
        assert answer.error["code"] == "shutting_down"
        assert answer.headers["x-should-retry"] == "true"
        await idle.closed()
        assert await live.ended() == 0
        await upstream.until(lambda: upstream.stats("creative-model").in_flight == 0)


async def test_an_idle_service_stops_at_once(serve: Serve) -> None:
    async with serve() as live:
        idle = await live.connect()
        idle.send("GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert (await idle.answer()).status == 200
        began = asyncio.get_running_loop().time()
        live.send_signal(signal.SIGTERM)
        assert await live.ended() == 0
        assert asyncio.get_running_loop().time() - began < 3
        assert "Traceback" not in "".join(live.log)
