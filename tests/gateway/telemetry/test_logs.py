"""The log: one line an event, in a fixed order, and never what was asked or answered."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest

from gateway.config import Config
from gateway.events import (
    AttemptFinished,
    CircuitChanged,
    ConfigReloaded,
    Event,
    RequestFinished,
    TargetResting,
)
from gateway.gateway import Gateway
from gateway.simulator import clock
from gateway.telemetry.logs import log_listener

CHANGED = CircuitChanged(at=1.5, mode="creative", old="closed", new="open", cause="x", epoch=1)


def request(**fields: Any) -> RequestFinished:
    known: dict[str, Any] = {
        "at": 1.0,
        "request_id": "gen-1",
        "requested_mode": "creative",
        "mode": "creative",
        "model": "m",
        "target": "t",
        "tenant": "",
        "stream": False,
        "degraded": False,
        "reason": None,
        "cached": False,
        "stale": False,
        "attempts": 1,
        "error": "",
        "finish_reason": "stop",
        "first_token_s": 0.25,
        "duration_s": 1 / 3,
        "prompt_tokens": 3,
        "completion_tokens": 4,
    }
    return RequestFinished(**{**known, **fields})


def attempt(**fields: Any) -> AttemptFinished:
    known = {"request_id": "gen-1", "mode": "fast", "target": "t", "duration_s": 1.0}
    return AttemptFinished(at=1.0, **{**known, "outcome": "success", "kind": "", **fields})


def resting(*, alarm: bool) -> TargetResting:
    return TargetResting(at=1.0, mode="fast", target="t", kind="auth", for_s=300.0, alarm=alarm)


def logged(*events: Event, **options: Any) -> list[str]:
    out = io.StringIO()
    listen = log_listener(file=out, **options)
    for event in events:
        listen(event)
    return out.getvalue().splitlines()


def test_json_is_one_object_a_line_with_every_field_of_the_event() -> None:
    line, other = (json.loads(line) for line in logged(request(), CHANGED))
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line["event"] == "request_finished" and other["event"] == "circuit_changed"
    assert set(RequestFinished.__struct_fields__) <= set(line)
    assert line["duration_s"] == 1 / 3 and line["reason"] is None
    assert datetime.fromisoformat(line["timestamp"]).utcoffset() is not None


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (request(), "info"),
        (request(degraded=True), "warning"),
        (request(stale=True), "warning"),
        (request(error="all_modes_failed"), "error"),
        (request(error="abandoned"), "info"),
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
    (line,) = logged(request(), json=False)
    assert "request_finished" in line and "duration_s=0.333" in line
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


def test_structlog_loads_with_the_first_log_only() -> None:
    code = (
        "import sys, gateway.telemetry.logs as logs; assert 'structlog' not in sys.modules;"
        "logs.log_listener(); assert 'structlog' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_structlogs_own_configuration_is_left_alone() -> None:
    import structlog

    before = structlog.is_configured()
    logged(request())
    assert structlog.is_configured() is before
