"""What is kept, for whom and for how long; what is asked once: points 15 and 16, B18 to B22."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from world import FOREVER, MODES, World, ladder, play

from gateway.errors import (
    AllModesFailed,
    CircuitOpen,
    DeadlineExceeded,
    GatewayError,
    UpstreamRejected,
    UpstreamUnavailable,
)
from gateway.generation import CacheControl, Generation
from gateway.policies.phases import Phase
from gateway.simulator.faults import AnyFault, CutStream, Outage, Stall, Throttled

ASK = "a question asked more than once"


def just_before_and_at(start: float, age: float) -> tuple[float, float]:
    """The last clock time at which something from `start` is younger than `age`, and the next."""
    at = start + age
    while at - start >= age:
        at = math.nextafter(at, -math.inf)
    while (after := math.nextafter(at, math.inf)) - start < age:
        at = after
    return at, after


async def ask_and_note(world: World, mode: str = "creative", **options: Any) -> float:
    """Ask once; return when the answer was stored."""
    await world.ask(mode, ASK, **options)
    return world.now


def test_15_a_native_answer_is_fresh_for_less_than_an_hour() -> None:
    async def scenario(world: World) -> None:
        stored = await ask_and_note(world)
        before, after = just_before_and_at(stored, 3600.0)
        await world.until(before)
        answer = await world.ask(prompt=ASK)
        assert answer.cached
        assert answer.served.age_s < 3600.0
        assert (answer.served.ttl_s, answer.served.attempts) == (3600.0, 0)
        await world.until(after)
        answer = await world.ask(prompt=ASK)
        assert not answer.cached
        assert world.calls("creative") == 2

    play(scenario)


def test_15_a_stand_in_is_fresh_for_less_than_five_minutes() -> None:
    async def scenario(world: World) -> None:
        world.gateway.force("creative", "open")
        stored = await ask_and_note(world)
        before, after = just_before_and_at(stored, 300.0)
        await world.until(before)
        answer = await world.ask(prompt=ASK)
        assert (answer.mode, answer.degraded, answer.cached) == ("balanced", True, True)
        assert answer.served.age_s < 300.0
        assert answer.served.ttl_s == 300.0
        await world.until(after)
        answer = await world.ask(prompt=ASK)
        assert not answer.cached
        assert world.calls("balanced") == 2

    play(scenario)


def test_15_for_its_own_mode_the_same_entry_is_fresh_for_an_hour() -> None:
    async def scenario(world: World) -> None:
        world.gateway.force("creative", "open")
        await ask_and_note(world)
        await asyncio.sleep(3000.0)
        assert (await world.ask("balanced", ASK)).cached
        assert not (await world.ask("creative", ASK)).cached

    play(scenario)


def test_15_on_recovery_stand_ins_vanish_at_once() -> None:
    async def scenario(world: World) -> None:
        world.gateway.force("creative", "open")
        await ask_and_note(world)
        assert (await world.ask(prompt=ASK)).cached
        world.gateway.force("creative", "closed")
        answer = await world.ask(prompt=ASK)
        assert (answer.mode, answer.cached) == ("creative", False)

    play(scenario)


def test_15_on_downshift_native_entries_keep_their_age() -> None:
    async def scenario(world: World) -> None:
        stored = await ask_and_note(world)
        await asyncio.sleep(2000.0)
        world.gateway.force("creative", "open")
        answer = await world.ask(prompt=ASK)
        assert (answer.mode, answer.degraded, answer.reason) == ("creative", False, None)
        assert answer.served.age_s == pytest.approx(world.now - stored)
        assert world.gateway.status()["modes"]["creative"]["ttl_s"] == 300.0

    play(scenario)


def test_15_a_mode_that_answers_live_needs_no_stand_in() -> None:
    async def scenario(world: World) -> None:
        await ask_and_note(world, "fast")
        answer = await world.ask("creative", ASK)
        assert (answer.mode, answer.cached) == ("creative", False)
        world.gateway.force("creative", "open")
        answer = await world.ask("balanced", ASK)  # balanced is well: nothing below stands in
        assert (answer.mode, answer.cached) == ("balanced", False)

    play(scenario)


@pytest.mark.parametrize("cause", ["circuit_open", "forced", "cooling"])
def test_a_stand_in_says_honestly_why_it_stands_in(cause: str) -> None:
    async def scenario(world: World) -> None:
        await ask_and_note(world, "balanced")
        if cause == "forced":
            world.gateway.force("creative", "open")
        elif cause == "cooling":
            world.plan("creative", Throttled(0.0, FOREVER, 50.0))
            await world.ask()
        else:
            await world.open_circuit()
        answer = await world.ask(prompt=ASK)
        assert (answer.mode, answer.cached, answer.degraded) == ("balanced", True, True)
        assert answer.reason == cause
        assert (answer.until is None) == (cause == "forced")

    play(scenario)


def test_b18_the_key_is_everything_that_changes_the_answer() -> None:
    async def scenario(world: World) -> None:
        asked: list[dict[str, Any]] = [
            {},
            {"tenant": "a"},
            {"tenant": "b"},
            {"temperature": 0.1},
            {"temperature": 0.2},
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            {"extra_body": {"top_k": 3}},
        ]
        for options in asked:
            assert not (await world.ask(prompt=ASK, **options)).cached
        for options in asked:
            assert (await world.ask(prompt=ASK, **options)).cached
        assert not (await world.ask("balanced", ASK)).cached
        assert (await world.ask(prompt=ASK, extra_body={"temperature": 0.1})).cached

    play(scenario)


def test_b18_the_order_of_fields_does_not_matter() -> None:
    async def scenario(world: World) -> None:
        await world.ask(prompt=ASK, top_p=0.5, temperature=0.1)
        assert (await world.ask(prompt=ASK, temperature=0.1, top_p=0.5)).cached

    play(scenario)


def test_b18_a_reload_that_changes_who_answers_changes_the_key() -> None:
    async def scenario(world: World) -> None:
        await ask_and_note(world)
        world.gateway.reload(ladder(modes={"creative": {"temperature": 0.5}, "fast": {}}))
        world.watch_upstreams()
        assert not (await world.ask(prompt=ASK)).cached
        world.gateway.reload(ladder(modes={"creative": {}, "fast": {}}))
        world.watch_upstreams()
        assert (await world.ask(prompt=ASK)).cached

    play(scenario)


# -- B20: the order, and what a request may say about it -------------------------------------------


async def stale_world(world: World) -> None:
    """An entry of each mode, past its lifetime but within the stale window; then all fail."""
    for mode in MODES:
        await world.ask(mode, ASK)
    await asyncio.sleep(4000.0)
    for mode in MODES:
        world.plan(mode, Outage(0.0, FOREVER))


def test_b20_stale_if_error_comes_last_and_is_marked() -> None:
    async def scenario(world: World) -> None:
        await stale_world(world)
        world.plan("fast")
        answer = await world.ask(prompt=ASK)
        assert (answer.mode, answer.cached, answer.served.stale) == ("fast", False, False)
        world.plan("fast", Outage(0.0, FOREVER))
        await asyncio.sleep(3000.0)  # too old for all but the answer of fast
        with pytest.raises(AllModesFailed):
            await world.ask(prompt="never asked before")
        answer = await world.ask(prompt=ASK)
        assert (answer.mode, answer.cached, answer.served.stale) == ("creative", True, True)
        assert answer.reason == "upstream_error"
        assert answer.served.age_s == pytest.approx(7000.0, abs=10.0)
        assert answer.served.ttl_s == 0.0
        await asyncio.sleep(200.0)
        answer = await world.ask(prompt=ASK)
        assert (answer.mode, answer.served.stale) == ("fast", True)

    play(scenario)


def test_b20_stale_ends_exactly_with_its_window() -> None:
    async def scenario(world: World) -> None:
        stored = await ask_and_note(world, "solo")
        before, after = just_before_and_at(stored, 7200.0)
        world.plan("solo", Outage(0.0, FOREVER))
        await world.until(before - 0.01)  # the refusals take a moment
        answer = await world.ask("solo", ASK)
        assert answer.served.stale
        await world.until(after)
        with pytest.raises(UpstreamUnavailable):
            await world.ask("solo", ASK)

    play(scenario, ladder(modes={"solo": {}}))


@pytest.mark.parametrize("how", ["silent", "open", "throttled", "stalled"])
def test_b20_stale_covers_every_upstream_fault(how: str) -> None:
    async def scenario(world: World) -> None:
        await ask_and_note(world, "solo")
        await asyncio.sleep(3700.0)
        faults: dict[str, AnyFault] = {
            "silent": Outage(0.0, FOREVER, "silent"),
            "open": Outage(0.0, FOREVER),
            "throttled": Throttled(0.0, FOREVER, 30.0),
            "stalled": Stall(0.0, FOREVER),
        }
        world.plan("solo", faults[how])
        if how == "open":
            await world.open_circuit("solo")
        answer = await world.ask("solo", ASK, deadline=8.0)
        assert answer.served.stale

    play(scenario, ladder(modes={"solo": {}}))


@pytest.mark.parametrize("kind", ["request", "refusal", "no stale", "forced"])
def test_b20_stale_never_hides_a_refusal_or_a_callers_mistake(kind: str) -> None:
    async def scenario(world: World) -> None:
        await ask_and_note(world, "solo")
        await asyncio.sleep(3700.0)
        cache = CacheControl(stale_if_error=kind != "no stale")
        if kind == "request":
            world.upstream("solo").context_window = 2
        elif kind == "refusal":
            world.rung("solo").limit.native = 512  # full
        else:
            world.plan("solo", Outage(0.0, FOREVER))
        if kind == "forced":
            world.gateway.force("solo", "open")
            assert (await world.ask("solo", ASK)).served.stale  # an operator opens for a fault
            return
        with pytest.raises(GatewayError) as error:
            await world.ask("solo", ASK, cache=cache)
        if kind == "request":
            assert isinstance(error.value, UpstreamRejected)
        world.rung("solo").limit.native = 0

    play(scenario, ladder(modes={"solo": {}}))


def test_b20_without_degrading_only_the_modes_own_stale_answer_will_do() -> None:
    async def scenario(world: World) -> None:
        await ask_and_note(world, "balanced")
        await asyncio.sleep(10.0)
        await world.open_circuit()
        with pytest.raises(CircuitOpen):
            await world.ask(prompt=ASK, allow_degrade=False)
        assert (await world.ask(prompt=ASK)).mode == "balanced"

    play(scenario)


def test_b20_no_cache_asks_upstream_and_renews_the_entry() -> None:
    async def scenario(world: World) -> None:
        await ask_and_note(world)
        await asyncio.sleep(100.0)
        assert not (await world.ask(prompt=ASK, cache=CacheControl(read=False))).cached
        await asyncio.sleep(3550.0)
        assert (await world.ask(prompt=ASK)).cached  # renewed at 100 s
        assert world.calls("creative") == 2

    play(scenario)


def test_b20_no_store_keeps_nothing() -> None:
    async def scenario(world: World) -> None:
        await world.ask(prompt=ASK, cache=CacheControl(store=False))
        assert not (await world.ask(prompt=ASK)).cached
        assert (await world.ask(prompt=ASK, cache=CacheControl(store=False))).cached
        assert not (await world.ask(prompt=ASK, cache=False)).cached
        assert world.calls("creative") == 3

    play(scenario)


def test_b20_max_age() -> None:
    async def scenario(world: World) -> None:
        await ask_and_note(world)
        await asyncio.sleep(50.0)
        assert (await world.ask(prompt=ASK, cache=CacheControl(max_age_s=51.0))).cached
        assert not (await world.ask(prompt=ASK, cache=CacheControl(max_age_s=50.0))).cached
        assert not (await world.ask(prompt=ASK, cache=CacheControl(max_age_s=0.0))).cached
        assert world.calls("creative") == 3

    play(scenario)


def test_a_disabled_cache_keeps_nothing_but_still_shares_flights() -> None:
    async def scenario(world: World) -> None:
        await asyncio.gather(*(world.ask(prompt=ASK) for _ in range(10)))
        assert world.calls("creative") == 1
        assert not (await world.ask(prompt=ASK)).cached
        assert world.gateway.status()["cache"]["entries"] == 0

    play(scenario, ladder(cache={"enabled": False}))


# -- 16: one upstream call per flight --------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_16_a_thousand_identical_misses_are_one_upstream_call(seed: int | None) -> None:
    async def scenario(world: World) -> None:
        answers = await asyncio.gather(*(world.ask(prompt=ASK) for _ in range(1000)))
        assert world.calls("creative") == 1
        assert len({answer.id for answer in answers}) == 1000
        assert len({answer.text for answer in answers}) == 1
        assert len(world.finished()) == 1000

    play(scenario, seed=seed)


def test_16_streams_share_a_flight_and_late_ones_get_it_from_its_beginning() -> None:
    async def scenario(world: World) -> None:
        async def listen(delay: float) -> str:
            await asyncio.sleep(delay)
            async with world.gateway.stream(ASK) as answer:
                return "".join([chunk.text async for chunk in answer])

        texts = await asyncio.gather(*(listen(0.004 * number) for number in range(40)))
        assert set(texts) == {world.said_by("creative", ASK)}
        assert world.calls("creative") == 1

    play(scenario)


def test_16_a_failure_is_shared_once_and_never_cached() -> None:
    async def scenario(world: World) -> None:
        world.plan("solo", Outage(0.0, 0.5, "error500"))
        ends = await asyncio.gather(*(world.outcome("solo", ASK) for _ in range(100)))
        assert all(isinstance(end, UpstreamUnavailable) for end in ends)
        assert world.calls("solo") == 2  # one flight, tried once more
        assert len(world.attempts("solo")) == 2
        assert world.phase("solo") is Phase.CLOSED  # one failure, not a hundred
        await asyncio.sleep(0.5)
        assert (await world.ask("solo", ASK)).text
        assert world.calls("solo") == 3

    play(scenario, ladder(modes={"solo": {}}))


def test_16_every_caller_keeps_its_own_deadline() -> None:
    async def scenario(world: World) -> None:
        async def wait(deadline: float) -> float:
            with pytest.raises(DeadlineExceeded):
                await world.ask(prompt=ASK, deadline=deadline)
            return world.now

        world.plan("creative", Outage(0.0, FOREVER, "silent"))
        for mode in ("balanced", "fast"):
            world.gateway.force(mode, "open")
        ended = await asyncio.gather(*(wait(deadline) for deadline in (1.0, 0.5, 4.0)))
        assert ended == pytest.approx([1.0, 0.5, 4.0], abs=0.05)
        assert world.calls("creative") == 1

    play(scenario)


def test_16_different_ways_of_asking_do_not_share() -> None:
    async def scenario(world: World) -> None:
        async def streamed() -> None:
            async with world.gateway.stream(ASK) as answer:
                await answer.finish()

        await asyncio.gather(
            world.ask(prompt=ASK),
            world.ask(prompt=ASK, allow_degrade=False),
            world.ask(prompt=ASK, tenant="other"),
            world.ask(prompt=ASK, cache=False),
            world.ask(prompt=ASK, cache=False),
            streamed(),
        )
        assert world.calls("creative") == 6

    play(scenario)


def test_16_what_one_caller_does_to_its_answer_does_not_reach_the_others() -> None:
    async def scenario(world: World) -> None:
        first, second = await asyncio.gather(world.ask(prompt=ASK), world.ask(prompt=ASK))
        text = second.text
        first.message["content"] = "changed"
        first.choices.clear()
        assert second.text == text
        third = await world.ask(prompt=ASK)
        assert third.text == text
        third.message["content"] = "changed"
        assert (await world.ask(prompt=ASK)).text == text

    play(scenario)


# -- B22 -------------------------------------------------------------------------------------------


def test_b22_an_answer_cut_by_length_is_not_kept() -> None:
    async def scenario(world: World) -> None:
        for _ in range(2):
            answer = await world.gateway.generate(ASK, max_tokens=2)
            assert (answer.finish_reason, answer.cached) == ("length", False)
            assert answer.served.ttl_s == 0.0
        assert world.attempts()[-1].outcome == "success"

    play(scenario)


def test_b22_interrupted_and_stale_answers_are_not_kept() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", CutStream(0.0, 0.5, after_chunks=2))
        for _ in range(2):
            with pytest.raises(GatewayError):
                async with world.gateway.stream(ASK) as answer:
                    await answer.finish()
        assert world.gateway.status()["cache"]["entries"] == 0
        world.plan("creative")
        stored = await ask_and_note(world)
        world.gateway.force("balanced", "open")
        world.gateway.force("fast", "open")
        await asyncio.sleep(3700.0)
        world.plan("creative", Outage(0.0, FOREVER))
        for _ in range(2):
            answer_ = await world.ask(prompt=ASK)
            assert answer_.served.stale
            assert answer_.served.age_s == pytest.approx(world.now - stored)

    play(scenario)


def test_b22_a_continued_answer_is_nobodys_own_and_not_kept() -> None:
    """Half of it is from creative, half from balanced: it must not pass for either's answer."""

    async def scenario(world: World) -> None:
        world.plan("creative", CutStream(0.0, FOREVER, after_chunks=2))
        async with world.gateway.stream(ASK, on_interrupt="continue") as stream:
            answer = await stream.finish()
        assert answer.mode == "balanced"
        assert answer.served.ttl_s == 0.0
        assert not (await world.ask("balanced", ASK)).cached

    play(scenario)


def test_b22_whole_and_streamed_answers_serve_each_other() -> None:
    async def scenario(world: World) -> None:
        whole = await world.ask(prompt=ASK)
        async with world.gateway.stream(ASK) as stream:
            chunks = [chunk async for chunk in stream]
            assert stream.served.cached
        assert "".join(chunk.text for chunk in chunks) == whole.text
        assert chunks[-1].usage == whole.usage.details
        assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]

        other = "asked as a stream first"
        async with world.gateway.stream(other) as stream:
            streamed = "".join([chunk.text async for chunk in stream])
        again = await world.ask(prompt=other)
        assert (again.text, again.cached) == (streamed, True)
        assert again.usage.completion_tokens == 4

    play(scenario)


def test_b22_the_cache_is_bounded_by_bytes() -> None:
    async def scenario(world: World) -> None:
        for _ in range(100):
            await world.ask()
        cache = world.gateway.status()["cache"]
        assert 0 < cache["bytes"] <= 30_000
        assert cache["evicted"] > 0

    play(scenario, ladder(cache={"max_bytes": 30_000}))


def test_a_hit_needs_no_upstream_at_all() -> None:
    async def scenario(world: World) -> None:
        await ask_and_note(world)
        for mode in MODES:
            world.gateway.force(mode, "open")
        answer = await world.ask(prompt=ASK)
        assert isinstance(answer, Generation)
        assert (answer.cached, answer.duration_s) == (True, 0.0)

    play(scenario)
