"""The log: one line per event worth one, for machines (JSON) or for people (console).

What a line says is `gateway.telemetry.lines`; here it is written. structlog does that; it loads
when the first log is made.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from gateway.events import Event
from gateway.telemetry.lines import LEVELS, Level, level_of, line_of
from gateway.telemetry.writer import LineWriter


class Log:
    """A listener that writes lines.

    Attributes:
        writer: the thread that writes, None if the caller's own thread does.
    """

    def __init__(
        self, log: Callable[..., object], quietest: Level, writer: LineWriter | None
    ) -> None:
        self._log = log
        self._written = frozenset(LEVELS[LEVELS.index(quietest) :])
        self.writer = writer

    def __call__(self, event: Event) -> None:
        """Write what there is to say of an event."""
        level = level_of(event)
        if level in self._written:
            fields = line_of(event)
            if fields is not None:
                # As one field: structlog copies its context field by field, 4 us for the long line.
                self._log(type(event).__struct_config__.tag, level=level, fields=fields)

    def close(self) -> None:
        """Write what is waiting, for at most a second. Idempotent; later lines are dropped."""
        if self.writer is not None:
            self.writer.close()


def log_listener(
    *,
    json: bool = True,
    file: TextIO | None = None,
    colors: bool | None = None,
    level: Level = "debug",
    background: bool = False,
) -> Log:
    """A listener that writes each event worth it as one line.

    Args:
        json: True for JSON, one object a line; False for the console.
        file: where to; None is standard error.
        colors: on the console; None means if the file is a terminal.
        level: the quietest lines written. Each upstream attempt that went well is a `debug` line.
        background: True writes from a thread of its own, so that a slow or closed file never holds
            up the caller; lines that it cannot take in time are dropped and counted. What a server
            wants; `close` it at the end.
    """
    import structlog  # noqa: PLC0415

    out: TextIO = sys.stderr if file is None else file
    processors: list[Any] = [_as_json]
    if not json:
        colors = out.isatty() if colors is None else colors
        console = structlog.dev.ConsoleRenderer(colors=colors, sort_keys=False, pad_event_to=16)
        processors = [_without_the_dull, console]
    writer = LineWriter(out, _lines_dropped) if background else None
    sink = writer or structlog.WriteLogger(out)
    logger = structlog.wrap_logger(
        sink, processors=processors, wrapper_class=structlog.BoundLogger
    ).bind()  # bound once: every line would bind anew
    return Log(logger.msg, level, writer)


def _as_json(_logger: object, _method: str, said: dict[str, Any]) -> str:
    """What a reader looks for first comes first."""
    first = {"timestamp": _stamp(), "level": said["level"], "event": said["event"]}
    return _encode(first | said["fields"]).decode()


def _lines_dropped(total: int) -> str:
    said = {"level": "warning", "event": "log_lines_dropped", "fields": {"total": total}}
    return _as_json(None, "", said)


_encode = msgspec.json.Encoder().encode


def _without_the_dull(_logger: object, _method: str, said: dict[str, Any]) -> dict[str, Any]:
    """What a person need not read is left out."""
    fields = said.pop("fields")
    told = {name: value for name, value in fields.items() if value not in (None, "", False, 0)}
    return {"timestamp": _stamp(), **said, **told}


def _stamp() -> str:
    """The time in UTC, as RFC 3339 has it, to the millisecond."""
    second, fraction = divmod(time.time(), 1.0)
    return f"{_second(int(second))}.{int(fraction * 1e3):03d}Z"


@functools.lru_cache(maxsize=1)
def _second(since_1970: int) -> str:
    return datetime.fromtimestamp(since_1970, UTC).strftime("%Y-%m-%dT%H:%M:%S")
