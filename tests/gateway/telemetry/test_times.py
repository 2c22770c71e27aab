"""Where the time of a request went, told by the real pipeline on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.config import Config
from gateway.errors import AdmissionRejected
from gateway.events import Event, RequestFinished
from gateway.gateway import Gateway
from gateway.simulator.clock import run

# 1 ms to connect, 0.1 s to the first token, three more in 0.06 s; the loop itself takes no time.
SERVICE = {"first_token_s": 0.1, "spread": 0.0, "tokens": 4, "tokens_per_s": 50.0}
ANSWER_S = pytest.approx(0.161)


def told(scenario: Callable[[Gateway], Awaitable[None]], **mode: Any) -> list[RequestFinished]:
    """Every request's end in a scenario with one mode."""
    finished: list[RequestFinished] = []

    def hear(event: Event) -> None:
        if isinstance(event, RequestFinished):
            finished.append(event)

    async def main() -> None:
        target = {"kind": "simulated", "options": SERVICE}
        config = Config.from_dict({"modes": {"solo": {"targets": [target], **mode}}})
        clock = asyncio.get_running_loop().time
        async with Gateway(config, clock=clock, listeners=[hear]) as gateway:
            await scenario(gateway)

    run(main)
    return finished


def test_an_answer_is_all_upstream_and_a_hit_is_none() -> None:
    async def scenario(gateway: Gateway) -> None:
        await gateway.generate("hello")
        await gateway.generate("hello")

    answered, hit = told(scenario)
    assert (answered.duration_s, answered.upstream_s) == (ANSWER_S, ANSWER_S)
    assert answered.overhead_s == pytest.approx(0.0)
    assert answered.first_token_s == pytest.approx(0.101)
    assert answered.inter_token_s == pytest.approx(0.02)
    assert (hit.cached, hit.upstream_s, hit.overhead_s) == (True, 0.0, 0.0)


def test_a_reader_who_takes_ten_seconds_is_neither_upstream_nor_overhead() -> None:
    async def scenario(gateway: Gateway) -> None:
        for _ in range(2):  # live, and from the store
            async with gateway.stream("hello") as stream:
                async for _ in stream:
                    await asyncio.sleep(2.0)

    live, hit = told(scenario)
    assert live.duration_s >= 8.0
    assert live.upstream_s == ANSWER_S
    assert live.overhead_s == pytest.approx(0.0)
    assert live.inter_token_s == pytest.approx(0.02)
    assert hit.cached
    assert hit.duration_s >= 2.0
    assert hit.overhead_s == pytest.approx(0.0)


def test_who_waited_in_line_waited_there() -> None:
    async def scenario(gateway: Gateway) -> None:
        await asyncio.gather(*(gateway.generate(f"question {n}") for n in range(3)))

    first, second, third = told(scenario, max_in_flight=1)
    assert [event.queued_s for event in (first, second, third)] == [
        0.0, ANSWER_S, pytest.approx(0.322),
    ]  # fmt: skip
    assert [event.overhead_s for event in (first, second, third)] == pytest.approx([0.0] * 3)
    assert third.duration_s == pytest.approx(0.483)


def test_who_was_turned_away_knows_how_long_it_waited() -> None:
    async def scenario(gateway: Gateway) -> None:
        slow = asyncio.ensure_future(gateway.generate("slow", deadline=100.0))
        await asyncio.sleep(0)
        with pytest.raises(AdmissionRejected):
            await gateway.generate("late", deadline=0.2)
        await slow

    refused, _ = told(scenario, max_in_flight=1)
    assert (refused.outcome, refused.status) == ("refused", 429)
    assert refused.queued_s == pytest.approx(0.1)
    assert (refused.upstream_s, refused.overhead_s) == (None, None)


def test_who_joins_a_flight_half_way_has_no_overhead_of_its_own() -> None:
    async def scenario(gateway: Gateway) -> None:
        first = asyncio.ensure_future(gateway.generate("hello"))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, gateway.generate("hello"))

    first, joined = sorted(told(scenario), key=lambda event: -event.duration_s)
    assert first.overhead_s == pytest.approx(0.0)
    assert joined.duration_s == pytest.approx(0.111)
    assert (joined.upstream_s, joined.overhead_s, joined.inter_token_s) == (ANSWER_S, None, None)
