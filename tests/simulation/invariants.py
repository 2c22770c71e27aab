"""What must never happen: small named rules, each a function of one moment.

A rule returns None if all is well, else what is wrong. Each says which rule of the contract it
holds up (`B...`), or which point of its list of what must hold under test (`P...`). `watch.py`
brings about the moments and asks every rule at each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from gateway.detectors.failures import Outcome
from gateway.errors import (
    AdmissionRejected,
    AllModesFailed,
    CircuitOpen,
    DeadlineExceeded,
    GatewayError,
    StreamInterrupted,
)
from gateway.events import AttemptFinished, RequestFinished, TargetResting
from gateway.generation import Served
from gateway.policies.downshift import Rung, Target
from gateway.policies.phases import Permit
from tests.simulation.model import CLOSED, OPEN, PROBING, TINY_S, ModeModel
from tests.simulation.schedule import Ask

if TYPE_CHECKING:
    from tests.simulation.watch import Watch

M = TypeVar("M")
Rule = Callable[[M], str | None]


@dataclass(frozen=True, slots=True)
class Invariant(Generic[M]):
    """A rule, its name and where it stands in the contract."""

    name: str
    source: str
    rule: Rule[M]


# -- the moments ----------------------------------------------------------------------------------


class Called(msgspec.Struct):
    """An attempt reaches an upstream; `earlier` are its request's calls, by (mode, domain)."""

    now: float
    model: ModeModel
    rung: Rung
    target: Target
    permit: Permit | None
    epoch: int
    earlier: list[tuple[str, str]]


class Admitted(msgspec.Struct):
    """A circuit was asked for a permit. What it was before, and what came of it.

    `held` and `lease_live` say how it stood; `all_down` that no mode was there, `tried_s` how long
    ago the panic rule last had a trial.
    """

    now: float
    model: ModeModel
    limit: int
    state: str
    epoch: int
    held: bool
    lease_live: bool
    ramping: bool
    trial: bool
    all_down: bool
    tried_s: float
    permit: Permit | None
    in_flight: int


class Settled(msgspec.Struct):
    """A permit came back. `before` and `after` are (state, epoch, opened) of its mode's circuit;
    `stale` says that it was of an earlier epoch.
    """

    now: float
    model: ModeModel
    permit: Permit
    outcome: Outcome
    again: bool
    stale: bool
    lease_over: bool
    must_open: bool
    before: tuple[str, int, float | None]
    after: tuple[str, int, float | None]
    freed: int
    others_moved: bool


class Turned(msgspec.Struct):
    """A circuit changed state. `ttl_s` is what `status()` says is in force since."""

    now: float
    model: ModeModel
    old: str
    new: str
    cause: str
    epoch: int
    trial: bool
    downshifted: bool
    ttl_s: float


class Answered(msgspec.Struct):
    """A caller has an answer. `text` is what it read; `whole` what that mode's model says."""

    now: float
    ask: Ask
    deadline_s: float
    took_s: float
    served: Served
    text: str
    whole: str
    model_name: str
    finish_reason: str | None
    stand_in_at: bool
    modes: tuple[str, ...]
    ttl_s: float
    degraded_ttl_s: float
    stale_s: float


class Failed(msgspec.Struct):
    """A caller got an error. `text` is what it had read of a stream before."""

    now: float
    ask: Ask
    deadline_s: float
    took_s: float
    error: GatewayError
    text: str


class Told(msgspec.Struct):
    """An event was told; how often its request had been told before."""

    event: Any
    times: int


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


# -- a caller has its answer ----------------------------------------------------------------------


def _never_above(m: Answered) -> str | None:
    above = m.modes.index(m.served.mode) < m.modes.index(m.ask.mode)
    return f"asked for {m.ask.mode}, served {m.served.mode}" if above else None


def _flags_are_true(m: Answered) -> str | None:
    s = m.served
    if s.requested_mode != m.ask.mode:
        return f"requested_mode says {s.requested_mode}, asked was {m.ask.mode}"
    if s.degraded != (s.mode != m.ask.mode):
        return f"degraded says {s.degraded}: asked {m.ask.mode}, served {s.mode}"
    if s.model != m.model_name:
        return f"model says {s.model}, and {m.model_name} answered"
    if (s.reason is None) == (s.degraded or s.stale):
        return f"reason is {s.reason!r}; degraded {s.degraded}, stale {s.stale}"
    return None


def _degrading_was_allowed(m: Answered) -> str | None:
    forbidden = m.served.degraded and not m.ask.allow_degrade
    return "degraded, and the caller forbade it" if forbidden else None


def _no_truncated_success(m: Answered) -> str | None:
    if m.text == m.whole and m.finish_reason in ("stop", None):
        return None
    return f"{m.served.mode} said {m.whole!r}, the caller had {m.text!r} ({m.finish_reason})"


def _short_ttl_only_when_degraded(m: Answered) -> str | None:
    s = m.served
    expected = 0.0 if s.stale else m.degraded_ttl_s if s.degraded else m.ttl_s
    return None if s.ttl_s == expected else f"TTL {s.ttl_s:g} s, degraded {s.degraded}"


def _kept_answers_are_fresh(m: Answered) -> str | None:
    s = m.served
    lifetime = m.ttl_s + m.stale_s if s.stale else m.degraded_ttl_s if s.degraded else m.ttl_s
    return f"an answer {s.age_s:.3f} s old" if s.cached and s.age_s >= lifetime else None


def _stand_ins_only_while_downshifted(m: Answered) -> str | None:
    s = m.served
    wrong = s.cached and s.degraded and not s.stale and not m.stand_in_at
    return f"a kept answer of {s.mode} for {s.requested_mode}, which was there" if wrong else None


def _answers_in_time(m: Answered | Failed) -> str | None:
    late = m.took_s > m.deadline_s + 0.05
    return f"took {m.took_s:.3f} s, deadline {m.deadline_s:.3f} s" if late else None


AT_ANSWER: list[Invariant[Answered]] = [
    Invariant("never served above what was asked", "P14", _never_above),
    Invariant("flags are true", "B13", _flags_are_true),
    Invariant("degrading only where allowed", "B13", _degrading_was_allowed),
    Invariant("no truncated success", "B16 P17", _no_truncated_success),
    Invariant("TTL 300 only when degraded", "B19", _short_ttl_only_when_degraded),
    Invariant("kept answers are fresh", "B19 P15", _kept_answers_are_fresh),
    Invariant("stand-ins only while downshifted", "B18 B19", _stand_ins_only_while_downshifted),
    Invariant("the deadline is held", "B1", _answers_in_time),
]


# -- a caller gets an error -----------------------------------------------------------------------


def _partial_text_is_what_was_heard(m: Failed) -> str | None:
    if not isinstance(m.error, (StreamInterrupted, DeadlineExceeded)) or not m.ask.stream:
        return None
    heard = not m.text or m.error.partial == m.text
    return None if heard else f"heard {m.text!r}, partial {m.error.partial!r}"


def _deadlines_are_not_early(m: Failed) -> str | None:
    early = isinstance(m.error, DeadlineExceeded) and m.took_s < m.deadline_s - 0.05
    return f"deadline exceeded {m.deadline_s - m.took_s:.3f} s early" if early else None


def _refusals_say_when(m: Failed) -> str | None:
    if isinstance(m.error, AdmissionRejected):
        good = m.error.retry_after is not None and m.error.retry_after > 0
        return None if good else f"a refusal with Retry-After {m.error.retry_after}"
    return None


def _open_is_said_to_those_who_insist(m: Failed) -> str | None:
    wrong = isinstance(m.error, CircuitOpen) and m.ask.allow_degrade
    return "circuit open, and a lower mode would have done" if wrong else None


def _nothing_fails_without_a_cause(m: Failed) -> str | None:
    bare = isinstance(m.error, AllModesFailed) and not m.error.exceptions
    return "all modes failed, and no cause is given" if bare else None


AT_ERROR: list[Invariant[Failed]] = [
    Invariant("the deadline is held", "B1", _answers_in_time),
    Invariant("partial text is what was heard", "B16", _partial_text_is_what_was_heard),
    Invariant("deadlines are not early", "B1", _deadlines_are_not_early),
    Invariant("refusals say when", "B23", _refusals_say_when),
    Invariant("open is said to those who insist", "B13", _open_is_said_to_those_who_insist),
    Invariant("nothing fails without a cause", "B7", _nothing_fails_without_a_cause),
]


# -- an event is told -----------------------------------------------------------------------------

_FAILURES = frozenset({"connect", "server", "interrupted", "malformed", "empty"})
_IGNORED = frozenset({"rate", "burst", "tokens", "overloaded", "loading"})


def _what_counts(m: Told) -> str | None:
    """behaviour.md's table: what the simulator's upstreams can do, and how it must be taken."""
    if not isinstance(m.event, AttemptFinished):
        return None
    kind, outcome = m.event.kind, m.event.outcome
    bad = (kind in _FAILURES and outcome != Outcome.FAILURE) or (
        kind in _IGNORED and outcome != Outcome.IGNORED
    )
    return f"{kind} was taken for {outcome}" if bad else None


def _told_once(m: Told) -> str | None:
    again = isinstance(m.event, RequestFinished) and m.times > 0
    return f"{m.event.request_id} was told to end twice" if again else None


def _rests_are_bounded(m: Told) -> str | None:
    if not isinstance(m.event, TargetResting):
        return None
    fits = 1.0 <= m.event.for_s <= 60.0
    return None if fits else f"{m.event.kind}: a rest of {m.event.for_s:g} s"


AT_EVENT: list[Invariant[Told]] = [
    Invariant("what counts", "table", _what_counts),
    Invariant("each end is told once", "P1", _told_once),
    Invariant("rests are 1 to 60 s", "table", _rests_are_bounded),
]


# -- at every event, and when all is over ---------------------------------------------------------


def _nothing_is_negative(w: Watch) -> str | None:
    for rung in w.rungs:
        circuit, limit = rung.circuit, rung.limit
        # A probe that streams well is settled before it gives its slot back.
        if not 0 <= circuit.in_flight <= limit.in_flight:
            return f"{rung.name}: {circuit.in_flight} permits, {limit.in_flight} slots"
        if limit.native < 0 or limit.downshifted < 0 or limit.native_waiting < 0:
            return f"{rung.name}: slots {limit.native}, {limit.downshifted}"
    return None


def _permits_are_conserved(w: Watch) -> str | None:
    for rung in w.rungs:
        model = w.models[rung.name]
        if rung.circuit.in_flight != model.issued - model.settled:
            out = model.issued - model.settled
            return f"{rung.name}: {rung.circuit.in_flight} in flight, {out} permits out"
    return None


def _calls_are_conserved(w: Watch) -> str | None:
    for upstream in w.upstreams:
        stats = upstream.stats
        ended = stats.completed + stats.cancelled + stats.failed
        if stats.started != ended + stats.in_flight or stats.in_flight < 0:
            return f"{upstream.name}: {stats}"
    return None


def _purses_are_in_bounds(w: Watch) -> str | None:
    for rung in w.rungs:
        for target in rung.targets:
            if not -TINY_S <= target.budget.tokens <= 10.0 + TINY_S:
                return f"{rung.name}: {target.budget.tokens} tokens"
    return None


ALWAYS: list[Invariant[Watch]] = [
    Invariant("nothing is negative", "P1", _nothing_is_negative),
    Invariant("permits are conserved", "B10 P1", _permits_are_conserved),
    Invariant("upstream calls are conserved", "B17", _calls_are_conserved),
    Invariant("purses are in bounds", "B8", _purses_are_in_bounds),
]


def _permits_and_slots_are_back(w: Watch) -> str | None:
    for rung in w.rungs:
        limit = rung.limit
        left = rung.circuit.in_flight, limit.native, limit.downshifted, limit.native_waiting
        waiting = len(rung.circuit._waiting) + len(w.models[rung.name].permits)
        if any(left) or waiting or any(target.in_flight for target in rung.targets):
            return f"{rung.name}: {left}, {waiting} waiting"
    return None


def _upstreams_are_left(w: Watch) -> str | None:
    for upstream in w.upstreams:
        if upstream.stats.in_flight or upstream.slots._busy or upstream.slots.queued:
            return (
                f"{upstream.name}: {upstream.stats.in_flight} calls, {upstream.slots._busy} slots"
            )
    return None


def _queues_are_empty(w: Watch) -> str | None:
    pipeline = w.pipeline
    left = (
        pipeline.in_flight,
        pipeline.admission.queued,
        len(pipeline.cache._airborne),
        len(pipeline.cache._flights),
        sum(map(len, pipeline.gearbox._watch._waiting.values())),
        len(w.gateway._in_force._leaving),
        len(w.gateway._in_force._closing),
    )
    return f"left: {left}" if any(left) else None


def _every_request_was_told(w: Watch) -> str | None:
    return None if len(w.told) == w.asked else f"{w.asked} asked, {len(w.told)} told"


def _every_attempt_was_told(w: Watch) -> str | None:
    calls = sum(upstream.stats.started for upstream in w.upstreams)
    return None if calls == w.attempts else f"{calls} calls, {w.attempts} attempts told"


def _no_listener_failed(w: Watch) -> str | None:
    faults = w.gateway.status()["listener_faults"]
    return f"{faults} listeners failed" if faults else None


def _dead_domains_are_spared(w: Watch) -> str | None:
    """Calls into an upstream that is all gone for a minute or more: 1.1 times the requests that
    might have used it, and a burst.
    """
    for mode, outage in w.long_outages():
        calls = sum(outage.start <= at < outage.end for at in w.calls_at[mode])
        allowed = w.modes[: w.modes.index(mode) + 1]
        asks = w.schedule.asks
        asked = sum(outage.start <= a.at < outage.end and a.mode in allowed for a in asks)
        if calls > 1.1 * asked + 5:
            length_s = outage.end - outage.start
            return f"{calls} calls to {mode}, gone for {length_s:.0f} s, {asked} asked"
    return None


AT_REST: list[Invariant[Watch]] = [
    Invariant("permits and slots are back", "B17 P1", _permits_and_slots_are_back),
    Invariant("upstreams are left", "B17", _upstreams_are_left),
    Invariant("queues are empty", "B17", _queues_are_empty),
    Invariant("every request was told", "P1", _every_request_was_told),
    Invariant("every attempt was told", "P1", _every_attempt_was_told),
    Invariant("no listener failed", "B12", _no_listener_failed),
    Invariant("dead domains are spared", "B8 P11", _dead_domains_are_spared),
]

EVERYTHING: list[Invariant[Any]] = [
    *AT_CALL,
    *AT_ADMISSION,
    *AT_SETTLEMENT,
    *AT_TRANSITION,
    *AT_ANSWER,
    *AT_ERROR,
    *AT_EVENT,
    *ALWAYS,
    *AT_REST,
]
"""All but two, which `world.py` holds: what is healed comes back, no task or timer is left."""
