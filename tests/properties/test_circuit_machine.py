"""One circuit against an independent reference model, driven by the same random rules.

The model is written from the rules B4-B6 and B9-B12 alone: plain lists, no breaker, every question
answered from the whole history. After each step both must agree on phase, wait, cap and counts.

The runs are the same each time. To search longer, and elsewhere each time:

    CIRCUIT_EXAMPLES=5000 pytest tests/properties/test_circuit_machine.py
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, tzinfo
from fractions import Fraction
from unittest import mock

import aiobreaker
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
    precondition,
    rule,
)

from gateway.clock import ManualClock
from gateway.detectors.failures import Outcome
from gateway.policies.circuit import Circuit
from gateway.policies.phases import CircuitOptions, Permit, Phase, Transition

# Every time in these runs is a multiple of this, so sums of times are exact and "exactly 60 s"
# means exactly 60 s.
TICK = 1 / 1024

# -- the reference ------------------------------------------------------------------------------


@dataclass
class Call:
    """A request that was let in."""

    era: int
    began: float
    slow_s: float
    lease_end: float = math.inf
    first_token: float | None = None
    ended: bool = False


@dataclass
class Reference:
    """What a circuit should do, said as plainly as possible. Times are handed in."""

    options: CircuitOptions
    limit: int
    state: str = "closed"  # closed | open | half
    forced: str = ""  # "" | open | closed
    era: int = 0
    calls: list[Call] = field(default_factory=list)
    ends: list[tuple[float, bool]] = field(default_factory=list)  # (when, failed) in this era
    row: list[float] = field(default_factory=list)  # failures since the last success
    probe: Call | None = None
    opened: float = 0.0
    relapses: int = 0
    ramp_from: float | None = None
    ramp_floor: Fraction = Fraction(0)
    late: int = 0

    # -- looking

    @property
    def in_flight(self) -> int:
        return sum(not call.ended for call in self.calls)

    @property
    def hold(self) -> float:
        longest = max(self.options.break_max_s, self.options.break_duration_s)
        return min(
            self.options.break_duration_s * self.options.break_growth**self.relapses, longest
        )

    @property
    def retry_at(self) -> float:
        early = self.options.early_probe_s or math.inf
        return self.opened + min(self.hold, early)

    def recovering(self, now: float) -> bool:
        if self.forced or self.ramp_from is None:
            return False
        return now - self.ramp_from < self.options.ramp_s

    def phase(self, now: float) -> Phase:
        if self.forced:
            return Phase.FORCED_OPEN if self.forced == "open" else Phase.FORCED_CLOSED
        if self.state == "closed":
            return Phase.RECOVERING if self.recovering(now) else Phase.CLOSED
        if self.state == "half":
            return Phase.PROBING if self.probe else Phase.PROBE_DUE
        return Phase.PROBE_DUE if now >= self.retry_at else Phase.OPEN

    def until(self, now: float) -> float | None:
        phase = self.phase(now)
        if phase is Phase.OPEN:
            return self.retry_at - now
        if phase is Phase.PROBING:
            assert self.probe is not None
            return self.probe.lease_end - now
        return 0.0 if phase is Phase.PROBE_DUE else None

    def cap(self, now: float) -> int:
        if not self.recovering(now):
            return self.limit
        assert self.ramp_from is not None
        share = Fraction(now - self.ramp_from) / Fraction(self.options.ramp_s)
        return max(1, math.ceil(self.ramp_floor + (self.limit - self.ramp_floor) * share))

    # -- moving

    def time(self, now: float) -> None:
        """A probe that overstays its lease has failed, and at that very time."""
        if self.probe and self.probe.lease_end <= now:
            self.open(self.probe.lease_end)

    def open(self, now: float) -> None:
        relapse = self.state == "half" or self.recovering(now)
        self.relapses = self.relapses + 1 if relapse else 0
        self._turn("open", now)

    def close(self, now: float) -> None:
        self._turn("closed", now)
        self.ramp_from, self.ramp_floor = now, Fraction(0)

    def half(self, now: float) -> None:
        self._turn("half", now)

    def _turn(self, state: str, now: float) -> None:
        if self.state == "closed" or state == "open":
            self.opened = now
        self.state = state
        self.era += 1
        self.ends, self.row, self.probe = [], [], None

    # -- the protocol

    def admit(self, now: float, slow_s: float | None, trial: bool = False) -> Call | None:
        call = Call(self.era, now, self.options.slow_s if slow_s is None else slow_s)
        if trial and (self.forced or self.state == "closed"):
            return None
        if self.forced:
            return self._in(call) if self.forced == "closed" else None
        if self.state == "closed":
            full = self.recovering(now) and self.in_flight >= self.cap(now)
            return None if full else self._in(call)
        if self.probe or (self.state == "open" and now < self.retry_at and not trial):
            return None
        if self.state == "open":
            self.half(now)
        call.era, call.lease_end = self.era, now + self.options.probe_lease_s
        self.probe = call
        return self._in(call)

    def _in(self, call: Call) -> Call:
        self.calls.append(call)
        return call

    def first_token(self, call: Call, now: float) -> None:
        if not call.ended and call.first_token is None:
            call.first_token = now

    def settle(self, call: Call, outcome: Outcome, now: float) -> None:
        if call.ended:
            return
        call.ended = True
        if call is self.probe:
            self.probe = None
        if call.era != self.era:
            self.late += 1
        elif self.forced or outcome is Outcome.IGNORED:
            pass
        elif self.state == "half":
            self.close(now) if outcome is Outcome.SUCCESS else self.open(now)
        elif outcome is Outcome.SUCCESS:
            self.ends.append((now, False))
            self.row = []
        else:
            self.ends.append((now, True))
            self.row.append(now)
            self._failed(now)

    def _failed(self, now: float) -> None:
        if self.recovering(now):
            self.ramp_from, self.ramp_floor = now, Fraction(self.cap(now), 2)
        options = self.options
        lately = [at for at in self.row if now - at <= options.failure_window_s]
        # The share is taken in thirtieths of the sampling duration.
        width = options.sampling_duration_s / 30
        oldest = math.floor(now / width) - 30
        sample = [failed for at, failed in self.ends if math.floor(at / width) > oldest]
        share = options.failure_ratio
        by_share = 0 < share <= sum(sample) / len(sample)
        if len(lately) >= options.failure_threshold or (
            by_share and len(sample) >= options.minimum_throughput
        ):
            self.open(now)

    def sweep(self, now: float) -> bool:
        if self.state == "closed" and not self.forced:
            mine = [call for call in self.calls if call.era == self.era]
            tokens = [call.first_token for call in mine if call.first_token is not None]
            overdue = [
                call
                for call in mine
                if not call.ended
                and call.first_token is None
                and 0 < call.slow_s <= now - call.began
                and not any(token > call.began for token in tokens)
            ]
            if len(overdue) >= self.options.failure_threshold:
                self.open(now)
        return self.phase(now).downshifted

    def force(self, how: str, now: float) -> None:
        if how.replace("auto", "") == self.forced:
            return
        self.forced = how.replace("auto", "")
        if self.forced:
            self.era += 1
            self.probe = None
        else:
            self.close(now)

    def reload(self, options: CircuitOptions) -> None:
        if options.sampling_duration_s != self.options.sampling_duration_s:
            self.ends = []
        self.options = options


# -- what surrounds the real one ----------------------------------------------------------------


class WallClock(datetime):
    """A wall clock that can be put wrong."""

    offset = timedelta(0)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + cls.offset

    @classmethod
    def utcnow(cls) -> datetime:  # type: ignore[override]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return datetime.utcnow() + cls.offset


WALL_CLOCKS = (
    "aiobreaker.circuitbreaker.datetime",
    "aiobreaker.state.datetime",
    "gateway.policies.breaker.datetime",
)
HOOKS = ("before_call", "failure", "success", "state_change", "on_change")


class Saboteur(aiobreaker.CircuitBreakerListener):  # type: ignore[misc]
    """A listener that raises wherever it is told to."""

    def __init__(self) -> None:
        self.raises: frozenset[str] = frozenset()
        self.heard: list[Transition] = []

    def _hear(self, hook: str) -> None:
        if hook in self.raises:
            raise RuntimeError(f"a listener's fault in {hook}")

    def before_call(self, *_: object, **__: object) -> None:
        self._hear("before_call")

    def failure(self, *_: object) -> None:
        self._hear("failure")

    def success(self, *_: object) -> None:
        self._hear("success")

    def state_change(self, *_: object) -> None:
        self._hear("state_change")

    def on_change(self, transition: Transition) -> None:
        self.heard.append(transition)
        self._hear("on_change")


def option_sets() -> st.SearchStrategy[CircuitOptions]:
    return st.builds(
        CircuitOptions,
        failure_threshold=st.sampled_from([3, 3, 3, 1, 2, 5]),
        failure_ratio=st.sampled_from([0.5, 0.5, 0.0, 1.0]),
        minimum_throughput=st.sampled_from([10, 4]),
        sampling_duration_s=st.sampled_from([30.0, 15.0]),
        slow_s=st.sampled_from([10.0, 10.0, 0.0]),
        break_duration_s=st.sampled_from([300.0, 300.0, 5.0]),
        break_growth=st.sampled_from([1.0, 1.0, 2.0]),
        break_max_s=st.sampled_from([1200.0, 30.0]),
        early_probe_s=st.sampled_from([0.0, 0.0, 10.0]),
        ramp_s=st.sampled_from([60.0, 60.0, 0.0]),
    )


# -- the machine --------------------------------------------------------------------------------


class CircuitMachine(RuleBasedStateMachine):
    visits = Bundle("visits")

    def __init__(self) -> None:
        super().__init__()
        WallClock.offset = timedelta(0)
        self.patches = [mock.patch(name, WallClock) for name in WALL_CLOCKS]
        for patch in self.patches:
            patch.start()
        self.clock = ManualClock(1000.0)
        self.listener = Saboteur()
        self.pairs: list[tuple[Permit, Call]] = []
        self.opened_in: dict[int, float] = {}

    @initialize(options=st.just(CircuitOptions()) | option_sets(), limit=st.integers(1, 12))
    def build(self, options: CircuitOptions, limit: int) -> None:
        self.limit = limit
        self.model = Reference(options, limit)
        self.circuit = Circuit(
            "creative",
            options,
            self.clock,
            limit=lambda: self.limit,
            on_change=self.listener.on_change,
        )
        self.circuit.breaker.add_listener(self.listener)

    # -- time

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.model.time(self.clock())

    @rule(
        seconds=st.sampled_from(
            [0.0, TICK, 1.0, 5.0, 10.0 - TICK, 10.0, 30.0 - TICK, 30.0, 60.0 - TICK, 60.0]
        )
        | st.integers(0, 400 * 1024).map(lambda ticks: ticks * TICK)
    )
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)

    @rule(short=st.sampled_from([0.0, TICK, -TICK]))
    def wait_until_it_may_be_tried(self, short: float) -> None:
        self.pass_time(max(0.0, (self.model.until(self.clock()) or 0.0) + short))

    @precondition(lambda self: self.model.ramp_from is not None)
    @rule(short=st.sampled_from([0.0, TICK, -TICK]))
    def wait_for_the_end_of_the_ramp(self, short: float) -> None:
        assert self.model.ramp_from is not None
        end = self.model.ramp_from + self.model.options.ramp_s
        self.pass_time(max(0.0, end - self.clock() + short))

    @rule(hours=st.sampled_from([-1, 1, -24]))
    def step_the_wall_clock(self, hours: int) -> None:
        WallClock.offset += timedelta(hours=hours)

    # -- requests

    def admitted(self, permit: Permit | None, call: Call | None) -> list[tuple[Permit, Call]]:
        assert (permit is None) == (call is None)
        if permit is None or call is None:
            return []
        assert permit.probe == (call.lease_end < math.inf)
        assert permit.lease_until == call.lease_end
        self.pairs.append((permit, call))
        return [(permit, call)]

    @rule(target=visits, slow_s=st.sampled_from([None, None, 0.0, 2.0]), n=st.integers(1, 4))
    def admit(self, slow_s: float | None, n: int) -> object:
        now, pairs = self.clock(), list[tuple[Permit, Call]]()
        for _ in range(n):
            closed = not self.circuit.phase().downshifted or self.model.until(now) == 0.0
            permit = self.circuit.admit(slow_s)
            assert permit is None or closed, "a request was let through to an open mode"
            pairs += self.admitted(permit, self.model.admit(now, slow_s))
        return multiple(*pairs)

    @rule(target=visits)
    def admit_trial(self) -> object:
        call = self.model.admit(self.clock(), None, trial=True)
        return multiple(*self.admitted(self.circuit.admit_trial(), call))

    @rule(visit=visits)
    def first_token(self, visit: tuple[Permit, Call]) -> None:
        self.circuit.first_token(visit[0])
        self.model.first_token(visit[1], self.clock())

    def end(self, visit: tuple[Permit, Call], outcome: Outcome) -> None:
        self.circuit.settle(visit[0], outcome, "test")
        self.model.settle(visit[1], outcome, self.clock())

    @rule(
        visit=consumes(visits),
        outcome=st.sampled_from([*Outcome, Outcome.FAILURE]),
    )
    def settle(self, visit: tuple[Permit, Call], outcome: Outcome) -> None:
        self.end(visit, outcome)

    @rule(visit=visits, outcome=st.sampled_from(Outcome))
    def settle_and_perhaps_again(self, visit: tuple[Permit, Call], outcome: Outcome) -> None:
        self.end(visit, outcome)

    @rule(outcomes=st.lists(st.sampled_from([*Outcome, Outcome.FAILURE]), max_size=12))
    def one_after_another(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            now = self.clock()
            for visit in self.admitted(self.circuit.admit(), self.model.admit(now, None)):
                self.end(visit, outcome)

    @rule(seconds=st.sampled_from([0.0, 5.0, 30.0]))
    def outage(self, seconds: float) -> None:
        self.one_after_another([Outcome.FAILURE] * self.model.options.failure_threshold)
        self.pass_time((self.model.until(self.clock()) or 0.0) + seconds)

    @rule()
    def sweep(self) -> None:
        assert self.circuit.sweep() == self.model.sweep(self.clock())

    # -- hands

    @rule(how=st.sampled_from(["open", "closed", "auto", "auto"]))
    def force(self, how: str) -> None:
        before = self.circuit.epoch
        changes = how.replace("auto", "") != self.model.forced
        self.circuit.force(how)
        self.model.force(how, self.clock())
        assert (self.circuit.epoch > before) == changes

    @rule(how=st.sampled_from(["open", "close", "half_open"]))
    def drive_the_breaker_by_hand(self, how: str) -> None:
        self.circuit.sweep()  # the breaker itself knows nothing of leases
        self.model.sweep(self.clock())
        try:
            getattr(self.circuit.breaker, how)()
        except RuntimeError:
            assert self.listener.raises  # whoever drives by hand hears their own listeners
            self.circuit.breaker.remove_listener(self.listener)
            getattr(self.circuit.breaker, how)()
            self.circuit.breaker.add_listener(self.listener)
        model, now = self.model, self.clock()
        if how == "open" and model.state != "open":
            model.open(now)
        elif how == "close" and model.state != "closed":
            model.close(now)
        elif how == "close":
            model.row = []
        elif how == "half_open" and model.state != "half":
            model.half(now)

    @rule(options=option_sets())
    def reload(self, options: CircuitOptions) -> None:
        # Reloading keeps what kind of mode it is; what changes is how much is asked of it.
        options = replace(options, break_duration_s=self.model.options.break_duration_s)
        self.circuit.options = options
        self.model.reload(options)

    @rule(limit=st.integers(1, 12))
    def limit_moves(self, limit: int) -> None:
        self.limit = self.model.limit = limit

    @rule(hooks=st.sets(st.sampled_from(HOOKS)))
    def listeners_raise(self, hooks: set[str]) -> None:
        self.listener.raises = frozenset(hooks)

    # -- what always holds

    @invariant()
    def both_agree(self) -> None:
        now, circuit, model = self.clock(), self.circuit, self.model
        assert circuit.phase() is model.phase(now)
        assert circuit.until() == model.until(now)
        assert circuit.in_flight == model.in_flight
        assert circuit.late == model.late
        assert (
            circuit.breaker.current_state.name
            == {
                "closed": "CLOSED",
                "open": "OPEN",
                "half": "HALF_OPEN",
            }.get(model.state)
            or self.lease_unnoticed()
        )
        if circuit.phase() is Phase.RECOVERING:
            assert circuit.cap() == model.cap(now) >= 1
        if model.state == "open" and not model.forced:
            assert circuit.opened == model.opened
            assert circuit.hold_s() == model.hold

    def lease_unnoticed(self) -> bool:
        """The lease ran out and nobody has looked: the breaker still says half-open."""
        return self.model.state == "open" and self.circuit.breaker.current_state.name == "HALF_OPEN"

    @invariant()
    def at_most_one_live_probe(self) -> None:
        now = self.clock()
        live = [
            permit
            for permit, _ in self.pairs
            if permit.probe
            and not permit.settled
            and permit.epoch == self.circuit.epoch
            and permit.lease_until > now
        ]
        assert len(live) <= 1

    @invariant()
    def opened_is_constant_within_an_epoch(self) -> None:
        opened = self.circuit.opened
        if opened is not None and not self.lease_unnoticed():
            assert self.opened_in.setdefault(self.circuit.epoch, opened) == opened

    def teardown(self) -> None:
        """A healthy upstream and demand close it within hold + lease, from wherever it stands."""
        try:
            if hasattr(self, "circuit"):
                self.heals()
                self.everybody_leaves()
        finally:
            for patch in self.patches:
                patch.stop()

    def heals(self) -> None:
        circuit = self.circuit
        circuit.force("auto")
        longest = max(circuit.options.break_max_s, circuit.options.break_duration_s)
        began, bound = self.clock(), longest + circuit.options.probe_lease_s
        while circuit.phase().downshifted:
            self.clock.advance(circuit.until() or 0.0)
            permit = circuit.admit()
            if permit is not None:
                circuit.first_token(permit)
                circuit.settle(permit, Outcome.SUCCESS)
            assert self.clock() - began <= bound
        assert circuit.until() is None

    def everybody_leaves(self) -> None:
        for permit, _ in self.pairs:
            self.circuit.settle(permit, Outcome.IGNORED)
        assert self.circuit.in_flight == 0


# Driven by hand, aiobreaker 1.2 asks `datetime.utcnow`, which Python 3.12 would rather it did not.
pytestmark = pytest.mark.filterwarnings("ignore:.*utcnow:DeprecationWarning")

EXAMPLES = int(os.environ.get("CIRCUIT_EXAMPLES", "0"))
CircuitMachine.TestCase.settings = settings(
    max_examples=EXAMPLES or 100,
    stateful_step_count=40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


TestCircuit = CircuitMachine.TestCase
