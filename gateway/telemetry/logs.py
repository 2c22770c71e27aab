"""The log: one line per event worth one, for machines (JSON) or for people (console).

What a line says is `gateway.telemetry.lines`; here it is written. The console's lines are
structlog's, which loads with the first of them; a line of JSON is one call of an encoder, with
nothing for structlog to do in it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from gateway.events import AttemptFinished, ByKind, Event, HTTPFinished, RequestFinished
from gateway.telemetry.lines import LEVELS, Level, level_of, line_of, request_line
from gateway.telemetry.writer import LineWriter

_encode = msgspec.json.Encoder().encode


class Log(ByKind):
    """A listener that writes lines.

    Attributes:
        writer: the thread that writes, None if the caller's own thread does.
    """

    def __init__(
        self, write: Callable[[Event, Level], None], quietest: Level, writer: LineWriter | None
    ) -> None:
        super().__init__(
            {
                **dict.fromkeys(Event.__subclasses__(), self._event),
                HTTPFinished: self._http,
                AttemptFinished: self._event if quietest == "debug" else self._attempt,
            }
        )
        self._write = write
        self._written = frozenset(LEVELS[LEVELS.index(quietest) :])
        self.writer = writer

    def _event(self, event: Event) -> None:
        level = level_of(event)
        if level in self._written:
            self._write(event, level)

    def _attempt(self, event: AttemptFinished) -> None:
        if event.outcome == "failure":  # else a debug line
            self._event(event)

    def _http(self, event: HTTPFinished) -> None:
        if event.status >= 400:  # else the pipeline's line tells of it, or nobody need know
            self._event(event)

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
    out: TextIO = sys.stderr if file is None else file
    writer = LineWriter(out, _lines_dropped) if background else None
    write = (
        _json(writer.put if writer else lambda line: out.write(f"{line.decode()}\n"))
        if json
        else _console(writer or out, colors=out.isatty() if colors is None else colors)
    )
    return Log(write, level, writer)


def _json(put: Callable[[bytes], object]) -> Callable[[Event, Level], None]:
    def write(event: Event, level: Level) -> None:
        if type(event) is RequestFinished:
            put(_encode(request_line(event, level, _stamp())))
            return
        fields = line_of(event)
        if fields is not None:
            put(_line(level, type(event).__struct_config__.tag, fields))

    return write


def _console(out: LineWriter | TextIO, *, colors: bool) -> Callable[[Event, Level], None]:
    import structlog  # noqa: PLC0415

    console = structlog.dev.ConsoleRenderer(colors=colors, sort_keys=False, pad_event_to=16)
    sink = out if isinstance(out, LineWriter) else structlog.WriteLogger(out)
    logger = structlog.wrap_logger(
        sink, processors=[_without_the_dull, console], wrapper_class=structlog.BoundLogger
    ).bind()  # bound once: every line would bind anew

    def write(event: Event, level: Level) -> None:
        fields = line_of(event)
        if fields is not None:
            logger.msg(type(event).__struct_config__.tag, level=level, fields=fields)

    return write


def _line(level: str, name: Any, fields: dict[str, Any]) -> bytes:
    """What a reader looks for first comes first."""
    return _encode({"timestamp": _stamp(), "level": level, "event": name} | fields)


def _lines_dropped(total: int) -> bytes:
    return _line("warning", "log_lines_dropped", {"total": total})


def _without_the_dull(
    _logger: object, _method: str, said: MutableMapping[str, Any]
) -> dict[str, Any]:
    """What a person need not read is left out."""
    fields = said.pop("fields")
    told = {name: value for name, value in fields.items() if value not in (None, "", False, 0)}
    return {"timestamp": _stamp(), **said, **told}


_second = (0, "")


def _stamp() -> str:
    """The time in UTC, as RFC 3339 has it, to the millisecond; made anew once a second."""
    global _second  # noqa: PLW0603 - one clock for the process; a race costs a second making
    now = time.time()
    second, text = _second
    if int(now) != second:
        second = int(now)
        text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        _second = second, text
    return f"{text}.{int((now - second) * 1e3):03d}Z"
