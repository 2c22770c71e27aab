"""When a mode opens, who is let through meanwhile, and what moves it: points 2 to 8 and 10."""

from __future__ import annotations

import asyncio
import random

import pytest
from world import FOREVER, MODES, World, ladder, play

from gateway.detectors.failures import Outcome
from gateway.errors import AllModesFailed, CircuitOpen, InvalidRequest
from gateway.generation import Generation
from gateway.policies.phases import Phase
from gateway.simulator.faults import Brownout, CutStream, Outage, Stall, Throttled
from gateway.simulator.traffic import bursts, steady
from gateway.simulator.traffic import play as traffic

HOLD = 300.0


def test_02_one_live_probe_with_500_callers_at_hold_expiry() -> None:
    async def scenario(world: World) -> None:
        opened = await world.open_circuit()
        before = world.calls("creative")
        await asyncio.sleep(opened + HOLD - world.now)
        answers = await world.many(500)
        modes = [answer.mode for answer in answers if isinstance(answer, Generation)]
        assert modes.count("creative") == 1
        assert modes.count("balanced") == 499
        assert world.calls("creative") == before + 1
        assert world.phase("creative") is Phase.RECOVERING

    play(scenario)


@pytest.mark.parametrize("how", ["silent", "error500"])
def test_02_a_failing_probe_is_one_as_well_and_its_caller_is_answered_below(how: str) -> None:
    async def scenario(world: World) -> None:
        opened = await world.open_circuit()
        world.plan("creative", Outage(0.0, FOREVER, how))  # type: ignore[arg-type]
        before = world.calls("creative")
        await asyncio.sleep(opened + HOLD - world.now)
        answers = await world.many(500)
        assert {a.mode for a in answers if isinstance(a, Generation)} == {"balanced"}
        assert len(answers) == 500
        assert world.calls("creative") - before in (1, 2)  # a quick failure is tried once more
        assert world.attempts()[-1].probe
        assert world.phase("creative") is Phase.OPEN

    play(scenario)


def test_02_one_live_probe_in_every_mode_at_once() -> None:
    async def scenario(world: World) -> None:
        for mode in MODES:
            world.plan(mode, Outage(0.0, 100.0, "silent"))
        times = bursts(10, every_s=2.5, end=500)
        await traffic(times, lambda number: world.outcome(MODES[number % 3], deadline=30.0))
        world.check()  # `World` watches each call that reaches an upstream
        assert all(world.phase(mode) is Phase.CLOSED for mode in MODES)

    play(scenario, ladder(service={"tokens": 1}))


def test_03_no_request_reaches_an_open_mode() -> None:
    async def scenario(world: World) -> None:
        opened = await world.open_circuit()
        before = world.calls("creative")
        answers = await traffic(
            steady(2, start=opened, end=opened + HOLD), lambda _: world.outcome()
        )
        assert {a.mode for a in answers if isinstance(a, Generation)} == {"balanced"}
        assert len(answers) == 600
        assert world.calls("creative") == before

    play(scenario, ladder(service={"tokens": 1}))


def test_03_a_retry_does_not_reach_a_mode_that_opened_meanwhile() -> None:
    """A caller waits for a short Retry-After; others' failures open the mode before it is over."""

    async def scenario(world: World) -> None:
        world.plan("creative", Throttled(0.0, 0.5, 0.4))
        waiting = asyncio.ensure_future(world.outcome())
        await asyncio.sleep(0.1)
        circuit = world.circuit("creative")
        for _ in range(3):
            permit = circuit.admit()
            assert permit is not None
            circuit.settle(permit, Outcome.FAILURE)
        assert world.phase("creative") is Phase.OPEN
        answer = await waiting
        assert isinstance(answer, Generation)
        assert answer.mode == "balanced"
        assert world.calls("creative") == 1

    play(scenario)


def test_03_a_forced_open_mode_is_left_alone_in_the_middle_of_a_retry() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Brownout(0.0, FOREVER, 1.0, "error500"))
        waiting = asyncio.ensure_future(world.outcome())
        await asyncio.sleep(0.02)  # the call is on its way: it will fail at 0.05 s
        world.gateway.force("creative", "open")
        answer = await waiting
        assert isinstance(answer, Generation)
        assert (answer.mode, answer.reason) == ("balanced", "failed")
        assert world.calls("creative") == 1

    play(scenario, ladder(service={"round_trip_s": 0.05}))


def test_04_the_opening_time_is_constant_within_an_epoch() -> None:
    async def scenario(world: World) -> None:
        opened = await world.open_circuit()
        world.plan("creative", Stall(0.0, FOREVER))  # probes fail as well, after a token
        epochs: dict[int, set[float]] = {}
        for _ in range(700):
            await asyncio.sleep(1.3)
            await world.outcome(cache=False)
            circuit = world.circuit("creative")
            if circuit.opened is not None and world.phase("creative") is Phase.OPEN:
                epochs.setdefault(circuit.epoch, set()).add(circuit.opened)
        assert len(epochs) >= 3
        assert opened in epochs[min(epochs)]
        assert all(len(times) == 1 for times in epochs.values())

    play(scenario)


def test_05_exactly_three_consecutive_failures_open() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Outage(0.0, FOREVER))
        for expected in (Phase.CLOSED, Phase.CLOSED, Phase.OPEN):
            await world.ask()
            assert world.phase("creative") is expected

    play(scenario)


def test_05_one_failure_a_request_however_many_attempts() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Outage(0.0, FOREVER, "error500"))
        await world.ask()
        await world.ask()
        assert world.calls("creative") == 3  # the first was quickly tried again
        assert world.phase("creative") is Phase.CLOSED

    play(scenario)


def test_05_two_failures_and_a_success_do_not_open() -> None:
    async def scenario(world: World) -> None:
        for turn in range(8):  # two bad, one good; at most half of ten have failed
            world.plan("creative", Outage(world.now, world.now + 1.0))
            await world.ask()
            if turn % 2:
                await world.ask()
            world.plan("creative")
            for _ in range(3):
                await world.ask()
        assert world.transitions() == []

    play(scenario)


@pytest.mark.parametrize(("apart", "opens"), [(29.9, True), (30.1, False)])
def test_05_three_failures_count_within_60_s(apart: float, opens: bool) -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Outage(0.0, FOREVER, "reset"))
        for number in range(3):
            await asyncio.sleep(number * apart - world.now)
            await world.ask()
        assert (world.phase("creative") is Phase.OPEN) == opens

    play(scenario)


def test_05_half_of_ten_calls_in_30_s_open() -> None:
    async def scenario(world: World) -> None:
        for turn in range(5):
            assert world.phase("creative") is Phase.CLOSED, turn
            world.plan("creative")
            await world.ask()
            world.plan("creative", Outage(world.now, FOREVER))
            await world.ask()
        assert world.phase("creative") is Phase.OPEN

    play(scenario)


@pytest.mark.parametrize(("after", "probes"), [(299.999, 0), (300.0, 1)])
def test_06_299_999_s_no_probe_300_s_probe(after: float, probes: int) -> None:
    async def scenario(world: World) -> None:
        opened = await world.open_circuit()
        before = world.calls("creative")
        await asyncio.sleep(opened + after - world.now)
        answer = await world.ask()
        assert world.calls("creative") - before == probes
        assert answer.degraded == (probes == 0)

    play(scenario)


def test_06_without_demand_nothing_is_probed_and_the_phase_still_tells_the_time() -> None:
    async def scenario(world: World) -> None:
        opened = await world.open_circuit()
        before = world.calls("creative")

        def shown(name: str) -> object:
            return world.gateway.status()["modes"]["creative"][name]

        await asyncio.sleep(opened + 100.0 - world.now)
        assert shown("phase") == "open"
        assert shown("until_s") == pytest.approx(200.0)
        assert shown("ttl_s") == 300.0
        await asyncio.sleep(900.0)
        assert shown("phase") == "probe_due"
        assert shown("until_s") in (0.0, None)
        assert world.calls("creative") == before
        epoch = world.circuit("creative").epoch
        for _ in range(10):
            world.gateway.status()
        assert world.circuit("creative").epoch == epoch

    play(scenario)


def test_06_early_probes_may_end_the_hold() -> None:
    async def scenario(world: World) -> None:
        opened = await world.open_circuit()
        world.plan("creative", Outage(0.0, 35.0))
        answers = await traffic(steady(10, start=opened, end=60), lambda _: world.outcome())
        assert all(isinstance(answer, Generation) for answer in answers)
        probes = [attempt.at for attempt in world.attempts() if attempt.probe]
        assert probes[-1] == pytest.approx(opened + 40.0, abs=0.5)
        assert world.phase("creative") is Phase.RECOVERING

    play(scenario, ladder(circuit={"early_probe_s": 10.0}))


def test_08_late_results_change_nothing_but_a_counter() -> None:
    """Twenty calls are under way when the mode opens: some end well, some badly, all too late."""

    async def scenario(world: World) -> None:
        world.plan("creative", CutStream(0.0, 0.01, share=0.5), Outage(0.05, 0.2, "error500"))
        early = asyncio.ensure_future(world.many(20))
        await asyncio.sleep(0.1)
        failing = asyncio.ensure_future(world.many(3))
        await asyncio.sleep(0.1)
        circuit = world.circuit("creative")
        before = (circuit.epoch, circuit.opened, world.transitions())
        assert before[2] == [("closed", "open")]
        assert circuit.late == 0
        await early
        await failing
        assert 3 <= len([a for a in world.attempts() if a.kind == "interrupted"]) <= 17
        assert (circuit.epoch, circuit.opened, world.transitions()) == before
        assert circuit.late == 20

    play(scenario, ladder(service={"first_token_s": 2.0}))


def test_08_results_from_before_the_opening_do_not_close_it_while_probing() -> None:
    async def scenario(world: World) -> None:
        slow = asyncio.gather(*(world.outcome(deadline=600.0) for _ in range(5)))
        await asyncio.sleep(0.01)
        opened = await world.open_circuit()
        world.plan("creative", Stall(0.0, FOREVER, after_chunks=0))
        await asyncio.sleep(opened + HOLD - world.now)
        probe = asyncio.ensure_future(world.outcome())
        await asyncio.sleep(1.0)
        assert world.phase("creative") is Phase.PROBING
        await slow  # five good answers of the first epoch come in now
        assert world.phase("creative") is Phase.PROBING
        await probe
        assert world.phase("creative") is Phase.OPEN

    config = ladder(
        modes={"creative": {"service": {"first_token_s": 301.5}, "first_token_s": 400}, "fast": {}},
        circuit={"slow_s": 0.0},
    )
    play(scenario, config)


def test_10_no_mode_moves_another() -> None:
    """Each mode fails alone while all are in use; only its own circuit moves."""

    async def scenario(world: World) -> None:
        for broken in MODES:
            world.events.clear()
            world.plan(broken, Outage(world.now, world.now + 30.0))
            start = world.now
            await traffic(
                steady(1.5, start=start, end=start + 340),
                lambda number: world.outcome(MODES[number % 3]),
            )
            moved = {mode for mode in MODES if world.transitions(mode)}
            assert moved == {broken}

    play(scenario, ladder(service={"tokens": 1}))


def test_10_modes_that_share_a_failure_domain_still_have_their_own_circuits() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Outage(0.0, 30.0, "error500"))
        await traffic(steady(5, end=60), lambda number: world.outcome(MODES[number % 3]))
        assert world.transitions() == [("closed", "open")]
        assert world.transitions("balanced") == world.transitions("fast") == []

    play(scenario, ladder(shared_domain=True))


@pytest.mark.parametrize("seed", [1])
def test_overdue_silence_opens_after_slow_s_and_those_who_wait_walk_on_at_once(seed: int) -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Outage(5.0, 200.0, "silent"))
        answers = await traffic(steady(50, end=30), lambda _: world.outcome())
        assert all(isinstance(answer, Generation) for answer in answers)
        [opened] = [e.at for e in world.events if getattr(e, "new", "") == Phase.OPEN]
        assert opened == pytest.approx(15.0, abs=0.1)  # slow_s is 10
        took = sorted(a.duration_s for a in answers[250:] if isinstance(a, Generation))
        assert took[-1] < 10.5
        assert took[len(took) // 2] < 0.3
        # first_token_s is 12, and nobody waited for it
        silent = [a.duration_s for a in world.attempts() if a.first_token_s is None]
        assert len(silent) >= 500
        assert max(silent) < 10.2

    play(scenario, seed=seed)


def test_overdue_attempts_do_not_open_while_tokens_come() -> None:
    """Five calls hang, but others get their tokens: that is no silence."""

    async def scenario(world: World) -> None:
        world.plan("creative", Stall(1.0, 1.5, after_chunks=0))
        answers = await traffic(steady(10, end=20), lambda _: world.outcome())
        assert all(isinstance(answer, Generation) for answer in answers)
        assert len([a for a in world.attempts() if a.kind == "timeout"]) == 5
        assert world.transitions() == []

    play(scenario)


def test_overdue_and_first_token_limit_at_the_same_instant() -> None:
    """30 s for three modes leave 10 s for the first, and the overdue rule also speaks at 10 s."""

    async def scenario(world: World) -> None:
        world.plan("creative", Outage(0.0, FOREVER, "silent"))
        answers = await world.many(20, deadline=30.0)
        assert {a.mode for a in answers if isinstance(a, Generation)} == {"balanced"}
        assert not [answer for answer in answers if not isinstance(answer, Generation)]

    play(scenario)
    for seed in range(10):
        play(scenario, seed=seed)


def test_13_forced_modes_and_their_words() -> None:
    async def scenario(world: World) -> None:
        gateway = world.gateway
        gateway.force("creative", "open")
        answer = await world.ask()
        assert (answer.mode, answer.reason, answer.until) == ("balanced", "forced", None)
        assert world.calls("creative") == 0
        with pytest.raises(CircuitOpen) as refused:
            await world.ask(allow_degrade=False)
        assert refused.value.mode == "creative"

        gateway.force("creative", "closed")
        world.plan("creative", Outage(0.0, FOREVER))
        for _ in range(10):
            await world.ask()
        assert world.phase("creative") is Phase.FORCED_CLOSED
        world.plan("creative")
        assert (await world.ask()).mode == "creative"

        gateway.force("creative", "open")
        gateway.force("creative", "auto")
        assert (await world.ask()).mode == "creative"
        assert world.phase("creative") is Phase.RECOVERING
        with pytest.raises(InvalidRequest, match="unknown mode"):
            gateway.force("poetic", "open")
        with pytest.raises(InvalidRequest, match="open, closed or auto"):
            gateway.force("creative", "half")

    play(scenario)


def test_13_circuit_open_tells_a_true_retry_after() -> None:
    async def scenario(world: World) -> None:
        opened = await world.open_circuit()
        await asyncio.sleep(opened + 120.0 - world.now)
        with pytest.raises(CircuitOpen) as refused:
            await world.ask(allow_degrade=False)
        assert refused.value.retry_after == pytest.approx(180.0)
        await asyncio.sleep(refused.value.retry_after or 0.0)
        assert (await world.ask(allow_degrade=False)).mode == "creative"

    play(scenario)


def test_all_modes_forced_open_is_a_typed_error_with_one_cause_a_mode() -> None:
    async def scenario(world: World) -> None:
        for mode in MODES:
            world.gateway.force(mode, "open")
        with pytest.raises(AllModesFailed) as failed:
            await world.ask()
        assert set(failed.value.causes) == set(MODES)

    play(scenario)


def test_listeners_that_raise_change_nothing() -> None:
    def trace(listener: object) -> list[tuple[object, ...]]:
        async def scenario(world: World) -> list[tuple[object, ...]]:
            if listener is not None:
                world.gateway.listen(_raise)
            world.plan("creative", Outage(2.0, 9.0, "silent"), Outage(9.0, 30.0))
            rng = random.Random(4)
            times = sorted(rng.uniform(0, 360) for _ in range(300))
            answers = await traffic(times, lambda _: world.outcome())
            assert bool(world.gateway.status()["listener_faults"]) == (listener is not None)
            return [_seen(answer) for answer in answers]

        return play(scenario, at_rest=False)

    assert trace(None) == trace(_raise)


def _raise(event: object) -> None:
    raise RuntimeError("a listener's fault")


def _seen(answer: object) -> tuple[object, ...]:
    assert isinstance(answer, Generation), answer
    return (answer.text, answer.mode, answer.reason, answer.until, answer.duration_s)
