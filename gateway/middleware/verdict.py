"""What an attempt says about the health of its mode, while it runs and when it ends."""

from __future__ import annotations

from gateway.detectors.failures import Outcome, judge
from gateway.errors import UpstreamError, UpstreamTimeout
from gateway.middleware.attempt import Attempt
from gateway.policies.downshift import Rung, Visit

# A probe that streams this long or this much has shown that the mode is back.
_PROVEN_S = 5.0
_PROVEN_CHUNKS = 64
# The clocks that `Attempt` keeps, and that a caller's deadline can cut short.
_OUR_CLOCKS = ("first_token", "stall", "total")

# A clock that rings at its limit must not read just below it.
LAST_DIGIT_S = 1e-3


def verdict(error: UpstreamError, attempt: Attempt, rung: Rung) -> Outcome:
    """What a failed attempt counts as in the circuit of its mode.

    A clock that rang early only because the caller was in a hurry says nothing about the upstream,
    unless that long a silence is not normal for this mode, or the mode has been silent for long
    while one hurried caller came after the other.
    """
    outcome = judge(error).outcome
    if not isinstance(error, UpstreamTimeout) or error.phase not in _OUR_CLOCKS:
        return outcome
    mode = rung.mode
    limit = mode.first_token_s if attempt.first_token_at is None else mode.stall_s
    if attempt.silence() + LAST_DIGIT_S >= limit or too_slow(attempt, rung):
        return outcome
    if attempt.first_token_at is None:
        silent_s = rung.circuit.asked_in_vain_s(attempt.started)
        if 0 < rung.circuit.options.slow_s <= silent_s:
            return outcome
    return Outcome.IGNORED


def too_slow(attempt: Attempt, rung: Rung) -> bool:
    """Whether an attempt has been silent for longer than is normal for its mode."""
    silence = attempt.silence() + LAST_DIGIT_S
    if attempt.first_token_at is None:
        return rung.too_slow(silence)
    return 0 < rung.circuit.options.slow_s <= silence


def prove(visit: Visit, attempt: Attempt, now: float) -> None:
    """Settle a probe as a success as soon as it has streamed enough to show that the mode is back.

    It need not reach its end: a long answer would outlast the probe's lease.
    """
    permit = visit.permit
    if not permit.probe or permit.settled or attempt.first_token_at is None:
        return
    # However short the lease: half of what is left of it is enough, or it could never be proven.
    enough_s = min(_PROVEN_S, (permit.lease_until - attempt.first_token_at) / 2)
    if now - attempt.first_token_at >= enough_s or attempt.received >= _PROVEN_CHUNKS:
        visit.rung.circuit.settle(permit, Outcome.SUCCESS, "probe streams well")
