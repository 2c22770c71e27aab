"""Rules of the circuits: who may call whom, when they open, hold, probe and close."""

from __future__ import annotations

from gateway.detectors.failures import Outcome
from tests.simulation.model import CLOSED, OPEN, PROBING, TINY_S
from tests.simulation.moments import Admitted, Called, Invariant, Settled, Turned

# -- a call reaches an upstream -------------------------------------------------------------------


def _no_call_to_an_open_circuit(m: Called) -> str | None:
    if m.permit is None:
        return f"a call to {m.model.name} without a permit"
    if m.model.state is OPEN or m.permit.epoch != m.epoch:
        return f"a call to {m.model.name}, which is {m.model.state}"
    return None


def _one_live_probe(m: Called) -> str | None:
    if m.model.state is PROBING and m.permit is not m.model.probe:
        return f"a call to {m.model.name} beside its probe"
    return None


def _settled_permits_do_not_call(m: Called) -> str | None:
    return f"a call to {m.model.name} after its visit" if m.permit and m.permit.settled else None


def _no_call_to_a_resting_target(m: Called) -> str | None:
    rest_s = m.model.rests_until - m.now - TINY_S
    return f"a call to {m.model.name}, which rests for {rest_s:.3f} s" if rest_s > 0 else None


def _attempts_per_mode(m: Called) -> str | None:
    """One, one quick retry, one short wait that a throttle asked for."""
    tries = 1 + sum(mode == m.model.name for mode, _ in m.earlier)
    return f"attempt {tries} of one request at {m.model.name}" if tries > 3 else None


def _second_attempts_are_in_the_budget(m: Called) -> str | None:
    domain = m.target.provider.domain
    if not any(known == domain for _, known in m.earlier):
        return None
    tokens = m.target.budget.tokens
    return f"a second attempt into {domain} with {tokens:g} tokens" if tokens <= 5.0 else None


def _never_above_its_limit(m: Called) -> str | None:
    highest = m.rung.mode.max_in_flight
    in_flight = m.rung.limit.in_flight
    return (
        f"{in_flight} in flight in {m.model.name}, limit {highest}" if in_flight > highest else None
    )


AT_CALL: list[Invariant[Called]] = [
    Invariant("no call to an open circuit", "B5 P3", _no_call_to_an_open_circuit),
    Invariant("one live probe", "B5 P2", _one_live_probe),
    Invariant("a settled permit calls nobody", "B10", _settled_permits_do_not_call),
    Invariant("a resting target is left alone", "B7", _no_call_to_a_resting_target),
    Invariant("at most three attempts a mode", "B7", _attempts_per_mode),
    Invariant("second attempts are in the budget", "B8 P11", _second_attempts_are_in_the_budget),
    Invariant("never above the limit", "B23", _never_above_its_limit),
]


# -- a circuit is asked for a permit --------------------------------------------------------------


def _hold_is_respected(m: Admitted) -> str | None:
    if m.permit is None or not m.held or m.trial:
        return None
    early_s = m.model.opened + m.model.hold_s() - m.now
    return f"{m.model.name} let a request in {early_s:.3f} s before its hold was over"


def _hold_ends(m: Admitted) -> str | None:
    """At 300 s exactly the first demand is the probe; the bottom's holds grow, so not there."""
    over = m.state is OPEN and not m.held and not m.model.bottom
    return f"{m.model.name} refused its probe after its hold" if over and not m.permit else None


def _probes_are_leased(m: Admitted) -> str | None:
    if m.permit is None or m.permit.probe == (m.state is not CLOSED):
        return None
    return f"{m.model.name} was {m.state} and gave a permit, probe: {m.permit.probe}"


def _one_lease(m: Admitted) -> str | None:
    return f"{m.model.name} gave a second lease" if m.permit and m.lease_live else None


def _a_healthy_mode_lets_in(m: Admitted) -> str | None:
    shut = m.state is CLOSED and not m.ramping and m.permit is None
    return f"{m.model.name} is well and refused a permit" if shut else None


def _the_ramp_holds_back(m: Admitted) -> str | None:
    if m.permit is None or m.state is not CLOSED or m.epoch == 0:
        return None
    share = min(1.0, (m.now - m.model.since) / m.model.options.ramp_s)
    most = max(1, int(m.limit * share + 1 - TINY_S))
    if m.in_flight <= most:
        return None
    return f"{m.in_flight} in flight in {m.model.name}, {share:.0%} up its ramp to {m.limit}"


def _trials_only_in_a_total_outage(m: Admitted) -> str | None:
    if not m.trial or m.permit is None:
        return None
    if not m.all_down:
        return f"a panic trial of {m.model.name} while another mode was there"
    return f"a panic trial {m.tried_s:.3f} s after the last" if m.tried_s < 5.0 - TINY_S else None


AT_ADMISSION: list[Invariant[Admitted]] = [
    Invariant("the hold is respected", "B5 P6", _hold_is_respected),
    Invariant("the hold ends", "B5 P6", _hold_ends),
    Invariant("a probe is leased, and only a probe", "B5", _probes_are_leased),
    Invariant("one lease", "B5 P2", _one_lease),
    Invariant("a healthy mode lets in", "B6", _a_healthy_mode_lets_in),
    Invariant("the ramp holds back", "B6", _the_ramp_holds_back),
    Invariant("trials only in a total outage", "B9", _trials_only_in_a_total_outage),
]


# -- a permit comes back --------------------------------------------------------------------------


def _settled_exactly_once(m: Settled) -> str | None:
    if m.again:
        return f"{m.model.name} counted a permit twice" if m.freed or m.before != m.after else None
    return None if m.freed == 1 else f"{m.model.name} freed {m.freed} permits for one"


def _stale_outcomes_change_nothing(m: Settled) -> str | None:
    moved = m.stale and not m.lease_over and m.before != m.after
    return f"a stale outcome moved {m.model.name}" if moved else None


def _ignored_outcomes_change_nothing(m: Settled) -> str | None:
    ignored = m.outcome is Outcome.IGNORED and not m.lease_over
    moved = ignored and m.before != m.after
    return f"an ignored outcome moved {m.model.name} to {m.after[0]}" if moved else None


def _outcomes_move_as_written(m: Settled) -> str | None:
    if m.again or m.stale or m.lease_over or m.outcome is Outcome.IGNORED:
        return None
    good = m.outcome is Outcome.SUCCESS
    if m.before[0] is PROBING:
        expected = CLOSED if good else OPEN
    else:
        expected = OPEN if m.must_open and not good else CLOSED
    if m.after[0] is expected:
        return None
    return f"{m.model.name} was {m.before[0]}, {m.outcome}: {m.after[0]} and not {expected}"


def _no_mode_moves_another(m: Settled) -> str | None:
    return f"an outcome of {m.model.name} moved another mode" if m.others_moved else None


AT_SETTLEMENT: list[Invariant[Settled]] = [
    Invariant("settled exactly once", "B10 P1", _settled_exactly_once),
    Invariant("stale outcomes change nothing", "B10 P8", _stale_outcomes_change_nothing),
    Invariant("ignored outcomes change nothing", "P7", _ignored_outcomes_change_nothing),
    Invariant("outcomes move it as written", "B4 B5 P5", _outcomes_move_as_written),
    Invariant("no mode moves another", "P10", _no_mode_moves_another),
]


# -- a circuit changes state ----------------------------------------------------------------------


def _only_drawn_transitions(m: Turned) -> str | None:
    """CLOSED -> OPEN -> PROBING -> CLOSED or OPEN; nothing else, without an operator."""
    drawn = {(CLOSED, OPEN), (OPEN, PROBING), (PROBING, CLOSED), (PROBING, OPEN)}
    return None if (m.old, m.new) in drawn else f"{m.model.name}: {m.old} to {m.new}"


def _every_transition_is_an_epoch(m: Turned) -> str | None:
    grew = m.epoch == m.model.epoch + 1
    return None if grew else f"{m.model.name}: epoch {m.model.epoch}, then {m.epoch}"


def _silence_needs_three(m: Turned) -> str | None:
    if m.cause != "overdue":
        return None
    silent, needed = m.model.overdue(m.now), m.model.options.failure_threshold
    return f"{m.model.name} opened on {silent} overdue" if silent < needed else None


def _leases_end_on_time(m: Turned) -> str | None:
    early = m.cause == "lease over" and not m.model.lease_over(m.now)
    return f"{m.model.name}: a lease ended early" if early else None


def _ttl_follows_the_phase(m: Turned) -> str | None:
    """From that moment 300 s are in force while a mode is downshifted, else 3,600 s."""
    expected = 300.0 if m.downshifted else 3600.0
    return None if m.ttl_s == expected else f"{m.model.name} is {m.new}, its TTL {m.ttl_s:g} s"


AT_TRANSITION: list[Invariant[Turned]] = [
    Invariant("only the transitions that are drawn", "B5", _only_drawn_transitions),
    Invariant("every transition is an epoch", "B10 P4", _every_transition_is_an_epoch),
    Invariant("silence opens at three overdue", "B4", _silence_needs_three),
    Invariant("leases end on time", "B5", _leases_end_on_time),
    Invariant("the TTL follows the phase", "B12 B19", _ttl_follows_the_phase),
]
