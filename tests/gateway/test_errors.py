"""The error tree: plain values that survive pickling and copying, caught broadly or narrowly."""

from __future__ import annotations

import copy
import pickle

import pytest

from gateway import errors
from gateway.errors import (
    AdmissionRejected,
    AllModesFailed,
    CircuitOpen,
    ConfigError,
    DeadlineExceeded,
    ErrorKind,
    GatewayError,
    InvalidRequest,
    RequestRejected,
    StreamInterrupted,
    UpstreamError,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)

SAMPLES: list[GatewayError] = [
    GatewayError("broken", retry_after=2.0),
    ConfigError("mend it", file="a.toml", table="cache", key="ttl_s"),
    InvalidRequest("wrong", param="mode"),
    errors.AuthenticationFailed("no key"),
    AdmissionRejected("full", retry_after=1.0),
    CircuitOpen("open", mode="creative", retry_after=300.0),
    UpstreamError("bad", kind=ErrorKind.SERVER, target="vllm/qwen", status=500, upstream_code="x"),
    UpstreamTimeout("slow", phase="first_token", target="vllm/qwen"),
    UpstreamUnavailable("gone", kind=ErrorKind.CONNECT),
    UpstreamThrottled("wait", retry_after=7.0, status=429),
    UpstreamRejected("too long", kind=ErrorKind.CONTEXT, status=400),
    StreamInterrupted("cut", mode="creative", partial="half a"),
    DeadlineExceeded("late", partial="half a"),
    AllModesFailed("all", {"creative": CircuitOpen("open", mode="creative")}, retry_after=3.0),
]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("again", [copy.copy, lambda e: pickle.loads(pickle.dumps(e))])
def test_errors_are_plain_values(error: GatewayError, again: object) -> None:
    same = again(error)  # type: ignore[operator]
    assert type(same) is type(error)
    assert str(same) == str(error)
    assert same.message == error.message
    told = {k: str(v) for k, v in vars(error).items()}
    assert {k: str(v) for k, v in vars(same).items()} == told
    assert (same.http_status, same.code, same.retry_after) == (
        error.http_status,
        error.code,
        error.retry_after,
    )


def test_every_class_has_a_sample() -> None:
    classes = {c for c in vars(errors).values() if isinstance(c, type)}
    tree = {c for c in classes if issubclass(c, GatewayError)} - {RequestRejected}
    assert {type(error) for error in SAMPLES} == tree


def test_all_modes_failed_is_a_group_with_one_cause_a_mode() -> None:
    slow = UpstreamTimeout("slow", phase="stall")
    refused = CircuitOpen("open", mode="balanced")
    try:
        raise AllModesFailed("all", {"creative": slow, "balanced": refused})
    except* UpstreamTimeout as group:
        assert group.exceptions == (slow,)
    except* CircuitOpen as group:
        assert group.exceptions == (refused,)


def test_timeouts_and_bad_values_are_the_builtin_kinds_too() -> None:
    assert isinstance(UpstreamTimeout("slow", phase="stall"), TimeoutError)
    assert isinstance(DeadlineExceeded("late"), TimeoutError)
    assert isinstance(ConfigError("mend it"), ValueError)


def test_a_config_error_names_its_place() -> None:
    error = ConfigError("mend it", file="a.toml", table="cache", key="ttl_s")
    assert str(error) == "a.toml: [cache]: ttl_s: mend it"
    assert error.reason == "mend it"
