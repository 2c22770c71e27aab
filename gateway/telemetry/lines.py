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
    kind = type(event)
    if kind is RequestFinished:
        return _OUTCOMES.get(event.outcome, "info")  # type: ignore[attr-defined]
    if kind is AttemptFinished:
        return "warning" if event.outcome == "failure" else "debug"  # type: ignore[attr-defined]
    if kind is HTTPFinished:
        return "error" if event.status >= 500 else "info"  # type: ignore[attr-defined]
    return _seldom(event)


def _seldom(event: Event) -> Level:
    match event:
        case TargetResting(alarm=True):
            return "error"
        case TargetResting() | CircuitChanged(new="open" | "forced_open"):
            return "warning"
        case ConfigReloaded(result="refused" | "rolled_back" | "not_rolled_back"):
            return "warning"
        case SharingChanged(shared=False):
            return "warning"
    return "info"


_OUTCOMES: dict[str, Level] = {
    "failed": "error",
    "refused": "warning",
    "degraded": "warning",
    "stale": "warning",
}


class RequestLine(msgspec.Struct, gc=False):
    """What there is to say of one request, in the order in which it is written.

    A struct because there is one a request: C fills it in and writes it in half a dict's time.
    """

    timestamp: str
    level: str
    event: str
    request_id: str
    trace_id: str
    tenant: str
    key: str
    model_requested: str
    mode: str
    model_served: str
    backend: str
    outcome: str
    status: int
    error_class: str
    degraded: bool
    route_reason: str | None
    cached: bool
    stale: bool
    stream: bool
    attempts: int
    finish_reason: str | None
    queue_ms: float | None
    ttft_ms: float | None
    inter_token_ms: float | None
    upstream_ms: float | None
    overhead_ms: float | None
    duration_ms: float | None
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cached_tokens: int
    client_disconnected: bool


def request_line(event: RequestFinished, level: Level = "info", timestamp: str = "") -> RequestLine:
    """The line of one request."""
    return RequestLine(
        timestamp,
        level,
        "request_finished",
        event.request_id,
        event.trace[3:35],
        event.tenant,
        event.key,
        event.requested_mode,
        event.mode,
        event.model[:_LONGEST],
        event.target,
        event.outcome,
        event.status,
        event.error,
        event.degraded,
        event.reason,
        event.cached,
        event.stale,
        event.stream,
        event.attempts,
        event.finish_reason and event.finish_reason[:_LONGEST],
        _ms(event.queued_s),
        _ms(event.first_token_s),
        _ms(event.inter_token_s),
        _ms(event.upstream_s),
        _ms(event.overhead_s),
        _ms(event.duration_s),
        event.prompt_tokens,
        event.completion_tokens,
        event.reasoning_tokens,
        event.cached_tokens,
        event.outcome == "abandoned",
    )


def line_of(event: Event) -> dict[str, Any] | None:
    """The fields of the line but time, level and name; None if another line tells of it."""
    if type(event) is RequestFinished:
        line = request_line(event)
        return {name: getattr(line, name) for name in RequestLine.__struct_fields__[3:]}
    if type(event) is AttemptFinished:
        return _attempt(event)
    if type(event) is HTTPFinished:
        return _http(event)
    fields: dict[str, Any] = msgspec.to_builtins(event)
    del fields["event"], fields["at"]
    return fields


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
