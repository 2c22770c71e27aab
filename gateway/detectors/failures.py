"""What an error means: does it count against the circuit, and what is the best next step?

behaviour.md's table *What counts*, as data. One row per `ErrorKind`; a new kind without a row is a
failing test, not a guess at run time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from gateway.errors import ErrorKind, UpstreamError


class Outcome(StrEnum):
    """What an attempt's end says about the health of its mode."""

    SUCCESS = "success"
    FAILURE = "failure"
    IGNORED = "ignored"  # says nothing about health: throttling, a caller's fault, a full queue


class Then(StrEnum):
    """The best next step for the request that met the error."""

    WALK = "walk"  # the next mode, at once
    RETRY = "retry"  # at most one budgeted second try here, if this one failed fast (B7)
    WAIT = "wait"  # wait `cool_s` if that is short enough for the deadline, else walk (B7)
    RAISE = "raise"  # the caller's to hear; another mode would say the same
    LARGER = "larger"  # a mode with a larger context window, else raise


@dataclass(frozen=True, slots=True)
class Judgement:
    """What to do about one error.

    Attributes:
        outcome: what it counts as in the circuit of its mode.
        then: the next step for this request.
        cool_s: seconds the target should be left alone, 0 for not at all.
        out: True if only a person can mend it (unpaid, wrong key, unknown model): raise an alarm.
    """

    outcome: Outcome
    then: Then
    cool_s: float = 0.0
    out: bool = False


_FAILED = Judgement(Outcome.FAILURE, Then.WALK)
_RETRYABLE = Judgement(Outcome.FAILURE, Then.RETRY)
_RAISED = Judgement(Outcome.IGNORED, Then.RAISE)

_RULES: dict[ErrorKind, Judgement] = {
    ErrorKind.CONNECT: _RETRYABLE,
    ErrorKind.TIMEOUT: _FAILED,  # silence is never tried twice: the second wait costs as much
    ErrorKind.SERVER: _FAILED,
    ErrorKind.MALFORMED: _FAILED,
    ErrorKind.INTERRUPTED: _FAILED,
    ErrorKind.EMPTY: _FAILED,
    ErrorKind.OVERLOADED: Judgement(Outcome.IGNORED, Then.WALK, cool_s=1.0),
    ErrorKind.LOADING: Judgement(Outcome.IGNORED, Then.WALK, cool_s=2.0),
    ErrorKind.RATE: Judgement(Outcome.IGNORED, Then.WAIT, cool_s=5.0),
    ErrorKind.BURST: Judgement(Outcome.IGNORED, Then.WAIT, cool_s=5.0),
    ErrorKind.TOKENS: Judgement(Outcome.IGNORED, Then.WAIT, cool_s=10.0),
    ErrorKind.BILLING: Judgement(Outcome.IGNORED, Then.WALK, cool_s=300.0, out=True),
    ErrorKind.AUTH: Judgement(Outcome.IGNORED, Then.WALK, cool_s=300.0, out=True),
    ErrorKind.MODEL: Judgement(Outcome.IGNORED, Then.WALK, cool_s=600.0, out=True),
    ErrorKind.CONTEXT: Judgement(Outcome.IGNORED, Then.LARGER),
    ErrorKind.CONTENT: _RAISED,
    ErrorKind.REQUEST: _RAISED,
}

# How far an upstream's Retry-After may move the cool-down, seconds.
_COOL_BOUNDS: dict[ErrorKind, tuple[float, float]] = {
    ErrorKind.OVERLOADED: (1.0, 5.0),
    ErrorKind.LOADING: (1.0, 5.0),
    ErrorKind.RATE: (1.0, 60.0),
    ErrorKind.BURST: (1.0, 60.0),
    ErrorKind.TOKENS: (1.0, 60.0),
}

# A 504 is a proxy's own time-out: silence already waited for once.
_RETRYABLE_STATUS = frozenset({500, 502, 503})


def judge(error: BaseException) -> Judgement:
    """Say what an error counts as and what to do next.

    An error that did not come from an upstream is ours or the caller's: it says nothing about the
    upstream's health, and no other mode would do better, so it is ignored and raised.
    """
    if not isinstance(error, UpstreamError):
        return _RAISED
    kind = error.kind
    if kind is ErrorKind.SERVER:
        return _RETRYABLE if error.status in _RETRYABLE_STATUS else _FAILED
    rule = _RULES[kind]
    bounds = _COOL_BOUNDS.get(kind)
    if bounds is None or error.retry_after is None:
        return rule
    low, high = bounds
    # In this order a NaN ends up as `low`.
    return replace(rule, cool_s=min(max(low, error.retry_after), high))
