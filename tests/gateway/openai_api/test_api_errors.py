"""What our errors become on the wire: status, type, code, phrases, waits."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from api_stage import Upstream, config, stage

from gateway.errors import (
    AdmissionRejected,
    AllModesFailed,
    AuthenticationFailed,
    CircuitOpen,
    DeadlineExceeded,
    ErrorKind,
    GatewayError,
    UpstreamError,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.openai_api.errors import NotFound, PermissionDenied, error_reply

TYPES = {
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "server_error",
}


def told(error: BaseException) -> tuple[int, dict[str, str], dict[str, Any]]:
    status, headers, body = error_reply(error)
    return status, dict(headers), json.loads(body)["error"]


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (NotFound("x"), 404, "not_found_error", "not_found"),
        (PermissionDenied("x"), 403, "permission_error", "permission_denied"),
        (AuthenticationFailed("x"), 401, "authentication_error", "invalid_api_key"),
        (AdmissionRejected("x"), 429, "rate_limit_error", "rate_limit_exceeded"),
        (CircuitOpen("x", mode="m"), 503, "server_error", "circuit_open"),
        (UpstreamThrottled("x"), 429, "rate_limit_error", "rate_limit_exceeded"),
        (
            UpstreamThrottled("x", kind=ErrorKind.BILLING),
            *(429, "rate_limit_error", "insufficient_quota"),
        ),
        (
            UpstreamRejected("x", kind=ErrorKind.AUTH, status=401),
            *(502, "server_error", "upstream_authentication"),
        ),
        (
            UpstreamRejected("x", kind=ErrorKind.MODEL, status=404),
            *(404, "not_found_error", "model_not_found"),
        ),
        (
            UpstreamRejected("x", kind=ErrorKind.CONTEXT, status=413),
            *(400, "invalid_request_error", "context_length_exceeded"),
        ),
        (
            UpstreamRejected("x", kind=ErrorKind.CONTENT, status=400),
            *(400, "invalid_request_error", "content_filter"),
        ),
        (UpstreamRejected("x", status=422), 422, "invalid_request_error", "upstream_rejected"),
        (
            UpstreamUnavailable("x", kind=ErrorKind.CONNECT),
            *(502, "server_error", "upstream_connection_error"),
        ),
        (
            UpstreamUnavailable("x", kind=ErrorKind.LOADING, status=503),
            *(503, "server_error", "upstream_loading"),
        ),
        (UpstreamUnavailable("x"), 502, "server_error", "upstream_unavailable"),
        (UpstreamTimeout("x", phase="connect"), 504, "server_error", "upstream_timeout"),
        (DeadlineExceeded("x"), 504, "server_error", "deadline_exceeded"),
        (AllModesFailed("x", {"m": GatewayError("y")}), 503, "server_error", "all_modes_failed"),
        (ValueError("secret inside"), 500, "server_error", "internal_error"),
    ],
)
def test_every_error_has_its_status_type_and_code(
    error: BaseException, status: int, kind: str, code: str
) -> None:
    got, headers, fields = told(error)
    assert (got, fields["type"], fields["code"]) == (status, kind, code)
    assert kind in TYPES
    assert fields["param"] is None
    assert "secret" not in fields["message"]
    assert headers["x-should-retry"] in ("true", "false")


@pytest.mark.parametrize("kind", ErrorKind)
def test_no_kind_of_upstream_error_is_the_clients_500(kind: ErrorKind) -> None:
    for error in (UpstreamError("x", kind=kind), UpstreamRejected("x", kind=kind, status=500)):
        status, _, fields = told(error)
        assert 400 <= status < 600
        assert fields["type"] in TYPES


@pytest.mark.parametrize(
    ("kind", "phrases"),
    [
        (ErrorKind.CONTEXT, ["context_length_exceeded", "maximum context length"]),
        (ErrorKind.CONTEXT, ["exceeds the context window"]),
        (ErrorKind.CONTENT, ["inappropriate content"]),
    ],
)
def test_messages_hold_the_phrases_clients_look_for(kind: ErrorKind, phrases: list[str]) -> None:
    said = told(UpstreamRejected("too long", kind=kind))[2]["message"]
    assert all(phrase in said for phrase in phrases)
    assert told(UpstreamRejected(said, kind=kind))[2]["message"] == said


@pytest.mark.parametrize(
    ("wait", "seconds", "retry"),
    [
        (0.0, "1", "true"),
        (1.4, "2", "true"),
        (5.0, "5", "false"),
        (1e9, "60", "false"),
        (math.inf, "60", "false"),
        (math.nan, "1", "false"),
    ],
)
def test_waits_are_between_one_second_and_a_minute(wait: float, seconds: str, retry: str) -> None:
    _, headers, _ = told(CircuitOpen("x", mode="m", retry_after=wait))
    assert headers["retry-after"] == seconds
    assert 1000 <= int(headers["retry-after-ms"]) <= 60_000
    assert headers["x-should-retry"] == retry


@pytest.mark.parametrize(
    ("error", "retry"),
    [
        (UpstreamThrottled("x", retry_after=30), "true"),
        (UpstreamThrottled("x", retry_after=61), "false"),
        (AdmissionRejected("x", retry_after=30), "true"),
        (AdmissionRejected("x"), "false"),
        (UpstreamUnavailable("x", retry_after=1), "false"),
        (AllModesFailed("x", {"m": UpstreamUnavailable("y")}, retry_after=1), "false"),
        (AllModesFailed("x", {"m": CircuitOpen("y", mode="m")}, retry_after=1), "true"),
    ],
)
def test_only_who_can_be_served_then_is_asked_to_try_again(error: GatewayError, retry: str) -> None:
    assert told(error)[1]["x-should-retry"] == retry


def test_who_was_not_told_how_long_to_wait_waits_as_long_as_we_do() -> None:
    _, headers, _ = told(UpstreamUnavailable("x", kind=ErrorKind.LOADING))
    assert headers["retry-after"] == "2"
    assert "retry-after" not in told(UpstreamUnavailable("x"))[1]
    assert "retry-after" not in told(UpstreamThrottled("x", kind=ErrorKind.BILLING))[1]


def test_a_message_json_cannot_say_is_said_all_the_same() -> None:
    assert told(GatewayError("odd \ud800"))[2]["message"] == "odd ?"


async def test_the_context_error_of_llama_cpp_becomes_openais() -> None:
    upstream = Upstream()
    upstream.fail(
        400, "request (6031 tokens) exceeds the available context size (2048 tokens)", 400
    )
    async with stage(config(upstream)) as s:
        answer = await s.chat()
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length" in error["message"]


async def test_the_content_filter_of_dashscope_is_the_callers_to_hear() -> None:
    upstream, lower = Upstream(), Upstream()
    upstream.fail(400, "Input data may contain inappropriate content.", "data_inspection_failed")
    async with stage(config(upstream, lower)) as s:
        answer = await s.chat(stream=True)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "content_filter"
    assert not lower.asked


async def test_a_throttled_upstream_is_a_429_with_its_wait() -> None:
    upstream = Upstream()
    upstream.fail(429, "slow down", "limit_requests", **{"retry-after": "30"})
    async with stage(config(upstream)) as s:
        answer = await s.chat()
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "30"
    assert answer.headers["retry-after-ms"] == "30000"
    assert answer.json()["error"]["type"] == "rate_limit_error"


async def test_all_modes_down_names_each_cause() -> None:
    upstreams = Upstream(), Upstream()
    for upstream in upstreams:
        upstream.fail(500, "boom")
    async with stage(config(*upstreams)) as s:
        answer = await s.chat()
    assert answer.status_code == 503
    assert answer.json()["error"]["causes"].keys() == {"creative", "balanced"}
    assert answer.headers["x-should-retry"] == "false"
