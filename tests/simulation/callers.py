"""Rules of what callers are promised: whole answers, true flags, honest errors, deadlines held."""

from __future__ import annotations

from gateway.errors import (
    AdmissionRejected,
    AllModesFailed,
    CircuitOpen,
    DeadlineExceeded,
    StreamInterrupted,
)
from tests.simulation.moments import Answered, Failed, Invariant

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
