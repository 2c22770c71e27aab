"""What a log line says of an event, in the field names that log tools know.

One canonical line per request: its `request_finished`. An HTTP request has a line of its own only
where no such line tells of it. Seconds become milliseconds, as these names have it; nothing that
was asked or answered and no key is among the fields, for no event bears them.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from gateway.events import (
    AttemptFinished,
    CircuitChanged,
    ConfigReloaded,
    Event,
    HTTPFinished,
    RequestFinished,
    SharingChanged,
    TargetResting,
)

Level = Literal["debug", "info", "warning", "error"]

LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")

PROBES = frozenset(
    {
        "/livez",
        "/readyz",
        "/health",
        "/health/liveness",
        "/health/readiness",
        "/metrics",
        "/",
        "/dashboard/",
        "/live",
    }
)
"""Routes that machines, and the page for people, ask all the time: not worth a line."""

# The longest text an upstream may put into a line (its model's name, its finish reason).
_LONGEST = 200


def level_of(event: Event) -> Level:
    """An error needs a person; a warning says that something was not as asked for."""
    level: Level = "info"
    match event:
        case RequestFinished(outcome=outcome):
            level = _OUTCOMES.get(outcome, "info")
        case HTTPFinished(status=status) if status >= 500:
            level = "error"
        case TargetResting(alarm=True):
            level = "error"
        case AttemptFinished(outcome="failure") | TargetResting():
            level = "warning"
        case CircuitChanged(new="open" | "forced_open"):
            level = "warning"
        case ConfigReloaded(result="refused" | "rolled_back" | "not_rolled_back"):
            level = "warning"
        case SharingChanged(shared=False):
            level = "warning"
        case AttemptFinished():
            level = "debug"
    return level


_OUTCOMES: dict[str, Level] = {
    "failed": "error",
    "refused": "warning",
    "degraded": "warning",
    "stale": "warning",
}


def line_of(event: Event) -> dict[str, Any] | None:
    """The fields of the line, the event's name aside; None if another line tells of it."""
    if type(event) is RequestFinished:
        return _request(event)
    if type(event) is AttemptFinished:
        return _attempt(event)
    if type(event) is HTTPFinished:
        return _http(event)
    fields: dict[str, Any] = msgspec.to_builtins(event)
    del fields["event"], fields["at"]
    return fields


def _request(event: RequestFinished) -> dict[str, Any]:
    return {
        "request_id": event.request_id,
        "trace_id": event.trace[3:35],
        "tenant": event.tenant,
        "key": event.key,
        "model_requested": event.requested_mode,
        "mode": event.mode,
        "model_served": event.model[:_LONGEST],
        "backend": event.target,
        "outcome": event.outcome,
        "status": event.status,
        "error_class": event.error,
        "degraded": event.degraded,
        "route_reason": event.reason,
        "cached": event.cached,
        "stale": event.stale,
        "stream": event.stream,
        "attempts": event.attempts,
        "finish_reason": event.finish_reason and event.finish_reason[:_LONGEST],
        "queue_ms": _ms(event.queued_s),
        "ttft_ms": _ms(event.first_token_s),
        "inter_token_ms": _ms(event.inter_token_s),
        "upstream_ms": _ms(event.upstream_s),
        "overhead_ms": _ms(event.overhead_s),
        "duration_ms": _ms(event.duration_s),
        "prompt_tokens": event.prompt_tokens,
        "completion_tokens": event.completion_tokens,
        "reasoning_tokens": event.reasoning_tokens,
        "cached_tokens": event.cached_tokens,
        "client_disconnected": event.outcome == "abandoned",
    }


def _attempt(event: AttemptFinished) -> dict[str, Any]:
    return {
        "request_id": event.request_id,
        "mode": event.mode,
        "backend": event.target,
        "outcome": event.outcome,
        "error_class": event.kind,
        "probe": event.probe,
        "ttft_ms": _ms(event.first_token_s),
        "duration_ms": _ms(event.duration_s),
    }


def turned_away(event: HTTPFinished) -> bool:
    """Whether it was refused at the door; what never needed the pipeline (a list of models) and
    went well was not.
    """
    return event.refused and event.status >= 400


def _http(event: HTTPFinished) -> dict[str, Any] | None:
    """What never reached the pipeline, or what the server itself broke after it."""
    if event.route in PROBES or not (turned_away(event) or event.status == 500):
        return None
    return {
        "request_id": event.request_id,
        "generation_id": event.generation_id,
        "trace_id": event.trace[3:35],
        "tenant": event.tenant,
        "key": event.key,
        "method": event.method,
        "route": event.route,
        "status": event.status,
        "error_class": event.error,
        "duration_ms": _ms(event.duration_s),
        "request_bytes": event.request_bytes,
        "client_disconnected": event.client_disconnected,
    }


def _ms(seconds: float | None) -> float | None:
    """To the microsecond; thrice as quick as `round`, and a line has six of them."""
    return None if seconds is None else int(seconds * 1e6 + 0.5) / 1e3
