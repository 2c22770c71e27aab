"""How it heals: point 18, the ramp of B6, the bottom mode and total outages of B9."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from world import FOREVER, MODES, World, ladder, play

from gateway.errors import AllModesFailed, GatewayError
from gateway.events import CircuitChanged
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
from gateway.simulator.traffic import bursts, steady
from gateway.simulator.traffic import play as traffic

HOLD, LEASE = 300.0, 30.0
END = 100.0

FAULTS: dict[str, tuple[AnyFault, ...]] = {
    "refuse": (Outage(10.0, END, "refuse"),),
    "reset": (Outage(10.0, END, "reset"),),
    "error500": (Outage(10.0, END, "error500"),),
    "silent": (Outage(10.0, END, "silent"),),
    "brownout": (Brownout(10.0, END, 0.7),),
    "silent brownout": (Brownout(10.0, END, 0.7, "silent"),),
    "flapping": (Flapping(10.0, END, 5.0, 15.0),),
    "silent flapping": (Flapping(10.0, END, 15.0, 25.0, "silent"),),
    "stall": (Stall(10.0, END, after_chunks=0),),
    "stall after a token": (Stall(10.0, END, after_chunks=1),),
    "cut": (CutStream(10.0, END, after_chunks=2),),
    "slow": (Latency(10.0, END, 300.0),),
    "throttled": (Throttled(10.0, END, 600.0),),
    "cold": (Outage(10.0, 60.0), ColdCapacity(60.0, END)),
}


def went_live(world: World, mode: str) -> float:
    """When a mode was last closed again, or the last fault ended if it never opened."""
    closed = [
        e.at
        for e in world.events
        if isinstance(e, CircuitChanged) and e.mode == mode and e.new == Phase.RECOVERING
    ]
    return max(closed, default=END)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_18_recovery_within_hold_lease_and_first_token(
    faults: tuple[AnyFault, ...], streamed: bool
) -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", *faults)

        async def ask(_: int) -> object:
            if not streamed:
                return await world.outcome()
            try:
                async with world.gateway.stream(world.prompt()) as answer:
                    return await answer.finish()
            except GatewayError as error:
                return error

        ends = await traffic(steady(1, end=END + HOLD + LEASE + 1), ask)
        assert world.phase("creative") in (Phase.CLOSED, Phase.RECOVERING)
        assert went_live(world, "creative") <= END + HOLD + LEASE + 1
        last = ends[-1]
        assert isinstance(last, Generation)
        assert last.mode == "creative"
        if not streamed:  # nobody was lost meanwhile
            assert all(isinstance(end, Generation) for end in ends)

    play(scenario)


@pytest.mark.parametrize("moment", [0.0, 5.0, 9.99, 10.0, 29.9, 150.0, 299.9, 300.0, 309.0, 600.0])
@pytest.mark.parametrize("how", ["silent", "error500"])
def test_18_whenever_the_outage_ends(how: Any, moment: float) -> None:
    """`moment` seconds after the mode opened: in the hold, at its end, while a probe hangs."""

    async def scenario(world: World) -> None:
        opened = await world.open_circuit()
        world.plan("creative", Outage(0.0, opened + moment, how))
        ends = await traffic(
            steady(0.5, start=opened, end=opened + moment + HOLD + LEASE + 2),
            lambda _: world.outcome(),
        )
        assert all(isinstance(end, Generation) for end in ends)
        last = ends[-1]
        assert isinstance(last, Generation)
        assert last.mode == "creative"

    play(scenario, ladder(service={"tokens": 1}))


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_18_a_probe_whose_answer_outlasts_its_lease_still_heals(streamed: bool) -> None:
    """Two minutes of tokens: the probe has shown that the mode is back long before the end."""

    async def scenario(world: World) -> None:
        opened = await world.open_circuit()
        await asyncio.sleep(opened + HOLD - world.now)
        if streamed:
            async with world.gateway.stream("a long story") as answer:
                assert (await answer.finish()).mode == "creative"
        else:
            assert (await world.ask()).mode == "creative"
        healed = went_live(world, "creative")
        assert healed == pytest.approx(opened + HOLD + 5.1, abs=1.0)

    slow = {"service": {"tokens": 120, "tokens_per_s": 1.0}}
    play(scenario, ladder(modes={"creative": slow, "fast": {}}))


def test_18_a_short_lease_is_long_enough_for_a_long_answer() -> None:
    async def scenario(world: World) -> None:
        opened = await world.open_circuit()
        await asyncio.sleep(opened + HOLD - world.now)
        assert (await world.ask()).mode == "creative"
        assert went_live(world, "creative") < opened + HOLD + 3.0

    slow = {"service": {"tokens": 30, "tokens_per_s": 2.0}}
    play(scenario, ladder(modes={"creative": slow, "fast": {}}, circuit={"probe_lease_s": 3.0}))


@pytest.mark.parametrize("takes", [8.0, 25.0, 60.0])
def test_18_a_mode_whose_target_cannot_stream_heals_as_well(takes: float) -> None:
    """Its first token is the whole answer, which may take longer than any first token does."""

    async def scenario(world: World) -> None:
        world.plan("creative", Outage(0.0, 5.0))
        opened = await world.open_circuit()
        await asyncio.sleep(opened + HOLD - world.now)
        for _ in range(3):
            answer = await world.ask()
            await asyncio.sleep(max(0.0, opened + 2 * HOLD + takes - world.now))
        assert answer.mode == "creative"

    slow = {"service": {"first_token_s": takes}, "target": {"stream_upstream": False}}
    play(scenario, ladder(modes={"creative": slow, "fast": {}}))


def test_b5_a_probe_may_not_keep_its_caller_waiting_for_the_whole_lease() -> None:
    async def scenario(world: World) -> None:
        opened = await world.open_circuit()
        world.plan("creative", Outage(0.0, FOREVER, "silent"))
        await asyncio.sleep(opened + HOLD - world.now)
        answer = await world.ask()
        assert answer.mode == "balanced"
        assert answer.duration_s == pytest.approx(10.16, abs=0.1)  # slow_s, not 15 s of first token
        assert world.phase("creative") is Phase.OPEN

    play(scenario)


def test_b5_holds_may_grow_with_relapses() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Outage(0.0, FOREVER))
        await traffic(steady(0.4, end=3000), lambda _: world.outcome())
        opened = [
            e.at
            for e in world.events
            if isinstance(e, CircuitChanged) and e.mode == "creative" and e.new == Phase.OPEN
        ]
        holds = [b - a for a, b in itertools.pairwise(opened)]
        assert holds == pytest.approx([300.0, 600.0, 900.0, 900.0], abs=6.0)

    config = ladder(service={"tokens": 1}, circuit={"break_growth": 2.0, "break_max_s": 900.0})
    play(scenario, config)


# -- B6 --------------------------------------------------------------------------------------------


def test_b6_after_closing_the_cap_grows_over_a_minute() -> None:
    async def scenario(world: World) -> None:
        opened = await world.open_circuit()
        peaks: dict[int, int] = {}

        async def ask(_: int) -> object:
            second = int(world.now - opened - HOLD)
            if second >= 0:
                inside = world.circuit("creative").in_flight
                peaks[second // 10] = max(peaks.get(second // 10, 0), inside)
            return await world.outcome()

        start = opened + HOLD
        ends = await traffic(steady(30, start=start, end=start + 70), ask)
        assert all(isinstance(end, Generation) for end in ends)
        for ten, peak in peaks.items():
            assert peak <= 1 + 20 * (ten + 1) / 6
        recovering = [end.reason for end in ends if isinstance(end, Generation) and end.degraded]
        assert "recovering" in recovering
        last = [end for end in ends[-150:] if isinstance(end, Generation)]
        assert sum(not end.degraded for end in last) > 125

    one = {"service": {"first_token_s": 0.4}, "max_in_flight": 20}
    config = ladder(modes={"creative": one, "balanced": {}, "fast": {}})
    play(scenario, config)


def test_b6_callers_one_at_a_time_never_meet_the_ramp() -> None:
    async def scenario(world: World) -> None:
        opened = await world.open_circuit()
        await asyncio.sleep(opened + HOLD - world.now)
        for _ in range(100):
            assert (await world.ask(cache=False)).mode == "creative"

    play(scenario)


def test_b6_a_failure_on_the_ramp_halves_it() -> None:
    async def scenario(world: World) -> None:
        opened = await world.open_circuit()
        await asyncio.sleep(opened + HOLD - world.now)
        await world.ask()
        await asyncio.sleep(30.0)
        before = world.circuit("creative").cap()
        world.plan("creative", Outage(world.now, world.now + 0.01))
        assert (await world.ask()).mode == "balanced"
        assert world.circuit("creative").cap() <= before / 2 + 10
        assert world.phase("creative") is Phase.RECOVERING
        await asyncio.sleep(61.0)
        assert world.phase("creative") is Phase.CLOSED

    play(scenario)


def test_b6_a_cold_backend_is_not_stampeded() -> None:
    """It returns with a tenth of its slots; the ramp lets it warm up without a single failure."""

    async def scenario(world: World) -> None:
        opened = await world.open_circuit()
        heals = opened + HOLD
        world.plan("creative", ColdCapacity(heals, heals + 60.0))
        ends = await traffic(steady(20, start=heals, end=heals + 90), lambda _: world.outcome())
        assert all(isinstance(end, Generation) for end in ends)
        assert world.transitions()[-1] == ("probing", "recovering")
        assert not [a for a in world.attempts() if a.outcome == "failure" and a.at > heals]

    cold = {"service": {"slots": 20, "queue": 0, "first_token_s": 0.5}, "max_in_flight": 20}
    play(scenario, ladder(modes={"creative": cold, "balanced": {}, "fast": {}}))


# -- B9 --------------------------------------------------------------------------------------------


def test_b9_the_bottom_mode_holds_for_5_to_30_s() -> None:
    async def scenario(world: World) -> None:
        world.plan("fast", Outage(0.0, FOREVER))
        await traffic(steady(10, end=200), lambda _: world.outcome("fast"))
        opened = [
            e.at for e in world.events if isinstance(e, CircuitChanged) and e.new == Phase.OPEN
        ]
        holds = [b - a for a, b in itertools.pairwise(opened)]
        assert holds[:5] == pytest.approx([5.0, 10.0, 20.0, 30.0, 30.0], abs=0.2)

    play(scenario, ladder(service={"tokens": 1}))


@pytest.mark.parametrize("lasts", [20.0, 63.3, 301.7])
@pytest.mark.parametrize("how", ["refuse", "error500", "silent"])
def test_b9_a_total_outage_is_over_5_s_and_a_first_token_after_it_ends(
    how: Any, lasts: float
) -> None:
    async def scenario(world: World) -> None:
        for mode in MODES:
            world.plan(mode, Outage(0.0, lasts, how))

        async def ask(_: int) -> tuple[float, object]:
            end = await world.outcome(deadline=30.0)
            return world.now, end

        ends = await traffic(steady(4, end=lasts + 20), ask)
        answered = [e[0] for e in ends if isinstance(e, tuple) and isinstance(e[1], Generation)]
        assert min(answered) <= lasts + 5.0 + 0.5
        # and from then on nobody is lost
        late = [e[1] for e in ends if isinstance(e, tuple) and e[0] > lasts + 11.0]
        assert all(isinstance(end, Generation) for end in late)

    play(scenario, ladder(service={"tokens": 1}))


def test_b9_the_panic_rule_tries_one_call_each_5_s_of_the_mode_open_longest() -> None:
    async def scenario(world: World) -> None:
        for mode in MODES:
            await world.open_circuit(mode)
        for mode in MODES:
            world.plan(mode, Outage(0.0, FOREVER))
        start = world.now
        calls = {mode: world.calls(mode) for mode in MODES}
        await traffic(steady(20, start=start, end=start + 4.9), lambda _: world.outcome())
        tried = {mode: world.calls(mode) - calls[mode] for mode in MODES}
        assert tried["creative"] in (1, 2)  # a quick fault may be tried once more
        assert tried["balanced"] == tried["fast"] == 0

    play(scenario)


def test_b9_nobody_else_waits_for_the_trial() -> None:
    async def scenario(world: World) -> None:
        for mode in MODES:
            await world.open_circuit(mode)
            world.plan(mode, Outage(0.0, FOREVER, "silent"))
        tasks = [asyncio.ensure_future(world.outcome()) for _ in range(50)]
        await asyncio.sleep(0.01)
        ended = [task.result() for task in tasks if task.done()]
        assert len(ended) == 49
        assert all(isinstance(end, AllModesFailed) for end in ended)
        await asyncio.gather(*tasks)

    play(scenario)


def test_b9_a_ladder_of_one_recovers_too() -> None:
    async def scenario(world: World) -> None:
        world.plan("solo", Outage(0.0, 100.0, "silent"))

        async def ask(_: int) -> tuple[float, object]:
            end = await world.outcome("solo", deadline=20.0)
            return world.now, end

        ends = await traffic(steady(2, end=150), ask)
        answered = [e[0] for e in ends if isinstance(e, tuple) and isinstance(e[1], Generation)]
        assert min(answered) <= 105.5

    play(scenario, ladder(modes={"solo": {}}))


@pytest.mark.parametrize("every", [2.0, 7.0, 33.0])
def test_18_sparse_or_bursty_traffic_heals_all_the_same(every: float) -> None:
    async def scenario(world: World) -> None:
        for mode in MODES:
            world.plan(mode, Outage(10.0, 150.0, "reset"))
        times = bursts(3, every_s=every, end=150 + HOLD + LEASE + 2 * every)
        ends = await traffic(times, lambda _: world.outcome())
        last = ends[-1]
        assert isinstance(last, Generation)
        assert last.mode == "creative"

    play(scenario, ladder(service={"tokens": 1}))
