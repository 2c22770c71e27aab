"""No token twice, none lost, and nothing re-run once it was handed over: point 17, B15 and B16."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from world import FOREVER, World, ladder, play

from gateway.errors import (
    AllModesFailed,
    DeadlineExceeded,
    GatewayError,
    StreamInterrupted,
    UpstreamUnavailable,
)
from gateway.events import RequestFinished
from gateway.generation import Chunk
from gateway.policies.phases import Phase
from gateway.simulator.faults import AnyFault, Brownout, CutStream, Outage, Stall, Throttled

ASK = "tell me"
EIGHT = {"tokens": 8}


async def listen(world: World, mode: str = "creative", prompt: str = ASK, **options: Any) -> str:
    """Everything a streaming caller hears."""
    async with world.gateway.stream(prompt, mode, **options) as answer:
        return "".join([chunk.text async for chunk in answer])


def words(text: str, count: int) -> str:
    return "".join(word + " " for word in text.split()[:count])


@pytest.mark.parametrize("seed", range(4))
def test_17_healthy_streams_lose_and_double_nothing(seed: int) -> None:
    async def scenario(world: World) -> None:
        rng = random.Random(seed)

        async def one(number: int) -> None:
            await asyncio.sleep(rng.random())
            prompt = f"{ASK} {number % 60}"
            assert await listen(world, prompt=prompt) == world.said_by("creative", prompt)

        await asyncio.gather(*(one(number) for number in range(100)))

    config = ladder(service={"tokens": 12, "tokens_per_s": 1000.0, "spread": 1.0})
    play(scenario, config, seed=seed)


@pytest.mark.parametrize("pause", [0.0, 0.05, 3.0])
def test_17_a_slow_reader_misses_nothing_and_is_no_slow_upstream(pause: float) -> None:
    async def scenario(world: World) -> None:
        heard: list[str] = []
        async with world.gateway.stream(ASK) as answer:
            async for chunk in answer:
                heard.append(chunk.text)
                await asyncio.sleep(pause)
        assert "".join(heard) == world.said_by("creative", ASK)
        assert world.attempts()[-1].outcome == "success"
        assert world.attempts()[-1].duration_s < 1.0

    play(scenario, ladder(modes={"creative": {"stall_s": 1.0}, "fast": {}}, service=EIGHT))


def test_17_batches_are_the_same_chunks() -> None:
    async def scenario(world: World) -> None:
        async with world.gateway.stream(ASK) as answer:
            batches = [batch async for batch in answer.batches()]
        async with world.gateway.stream(ASK, cache=False) as answer:
            chunks = [chunk async for chunk in answer]
        flat: list[Chunk] = [chunk for batch in batches for chunk in batch]
        assert [chunk.text for chunk in flat] == [chunk.text for chunk in chunks]
        assert flat[-1].usage == chunks[-1].usage

    play(scenario, ladder(service=EIGHT))


FAULTS: dict[str, AnyFault] = {
    "refused": Outage(0.0, FOREVER),
    "silent": Outage(0.0, FOREVER, "silent"),
    "throttled": Throttled(0.0, FOREVER, 9.0),
    "cut before a token": CutStream(0.0, FOREVER, after_chunks=0),
    "headers then silence": Stall(0.0, FOREVER, after_chunks=0),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_15_before_the_first_token_a_failing_mode_is_walked_past_unseen(fault: AnyFault) -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", fault)
        world.plan("balanced", fault)
        async with world.gateway.stream(ASK) as answer:
            assert (answer.served.mode, answer.served.degraded) == ("fast", True)
            heard = "".join([chunk.text async for chunk in answer])
        assert heard == world.said_by("fast", ASK)

    play(scenario, ladder(service=EIGHT))


def test_15_the_commit_point_is_the_first_content_token() -> None:
    async def scenario(world: World) -> None:
        async with world.gateway.stream(ASK) as answer:
            assert world.now == pytest.approx(0.101)  # not 0.001, when headers and role came
            assert answer.served.first_token_s == pytest.approx(0.101)
            assert answer.served.attempts == 1
            await answer.finish()

    play(scenario)


@pytest.mark.parametrize("after", [1, 3, 7])
@pytest.mark.parametrize("kind", ["cut", "stall", "reset"])
def test_16_error_raises_with_exactly_what_was_handed_over(kind: str, after: int) -> None:
    async def scenario(world: World) -> None:
        faults: dict[str, AnyFault] = {
            "cut": CutStream(0.0, FOREVER, after_chunks=after),
            "stall": Stall(0.0, FOREVER, after_chunks=after),
            "reset": Outage(0.101 + 0.02 * after - 0.01, FOREVER, "reset"),
        }
        world.plan("creative", faults[kind])
        heard: list[str] = []
        with pytest.raises(StreamInterrupted) as broken:
            async with world.gateway.stream(ASK) as answer:
                async for chunk in answer:
                    heard.append(chunk.text)  # noqa: PERF401 - what came before the error counts
        expected = words(world.said_by("creative", ASK), after)
        assert broken.value.partial == "".join(heard) == expected
        assert broken.value.mode == "creative"
        assert world.attempts()[-1].outcome == "failure"
        assert world.calls("creative") == 1  # nothing was silently re-run
        assert world.calls("balanced") == 0
        [finished] = world.finished()
        assert finished.error == "stream_interrupted"

    play(scenario, ladder(service=EIGHT))


def test_16_three_broken_streams_open_the_circuit() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", CutStream(0.0, FOREVER, after_chunks=2))
        for _ in range(3):
            with pytest.raises(StreamInterrupted):
                await listen(world, cache=False)
        assert world.phase("creative") is Phase.OPEN
        assert await listen(world) == world.said_by("balanced", ASK)

    play(scenario)


@pytest.mark.parametrize("after", [1, 3, 7])
def test_16_continue_goes_on_where_the_text_stopped(after: int) -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", CutStream(0.0, FOREVER, after_chunks=after))
        heard: list[str] = []
        async with world.gateway.stream(ASK, on_interrupt="continue") as answer:
            async for chunk in answer:
                heard.append(chunk.text)  # noqa: PERF401
            served, whole = answer.served, await answer.finish()
        first, second = world.said_by("creative", ASK), world.said_by("balanced", ASK)
        numbers = [int(word.rpartition("-")[2]) for word in "".join(heard).split()]
        assert numbers == list(range(8))
        assert "".join(heard) == words(first, after) + second.split(" ", after)[after]
        assert whole.text == "".join(heard)
        assert (served.mode, served.model, served.degraded) == ("balanced", "balanced", True)
        assert (served.reason, served.attempts) == ("failed", 2)
        assert served.first_token_s == pytest.approx(0.101)

    play(scenario, ladder(service=EIGHT))


def test_16_continue_may_go_down_more_than_once() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", CutStream(0.0, FOREVER, after_chunks=2))
        world.plan("balanced", CutStream(0.0, FOREVER, after_chunks=3))
        heard = await listen(world, on_interrupt="continue")
        assert [int(word.rpartition("-")[2]) for word in heard.split()] == list(range(8))
        creative, balanced = world.said_by("creative", ASK), world.said_by("balanced", ASK)
        assert heard.split()[:2] == creative.split()[:2]
        assert heard.split()[2:5] == balanced.split()[2:5]

    play(scenario, ladder(service=EIGHT))


def test_16_continue_without_anyone_to_go_on_is_an_error_with_all_that_arrived() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", CutStream(0.0, FOREVER, after_chunks=2))
        for mode in ("balanced", "fast"):
            world.plan(mode, Outage(0.0, FOREVER))
        with pytest.raises(StreamInterrupted) as broken:
            await listen(world, on_interrupt="continue")
        assert broken.value.partial == words(world.said_by("creative", ASK), 2)
        with pytest.raises(StreamInterrupted):  # at the bottom there is nothing below
            world.plan("fast", CutStream(0.0, FOREVER, after_chunks=2))
            await listen(world, "fast", on_interrupt="continue")

    play(scenario)


def test_16_continue_obeys_allow_degrade_and_the_deadline() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", CutStream(0.0, FOREVER, after_chunks=2))
        with pytest.raises(StreamInterrupted):
            await listen(world, on_interrupt="continue", allow_degrade=False)
        for mode in ("balanced", "fast"):
            world.plan(mode, Outage(0.0, FOREVER, "silent"))
        began = world.now
        with pytest.raises((StreamInterrupted, DeadlineExceeded)) as late:
            await listen(world, on_interrupt="continue", deadline=4.0)
        assert world.now - began <= 4.05
        assert getattr(late.value, "partial", "") == words(world.said_by("creative", ASK), 2)

    play(scenario)


@pytest.mark.parametrize("fault", [CutStream(0.0, FOREVER, after_chunks=5), Stall(0.0, FOREVER)])
def test_16_a_caller_who_wants_one_piece_gets_a_clean_start(fault: AnyFault) -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", fault)
        answer = await world.ask(prompt=ASK)
        assert answer.text == world.said_by("balanced", ASK)
        assert (answer.mode, answer.reason) == ("balanced", "failed")
        assert answer.usage.completion_tokens == 8
        assert [call.outcome for call in world.attempts()] == ["failure"]

    play(scenario, ladder(service=EIGHT))


def test_16_a_truncated_answer_never_looks_complete() -> None:
    async def scenario(world: World) -> None:
        world.plan("solo", CutStream(0.0, FOREVER, after_chunks=5))
        with pytest.raises(UpstreamUnavailable):
            await world.ask("solo", ASK)
        async with world.gateway.stream(ASK, "solo") as answer:
            chunks: list[Chunk] = []
            with pytest.raises(StreamInterrupted):
                async for chunk in answer:
                    chunks.append(chunk)  # noqa: PERF401
            with pytest.raises(GatewayError):  # and it stays so, however often one asks
                await answer.finish()
        assert not [chunk for chunk in chunks if chunk.finish_reason or chunk.usage]

    play(scenario, ladder(modes={"solo": {}}, service=EIGHT))


def test_17_leaving_a_stream_early_is_no_verdict_and_closes_upstream() -> None:
    async def scenario(world: World) -> None:
        for _ in range(20):
            async with world.gateway.stream(world.prompt()) as answer:
                async for chunk in answer:
                    if chunk.text:
                        break
            await asyncio.sleep(0.001)
            assert world.upstream("creative").stats.in_flight == 0
        assert world.upstream("creative").stats.cancelled == 20
        assert {attempt.outcome for attempt in world.attempts()} == {"ignored"}
        assert {e.error for e in world.events if isinstance(e, RequestFinished)} == {"abandoned"}

    play(scenario)


def test_leaving_a_stream_that_has_been_silent_too_long_is_a_failure() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Stall(0.0, FOREVER, after_chunks=2))
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(12.0):
                    await listen(world, cache=False)
        await asyncio.sleep(0.001)
        assert [attempt.outcome for attempt in world.attempts()] == ["failure"] * 3
        assert world.phase("creative") is Phase.OPEN

    play(scenario)


def test_cancelling_a_call_early_is_ignored_and_late_a_failure() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Outage(0.0, FOREVER, "silent"))
        for patience, outcome in ((5.0, "ignored"), (11.0, "failure")):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(patience):
                    await world.gateway.generate(world.prompt())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert world.attempts()[-1].outcome == outcome

    play(scenario)


def test_a_stream_that_cannot_begin_raises_on_entering() -> None:
    async def scenario(world: World) -> None:
        for mode in ("creative", "balanced", "fast"):
            world.plan(mode, Outage(0.0, FOREVER))
        with pytest.raises(AllModesFailed):
            async with world.gateway.stream(ASK):
                raise AssertionError("must not get here")
        stream = world.gateway.stream(ASK)
        with pytest.raises(GatewayError, match="async with"):
            _ = stream.served

    play(scenario)


def test_finish_after_some_chunks_is_the_whole_answer() -> None:
    async def scenario(world: World) -> None:
        async with world.gateway.stream(ASK) as answer:
            async for chunk in answer:
                if chunk.text:
                    break
            whole = await answer.finish()
        assert whole.text == world.said_by("creative", ASK)
        assert whole.id == answer.id
        assert whole.served.ttl_s == 3600.0

    play(scenario, ladder(service=EIGHT))


@pytest.mark.parametrize("seed", range(3))
def test_17_under_a_brownout_every_stream_is_one_modes_whole_answer_or_an_error(seed: int) -> None:
    async def scenario(world: World) -> None:
        rng = random.Random(seed)
        world.plan("creative", Brownout(0.0, FOREVER, 0.4), CutStream(0.0, FOREVER, 0.2, 3))
        world.plan("balanced", Brownout(0.0, FOREVER, 0.3, "reset"))
        broken = 0

        async def one(number: int) -> None:
            nonlocal broken
            await asyncio.sleep(rng.uniform(0, 30))
            prompt = f"{ASK} {number}"
            try:
                async with world.gateway.stream(prompt) as answer:
                    heard = "".join([chunk.text async for chunk in answer])
                    assert heard == world.said_by(answer.served.mode, prompt)
            except StreamInterrupted as error:
                assert world.said_by(error.mode, prompt).startswith(error.partial)
                broken += 1

        await asyncio.gather(*(one(number) for number in range(200)))
        assert 0 < broken < 60

    play(scenario, ladder(service=EIGHT, circuit={"failure_threshold": 50, "failure_ratio": 0.0}))
