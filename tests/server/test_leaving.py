"""Clients that leave, read slowly or wait long: upstream hears of it, and nothing stays behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.simulator.scripted.exchange import Exchange
from gateway.simulator.scripted.server import ScriptedUpstream
from tests.server.conftest import UVICORN, Serve
from tests.server.live import Live, chat, post


def nothing_left(status: dict[str, Any]) -> bool:
    modes = status["modes"].values()
    return status["in_flight"] == 0 and all(
        mode["in_flight"] == {"native": 0, "downshifted": 0} for mode in modes
    )


async def leave(live: Live, upstream: ScriptedUpstream, play: str, *, stream: bool) -> float:
    """Ask, leave in the middle; seconds until the upstream's request is gone."""
    upstream.script("creative-model", [play])
    stats = upstream.stats("creative-model")
    client = await live.connect()
    client.send(post("/v1/chat/completions", chat("creative", stream=stream)))
    await upstream.until(lambda: stats.in_flight == 1)
    if play == "one_token_then_stall":
        await client.head()
        assert b"data:" in await client.reader.readuntil(b"\n\n")
    loop = asyncio.get_running_loop()
    client.close()
    left = loop.time()
    await upstream.until(lambda: stats.in_flight == 0)
    return loop.time() - left


@pytest.mark.parametrize(
    ("window", "play", "stream"),
    [
        ("before the first token", "headers_then_silence", True),
        ("in mid-stream", "one_token_then_stall", True),
        ("in one piece", "silent", False),
    ],
)
async def test_a_client_that_leaves_frees_the_upstream_within_a_second(
    serve: Serve, upstream: ScriptedUpstream, window: str, play: str, stream: bool
) -> None:
    async with serve() as live:
        took_s = await leave(live, upstream, play, stream=stream)
        assert took_s < 1, window
        await live.until(nothing_left)
        assert upstream.stats("fast-model").requests == 0  # nobody was asked in its place
        line = await live.says(lambda line: '"client_disconnected":true' in line)
        assert "creative" in line


@UVICORN
async def test_a_client_that_leaves_behind_a_second_request_frees_both(
    serve: Serve, upstream: ScriptedUpstream
) -> None:
    async with serve() as live:
        upstream.script("creative-model", ["silent"])
        client = await live.connect()
        client.send(post("/v1/chat/completions", chat("creative")) * 2)
        await upstream.until(lambda: upstream.stats("creative-model").in_flight == 1)
        client.close()
        await upstream.until(lambda: upstream.stats("creative-model").in_flight == 0)
        await live.until(nothing_left)
        assert upstream.stats("creative-model").requests == 1


async def test_a_client_that_stops_reading_is_cut_off(
    serve: Serve, upstream: ScriptedUpstream
) -> None:
    async def flood(exchange: Exchange) -> None:
        exchange.head()
        exchange.role()
        while True:
            exchange.say("x" * 10_000)
            await exchange.pause()

    async with serve(send_s=1.0) as live:
        upstream.pace_s = 0.002
        upstream.script("creative-model", [flood])
        client = await live.connect(receive_buffer=4096)
        client.send(post("/v1/chat/completions", chat("creative", stream=True)))
        await upstream.until(lambda: upstream.stats("creative-model").in_flight == 1)
        await upstream.until(lambda: upstream.stats("creative-model").aborted == 1, within_s=15)
        await live.until(nothing_left)
        memory = await live.memory_mb()
        assert memory < 150, "what nobody reads is not kept"


async def test_an_answer_nobody_reads_is_not_kept_for_good_though_upstream_is_done(
    serve: Serve, upstream: ScriptedUpstream
) -> None:
    async def long(exchange: Exchange) -> None:
        exchange.head()
        exchange.role()
        exchange.say(*["x" * 100_000] * 120)  # more than the kernel holds on both sides
        exchange.finish()
        exchange.end()

    async with serve(send_s=1.0) as live:
        upstream.script("creative-model", [long])
        client = await live.connect(receive_buffer=4096)
        client.send(post("/v1/chat/completions", chat("creative", stream=True)))
        stats = upstream.stats("creative-model")
        await upstream.until(lambda: stats.requests == 1 and stats.in_flight == 0)
        assert held(live.port) == 1
        async with asyncio.timeout(10):
            while held(live.port):
                await asyncio.sleep(0.02)
        await live.until(nothing_left)
        assert stats.aborted == 0


def held(port: int) -> int:
    """Connections that a service on this machine has at a port, by proc(5)."""
    rows = (row.split() for row in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:])
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)  # established


async def test_silence_is_filled_with_comments_and_a_late_failure_is_an_event(
    serve: Serve, upstream: ScriptedUpstream
) -> None:
    go = asyncio.Event()

    async def late_failure(exchange: Exchange) -> None:
        await go.wait()
        exchange.reset()

    async with serve(stream_headers_s=0.1, ping_s=0.1) as live:
        for model in ("creative-model", "fast-model"):
            upstream.script(model, [late_failure])
        client = await live.connect()
        client.send(post("/v1/chat/completions", chat("creative", stream=True)))
        status, headers = await client.head()
        assert status == 200
        assert headers["content-type"].startswith("text/event-stream")
        pieces = client.chunks()
        assert [await anext(pieces) for _ in range(3)] == [b": ping\n\n"] * 3
        go.set()
        rest = b"".join([piece async for piece in pieces]).replace(b": ping\n\n", b"")
        assert rest.startswith(b'data: {"error":')
        assert b"all_modes_failed" in rest
        assert b"[DONE]" not in rest


async def test_comments_stand_between_events(serve: Serve, upstream: ScriptedUpstream) -> None:
    async with serve(ping_s=0.02) as live:
        upstream.pace_s = 0.05
        upstream.script("creative-model", ["drip"])
        answer = await live.post("/v1/chat/completions", chat("creative", stream=True))
        events = answer.body.split(b"\n\n")
        assert events.count(b": ping") >= 3
        assert all(
            event.startswith((b"data: {", b": ping", b"data: [DONE]")) for event in events[:-1]
        )
        assert events[-2:] == [b"data: [DONE]", b""]


async def test_an_early_failure_of_a_stream_has_its_own_status(
    serve: Serve, upstream: ScriptedUpstream
) -> None:
    async with serve() as live:
        for model in ("creative-model", "fast-model"):
            upstream.script(model, ["500"])
        answer = await live.post("/v1/chat/completions", chat("creative", stream=True))
        assert answer.status == 503
        assert answer.error["code"] == "all_modes_failed"


async def test_many_clients_that_come_and_go_leave_nothing(
    serve: Serve, upstream: ScriptedUpstream
) -> None:
    async with serve() as live:
        upstream.script("creative-model", ["one_token_then_stall"])
        clients = [await live.connect() for _ in range(60)]
        for number, client in enumerate(clients):
            client.send(
                post(
                    "/v1/chat/completions",
                    chat("creative", stream=number % 2 == 0, text=f"{number}"),
                )
            )
        await upstream.until(lambda: upstream.stats("creative-model").in_flight >= 50, within_s=10)
        for client in clients:
            client.close()
        await upstream.until(lambda: upstream.stats("creative-model").in_flight == 0)
        await live.until(nothing_left)
        assert (await live.files()) < 80
