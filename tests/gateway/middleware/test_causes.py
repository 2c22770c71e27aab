from __future__ import annotations

import pytest

from gateway.detectors.failures import Then
from gateway.errors import (
    AdmissionRejected,
    AllModesFailed,
    CircuitOpen,
    ErrorKind,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.middleware.causes import Causes
from gateway.policies.downshift import Refusal

DOWN = UpstreamUnavailable("down", status=500)
TOO_LONG = UpstreamRejected("too long", kind=ErrorKind.CONTEXT, status=400)


def test_the_first_cause_is_the_reason() -> None:
    causes = Causes()
    assert causes.reason == ""
    assert not causes
    causes.refused("creative", Refusal("circuit_open", 120.0))
    causes.failed("balanced", DOWN, Then.WALK)
    assert causes.reason == "circuit_open"
    assert causes


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        (Then.WALK, "failed"),
        (Then.RETRY, "failed"),
        (Then.WAIT, "cooling"),
        (Then.LARGER, "context"),
    ],
)
def test_what_a_failure_is_called(then: Then, reason: str) -> None:
    causes = Causes()
    causes.failed("creative", DOWN, then)
    assert causes.reason == reason


def test_one_cause_a_mode_and_the_earliest_time_to_come_back() -> None:
    causes = Causes()
    causes.refused("creative", Refusal("circuit_open", 120.0))
    causes.failed("balanced", DOWN, Then.WALK)
    causes.refused("fast", Refusal("saturated", 1.0))
    error = causes.error(lone=False)
    assert isinstance(error, AllModesFailed)
    assert error.retry_after == 1.0
    assert list(error.causes) == ["creative", "balanced", "fast"]
    assert [type(cause) for cause in error.causes.values()] == [
        CircuitOpen,
        UpstreamUnavailable,
        AdmissionRejected,
    ]
    assert "creative: mode 'creative' is not available: circuit open" in str(error)


def test_how_a_mode_failed_says_more_than_why_it_was_not_tried_again() -> None:
    causes = Causes()
    causes.failed("creative", DOWN, Then.RETRY)
    causes.refused("creative", Refusal("budget", 1.0))
    assert causes.error(lone=True) is DOWN
    last = UpstreamTimeout("late", phase="first_token")
    causes.failed("creative", last, Then.WALK)
    assert causes.error(lone=True) is last


def test_a_lone_modes_own_error_says_it_all() -> None:
    causes = Causes()
    causes.refused("creative", Refusal("circuit_open", 33.0))
    error = causes.error(lone=True)
    assert isinstance(error, CircuitOpen)
    assert (error.mode, error.retry_after) == ("creative", 33.0)
    assert isinstance(causes.error(lone=False), AllModesFailed)


@pytest.mark.parametrize("reason", ["saturated", "recovering"])
def test_full_everywhere_is_an_admission_error(reason: str) -> None:
    causes = Causes()
    causes.refused("creative", Refusal(reason, 3.0))
    causes.refused("fast", Refusal("saturated", 1.0))
    error = causes.error(lone=False)
    assert isinstance(error, AdmissionRejected)
    assert error.retry_after == 1.0


def test_a_prompt_too_long_for_every_mode_is_the_callers_to_mend() -> None:
    causes = Causes()
    causes.failed("creative", TOO_LONG, Then.LARGER)
    causes.refused("fast", Refusal("context"))
    assert causes.error(lone=False) is TOO_LONG


def test_a_prompt_that_a_failing_mode_could_take_is_not() -> None:
    causes = Causes()
    causes.failed("creative", TOO_LONG, Then.LARGER)
    causes.failed("balanced", DOWN, Then.WALK)
    error = causes.error(lone=False)
    assert isinstance(error, AllModesFailed)
    assert error.causes == {"creative": TOO_LONG, "balanced": DOWN}


def test_running_late_tells_what_was_met() -> None:
    causes = Causes()
    assert causes.late(2.0, "").message == "no answer in 2 s"
    causes.failed("creative", DOWN, Then.WALK)
    assert causes.late(2.5, "half").message == "no answer in 2.5 s (creative: down)"
