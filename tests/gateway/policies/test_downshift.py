"""The ladder: who may answer, who may not and until when (B5, B9, B13, B14)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from gateway.clock import ManualClock
from gateway.detectors.failures import Outcome
from gateway.detectors.latency import LatencyDetector
from gateway.modes import ModeOptions
from gateway.policies.budget import BudgetOptions, RetryBudget
from gateway.policies.circuit import Circuit
from gateway.policies.downshift import Ladder, Refusal, Rung, Target, Visit
from gateway.policies.limit import Limit
from gateway.policies.phases import CircuitOptions, Phase

S, F, N = Outcome.SUCCESS, Outcome.FAILURE, Outcome.IGNORED
MODES = ("creative", "balanced", "fast")

# Driven by hand, aiobreaker 1.2 asks `datetime.utcnow`, which Python 3.12 would rather it did not.
pytestmark = pytest.mark.filterwarnings("ignore:.*utcnow:DeprecationWarning")


@dataclass(eq=False)
class Pretended:
    """A provider that is only looked at."""

    name: str = "target"
    model: str = "model"
    domain: str = "host"
    identity: str = "identity"
    context_window: int | None = None
    streams: bool = True
    continues: bool = True

    async def open(self, call: Any) -> Any:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


def target(weight: float = 1.0, **provider: Any) -> Target:
    return Target(Pretended(**provider), RetryBudget(BudgetOptions()), weight)


def rung(
    clock: ManualClock,
    index: int = 0,
    options: CircuitOptions | None = None,
    targets: Sequence[Target] = (),
    limit: int = 10,
) -> Rung:
    mode = ModeOptions(name=MODES[index], max_in_flight=limit)
    slots = Limit(limit, clock)
    circuit = Circuit(mode.name, options or CircuitOptions(), clock, limit=lambda: slots.current)
    return Rung(
        index, mode, circuit, slots, targets or [target()], LatencyDetector(), clock, b"identity"
    )


def ladder(clock: ManualClock, rungs: int = 3, **options: Any) -> Ladder:
    circuit = CircuitOptions(**options)
    return Ladder(
        [rung(clock, i, circuit.for_bottom() if i == rungs - 1 else circuit) for i in range(rungs)],
        clock,
    )


def enter(rung: Rung, *, native: bool = True, trial: bool = False) -> Visit:
    visit = rung.enter(native=native, trial=trial)
    assert isinstance(visit, Visit)
    return visit


def leave(visit: Visit, outcome: Outcome) -> None:
    visit.outcome = outcome
    visit.leave()


def fail(rung: Rung) -> None:
    for _ in range(3):
        leave(enter(rung), F)
    assert rung.circuit.phase() is Phase.OPEN


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


# -- entering and leaving -----------------------------------------------------------------------


def test_a_visit_holds_a_permit_and_a_slot_until_it_leaves(clock: ManualClock) -> None:
    creative = rung(clock)
    left: list[None] = []
    creative.on_leave = lambda: left.append(None)
    visit = enter(creative)
    assert (creative.circuit.in_flight, creative.limit.native) == (1, 1)
    for _ in range(3):
        leave(visit, S)
    assert (creative.circuit.in_flight, creative.limit.native, len(left)) == (0, 0, 1)


@pytest.mark.parametrize("native", [True, False])
def test_a_refusal_takes_nothing(native: bool, clock: ManualClock) -> None:
    resting, full, opened, forced = (rung(clock, limit=1) for _ in range(4))
    resting.targets[0].resting_until = 5.0
    enter(full)
    fail(opened)
    forced.circuit.force("open")
    for each, refusal in (
        (resting, Refusal("cooling", 5.0)),
        (full, Refusal("saturated", 1.0)),
        (opened, Refusal("circuit_open", 300.0)),
        (forced, Refusal("forced")),
    ):
        in_flight = each.circuit.in_flight, each.limit.in_flight
        assert each.enter(native=native) == refusal
        assert (each.circuit.in_flight, each.limit.in_flight) == in_flight


def test_a_recovering_mode_says_so(clock: ManualClock) -> None:
    creative = rung(clock)
    fail(creative)
    clock.advance(300.0)
    leave(enter(creative), S)
    enter(creative)
    assert creative.enter(native=True) == Refusal("recovering", 1.0)
    assert not creative.room(native=True)


def test_a_full_mode_does_not_spend_its_probe(clock: ManualClock) -> None:
    creative = rung(clock, limit=1)
    fail(creative)
    clock.advance(300.0)
    creative.limit.enter(native=False)
    assert creative.enter(native=True) == Refusal("saturated", 1.0)
    assert creative.circuit.phase() is Phase.PROBE_DUE


def test_abandoned_visits_count_for_nothing(clock: ManualClock) -> None:
    creative = rung(clock)
    for _ in range(100):
        enter(creative).leave()
    assert creative.circuit.phase() is Phase.CLOSED


@pytest.mark.parametrize(("outcome", "after"), [(S, 8), (N, 7)])
def test_only_success_lets_the_limit_grow_again(
    outcome: Outcome, after: int, clock: ManualClock
) -> None:
    creative = rung(clock, limit=10)
    creative.limit.overloaded()
    visits = [enter(creative) for _ in range(7)]
    for _ in range(8):
        leave(visits.pop(), outcome)
        visits.append(enter(creative))
    assert creative.limit.current == after


def test_a_target_without_a_stream_is_overdue_only_by_what_is_normal(clock: ManualClock) -> None:
    creative = rung(clock, targets=[target(streams=False)])
    assert enter(creative).permit.slow_s == 0.0
    assert not creative.too_slow(100.0)
    for _ in range(20):
        creative.latency.hear("creative", 20.0)
    slow_s = creative.latency.slow_s("creative")
    assert enter(creative).permit.slow_s == slow_s == 30.0
    assert not creative.too_slow(89.0)
    assert creative.too_slow(90.0)


def test_a_target_with_a_stream_is_overdue_by_the_circuits_own(clock: ManualClock) -> None:
    creative = rung(clock)
    assert enter(creative).permit.slow_s == 10.0
    assert not creative.too_slow(9.999)
    assert creative.too_slow(10.0)


# -- choosing a target --------------------------------------------------------------------------


def test_the_least_loaded_target_by_weight_is_picked(clock: ManualClock) -> None:
    small, large = target(1.0, name="small"), target(3.0, name="large")
    creative = rung(clock, targets=[small, large])
    for _ in range(40):
        picked = creative.pick()
        assert picked is not None
        picked.in_flight += 1
    assert (small.in_flight, large.in_flight) == (10, 30)


def test_a_resting_target_is_left_alone_until_it_has_rested(clock: ManualClock) -> None:
    one, two = target(), target()
    creative = rung(clock, targets=[one, two])
    one.resting_until = 30.0
    two.resting_until = 10.0
    assert creative.pick() is None
    assert (creative.resting_s(), creative.until(), creative.downshifted) == (10.0, 10.0, True)
    clock.advance(9.999)
    assert creative.pick() is None
    clock.advance(0.001)
    assert creative.pick() is two
    assert (creative.resting_s(), creative.until(), creative.downshifted) == (0.0, None, False)
    two.in_flight = 1000
    assert creative.pick() is two
    clock.advance(20.0)
    assert creative.pick() is one


def test_a_retry_goes_elsewhere_if_there_is_an_elsewhere(clock: ManualClock) -> None:
    one, two = target(), target()
    two.in_flight = 50
    creative = rung(clock, targets=[one, two])
    assert creative.pick() is one
    assert creative.pick(tried={one}) is two
    assert creative.pick(tried={one, two}) is one
    two.resting_until = 1.0
    assert creative.pick(tried={one}) is one


def test_only_a_larger_window_will_do_and_an_unknown_one_may(clock: ManualClock) -> None:
    small, same, larger, unknown = (
        target(context_window=window) for window in (4096, 8192, 8193, None)
    )
    for only, picked in ((small, None), (same, None), (larger, larger), (unknown, unknown)):
        assert rung(clock, targets=[only]).pick(window=8192) is picked
        assert rung(clock, targets=[only]).pick() is only
    refusal = rung(clock, targets=[small, same]).enter(native=True, window=8192)
    assert refusal == Refusal("context")


# -- the ladder ---------------------------------------------------------------------------------


@pytest.mark.parametrize("start", range(3))
def test_a_request_is_never_served_above_what_it_asked_for(start: int, clock: ManualClock) -> None:
    modes = ladder(clock)
    assert [r.index for r in modes.below(start, allow_degrade=True)] == list(range(start, 3))
    assert [r.index for r in modes.below(start, allow_degrade=False)] == [start]
    assert modes.index(MODES[start]) == start


def test_one_modes_failures_move_no_other(clock: ManualClock) -> None:
    modes = ladder(clock)
    fail(modes.rungs[1])
    clock.advance(1000.0)
    leave(enter(modes.rungs[1]), F)
    for index in (0, 2):
        circuit = modes.rungs[index].circuit
        assert (circuit.phase(), circuit.epoch, circuit.opened) == (Phase.CLOSED, 0, None)


def test_waiting_helps_only_if_a_slot_is_all_that_is_missing(clock: ManualClock) -> None:
    modes = ladder(clock)
    creative, balanced, fast = modes
    assert not modes.saturated(0, allow_degrade=True)
    for each in modes:
        while isinstance(each.enter(native=True), Visit):
            pass
    assert modes.saturated(0, allow_degrade=True)
    balanced.limit.leave(native=True)
    # Downshifted traffic has its half, and native traffic is there: the slot is not for it.
    assert modes.saturated(1, allow_degrade=True) is False
    assert modes.saturated(0, allow_degrade=True) is False
    assert modes.saturated(0, allow_degrade=False)
    for each in modes:
        each.circuit.breaker.open()
    assert not modes.saturated(0, allow_degrade=True)
    fast.circuit.breaker.close()
    assert modes.saturated(0, allow_degrade=True)
    assert creative.downshifted


def test_a_mode_at_rest_is_no_reason_to_queue(clock: ManualClock) -> None:
    modes = ladder(clock, rungs=1)
    modes.rungs[0].targets[0].resting_until = 60.0
    assert not modes.saturated(0, allow_degrade=True)


def test_downshifted_visits_leave_half_of_a_lower_mode_to_its_own(clock: ManualClock) -> None:
    balanced = rung(clock, 1, limit=10)
    enter(balanced, native=True)
    downshifted = [balanced.enter(native=False) for _ in range(9)]
    assert sum(isinstance(entry, Visit) for entry in downshifted) == 5
    assert downshifted[-1] == Refusal("saturated", 1.0)
    assert sum(isinstance(balanced.enter(native=True), Visit) for _ in range(9)) == 4


# -- the panic rule -----------------------------------------------------------------------------


def outage(clock: ManualClock, **options: Any) -> Ladder:
    """Every mode open, one second after the other, the best one first."""
    modes = ladder(clock, bottom_break_s=300.0, **options)
    for each in modes:
        fail(each)
        clock.advance(1.0)
    return modes


def test_with_every_mode_open_the_one_open_longest_has_a_trial_each_five_seconds(
    clock: ManualClock,
) -> None:
    modes = outage(clock)
    tried = []
    for _ in range(4):
        picked = modes.panic(0)
        assert picked is not None
        leave(enter(picked, trial=True), F)
        tried.append(picked.name)
        clock.advance(4.875)
        assert modes.panic(0) is None
        clock.advance(0.125)
    assert tried == ["creative", "balanced", "fast", "creative"]


def test_open_since_the_very_start_of_the_clock_is_open_longest(clock: ManualClock) -> None:
    modes = outage(clock)
    assert modes.rungs[0].circuit.opened == 0.0
    assert modes.panic(0) is modes.rungs[0]


def test_no_trial_while_one_mode_is_well(clock: ManualClock) -> None:
    modes = outage(clock)
    for closed in modes:
        closed.circuit.breaker.close()
        assert all(modes.panic(start) is None for start in range(3))
        closed.circuit.breaker.open()


def test_no_trial_of_a_mode_an_operator_holds_open_nor_above_the_one_asked_for(
    clock: ManualClock,
) -> None:
    modes = outage(clock)
    assert modes.panic(1) is modes.rungs[1]
    modes.rungs[1].circuit.force("open")
    assert modes.panic(1) is modes.rungs[2]
    modes.rungs[2].circuit.force("open")
    assert modes.panic(1) is None
    assert modes.panic(0) is modes.rungs[0]


def test_no_second_trial_of_a_mode_that_is_probing(clock: ManualClock) -> None:
    modes = outage(clock)
    enter(modes.rungs[0], trial=True)
    clock.advance(5.0)
    assert modes.panic(0) is modes.rungs[1]


def test_a_mode_that_cannot_be_entered_does_not_spend_the_trial(clock: ManualClock) -> None:
    modes = outage(clock)
    creative, balanced, fast = modes
    creative.targets[0].resting_until = 300.0
    while balanced.limit.room(native=False):
        balanced.limit.enter(native=False)
    assert modes.panic(0) is fast
    assert modes.panic(0) is fast  # asked for and not taken, it is still there for the next
    enter(fast, native=False, trial=True)
    assert modes.panic(0) is None


def test_a_trial_that_succeeds_closes_the_mode(clock: ManualClock) -> None:
    modes = outage(clock)
    picked = modes.panic(0)
    assert picked is not None
    leave(enter(picked, trial=True), S)
    assert not picked.downshifted
    clock.advance(60.0)
    assert modes.panic(0) is None


def test_options_of_the_bottom_mode_never_hold_longer_than_the_others(clock: ManualClock) -> None:
    options = replace(CircuitOptions(), break_duration_s=2.0)
    assert options.for_bottom().break_duration_s == 2.0
    assert CircuitOptions().for_bottom().break_duration_s == 5.0
