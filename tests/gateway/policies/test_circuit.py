"""The rules B4-B6 and B9-B12 of one circuit, each at its exact edge."""

from __future__ import annotations

import gc
import itertools
import time
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.clock import ManualClock
from gateway.detectors.failures import Outcome
from gateway.policies.circuit import Circuit
from gateway.policies.phases import CircuitOptions, Permit, Phase, Transition

S, F, N = Outcome.SUCCESS, Outcome.FAILURE, Outcome.IGNORED
DEFAULT = CircuitOptions()
BOTTOM = DEFAULT.for_bottom()

# Driven by hand, aiobreaker 1.2 asks `datetime.utcnow`, which Python 3.12 would rather it did not.
pytestmark = pytest.mark.filterwarnings("ignore:.*utcnow:DeprecationWarning")


class Mode:
    """A circuit, its clock and what it told."""

    def __init__(self, options: CircuitOptions = DEFAULT, limit: int = 512) -> None:
        self.clock = ManualClock(1000.0)
        self.limit = limit
        self.told: list[Transition] = []
        self.circuit = Circuit(
            "creative", options, self.clock, limit=lambda: self.limit, on_change=self.told.append
        )

    def admit(self) -> Permit:
        permit = self.circuit.admit()
        assert permit is not None
        return permit

    def run(self, *outcomes: Outcome, every: float = 0.0) -> Phase:
        """Requests one after another, each let in; returns the phase after the last."""
        for outcome in outcomes:
            self.circuit.settle(self.admit(), outcome, "test")
            self.clock.advance(every)
        return self.circuit.phase()

    def open(self) -> None:
        assert self.run(F, F, F) is Phase.OPEN

    def recover(self) -> None:
        """Open, wait, and let the probe succeed."""
        self.open()
        self.clock.advance(self.circuit.until() or 0.0)
        assert self.run(S) is Phase.RECOVERING


# -- B4: when it opens ------------------------------------------------------------------------


def test_exactly_three_consecutive_failures_open_it() -> None:
    mode = Mode()
    assert mode.run(F, F) is Phase.CLOSED
    assert mode.run(F) is Phase.OPEN
    assert [(t.old, t.new, t.cause) for t in mode.told] == [(Phase.CLOSED, Phase.OPEN, "test")]


def test_a_success_starts_the_count_anew() -> None:
    mode = Mode(replace(DEFAULT, failure_ratio=0.0))
    for _ in range(100):
        assert mode.run(F, F, S) is Phase.CLOSED
    assert mode.run(F, F, F) is Phase.OPEN


def test_what_is_ignored_neither_counts_nor_resets() -> None:
    mode = Mode()
    assert mode.run(F, N, F, N) is Phase.CLOSED
    assert mode.run(F) is Phase.OPEN


@pytest.mark.parametrize(("third_at", "phase"), [(60.0, Phase.OPEN), (60.001, Phase.CLOSED)])
def test_the_three_must_lie_within_a_minute(third_at: float, phase: Phase) -> None:
    mode = Mode()
    mode.run(F)
    mode.clock.advance(30.0)
    mode.run(F)
    mode.clock.advance(third_at - 30.0)
    assert mode.run(F) is phase


def test_the_share_rule_opens_at_exactly_half_of_ten() -> None:
    mode = Mode()
    assert mode.run(*[S, F] * 4, S) is Phase.CLOSED  # 4 of 9
    assert mode.run(F) is Phase.OPEN  # 5 of 10
    assert mode.told[-1].cause == "failure ratio"


def test_the_share_rule_leaves_four_of_ten_and_all_of_nine_alone() -> None:
    assert Mode().run(S, *[S, F] * 4, S) is Phase.CLOSED  # 4 of 10
    assert Mode(replace(DEFAULT, failure_threshold=99)).run(*[F] * 9) is Phase.CLOSED


def test_the_share_rule_forgets_after_half_a_minute() -> None:
    late, early = Mode(), Mode()
    for mode, wait in ((late, 30.0), (early, 28.9)):
        mode.run(*[S, F] * 4, S)
        mode.clock.advance(wait)
    assert late.run(F) is Phase.CLOSED
    assert early.run(F) is Phase.OPEN


def test_three_overdue_attempts_open_it_before_their_timeouts() -> None:
    mode = Mode()
    for _ in range(3):
        mode.admit()
    mode.clock.advance(9.999)
    assert not mode.circuit.sweep()
    mode.clock.advance(0.001)
    assert mode.circuit.sweep()
    assert mode.circuit.phase() is Phase.OPEN
    assert mode.told[-1].cause == "overdue"


def test_a_first_token_meanwhile_keeps_it_closed() -> None:
    mode = Mode()
    waiting = [mode.admit() for _ in range(4)]
    mode.clock.advance(5.0)
    mode.circuit.first_token(waiting[0])
    mode.clock.advance(60.0)
    assert not mode.circuit.sweep()


def test_a_first_token_before_they_began_does_not() -> None:
    mode = Mode()
    alive = mode.admit()
    mode.circuit.first_token(alive)  # at the very instant the others begin
    for _ in range(3):
        mode.admit()
    mode.clock.advance(10.0)
    assert mode.circuit.sweep()


def test_a_first_token_of_an_earlier_epoch_is_no_sign_of_life() -> None:
    mode = Mode()
    old = mode.admit()
    mode.recover()
    mode.clock.advance(60.0)
    for _ in range(3):
        mode.admit()
    mode.clock.advance(5.0)
    mode.circuit.first_token(old)
    mode.clock.advance(5.0)
    assert mode.circuit.sweep()


def test_signs_of_life_end_with_their_epoch() -> None:
    for by_hand in (True, False):
        mode = Mode()
        began = mode.clock()
        assert not mode.circuit.alive_since(began)
        mode.clock.advance(1.0)
        mode.circuit.first_token(mode.admit())
        assert mode.circuit.alive_since(began)
        assert not mode.circuit.alive_since(mode.clock())
        mode.circuit.breaker.open() if by_hand else mode.circuit.force("open")
        assert not mode.circuit.alive_since(began)


def test_overdue_attempts_do_not_count_twice() -> None:
    mode = Mode()
    overdue = [mode.admit() for _ in range(3)]
    mode.clock.advance(10.0)
    mode.circuit.sweep()
    opened, epoch = mode.circuit.opened, mode.circuit.epoch
    for permit in overdue:
        mode.circuit.settle(permit, F)
    assert (mode.circuit.opened, mode.circuit.epoch) == (opened, epoch)
    assert mode.circuit.late == 3


def test_two_overdue_are_not_three_and_a_threshold_of_zero_is_off() -> None:
    two, off, own = Mode(), Mode(replace(DEFAULT, slow_s=0.0)), Mode()
    for _ in range(2):
        two.admit()
    for _ in range(9):
        off.admit()
        own.circuit.admit(slow_s=0.0)
    for mode in (two, off, own):
        mode.clock.advance(1000.0)
        assert not mode.circuit.sweep()


def test_a_visit_has_its_own_threshold() -> None:
    mode = Mode()
    for _ in range(3):
        mode.circuit.admit(slow_s=45.0)
    mode.clock.advance(44.0)
    assert not mode.circuit.sweep()
    mode.clock.advance(1.0)
    assert mode.circuit.sweep()


def test_one_visit_is_one_failure_however_often_it_is_settled() -> None:
    mode = Mode()
    permit = mode.admit()
    for _ in range(10):
        mode.circuit.settle(permit, F)
    assert mode.circuit.phase() is Phase.CLOSED
    assert mode.circuit.in_flight == 0


# -- B5: while it is open, and the one probe ----------------------------------------------------


def test_no_request_before_300_seconds_and_one_probe_at_300() -> None:
    mode = Mode()
    mode.open()
    mode.clock.advance(299.999)
    assert mode.circuit.phase() is Phase.OPEN
    assert mode.circuit.until() == pytest.approx(0.001)
    assert mode.circuit.admit() is None
    mode.clock.advance(0.001)
    assert mode.circuit.phase() is Phase.PROBE_DUE
    assert mode.circuit.until() == 0.0
    assert mode.admit().probe
    assert mode.circuit.phase() is Phase.PROBING


@given(start=st.floats(0.0, 1e7), pause=st.floats(0.0, 1e4))
@settings(max_examples=200, derandomize=True, database=None)
def test_300_seconds_are_300_seconds_whatever_the_last_digit(start: float, pause: float) -> None:
    clock = ManualClock(start)
    circuit = Circuit("creative", DEFAULT, clock)
    clock.advance(pause)
    for _ in range(3):
        permit = circuit.admit()
        assert permit is not None
        circuit.settle(permit, F)
    clock.advance(299.999)
    assert circuit.admit() is None
    clock.advance((circuit.opened or 0.0) + 300.0 - clock())
    assert circuit.admit() is not None


def test_of_500_callers_at_the_end_of_the_hold_one_is_let_in() -> None:
    mode = Mode()
    mode.open()
    mode.clock.advance(300.0)
    permits = [mode.circuit.admit() for _ in range(500)]
    assert sum(permit is not None for permit in permits) == 1


def test_one_success_closes_and_one_failure_reopens_for_a_whole_hold() -> None:
    mode = Mode()
    mode.open()
    mode.clock.advance(400.0)
    assert mode.run(F) is Phase.OPEN
    assert mode.circuit.until() == 300.0
    mode.clock.advance(300.0)
    assert mode.run(S) is Phase.RECOVERING
    assert mode.circuit.opened is None
    assert mode.circuit.until() is None


def test_a_probe_that_says_nothing_leaves_the_place_to_the_next() -> None:
    mode = Mode()
    mode.open()
    mode.clock.advance(300.0)
    assert mode.run(N) is Phase.PROBE_DUE
    assert mode.circuit.until() == 0.0
    assert mode.run(N, N, N, S) is Phase.RECOVERING


def test_a_lost_probe_fails_when_its_lease_ends_and_not_when_someone_looks() -> None:
    mode = Mode()
    mode.open()
    mode.clock.advance(300.0)
    probe = mode.admit()
    mode.clock.advance(29.0)
    assert (mode.circuit.phase(), mode.circuit.until()) == (Phase.PROBING, 1.0)
    assert mode.circuit.admit() is None
    mode.clock.advance(11.0)  # the lease ended 10 s ago; nobody has asked since
    assert (mode.circuit.phase(), mode.circuit.until()) == (Phase.OPEN, 290.0)
    assert mode.circuit.opened == 1330.0
    mode.clock.advance(290.0)
    assert (mode.circuit.phase(), mode.circuit.until()) == (Phase.PROBE_DUE, 0.0)
    assert mode.circuit.admit() is not None
    mode.circuit.settle(probe, S)
    assert mode.circuit.phase() is Phase.PROBING
    assert mode.circuit.late == 1


@pytest.mark.parametrize("notice", ["admit", "sweep", "settle"])
def test_whoever_hears_of_a_lapsed_probe_hears_when_it_opened(notice: str) -> None:
    heard: list[float | None] = []
    clock = ManualClock()
    circuit = Circuit("creative", DEFAULT, clock, on_change=lambda _: heard.append(circuit.opened))
    circuit.breaker.open()
    clock.advance(300.0)
    probe = circuit.admit()
    assert probe is not None
    clock.advance(100.0)
    epoch = circuit.epoch
    if notice == "settle":
        circuit.settle(probe, S)
    else:
        getattr(circuit, notice)()
    assert heard == [0.0, 0.0, 330.0]
    assert circuit.opened == 330.0
    assert circuit.epoch == epoch + 1


def test_the_bottom_modes_lapsed_probe_already_holds_twice_as_long() -> None:
    mode = Mode(BOTTOM)
    mode.open()
    mode.clock.advance(5.0)
    mode.admit()
    mode.clock.advance(30.0)
    assert (mode.circuit.phase(), mode.circuit.until()) == (Phase.OPEN, 10.0)
    assert mode.circuit.hold_s() == 10.0
    mode.circuit.sweep()
    assert (mode.circuit.until(), mode.circuit.hold_s()) == (10.0, 10.0)


def test_an_early_probe_may_end_the_hold() -> None:
    mode = Mode(replace(DEFAULT, early_probe_s=10.0))
    mode.open()
    mode.clock.advance(9.999)
    assert mode.circuit.admit() is None
    mode.clock.advance(0.001)
    assert mode.run(F) is Phase.OPEN
    assert mode.circuit.until() == 10.0
    mode.clock.advance(10.0)
    assert mode.run(S) is Phase.RECOVERING


def test_early_probes_are_off_unless_asked_for() -> None:
    mode = Mode()
    mode.open()
    for _ in range(299):
        mode.clock.advance(1.0)
        assert mode.circuit.admit() is None


# -- B9: the bottom mode ------------------------------------------------------------------------


def test_the_bottom_mode_holds_5_10_20_30_seconds_and_no_more() -> None:
    mode = Mode(BOTTOM)
    mode.open()
    holds = []
    for _ in range(6):
        holds.append(mode.circuit.until())
        mode.clock.advance(mode.circuit.until() or 0.0)
        mode.run(F)
    assert holds == [5.0, 10.0, 20.0, 30.0, 30.0, 30.0]


def test_a_relapse_on_the_ramp_holds_longer_and_one_after_it_does_not() -> None:
    mode = Mode(BOTTOM)
    mode.recover()
    mode.open()
    assert mode.circuit.until() == 10.0
    mode.clock.advance(10.0)
    mode.run(S)
    mode.clock.advance(60.0)
    mode.open()
    assert mode.circuit.until() == 5.0


def test_an_outage_of_a_day_overflows_nothing() -> None:
    mode = Mode(BOTTOM)
    mode.open()
    for _ in range(24 * 60 * 2):
        mode.clock.advance(mode.circuit.until() or 0.0)
        mode.run(F)
    assert mode.circuit.until() == 30.0


def test_a_hold_of_nothing_probes_at_once() -> None:
    mode = Mode(replace(DEFAULT, break_duration_s=0.0))
    assert mode.run(F, F, F) is Phase.PROBE_DUE
    assert mode.run(S) is Phase.RECOVERING


def test_a_trial_comes_before_the_hold_is_over_and_leased() -> None:
    mode = Mode()
    assert mode.circuit.admit_trial() is None  # it is well: nothing to try
    mode.open()
    trial = mode.circuit.admit_trial()
    assert trial is not None
    assert trial.probe
    assert mode.circuit.tried == mode.clock()
    assert mode.circuit.admit_trial() is None
    assert mode.circuit.admit() is None
    mode.circuit.settle(trial, N)
    assert (mode.circuit.phase(), mode.circuit.until()) == (Phase.PROBE_DUE, 0.0)


# -- B6: the ramp -------------------------------------------------------------------------------


def test_the_cap_grows_from_one_to_the_limit_over_a_minute() -> None:
    mode = Mode(limit=60)
    mode.recover()
    caps = []
    for _ in range(61):
        caps.append(mode.circuit.cap())
        mode.run(S)
        mode.clock.advance(1.0)
    assert caps == [1, *range(1, 61)]
    assert mode.circuit.phase() is Phase.CLOSED


def test_the_cap_is_held_by_admission() -> None:
    mode = Mode(limit=60)
    mode.recover()
    mode.clock.advance(10.0)
    permits = [mode.circuit.admit() for _ in range(20)]
    assert [permit is not None for permit in permits] == [True] * 10 + [False] * 10
    assert mode.circuit.at_cap()
    mode.clock.advance(50.0)
    assert not mode.circuit.at_cap()
    assert mode.circuit.admit() is not None


def test_callers_one_at_a_time_never_meet_the_cap() -> None:
    mode = Mode()
    mode.recover()
    assert mode.run(*[S] * 700, every=0.1) is Phase.CLOSED


@pytest.mark.parametrize("ramp", ["linear", "cosine"])
@given(steps=st.lists(st.floats(0.0, 5.0), max_size=40), limit=st.integers(1, 600))
@settings(max_examples=60, derandomize=True, database=None)
def test_the_cap_never_falls_while_things_go_well(
    ramp: str, steps: list[float], limit: int
) -> None:
    mode = Mode(replace(DEFAULT, ramp=ramp), limit)
    mode.recover()
    caps = [mode.circuit.cap()]
    for step in steps:
        mode.clock.advance(step)
        mode.run(S)
        caps.append(mode.circuit.cap())
    assert caps[0] == 1
    assert caps == sorted(caps)
    assert caps[-1] <= limit


def test_a_failure_on_the_ramp_halves_the_cap_and_it_climbs_from_there() -> None:
    mode = Mode(limit=60)
    mode.recover()
    mode.clock.advance(40.0)
    assert mode.circuit.cap() == 40
    mode.run(F)
    assert mode.circuit.cap() == 20
    mode.run(F)
    assert mode.circuit.cap() == 10
    mode.run(S)
    mode.clock.advance(30.0)
    assert mode.circuit.cap() == 35
    mode.clock.advance(30.0)
    assert (mode.circuit.cap(), mode.circuit.phase()) == (60, Phase.CLOSED)


def test_every_recovery_starts_from_one_whatever_the_last_one_came_to() -> None:
    mode = Mode(limit=60)
    mode.recover()
    mode.clock.advance(40.0)
    mode.run(F)
    assert mode.circuit.cap() == 20
    mode.run(F, F)
    mode.clock.advance(300.0)
    assert mode.run(S) is Phase.RECOVERING
    assert mode.circuit.cap() == 1


def test_without_a_ramp_recovery_is_at_once() -> None:
    mode = Mode(replace(DEFAULT, ramp_s=0.0))
    mode.open()
    mode.clock.advance(300.0)
    assert mode.run(S) is Phase.CLOSED
    assert mode.circuit.cap() == 512


# -- B10: epochs, and settling ------------------------------------------------------------------


@pytest.mark.parametrize("after", [1.0, 299.0, 301.0, 601.0])
@pytest.mark.parametrize("outcome", Outcome)
def test_a_late_outcome_changes_nothing_but_a_counter(after: float, outcome: Outcome) -> None:
    mode, untouched = Mode(), Mode()
    old = mode.admit()
    for each in (mode, untouched):
        each.open()
        each.clock.advance(after)
        if after > 300.0:
            each.run(S)
    mode.circuit.settle(old, outcome)
    circuits = (mode.circuit, untouched.circuit)
    phases, waits, opened, epochs = zip(
        *((c.phase(), c.until(), c.opened, c.epoch) for c in circuits), strict=True
    )
    for pair in (phases, waits, opened, epochs, (mode.told, untouched.told)):
        assert pair[0] == pair[1]
    assert [c.late for c in circuits] == [1, 0]
    assert mode.circuit.in_flight == 0


def test_late_failures_do_not_count_towards_the_next_opening() -> None:
    mode = Mode()
    old = [mode.admit() for _ in range(50)]
    mode.recover()
    mode.clock.advance(60.0)
    mode.run(F, F)
    for permit in old:
        mode.circuit.settle(permit, F)
    assert mode.circuit.phase() is Phase.CLOSED


def test_the_share_rule_starts_anew_in_each_epoch() -> None:
    mode = Mode(replace(BOTTOM, failure_threshold=99))
    assert mode.run(*[S, F] * 5) is Phase.OPEN
    mode.clock.advance(5.0)
    assert mode.run(S, F) is Phase.RECOVERING


def test_a_storm_of_ten_thousand_ignored_outcomes_neither_opens_nor_closes() -> None:
    closed, probing = Mode(), Mode()
    probing.open()
    probing.clock.advance(300.0)
    for mode, phase in ((closed, Phase.CLOSED), (probing, Phase.PROBE_DUE)):
        told = len(mode.told)
        for i in range(10_000):
            mode.run(N)
            mode.clock.advance(0.001 * (i % 3))
        assert mode.circuit.phase() is phase
        assert [t.new for t in mode.told[told:]] in ([], [Phase.PROBING])
        assert mode.circuit.in_flight == 0


def test_permits_from_before_a_reload_are_settled_and_counted() -> None:
    mode = Mode()
    mode.run(F)
    permits = [mode.admit() for _ in range(5)]
    mode.circuit.options = replace(DEFAULT, slow_s=20.0, probe_lease_s=5.0)
    assert mode.circuit.in_flight == 5
    for permit in permits[:2]:
        mode.circuit.settle(permit, F)
    assert mode.circuit.phase() is Phase.OPEN
    for permit in permits:
        mode.circuit.settle(permit, S)
    assert (mode.circuit.in_flight, mode.circuit.late) == (0, 3)


def test_a_reload_forgets_neither_the_hold_nor_the_share() -> None:
    mode = Mode()
    mode.run(*[S, F] * 4, S)
    mode.circuit.options = replace(DEFAULT, break_duration_s=100.0)
    assert mode.run(F) is Phase.OPEN
    opened = mode.circuit.opened
    mode.clock.advance(50.0)
    mode.circuit.options = DEFAULT
    assert (mode.circuit.opened, mode.circuit.until()) == (opened, 250.0)


def test_a_reload_that_cannot_be_changes_nothing() -> None:
    mode = Mode()
    with pytest.raises(ValueError, match="zigzag"):
        mode.circuit.options = replace(DEFAULT, ramp="zigzag", failure_threshold=1)
    assert mode.circuit.options is DEFAULT
    assert mode.run(F, F) is Phase.CLOSED


# -- B12, B13: time, listeners, operators -------------------------------------------------------


def story(circuit: Circuit, clock: ManualClock) -> list[object]:
    """Everything that can be seen of one outage and recovery, moment by moment."""
    seen: list[object] = []
    outcomes = itertools.cycle([S, F, F, F, F, S, N, S, F, S])
    for step in itertools.islice(itertools.cycle([1.0, 20.0, 150.0, 150.0]), 80):
        permit = circuit.admit()
        if permit is not None:
            circuit.settle(permit, next(outcomes))
        seen.append((clock(), permit is not None, circuit.phase(), circuit.until(), circuit.cap()))
        clock.advance(step)
    return seen


@pytest.fixture
def quiet_story() -> list[object]:
    clock = ManualClock()
    return story(Circuit("creative", DEFAULT, clock), clock)


def test_a_raising_listener_changes_nothing(quiet_story: list[object]) -> None:
    def raises(transition: Transition) -> None:
        raise RuntimeError(transition.cause)

    clock = ManualClock()
    assert story(Circuit("creative", DEFAULT, clock, on_change=raises), clock) == quiet_story


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "America/Los_Angeles"])
def test_time_zones_change_nothing(
    zone: str, quiet_story: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        clock = ManualClock()
        assert story(Circuit("creative", DEFAULT, clock), clock) == quiet_story
    finally:
        monkeypatch.undo()
        time.tzset()


def test_looking_is_free_of_consequences(quiet_story: list[object]) -> None:
    clock = ManualClock()
    circuit = Circuit("creative", DEFAULT, clock)
    seen = story(circuit, clock)
    assert seen == quiet_story
    before = circuit.epoch, circuit.in_flight, circuit.late
    for _ in range(1000):
        clock.advance(1.7)
        _ = circuit.phase(), circuit.until(), circuit.cap(), circuit.opened, circuit.hold_s()
    assert (circuit.epoch, circuit.in_flight, circuit.late) == before


def test_a_listener_is_told_when_the_transition_is_complete() -> None:
    clock = ManualClock()
    seen: list[tuple[Phase, Phase, int, int]] = []
    circuit = Circuit(
        "creative",
        DEFAULT,
        clock,
        on_change=lambda t: seen.append((t.new, circuit.phase(), t.epoch, circuit.epoch)),
    )
    story(circuit, clock)
    circuit.force("open")
    circuit.force("auto")
    assert {new for new, *_ in seen} >= {
        Phase.OPEN,
        Phase.PROBING,
        Phase.RECOVERING,
        Phase.FORCED_OPEN,
    }
    assert all(new is phase and told == epoch for new, phase, told, epoch in seen)


def test_a_listener_that_asks_to_be_let_in_is_not_a_second_probe() -> None:
    clock = ManualClock()
    extra: list[Permit | None] = []
    circuit = Circuit("creative", DEFAULT, clock, on_change=lambda _: extra.append(circuit.admit()))
    circuit.breaker.open()
    clock.advance(300.0)
    assert circuit.admit() is not None
    assert extra == [None, None]


def test_forced_open_lets_nobody_in_and_forced_closed_everybody() -> None:
    mode = Mode()
    mode.circuit.force("open")
    assert (mode.circuit.phase(), mode.circuit.until()) == (Phase.FORCED_OPEN, None)
    mode.clock.advance(1e6)
    assert mode.circuit.admit() is None
    assert mode.circuit.admit_trial() is None
    mode.circuit.force("closed")
    assert mode.run(*[F] * 100) is Phase.FORCED_CLOSED
    mode.circuit.force("auto")
    assert mode.circuit.phase() is Phase.RECOVERING
    assert [t.cause for t in mode.told] == ["operator"] * 3


@pytest.mark.parametrize("how", ["open", "closed", "by hand"])
def test_a_probe_an_operator_cut_short_fails_nobody_when_its_lease_ends(how: str) -> None:
    mode = Mode(replace(DEFAULT, failure_threshold=1))
    mode.run(F)
    mode.clock.advance(300.0)
    probe = mode.admit()
    if how == "by hand":
        mode.circuit.breaker.close()
    else:
        mode.circuit.force(how)
        mode.circuit.force("auto")
    mode.clock.advance(60.0)
    assert mode.circuit.admit() is not None
    mode.circuit.settle(probe, F)
    assert mode.circuit.phase() is Phase.CLOSED


def test_forced_closed_beats_the_ramp() -> None:
    mode = Mode(limit=60)
    mode.recover()
    mode.circuit.force("closed")
    assert (mode.circuit.cap(), mode.circuit.at_cap()) == (60, False)
    assert all(mode.circuit.admit() for _ in range(5))


def test_forcing_what_is_already_so_changes_nothing() -> None:
    mode = Mode()
    mode.circuit.force("auto")
    permit = mode.admit()
    for how in ("closed", "closed"):
        mode.circuit.force(how)
    mode.circuit.settle(permit, F)
    assert (len(mode.told), mode.circuit.epoch, mode.circuit.late) == (1, 1, 1)


def test_what_happened_before_an_operator_stepped_in_does_not_count_after() -> None:
    mode = Mode()
    mode.run(*[S, F] * 3, S, F, F)  # one more failure would open it by either rule
    late = mode.admit()
    mode.circuit.force("open")
    mode.circuit.force("auto")
    mode.circuit.settle(late, F)
    assert mode.run(F, F) is Phase.RECOVERING
    assert mode.run(F) is Phase.OPEN


def test_the_breaker_driven_by_hand_stays_consistent() -> None:
    mode = Mode()
    permit = mode.admit()
    mode.circuit.breaker.open()
    assert (mode.circuit.phase(), mode.circuit.until()) == (Phase.OPEN, 300.0)
    assert (mode.circuit.epoch, mode.circuit.opened) == (1, 1000.0)
    assert mode.circuit.admit() is None
    mode.circuit.settle(permit, S)
    mode.clock.advance(100.0)
    mode.circuit.breaker.close()
    assert (mode.circuit.phase(), mode.circuit.until()) == (Phase.RECOVERING, None)
    assert (mode.circuit.epoch, mode.circuit.late) == (2, 1)
    mode.circuit.breaker.half_open()
    assert (mode.circuit.phase(), mode.circuit.until()) == (Phase.PROBE_DUE, 0.0)
    assert mode.circuit.opened == 1100.0
    assert mode.admit().probe
    assert [t.cause for t in mode.told] == ["by hand"] * 3


# -- what it costs ------------------------------------------------------------------------------


def test_memory_does_not_grow_with_traffic() -> None:
    mode = Mode(replace(DEFAULT, failure_ratio=0.0))

    def some_traffic() -> None:
        for _ in range(500):
            mode.run(S, F, F, N, every=0.02)

    some_traffic()  # fills what is bounded
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        some_traffic()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 5_000
    finally:
        tracemalloc.stop()
