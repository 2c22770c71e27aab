"""The log: one canonical line per event, for machines (JSON) or for people (console).

A line holds the event's own fields and nothing else: events bear no prompt, no answer and no
credential, so neither can the log. structlog writes it; it loads when the first log is made.
"""

from __future__ import annotations

import sys
from typing import Any, TextIO

import msgspec

from gateway.events import (
    AttemptFinished,
    CircuitChanged,
    ConfigReloaded,
    Event,
    Listener,
    RequestFinished,
    TargetResting,
)


def log_listener(
    *, json: bool = True, file: TextIO | None = None, colors: bool | None = None
) -> Listener:
    """A listener that writes each event as one line.

    Args:
        json: True for JSON, one object a line; False for the console.
        file: where to; None is standard error.
        colors: on the console; None means if the file is a terminal.
    """
    import structlog  # noqa: PLC0415

    out: TextIO = sys.stderr if file is None else file
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    processors: list[Any]
    if json:
        processors = [stamp, _in_order, structlog.processors.JSONRenderer(serializer=_serialize)]
    else:
        colors = out.isatty() if colors is None else colors
        console = structlog.dev.ConsoleRenderer(colors=colors, sort_keys=False, pad_event_to=16)
        processors = [stamp, _without_the_dull, console]
    logger = structlog.wrap_logger(
        structlog.WriteLogger(out), processors=processors, wrapper_class=structlog.BoundLogger
    ).bind()  # bound once: every line would bind anew

    def listen(event: Event) -> None:
        fields = msgspec.to_builtins(event)
        logger.msg(fields.pop("event"), level=_level(event), **fields)

    return listen


def _in_order(_logger: object, _method: str, line: dict[str, Any]) -> dict[str, Any]:
    """What a reader looks for first comes first."""
    first = {name: line.pop(name) for name in ("timestamp", "level", "event")}
    return first | line


def _without_the_dull(_logger: object, _method: str, line: dict[str, Any]) -> dict[str, Any]:
    """What a person need not read is left out, and numbers are short."""
    return {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in line.items()
        if value not in (None, "", False, 0)
    }


def _serialize(line: dict[str, Any], **_: object) -> str:
    return _encode(line).decode()


_encode = msgspec.json.Encoder().encode


def _level(event: Event) -> str:
    """An error needs a person; a warning says that something was not as asked for."""
    level = "info"
    match event:
        case RequestFinished(error=error) if error not in ("", "abandoned"):
            level = "error"
        case TargetResting(alarm=True):
            level = "error"
        case RequestFinished(degraded=True) | RequestFinished(stale=True) | TargetResting():
            level = "warning"
        case AttemptFinished(outcome="failure") | CircuitChanged(new="open" | "forced_open"):
            level = "warning"
        case ConfigReloaded(result="refused" | "rolled_back"):
            level = "warning"
        case AttemptFinished():
            level = "debug"
    return level
