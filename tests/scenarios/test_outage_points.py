"""What a failing upstream is asked, and what storms of harmless errors do: points 7, 9, 11, 12."""

from __future__ import annotations

import asyncio
import datetime as real_datetime
import random
import time
from typing import Any

import pytest
from world import FOREVER, MODES, World, ladder, play

from gateway.errors import AllModesFailed, GatewayError, UpstreamRejected
from gateway.events import AttemptFinished, CircuitChanged, Event, RequestFinished
from gateway.generation import Generation
from gateway.policies.phases import Phase
from gateway.simulator.faults import (
    Brownout,
    CutStream,
    Flapping,
    How,
    Outage,
    Throttled,
    random_plan,
)
from gateway.simulator.traffic import play as traffic
from gateway.simulator.traffic import poisson, steady

HOWS: tuple[How, ...] = ("refuse", "reset", "error500", "silent")
BRIEF = {"tokens": 1}


def answered(ends: list[Any]) -> list[Generation]:
    """The answers among the ends; anything else must be a typed error."""
    assert not [end for end in ends if not isinstance(end, Generation | GatewayError)]
    return [end for end in ends if isinstance(end, Generation)]


# -- 11: outages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared domain"])
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("per_s", [1.0, 5.0])
def test_11_an_outage_of_one_mode(how: How, shared: bool, per_s: float) -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Outage(20.0, 90.0, how))
        ends = await traffic(steady(per_s, end=90), lambda _: world.outcome())
        stats = world.upstream("creative").stats
        opened = next(e.at for e in world.events if isinstance(e, CircuitChanged))
        asked = per_s * (opened - 20.0) + 1
        assert stats.in_outage <= 1.1 * asked + 5
        assert len([at for at in stats.times if at > opened]) == 0  # the hold outlasts the traffic
        assert len(answered(ends)) == len(ends)

    play(scenario, ladder(service=BRIEF, shared_domain=shared))


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared domain"])
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("per_s", [0.3, 1.5])
def test_11_a_total_outage(how: How, shared: bool, per_s: float) -> None:
    """Every call of every mode dies for six minutes, and nothing is stampeded."""

    async def scenario(world: World) -> None:
        for mode in MODES:
            world.plan(mode, Outage(0.0, 360.0, how))
        ends = await traffic(steady(per_s, end=360), lambda _: world.outcome(deadline=30.0))
        assert not answered(ends)
        reached = sum(world.upstream(mode).stats.in_outage for mode in MODES)
        requests = len(ends)
        if shared:
            assert reached <= 1.1 * requests + 5
        for mode in MODES:
            times = world.upstream(mode).stats.times
            changes = [e for e in world.events if isinstance(e, CircuitChanged) and e.mode == mode]
            opened = [e.at for e in changes if e.new == Phase.OPEN]
            assert opened[0] < 65.0
            for start, end in zip(opened, [*opened[1:], 360.0], strict=True):
                assert sum(start < at <= end for at in times) <= 2

    play(scenario, ladder(service=BRIEF, shared_domain=shared))


def test_11_a_burst_in_an_outage_is_not_multiplied() -> None:
    async def scenario(world: World) -> None:
        for mode in MODES:
            world.plan(mode, Outage(0.0, FOREVER, "error500"))
        await world.many(500)
        reached = sum(world.upstream(mode).stats.started for mode in MODES)
        assert reached <= 1.1 * 500 + 5

    play(scenario, ladder(service=BRIEF, shared_domain=True))


@pytest.mark.parametrize("how", HOWS)
def test_b7_the_requests_that_meet_a_failing_mode_succeed_in_a_shared_domain_too(how: How) -> None:
    """One host and key for all modes, one of its models down: everybody is answered, one by one."""

    async def scenario(world: World) -> None:
        world.plan("creative", Outage(0.0, 400.0, how))
        ends = await traffic(steady(0.2, end=300), lambda _: world.outcome())
        assert {answer.mode for answer in answered(ends)} == {"balanced"}
        assert len(answered(ends)) == len(ends)

    play(scenario, ladder(shared_domain=True))


def test_b8_a_healthy_domain_pays_for_its_retries() -> None:
    async def scenario(world: World) -> None:
        budget = world.rung("creative").targets[0].budget
        assert budget is not world.rung("balanced").targets[0].budget
        world.plan("creative", Outage(0.0, 0.001))
        await world.ask()
        assert budget.tokens == pytest.approx(9.1)  # one failure, and a success on the second try
        await asyncio.sleep(1.0)
        for _ in range(20):
            await world.ask()
        assert budget.tokens == 10.0

    play(scenario)


# -- 12 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_s", [0.5, 3.0, 8.0])
@pytest.mark.parametrize("how", HOWS)
def test_11_the_first_minute_of_a_total_outage_of_a_shared_domain(how: How, per_s: float) -> None:
    async def scenario(world: World) -> None:
        for mode in MODES:
            world.plan(mode, Outage(0.0, FOREVER, how))

        async def ask(_: int) -> object:
            return await world.outcome()

        asking = asyncio.create_task(traffic(steady(per_s, end=60), ask))
        await asyncio.sleep(60.0)
        reached = sum(world.upstream(mode).stats.started for mode in MODES)
        assert reached <= 1.1 * 60 * per_s + 5
        assert not answered(await asking)

    play(scenario, ladder(service=BRIEF, shared_domain=True))


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared domain"])
@pytest.mark.parametrize("how", ["refuse", "error500", "reset"])
def test_12_steady_1_percent_errors_amplify_by_at_most_2_percent(how: How, shared: bool) -> None:
    async def scenario(world: World) -> None:
        for mode in MODES:
            world.plan(mode, Brownout(0.0, FOREVER, 0.01, how))
        ends = await traffic(
            steady(10, end=50), lambda number: world.outcome(MODES[number % 3], cache=False)
        )
        assert len(answered(ends)) == len(ends)
        assert sum(world.calls(mode) for mode in MODES) <= 1.02 * len(ends)
        assert not any(world.transitions(mode) for mode in MODES)

    play(scenario, ladder(service=BRIEF, shared_domain=shared))


# -- 7: storms -------------------------------------------------------------------------------------


async def storm(world: World, count: int, seed: int) -> list[Any]:
    """Callers' mistakes, throttling and cancellations, mixed; nothing that says the mode is ill."""
    rng = random.Random(seed)
    world.upstream("creative").context_window = 10

    async def one(number: int) -> object:
        kind = rng.choice(("long", "throttled", "cancelled", "cancelled before a token"))
        if kind == "long":  # 400: longer than any window
            return await world.outcome(prompt="word " * 11, cache=False, allow_degrade=False)
        if kind == "throttled":
            return await world.outcome(cache=False)
        task = asyncio.ensure_future(world.outcome(cache=False))
        await asyncio.sleep(0.05 if kind == "cancelled before a token" else 0.11)
        task.cancel()
        return None

    return await traffic(steady(200, start=world.now, end=world.now + count / 200), one)


def no_storm_moves_a_circuit(count: int) -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Throttled(0.0, FOREVER, 0.0, 0.4))
        ends = await storm(world, count, 1)
        assert [e for e in ends if isinstance(e, UpstreamRejected)]
        assert world.transitions() == []
        outcomes = {attempt.outcome for attempt in world.attempts()}
        assert "failure" not in outcomes

    play(scenario)


def no_storm_closes_an_open_circuit(count: int) -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Throttled(0.0, FOREVER, 0.0, 1.0))
        opened = await world.open_circuit()
        world.plan("creative", Throttled(0.0, FOREVER, 0.0, 1.0))
        await storm(world, count // 2, 2)
        assert world.transitions() == [("closed", "open")]
        # Nor when the storm meets the probes: a 429 neither closes nor reopens.
        await asyncio.sleep(max(0.0, opened + 300.0 - world.now))
        await storm(world, count // 2, 3)
        assert set(world.transitions()[1:]) <= {("open", "probing")}
        assert world.circuit("creative").opened == opened
        assert world.phase("creative") in (Phase.PROBE_DUE, Phase.PROBING)

    play(scenario)


def test_07_a_storm_of_harmless_errors_never_opens() -> None:
    no_storm_moves_a_circuit(1000)


def test_07_a_storm_of_harmless_errors_never_closes() -> None:
    no_storm_closes_an_open_circuit(1200)


@pytest.mark.slow
def test_07_storms_of_10_to_the_4() -> None:
    no_storm_moves_a_circuit(10_000)
    no_storm_closes_an_open_circuit(20_000)


def test_07_failures_among_a_storm_still_count() -> None:
    """What is ignored must not reset the count either: three failures are in a row all the same."""

    async def scenario(world: World) -> None:
        for number in range(3):
            world.plan("creative", Throttled(0.0, FOREVER, 0.0))
            await world.outcome(allow_degrade=False)
            await asyncio.sleep(1.1)
            assert world.phase("creative") is Phase.CLOSED, number
            world.plan("creative", Outage(0.0, FOREVER))
            await world.ask()
        assert world.phase("creative") is Phase.OPEN

    play(scenario)


# -- 9: the wall clock -----------------------------------------------------------------------------


class WrongClock(real_datetime.datetime):
    """A wall clock that jumps by up to an hour at every look."""

    rng = random.Random(0)

    @classmethod
    def _off(cls) -> real_datetime.timedelta:
        return real_datetime.timedelta(seconds=cls.rng.uniform(-3600, 3600))

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return real_datetime.datetime.now(tz) + cls._off()

    @classmethod
    def utcnow(cls) -> Any:
        return cls.now(real_datetime.UTC).replace(tzinfo=None)


def trace() -> list[tuple[object, ...]]:
    async def scenario(world: World) -> list[tuple[object, ...]]:
        rng = random.Random(9)
        world.plan("creative", Outage(5.0, 40.0, "silent"), Flapping(400.0, 420.0))
        world.plan("balanced", *random_plan(rng, 400.0).faults)
        times = poisson(2.0, rng, end=450.0)
        ends = await traffic(
            times, lambda number: world.outcome(prompt=f"number {number % 500}", deadline=20.0)
        )
        seen = [_comparable(event) for event in world.events]
        return [*seen, *((type(end).__name__, str(end)) for end in ends)]

    return play(scenario, ladder(service={"spread": 0.5}))


def _comparable(event: Event) -> tuple[object, ...]:
    """An event without the ids, which are new in every run."""
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    fields.pop("request_id", None)
    return (type(event).__name__, *fields.items())


def test_09_a_wall_clock_wrong_by_up_to_an_hour_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = trace()
    assert any(entry[0] == "CircuitChanged" for entry in expected)
    rng = random.Random(1)
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + rng.uniform(-3600, 3600))
    monkeypatch.setattr(time, "localtime", lambda *_: real_datetime.date.min.timetuple())
    for module in (
        "aiobreaker.circuitbreaker",
        "aiobreaker.state",
        "gateway.policies.breaker",
    ):
        monkeypatch.setattr(f"{module}.datetime", WrongClock)
    assert trace() == expected


# -- B13 and events --------------------------------------------------------------------------------


def test_every_request_and_every_attempt_is_told_once() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Brownout(0.0, FOREVER, 0.3), CutStream(0.0, FOREVER, 0.2, 2))
        ends = await traffic(steady(10, end=30), lambda _: world.outcome())
        finished = [e for e in world.events if isinstance(e, RequestFinished)]
        assert len(finished) == len({e.request_id for e in finished}) == len(ends)
        tried = [e for e in world.events if isinstance(e, AttemptFinished)]
        assert len(tried) == sum(world.calls(mode) for mode in MODES)
        by_request: dict[str, int] = {}
        for attempt in tried:
            by_request[attempt.request_id] = by_request.get(attempt.request_id, 0) + 1
        for answer in answered(ends):
            assert answer.served.attempts == by_request[answer.id]

    play(scenario)


def test_all_modes_failed_says_when_to_come_back() -> None:
    async def scenario(world: World) -> None:
        for mode in MODES:
            world.plan(mode, Outage(0.0, FOREVER))
        await traffic(steady(2, end=10), lambda _: world.outcome())
        with pytest.raises(AllModesFailed) as failed:
            for _ in range(3):
                await world.ask()
        assert failed.value.retry_after is not None
        assert 0.0 <= failed.value.retry_after <= 30.0
        assert set(failed.value.causes) == set(MODES)

    play(scenario)
