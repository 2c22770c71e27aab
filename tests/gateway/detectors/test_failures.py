"""behaviour.md's table *What counts*, row by row."""

from __future__ import annotations

import asyncio
import math

import pytest

from gateway.detectors.failures import Judgement, Outcome, Then, judge
from gateway.errors import (
    AllModesFailed,
    CircuitOpen,
    DeadlineExceeded,
    ErrorKind,
    GatewayError,
    InvalidRequest,
    StreamInterrupted,
    UpstreamError,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)

FAILURES = {"connect", "timeout", "server", "malformed", "interrupted", "empty"}


@pytest.mark.parametrize("kind", ErrorKind)
def test_every_kind_has_a_rule(kind: ErrorKind) -> None:
    verdict = judge(UpstreamError("x", kind=kind))
    expected = Outcome.FAILURE if kind.value in FAILURES else Outcome.IGNORED
    assert verdict.outcome is expected


@pytest.mark.parametrize("kind", sorted(set(ErrorKind) - {k for k in ErrorKind if k in FAILURES}))
def test_whatever_is_ignored_never_counts_whatever_its_status(kind: ErrorKind) -> None:
    for status in (None, 200, 400, 429, 500, 503):
        assert judge(UpstreamError("x", kind=kind, status=status)).outcome is Outcome.IGNORED


@pytest.mark.parametrize(
    ("error", "then"),
    [
        (UpstreamUnavailable("refused", kind=ErrorKind.CONNECT), Then.RETRY),
        (UpstreamUnavailable("500", status=500), Then.RETRY),
        (UpstreamUnavailable("502", status=502), Then.RETRY),
        (UpstreamUnavailable("503", status=503), Then.RETRY),
        (UpstreamUnavailable("504", status=504), Then.WALK),
        (UpstreamUnavailable("error event", status=200), Then.WALK),
        (UpstreamTimeout("silence", phase="first_token"), Then.WALK),
        (StreamInterrupted("cut", partial="half"), Then.WALK),
        (UpstreamUnavailable("html", kind=ErrorKind.MALFORMED), Then.WALK),
        (UpstreamUnavailable("nothing", kind=ErrorKind.EMPTY), Then.WALK),
    ],
)
def test_failures_walk_on_and_only_quick_transient_ones_may_be_retried(
    error: UpstreamError, then: Then
) -> None:
    assert judge(error) == Judgement(Outcome.FAILURE, then)


@pytest.mark.parametrize(
    ("kind", "cool_s"),
    [(ErrorKind.BILLING, 300), (ErrorKind.AUTH, 300), (ErrorKind.MODEL, 600)],
)
def test_dead_targets_are_out_for_minutes_and_need_a_person(kind: ErrorKind, cool_s: float) -> None:
    expected = Judgement(Outcome.IGNORED, Then.WALK, cool_s=cool_s, out=True)
    assert judge(UpstreamError("x", kind=kind, retry_after=1)) == expected


@pytest.mark.parametrize("kind", [ErrorKind.CONTENT, ErrorKind.REQUEST])
def test_the_callers_own_faults_are_raised(kind: ErrorKind) -> None:
    assert judge(UpstreamRejected("x", kind=kind)) == Judgement(Outcome.IGNORED, Then.RAISE)


def test_a_prompt_too_long_looks_for_a_larger_window() -> None:
    error = UpstreamRejected("x", kind=ErrorKind.CONTEXT)
    assert judge(error) == Judgement(Outcome.IGNORED, Then.LARGER)


@pytest.mark.parametrize(
    ("kind", "default", "low", "high", "then"),
    [
        (ErrorKind.RATE, 5, 1, 60, Then.WAIT),
        (ErrorKind.BURST, 5, 1, 60, Then.WAIT),
        (ErrorKind.TOKENS, 10, 1, 60, Then.WAIT),
        (ErrorKind.OVERLOADED, 1, 1, 5, Then.WALK),
        (ErrorKind.LOADING, 2, 1, 5, Then.WALK),
    ],
)
def test_cooling_follows_retry_after_within_bounds(
    kind: ErrorKind, default: float, low: float, high: float, then: Then
) -> None:
    def cool(retry_after: float | None) -> float:
        verdict = judge(UpstreamThrottled("x", kind=kind, retry_after=retry_after))
        assert verdict.outcome is Outcome.IGNORED
        assert verdict.then is then
        assert not verdict.out
        return verdict.cool_s

    assert cool(None) == default
    assert cool(3.0) == 3.0
    for absurd in (0.0, -7.0, -math.inf, math.nan):
        assert cool(absurd) == low
    for absurd in (1e9, math.inf):
        assert cool(absurd) == high


@pytest.mark.parametrize(
    "error",
    [
        ValueError("ours"),
        TimeoutError("a bare one says nothing about an upstream"),
        asyncio.CancelledError(),
        GatewayError("x"),
        InvalidRequest("x"),
        CircuitOpen("x", mode="creative"),
        DeadlineExceeded("x"),
        AllModesFailed("x", {"creative": UpstreamUnavailable("x")}),
    ],
)
def test_what_is_not_an_upstreams_is_ignored_and_raised(error: BaseException) -> None:
    assert judge(error) == Judgement(Outcome.IGNORED, Then.RAISE)
