"""The log: one line an event, in a fixed order, and never what was asked or answered."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest
from occasions import TRACE, attempt, http, request

from gateway.config import Config
from gateway.events import (
    CircuitChanged,
    ConfigReloaded,
    Event,
    HTTPFinished,
    TargetResting,
)
from gateway.gateway import Gateway
from gateway.simulator import clock
from gateway.telemetry.logs import log_listener

CHANGED = CircuitChanged(at=1.5, mode="creative", old="closed", new="open", cause="x", epoch=1)


def resting(*, alarm: bool) -> TargetResting:
    return TargetResting(at=1.0, mode="fast", target="t", kind="auth", for_s=300.0, alarm=alarm)


def logged(*events: Event, **options: Any) -> list[str]:
    out = io.StringIO()
    listen = log_listener(file=out, **options)
    for event in events:
        listen(event)
    return out.getvalue().splitlines()


def test_the_canonical_line_in_the_words_log_tools_know() -> None:
    event = request(
        trace=TRACE, tenant="acme", key="team", requested_mode="creative", mode="fast",
        degraded=True, reason="circuit_open", outcome="degraded", attempts=2, queued_s=0.0125,
        first_token_s=0.25, upstream_s=0.3, overhead_s=0.0005, inter_token_s=0.01,
        reasoning_tokens=1, cached_tokens=2,
    )  # fmt: skip
    [line] = map(json.loads, logged(event))
    assert list(line)[:4] == ["timestamp", "level", "event", "request_id"]
    assert datetime.fromisoformat(line.pop("timestamp")).utcoffset() is not None
    assert line == {
        "level": "warning", "event": "request_finished", "request_id": "gen-1",
        "trace_id": "0af7651916cd43dd8448eb211c80319c", "tenant": "acme", "key": "team",
        "model_requested": "creative", "mode": "fast", "model_served": "qwen",
        "backend": "vllm/qwen",
        "outcome": "degraded", "status": 200, "error_class": "", "degraded": True,
        "route_reason": "circuit_open", "cached": False, "stale": False, "stream": False,
        "attempts": 2, "finish_reason": "stop", "queue_ms": 12.5, "ttft_ms": 250.0,
        "inter_token_ms": 10.0, "upstream_ms": 300.0, "overhead_ms": 0.5, "duration_ms": 1000.0,
        "prompt_tokens": 3, "completion_tokens": 4, "reasoning_tokens": 1, "cached_tokens": 2,
        "client_disconnected": False,
    }  # fmt: skip


def test_what_is_unknown_is_null_and_who_left_is_said() -> None:
    event = request(outcome="abandoned", error="abandoned", status=499, first_token_s=None)
    [line] = map(json.loads, logged(event))
    assert line["client_disconnected"] is True
    assert (line["ttft_ms"], line["overhead_ms"], line["trace_id"]) == (None, None, "")


def test_an_upstreams_own_words_are_cut_short_and_stay_on_their_line() -> None:
    lines = logged(request(model="m\n" * 5_000, finish_reason="x" * 5_000))
    assert len(lines) == 1
    assert len(lines[0]) < 2_000


@pytest.mark.parametrize(
    ("event", "written"),
    [
        (http(generation_id="gen-1"), False),  # the pipeline's own line tells of it
        (http(generation_id="gen-1", status=503, error="all_modes_failed"), False),
        (http(generation_id="gen-1", client_disconnected=True), False),
        (http(generation_id="gen-1", status=500, error="internal_error"), True),
        (http(status=401, error="invalid_api_key", refused=True), True),
        (http(status=404, route="", refused=True), True),
        (http(status=429, error="rate_limit_exceeded", refused=True), True),
        (http(method="GET", route="/v1/models", refused=True), False),
        (http(method="GET", route="/metrics"), False),
        (http(method="GET", route="/metrics", status=401, refused=True), False),
        (http(method="GET", route="/readyz", status=503), False),
    ],
)
def test_an_http_request_has_a_line_where_no_other_tells_of_it(
    event: HTTPFinished, *, written: bool
) -> None:
    assert len(logged(event)) == written


def test_what_the_line_of_an_http_request_says() -> None:
    event = http(status=413, error="too_large", request_id="r", request_bytes=9, refused=True,
                 duration_s=0.002, trace=TRACE)  # fmt: skip
    [line] = map(json.loads, logged(event))
    assert line.pop("timestamp")
    assert line == {
        "level": "info", "event": "http_finished", "request_id": "r", "generation_id": "",
        "trace_id": TRACE[3:35], "tenant": "", "key": "", "method": "POST",
        "route": "/v1/chat/completions", "status": 413, "error_class": "too_large",
        "duration_ms": 2.0, "request_bytes": 9, "client_disconnected": False,
    }  # fmt: skip


def test_the_other_events_say_all_they_bear_but_their_clock() -> None:
    [attempted, changed] = map(
        json.loads, logged(attempt(kind="server", first_token_s=0.5), CHANGED)
    )
    assert (attempted["backend"], attempted["error_class"], attempted["ttft_ms"]) == (
        "vllm/qwen", "server", 500.0,
    )  # fmt: skip
    assert {"mode", "old", "new", "cause", "epoch", "until"} < set(changed)
    assert "at" not in changed


def test_attempts_that_went_well_are_for_those_who_look_closely() -> None:
    events = attempt(), attempt(outcome="failure", kind="server"), request()
    assert len(logged(*events)) == 3
    assert [json.loads(line)["event"] for line in logged(*events, level="info")] == [
        "attempt_finished", "request_finished",
    ]  # fmt: skip
    assert logged(*events, level="error") == []


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (request(), "info"),
        (request(outcome="degraded"), "warning"),
        (request(outcome="stale"), "warning"),
        (request(outcome="refused"), "warning"),
        (request(outcome="failed"), "error"),
        (request(outcome="invalid"), "info"),
        (request(outcome="abandoned"), "info"),
        (http(status=500), "error"),
        (http(status=404, refused=True), "info"),
        (attempt(), "debug"),
        (attempt(outcome="failure", kind="server"), "warning"),
        (attempt(outcome="ignored", kind="cancelled"), "debug"),
        (CHANGED, "warning"),
        (CircuitChanged(at=1, mode="m", old="open", new="closed", cause="", epoch=2), "info"),
        (resting(alarm=False), "warning"),
        (resting(alarm=True), "error"),
        (ConfigReloaded(at=1.0, result="applied"), "info"),
        (ConfigReloaded(at=1.0, result="refused"), "warning"),
        (ConfigReloaded(at=1.0, result="rolled_back"), "warning"),
    ],
)
def test_how_loud(event: Event, level: str) -> None:
    (line,) = logged(event)
    assert json.loads(line)["level"] == level


def test_the_console_is_short_and_plain_where_it_is_no_terminal() -> None:
    (line,) = logged(request(tenant=""), json=False)
    assert "request_finished" in line and "duration_ms=1000.0" in line
    assert "tenant" not in line and "cached" not in line
    assert "\x1b" not in line


def test_the_console_has_colours_if_told() -> None:
    (line,) = logged(request(), json=False, colors=True)
    assert "\x1b" in line


def test_neither_question_nor_answer_nor_key_is_ever_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOG_KEY", "sk-very-secret")
    out = io.StringIO()
    tables = {
        "creative": {
            "targets": [{"kind": "openai", "model": "gpt", "api_key_env": "LOG_KEY",
                         "base_url": "http://127.0.0.1:9"}],
        },
        "fast": {"targets": [{"kind": "simulated"}]},
    }  # fmt: skip

    async def ask() -> str:
        listeners = [log_listener(file=out), log_listener(file=out, json=False)]
        config = Config.from_dict({"modes": tables})
        async with Gateway(config, listeners=listeners) as gateway:
            gateway.force("creative", "open")
            answer = await gateway.generate("my private question", "creative")
            return answer.text

    answer = clock.run(ask)
    written = out.getvalue()
    assert written.count("request_finished") == 2
    assert "private" not in written
    assert answer.split()[0] not in written
    assert "sk-very-secret" not in written


def test_structlog_loads_with_the_first_log_for_people_only() -> None:
    code = (
        "import sys, gateway.telemetry.logs as logs; logs.log_listener();"
        "assert 'structlog' not in sys.modules;"
        "logs.log_listener(json=False); assert 'structlog' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_structlogs_own_configuration_is_left_alone() -> None:
    import structlog

    before = structlog.is_configured()
    logged(request())
    assert structlog.is_configured() is before
