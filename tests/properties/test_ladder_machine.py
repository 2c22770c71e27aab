"""The ladder under random traffic, outages and operators: who may be served, and by whom.

Requests walk down it as the gearbox does. Each rule says what must be so by the contract (B5, B9,
B13, B14) from what can be seen from outside; after each step nothing may be lost or leaked.

The runs are the same each time. To search longer, and elsewhere each time:

    LADDER_EXAMPLES=5000 pytest tests/properties/test_ladder_machine.py
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from gateway.clock import ManualClock
from gateway.detectors.failures import Outcome
from gateway.detectors.latency import LatencyDetector
from gateway.modes import ModeOptions
from gateway.policies.budget import BudgetOptions, RetryBudget
from gateway.policies.circuit import Circuit
from gateway.policies.downshift import Ladder, Refusal, Rung, Target, Visit
from gateway.policies.limit import Limit
from gateway.policies.phases import CircuitOptions, Phase

TICK = 1 / 1024  # every time here is a multiple of this, so sums are exact
MODES = ("creative", "balanced", "fast")
HELD = {Phase.OPEN, Phase.FORCED_OPEN, Phase.PROBING}  # nobody may be let in


@dataclass(eq=False)
class Pretended:
    """A provider that is only looked at."""

    name: str
    context_window: int | None
    streams: bool = True
    continues: bool = True
    model: str = "model"
    domain: str = "host"
    identity: str = "identity"

    async def open(self, call: Any) -> Any:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


class LadderMachine(RuleBasedStateMachine):
    visits = Bundle("visits")

    @initialize(
        limits=st.lists(st.integers(1, 8), min_size=3, max_size=3),
        early_probe_s=st.sampled_from([0.0, 0.0, 10.0]),
    )
    def build(self, limits: list[int], early_probe_s: float) -> None:
        self.clock = ManualClock()
        self.live: list[Visit] = []
        self.trials: list[float] = []
        options = CircuitOptions(early_probe_s=early_probe_s)
        self.ladder = Ladder(
            [self.rung(i, limit, options) for i, limit in enumerate(limits)], self.clock
        )
        self.rungs = self.ladder.rungs

    def rung(self, index: int, maximum: int, options: CircuitOptions) -> Rung:
        name = MODES[index]
        limit = Limit(maximum, self.clock)
        bottom = index == len(MODES) - 1
        circuit = Circuit(
            name,
            options.for_bottom() if bottom else options,
            self.clock,
            limit=lambda: limit.current,
        )
        targets = [
            Target(Pretended(f"{name}-{i}", window), RetryBudget(BudgetOptions()), 1.0 + i)
            for i, window in enumerate((4096, None))
        ]
        mode = ModeOptions(name=name, max_in_flight=maximum)
        return Rung(index, mode, circuit, limit, targets, LatencyDetector(), self.clock, b"")

    # -- what can be seen of a mode

    def seen(self, rung: Rung) -> tuple[object, ...]:
        circuit, limit = rung.circuit, rung.limit
        return (
            circuit.phase(),
            circuit.until(),
            circuit.opened,
            circuit.epoch,
            circuit.in_flight,
            circuit.late,
            circuit.cap(),
            limit.native,
            limit.downshifted,
            limit.current,
            rung.until(),
        )

    def others(self, *indexes: int) -> list[tuple[object, ...]]:
        return [self.seen(rung) for rung in self.rungs if rung.index not in indexes]

    # -- time and weather

    @rule(
        seconds=st.sampled_from([0.0, TICK, 1.0, 5.0 - TICK, 5.0, 10.0, 30.0, 60.0, 300.0])
        | st.integers(0, 400 * 1024).map(lambda ticks: ticks * TICK)
    )
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(index=st.integers(0, 2), which=st.sets(st.integers(0, 1)), seconds=st.integers(0, 60))
    def targets_rest(self, index: int, which: set[int], seconds: int) -> None:
        others = self.others(index)
        for i in which:
            self.rungs[index].targets[i].resting_until = self.clock() + seconds
        assert self.others(index) == others

    @rule(index=st.integers(0, 2))
    def overloaded(self, index: int) -> None:
        others = self.others(index)
        self.rungs[index].limit.overloaded()
        assert self.others(index) == others

    @rule(index=st.integers(0, 2), how=st.sampled_from(["open", "closed", "auto", "auto"]))
    def force(self, index: int, how: str) -> None:
        others = self.others(index)
        self.rungs[index].circuit.force(how)
        assert self.others(index) == others

    @rule(index=st.integers(0, 2), waiting=st.integers(0, 2))
    def native_requests_queue(self, index: int, waiting: int) -> None:
        self.rungs[index].limit.native_waiting = waiting

    @rule(index=st.integers(0, 2))
    def sweep(self, index: int) -> None:
        others = self.others(index)
        self.rungs[index].circuit.sweep()
        assert self.others(index) == others

    # -- requests

    @rule(
        target=visits,
        start=st.integers(0, 2),
        allow_degrade=st.sampled_from([True, True, False]),
        window=st.sampled_from([0, 0, 8192]),
        n=st.integers(1, 3),
    )
    def requests(self, start: int, allow_degrade: bool, window: int, n: int) -> object:
        visits = (self.walk(start, allow_degrade, window) for _ in range(n))
        return multiple(*(visit for visit in visits if visit is not None))

    def walk(self, start: int, allow_degrade: bool, window: int) -> Visit | None:
        allowed = self.ladder.below(start, allow_degrade=allow_degrade)
        assert all(rung.index >= start for rung in allowed)
        for rung in allowed:
            phase, others = rung.circuit.phase(), self.others(rung.index)
            entry = rung.enter(native=rung.index == start, window=window)
            assert self.others(rung.index) == others, "one mode moved another"
            if isinstance(entry, Visit):
                assert phase not in HELD, "a request was let through to an open mode"
                assert entry.permit.probe == (phase is Phase.PROBE_DUE)
                return self.entered(entry)
            self.refused(rung, entry, phase)
        return None

    def entered(self, visit: Visit) -> Visit:
        rung = visit.rung
        rung.circuit.first_token(visit.permit)
        self.live.append(visit)
        limit = rung.limit
        assert limit.in_flight <= limit.current
        if not visit.native and (limit.native or limit.native_waiting):
            assert limit.downshifted <= max(1, limit.current // 2)
        return visit

    def refused(self, rung: Rung, refusal: Refusal, phase: Phase) -> None:
        held = {"forced": {Phase.FORCED_OPEN}, "recovering": {Phase.RECOVERING}}
        held["circuit_open"] = {Phase.OPEN, Phase.PROBING}
        assert phase in held.get(refusal.reason, {phase})
        if refusal.reason == "circuit_open":
            assert refusal.retry_after == rung.circuit.until()
        if refusal.reason == "cooling":
            assert all(target.resting_until > self.clock() for target in rung.targets)

    @rule(target=visits, start=st.integers(0, 2), take=st.booleans())
    def panic(self, start: int, take: bool) -> object:
        now, before = self.clock(), self.others()
        picked = self.ladder.panic(start)
        assert self.others() == before, "asking is not taking"
        every_mode_open = all(rung.circuit.phase().downshifted for rung in self.rungs)
        lately = bool(self.trials) and now - self.trials[-1] < 5.0
        could = [
            rung
            for rung in self.rungs[start:]
            if rung.circuit.phase() in (Phase.OPEN, Phase.PROBE_DUE)
            and any(target.resting_until <= now for target in rung.targets)
            and rung.limit.room(native=rung.index == start)
        ]
        if picked is None:
            assert lately or not every_mode_open or not could
            return multiple()
        assert every_mode_open
        assert not lately
        assert picked in could
        assert picked.circuit.opened == min(rung.circuit.opened or 0.0 for rung in could)
        if not take:
            return multiple()
        others = self.others(picked.index)
        entry = picked.enter(native=picked.index == start, trial=True)
        assert self.others(picked.index) == others
        assert isinstance(entry, Visit)
        assert entry.permit.probe
        self.trials.append(now)
        return multiple(self.entered(entry))

    @rule(
        visit=consumes(visits),
        outcome=st.sampled_from([*Outcome, Outcome.FAILURE, Outcome.FAILURE]),
        again=st.booleans(),
    )
    def leave(self, visit: Visit, outcome: Outcome, again: bool) -> None:
        others = self.others(visit.rung.index)
        visit.outcome = outcome
        visit.leave()
        if again:
            visit.leave()
        self.live = [other for other in self.live if other is not visit]
        assert self.others(visit.rung.index) == others

    @rule(index=st.integers(0, 2), outcomes=st.lists(st.sampled_from(Outcome), max_size=6))
    def one_after_another(self, index: int, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            visit = self.walk(index, allow_degrade=False, window=0)
            if visit is not None:
                self.leave(visit, outcome, again=False)

    @rule(index=st.integers(0, 2))
    def outage(self, index: int) -> None:
        self.one_after_another(index, [Outcome.FAILURE] * 3)

    @rule()
    def total_outage(self) -> None:
        for index in range(len(MODES)):
            self.outage(index)

    # -- what always holds

    @invariant()
    def nothing_is_lost_or_leaked(self) -> None:
        for rung in self.rungs:
            mine = [visit for visit in self.live if visit.rung is rung]
            native = sum(visit.native for visit in mine)
            assert rung.circuit.in_flight == len(mine)
            assert (rung.limit.native, rung.limit.downshifted) == (native, len(mine) - native)

    @invariant()
    def at_most_one_live_probe_a_mode(self) -> None:
        for rung in self.rungs:
            live = [
                visit
                for visit in self.live
                if visit.rung is rung
                and visit.permit.epoch == rung.circuit.epoch
                and visit.permit.lease_until > self.clock()
                and visit.permit.probe
            ]
            assert len(live) <= 1

    @invariant()
    def queueing_is_for_want_of_a_slot_only(self) -> None:
        for start in range(len(MODES)):
            for allow_degrade in (True, False):
                well = [
                    rung
                    for rung in self.ladder.below(start, allow_degrade=allow_degrade)
                    if not rung.circuit.phase().downshifted
                    and any(target.resting_until <= self.clock() for target in rung.targets)
                ]
                free = [rung for rung in well if rung.room(native=rung.index == start)]
                saturated = self.ladder.saturated(start, allow_degrade=allow_degrade)
                assert saturated == (bool(well) and not free)

    @invariant()
    def the_least_loaded_target_is_picked(self) -> None:
        for rung in self.rungs:
            ready = [target for target in rung.targets if target.resting_until <= self.clock()]
            loads = {target: (target.in_flight + 1) / target.weight for target in ready}
            picked = rung.pick()
            assert (picked is None) == (not ready)
            assert picked is None or loads[picked] == min(loads.values())

    # -- and in the end it heals

    def teardown(self) -> None:
        if not hasattr(self, "clock"):
            return
        for visit in self.live:
            visit.leave()
        for rung in self.rungs:
            assert (rung.circuit.in_flight, rung.limit.in_flight) == (0, 0)
            rung.circuit.force("auto")
            rung.limit.native_waiting = 0
            for target in rung.targets:
                target.resting_until = 0.0
        self.live = []
        self.some_mode_answers_within_five_seconds()
        self.each_mode_is_back_within_its_hold()

    def healthy_request(self, start: int) -> Rung | None:
        """One request as the gearbox walks it, to upstreams that are all well again."""
        visit = self.walk(start, allow_degrade=True, window=0)
        if visit is None:
            picked = self.ladder.panic(start)
            entry = picked.enter(native=picked.index == start, trial=True) if picked else None
            visit = self.entered(entry) if isinstance(entry, Visit) else None
        if visit is not None:
            self.leave(visit, Outcome.SUCCESS, again=False)
        return visit.rung if visit else None

    def some_mode_answers_within_five_seconds(self) -> None:
        began = self.clock()
        while self.healthy_request(0) is None:
            self.clock.advance(0.25)
        assert self.clock() - began <= 5.0

    def each_mode_is_back_within_its_hold(self) -> None:
        began = self.clock()
        while held := [rung for rung in self.rungs if rung.downshifted]:
            self.clock.advance(min(rung.circuit.until() or 0.0 for rung in held))
            for start in range(len(MODES)):
                served = self.healthy_request(start)
                assert served is None or served.index >= start
        assert self.clock() - began <= 300.0


# Driven by hand, aiobreaker 1.2 asks `datetime.utcnow`, which Python 3.12 would rather it did not.
pytestmark = pytest.mark.filterwarnings("ignore:.*utcnow:DeprecationWarning")

EXAMPLES = int(os.environ.get("LADDER_EXAMPLES", "0"))
LadderMachine.TestCase.settings = settings(
    max_examples=EXAMPLES or 80,
    stateful_step_count=30,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLadder = LadderMachine.TestCase
