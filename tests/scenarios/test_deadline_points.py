"""One deadline, five clocks, a reserve for the modes below, and no second wait for silence:
B1, B3, B7.
"""

from __future__ import annotations

import asyncio

import pytest
from world import FOREVER, MODES, World, ladder, play

from gateway.errors import (
    AllModesFailed,
    DeadlineExceeded,
    GatewayError,
    StreamInterrupted,
    UpstreamError,
    UpstreamThrottled,
    UpstreamTimeout,
)
from gateway.generation import Generation
from gateway.policies.phases import Phase
from gateway.simulator.faults import (
    AnyFault,
    Brownout,
    ColdCapacity,
    CutStream,
    Flapping,
    Latency,
    Outage,
    Stall,
    Throttled,
)
from gateway.simulator.traffic import play as traffic
from gateway.simulator.traffic import steady

LATE_S = 0.05
FAULTS: dict[str, AnyFault] = {
    "refuse": Outage(0.0, FOREVER, "refuse"),
    "reset": Outage(0.0, FOREVER, "reset"),
    "error500": Outage(0.0, FOREVER, "error500"),
    "silent": Outage(0.0, FOREVER, "silent"),
    "headers then silence": Stall(0.0, FOREVER, after_chunks=0),
    "one token then silence": Stall(0.0, FOREVER, after_chunks=1),
    "cut": CutStream(0.0, FOREVER, after_chunks=2),
    "brownout": Brownout(0.0, FOREVER, 0.5, "silent"),
    "flapping": Flapping(0.0, FOREVER, 1.0, 1.0, "silent"),
    "slow": Latency(0.0, FOREVER, 40.0),
    "very slow": Latency(0.0, FOREVER, 4000.0),
    "cold": ColdCapacity(0.0, 1e6),
    "throttled": Throttled(0.0, FOREVER),
    "throttled briefly": Throttled(0.0, FOREVER, 0.2),
}
DEADLINES = (0.05, 0.3, 1.0, 6.0, 30.0)
BROKEN = (("creative",), ("creative", "balanced"), MODES)


async def ended_in_time(world: World, deadline: float, *, stream: bool) -> bool:
    """Ask once; whether there was an answer. An untyped or late end fails the test."""
    began = world.now
    try:
        if stream:
            async with world.gateway.stream(world.prompt(), deadline=deadline) as answer:
                async for _ in answer:
                    assert world.now - began <= deadline + LATE_S
        else:
            await world.ask(deadline=deadline)
    except GatewayError as error:
        return not str(error)
    finally:
        assert world.now - began <= deadline + LATE_S
    return True


@pytest.mark.parametrize("broken", BROKEN, ids=len)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_every_request_ends_by_its_deadline(fault: AnyFault, broken: tuple[str, ...]) -> None:
    async def scenario(world: World) -> None:
        for mode in broken:
            world.plan(mode, fault)
        for deadline in DEADLINES:
            for _ in range(2):
                await ended_in_time(world, deadline, stream=False)
                await ended_in_time(world, deadline, stream=True)

    play(scenario)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_many_at_once_end_by_their_deadlines(fault: AnyFault) -> None:
    async def scenario(world: World) -> None:
        for mode in MODES:
            world.plan(mode, fault)
        await asyncio.gather(
            *(
                ended_in_time(world, deadline * (1 + number / 7), stream=number % 2 == 0)
                for number in range(8)
                for deadline in DEADLINES
            )
        )

    play(scenario, seed=1)


def test_a_request_without_a_deadline_takes_that_of_its_mode() -> None:
    async def scenario(world: World) -> None:
        for mode in MODES:
            world.plan(mode, Stall(0.0, FOREVER))
        began = world.now
        with pytest.raises(DeadlineExceeded) as late:
            async with world.gateway.stream("hello", "balanced") as answer:
                async for _ in answer:
                    pass
        assert world.now - began == pytest.approx(7.0, abs=LATE_S)
        assert late.value.partial

    play(scenario, ladder(modes={"creative": {}, "balanced": {"deadline_s": 7.0}, "fast": {}}))


@pytest.mark.parametrize("fault", ["silent", "headers then silence"])
def test_a_silent_creative_leaves_balanced_the_time_it_needs(fault: str) -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", FAULTS[fault])
        answer = await world.ask(deadline=6.0)
        assert answer.mode == "balanced"
        assert answer.duration_s == pytest.approx(2.0 + 0.16, abs=0.1)
        world.plan("balanced", FAULTS[fault])
        answer = await world.ask(deadline=6.0)
        assert answer.mode == "fast"

    play(scenario)


def test_a_caller_who_wants_one_piece_gets_it_although_creative_stalls_after_a_token() -> None:
    """No token of it was handed over, so the reserve holds here too: 15 s are less than a stall."""

    async def scenario(world: World) -> None:
        world.plan("creative", Stall(0.0, FOREVER, after_chunks=2))
        answer = await world.ask(deadline=15.0)
        assert answer.mode == "balanced"
        assert answer.served.attempts == 2

    play(scenario)


def test_the_reserve_is_for_modes_that_can_answer() -> None:
    """With both lower modes open creative may use nearly all the time there is."""

    async def scenario(world: World) -> None:
        for mode in ("balanced", "fast"):
            world.gateway.force(mode, "open")
        answer = await world.ask(deadline=6.0)
        assert answer.mode == "creative"
        assert answer.served.first_token_s == pytest.approx(5.0, abs=0.1)

    slow = {"service": {"first_token_s": 5.0}}
    play(scenario, ladder(modes={"creative": slow, "balanced": {}, "fast": {}}))


def test_without_degrading_there_is_no_reserve() -> None:
    async def scenario(world: World) -> None:
        answer = await world.ask(deadline=6.0, allow_degrade=False)
        assert answer.mode == "creative"

    config = ladder(modes={"creative": {"service": {"first_token_s": 5.0}}, "balanced": {}})
    play(scenario, config)


def test_the_first_token_limit_is_each_modes_own() -> None:
    async def scenario(world: World) -> None:
        for mode in MODES:
            world.plan(mode, Outage(0.0, FOREVER, "silent"))
        with pytest.raises(AllModesFailed) as failed:
            await world.ask()
        assert world.now == pytest.approx(4.0 + 3.0 + 2.0, abs=0.01)
        causes = failed.value.causes
        assert [type(cause) for cause in causes.values()] == [UpstreamTimeout] * 3
        assert [getattr(cause, "phase", "") for cause in causes.values()] == ["first_token"] * 3
        limits = [attempt.duration_s for mode in MODES for attempt in world.attempts(mode)]
        assert limits == pytest.approx([4.0, 3.0, 2.0])

    limits = {"creative": 4.0, "balanced": 3.0, "fast": 2.0}
    play(scenario, ladder(modes={m: {"first_token_s": s} for m, s in limits.items()}))


def test_a_stall_between_tokens_ends_a_stream_after_stall_s() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Stall(0.0, FOREVER, after_chunks=2))
        with pytest.raises(StreamInterrupted) as broken:
            async with world.gateway.stream("hello") as answer:
                async for _ in answer:
                    pass
        assert world.now == pytest.approx(20.121, abs=0.01)
        assert broken.value.partial == "".join(
            word + " " for word in world.said_by("creative", "hello").split()[:2]
        )
        assert world.attempts()[-1].outcome == "failure"

    play(scenario)


def test_slow_but_steady_tokens_are_no_stall() -> None:
    async def scenario(world: World) -> None:
        answer = await world.ask()
        assert answer.mode == "creative"
        assert answer.duration_s > 56

    config = ladder(modes={"creative": {"service": {"tokens_per_s": 1 / 19}}, "fast": {}})
    play(scenario, config)


def test_a_role_chunk_is_no_first_token() -> None:
    """Headers and a role chunk come at once, then nothing: the first-token clock runs on."""

    async def scenario(world: World) -> None:
        world.plan("creative", Stall(0.0, FOREVER, after_chunks=0))
        answer = await world.ask()
        assert answer.mode == "balanced"
        assert world.attempts()[0].duration_s == pytest.approx(12.0, abs=0.1)

    play(scenario)


def test_a_deadline_that_ran_out_mid_answer_carries_what_had_arrived() -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(DeadlineExceeded) as late:
            async with world.gateway.stream("hello", deadline=1.0) as answer:
                async for _ in answer:
                    pass
        assert world.now == pytest.approx(1.0, abs=LATE_S)
        assert world.said_by("creative", "hello").startswith(late.value.partial)
        assert len(late.value.partial.split()) == 9
        assert world.attempts()[-1].outcome == "ignored"  # the caller's hurry is no failure

    play(scenario, ladder(service={"tokens": 40, "tokens_per_s": 10.0}))


def test_impatient_callers_do_not_open_a_healthy_mode() -> None:
    async def scenario(world: World) -> None:
        for _ in range(50):
            await world.outcome(deadline=0.4)
        assert world.transitions() == []

    play(scenario, ladder(service={"first_token_s": 0.5}))


@pytest.mark.parametrize(("apart", "count"), [(0.5, 40), (20.0, 12)])
def test_hurried_callers_open_a_mode_that_was_silent_from_the_beginning(
    apart: float, count: int
) -> None:
    """A gateway restarted in an outage knows no normal; each caller waits for a third of 9 s."""

    async def scenario(world: World) -> None:
        world.plan("creative", Outage(0.0, FOREVER, "silent"))
        ends = await traffic(
            steady(1 / apart, end=count * apart), lambda _: world.outcome(deadline=9)
        )
        assert all(isinstance(end, Generation) and end.mode == "balanced" for end in ends)
        assert world.phase("creative") is Phase.OPEN
        assert len(world.attempts()) <= max(6, 14.0 / apart)

    play(scenario)


def test_impatient_callers_do_open_a_mode_that_is_much_slower_than_it_was() -> None:
    async def scenario(world: World) -> None:
        for _ in range(30):
            await world.ask()
        world.plan("creative", Outage(world.now, FOREVER, "silent"))
        for _ in range(3):
            await world.ask(deadline=6.0)  # 2 s of it for creative, whose normal is 0.1 s
        assert world.phase("creative") is Phase.OPEN

    play(scenario)


@pytest.mark.parametrize("how", ["refuse", "reset", "error500"])
def test_a_quick_fault_is_tried_once_more_in_the_same_mode(how: str) -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Outage(0.0, 0.001, how))  # type: ignore[arg-type]
        answer = await world.ask()
        assert (answer.mode, answer.served.attempts) == ("creative", 2)
        world.plan("creative", Outage(0.0, FOREVER, how))  # type: ignore[arg-type]
        answer = await world.ask()
        assert (answer.mode, answer.served.attempts) == ("balanced", 3)

    play(scenario)


def test_silence_is_never_waited_for_twice_in_a_mode() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Outage(0.0, FOREVER, "silent"))
        answer = await world.ask()
        assert (answer.mode, answer.served.attempts) == ("balanced", 2)
        assert world.calls("creative") == 1

    play(scenario)


def test_a_slow_fault_is_not_tried_again() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Outage(0.0, FOREVER, "error500"))
        answer = await world.ask()
        assert (answer.mode, answer.served.attempts) == ("fast", 2)

    slow = {"service": {"round_trip_s": 1.5}}
    play(scenario, ladder(modes={"creative": slow, "fast": {}}))


def test_a_short_retry_after_is_waited_for_once() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Throttled(0.0, 0.5, 1.0))
        answer = await world.ask()
        assert (answer.mode, answer.served.attempts) == ("creative", 2)
        assert answer.duration_s == pytest.approx(1.0 + 0.16, abs=0.01)
        world.plan("creative", Throttled(0.0, FOREVER, 1.0))
        answer = await world.ask()
        assert (answer.mode, answer.reason) == ("balanced", "cooling")
        assert answer.served.attempts == 3

    play(scenario)


@pytest.mark.parametrize(
    ("retry_after", "deadline"), [(None, 60.0), (5.0, 60.0), (1.5, 10.0)], ids=str
)
def test_a_long_retry_after_is_walked_past(retry_after: float | None, deadline: float) -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Throttled(0.0, 0.5, retry_after))
        answer = await world.ask(deadline=deadline)
        assert (answer.mode, answer.served.attempts) == ("balanced", 2)
        assert answer.duration_s < 0.2

    play(scenario)


def test_waiting_for_a_retry_after_does_not_shorten_what_others_were_told() -> None:
    """One caller is told 1 s and waits; meanwhile another is told a minute: the target rests."""

    async def scenario(world: World) -> None:
        world.plan("creative", Throttled(0.0, 0.005, 1.0))
        waiting = asyncio.ensure_future(world.outcome())
        await asyncio.sleep(0.5)
        world.rung("creative").targets[0].resting_until = 60.0
        answer = await waiting
        assert isinstance(answer, Generation)
        assert answer.mode == "balanced"
        assert world.rung("creative").targets[0].resting_until == 60.0

    play(scenario)


def test_cooling_ends_when_it_was_said_to() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Throttled(0.0, 0.5, 20.0))
        await world.ask()
        calls = world.calls("creative")
        await asyncio.sleep(19.0 - world.now)
        answer = await world.ask()
        assert (answer.mode, answer.reason) == ("balanced", "cooling")
        assert answer.until == pytest.approx(0.84, abs=0.01)
        assert world.calls("creative") == calls
        await asyncio.sleep(20.01 - world.now)
        assert (await world.ask()).mode == "creative"

    play(scenario)


def test_a_lone_mode_says_what_went_wrong() -> None:
    async def scenario(world: World) -> None:
        world.plan("solo", Throttled(0.0, FOREVER, 30.0))
        with pytest.raises(UpstreamThrottled) as throttled:
            await world.ask("solo")
        assert throttled.value.retry_after == 30.0
        world.plan("solo", Outage(0.0, FOREVER))
        await asyncio.sleep(31.0)
        with pytest.raises(UpstreamError):
            await world.ask("solo")

    play(scenario, ladder(modes={"solo": {}}))
