"""Events as a gateway tells them, with what a test does not care about filled in."""

from __future__ import annotations

from typing import Any

from gateway.events import AttemptFinished, CircuitChanged, HTTPFinished, RequestFinished

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def request(**fields: Any) -> RequestFinished:
    known: dict[str, Any] = {
        "at": 1.0,
        "request_id": "gen-1",
        "requested_mode": "creative",
        "mode": "creative",
        "model": "qwen",
        "target": "vllm/qwen",
        "tenant": "acme",
        "stream": False,
        "degraded": False,
        "reason": None,
        "cached": False,
        "stale": False,
        "attempts": 1,
        "error": "",
        "finish_reason": "stop",
        "first_token_s": 0.25,
        "duration_s": 1.0,
        "prompt_tokens": 3,
        "completion_tokens": 4,
    }
    return RequestFinished(**{**known, **fields})


def attempt(**fields: Any) -> AttemptFinished:
    known = {"request_id": "gen-1", "mode": "creative", "target": "vllm/qwen", "duration_s": 0.75}
    return AttemptFinished(at=1.0, **{**known, "outcome": "success", "kind": "", **fields})


def http(**fields: Any) -> HTTPFinished:
    known = {"method": "POST", "route": "/v1/chat/completions", "status": 200}
    return HTTPFinished(at=1.0, **{**known, **fields})


def changed(old: str, new: str) -> CircuitChanged:
    return CircuitChanged(at=1.0, mode="creative", old=old, new=new, cause="server", epoch=1)
