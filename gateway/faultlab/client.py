"""A caller that believes nothing: raw bytes over a socket, and all that was wrong with them.

It shares no parser with the gateway, so that a fault of ours is not overlooked by the same fault.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

Ended: TypeAlias = Literal["whole", "cut", "late", "none", "left"]

_KEPT = 1_000_000
_REFUSED_S = 5.0


@dataclass(slots=True)
class Answer:
    """What came back to one request.

    Attributes:
        number: of the question asked.
        stream: whether a stream was asked for.
        ended: `whole` as HTTP wants it; `cut` off in the body; `late`, patience was over; `none`,
            no response at all; `left`, we hung up.
        status: HTTP status, 0 if none came.
        headers: names in lower case.
        body: as it came, a megabyte at most.
        text: the content, put together.
        finish: the finish_reason, "" if none came.
        done: whether `[DONE]` came.
        model: who it says answers.
        usage: token counts; empty if none came.
        roles: how many chunks named a role.
        tools: whether a tool was called.
        errors: messages of explicit errors: an error body, error events.
        garbage: what no client could read.
        first_s: until the first content, None if none came; seconds since the request was sent.
        took_s: until the end.
    """

    number: str = ""
    stream: bool = False
    ended: Ended = "none"
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    text: str = ""
    finish: str = ""
    done: bool = False
    model: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    roles: int = 0
    tools: bool = False
    errors: list[str] = field(default_factory=list)
    garbage: list[str] = field(default_factory=list)
    first_s: float | None = None
    took_s: float = 0.0

    @property
    def retry_after(self) -> float | None:
        """The header in seconds, None if there is none or it is no number."""
        try:
            return float(self.headers.get("retry-after", ""))
        except ValueError:
            return None

    def read_event(self, data: str) -> None:
        """Take the data of one server-sent event."""
        if data == "[DONE]":
            self.done = True
            return
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            self.garbage.append(f"an event that is no JSON object: {data[:40]!r}")
        elif event.get("error"):
            self.errors.append(_message(event["error"]))
        elif isinstance(event.get("choices"), list):
            self._read_choices(event, "delta")
        else:
            self.garbage.append(f"an event that is no chunk: {data[:40]!r}")

    def read_body(self) -> None:
        """Take a body that came in one piece: an answer or an error."""
        try:
            found = json.loads(self.body)
        except ValueError:
            found = None
        if isinstance(found, dict) and found.get("error"):
            self.errors.append(_message(found["error"]))
        elif isinstance(found, dict) and isinstance(found.get("choices"), list):
            self._read_choices(found, "message")
        elif self.status == 200:
            self.garbage.append(f"a body that is no answer: {self.body[:40]!r}")

    def _read_choices(self, found: dict[str, Any], where: str) -> None:
        try:
            self._take_choices(found, where)
        except (AttributeError, TypeError):
            self.garbage.append(f"a choice that is none: {str(found['choices'])[:40]}")

    def _take_choices(self, found: dict[str, Any], where: str) -> None:
        self.model = str(found.get("model") or self.model)
        self.usage = found.get("usage") or self.usage
        for choice in found["choices"]:
            said = choice.get(where) or {}
            self.text += said.get("content") or ""
            self.roles += bool(said.get("role"))
            self.tools |= bool(said.get("tool_calls"))
            self.finish = choice.get("finish_reason") or self.finish


def _message(error: object) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


Leave: TypeAlias = Callable[[Answer], bool]


async def post(
    url: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    *,
    patience_s: float,
    leave: Leave | None = None,
    leave_after_s: float | None = None,
) -> Answer:
    """Ask, on a connection of its own, and read whatever comes. Raises nothing.

    Args:
        url: where to.
        body: sent as JSON.
        headers: sent beside the usual.
        patience_s: when to stop waiting, seconds.
        leave: hang up as soon as this holds; asked after each piece that arrives.
        leave_after_s: hang up after so many seconds, whatever came.
    """
    answer = Answer(stream=bool(body.get("stream")))
    started = time.monotonic()
    wait_s = patience_s if leave_after_s is None else leave_after_s
    try:
        async with asyncio.timeout(wait_s):
            await _exchange(url, "POST", json.dumps(body).encode(), headers, answer, leave)
    except TimeoutError:
        answer.ended = "late" if leave_after_s is None else "left"
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        answer.ended = "cut" if answer.status else "none"
    answer.took_s = time.monotonic() - started
    return answer


async def get(url: str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Answer:
    """Ask for a document; same as `post` otherwise."""
    answer = Answer()
    try:
        async with asyncio.timeout(_REFUSED_S):
            await _exchange(url, method, b"", headers or {}, answer, None)
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
        answer.ended = "cut" if answer.status else "none"
    return answer


async def _exchange(
    url: str,
    method: str,
    body: bytes,
    headers: Mapping[str, str],
    answer: Answer,
    leave: Leave | None,
) -> None:
    place = urlsplit(url)
    tls = ssl.create_default_context() if place.scheme == "https" else None
    port = place.port or (443 if tls else 80)
    reader, writer = await asyncio.open_connection(place.hostname, port, ssl=tls, limit=2**22)
    try:
        lines = [
            f"{method} {place.path or '/'} HTTP/1.1",
            f"host: {place.netloc}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        started = time.monotonic()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        answer.status = int(head[0].split(" ")[1])
        fields = (line.partition(":") for line in head[1:])
        answer.headers = {name.lower(): value.strip() for name, _, value in fields}
        await _read(reader, answer, leave, started)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _read(
    reader: asyncio.StreamReader, answer: Answer, leave: Leave | None, started: float
) -> None:
    """The body, event by event if it is made of events."""
    events = answer.headers.get("content-type", "").startswith("text/event-stream")
    rest = b""
    if leave is not None and leave(answer):
        answer.ended = "left"
        return
    async for piece in _pieces(reader, answer.headers):
        answer.body += piece[: max(0, _KEPT - len(answer.body))]
        if events:
            *lines, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    answer.read_event(line[5:].decode(errors="replace").strip())
        if answer.first_s is None and (answer.text or answer.tools):
            answer.first_s = time.monotonic() - started
        if leave is not None and leave(answer):
            answer.ended = "left"
            return
    answer.ended = "whole"
    if rest.strip():
        answer.garbage.append(f"half an event at the end: {rest[:40]!r}")
    if not events:
        answer.read_body()
        answer.first_s = time.monotonic() - started if answer.text else None


async def _pieces(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    """The body as it comes; raises IncompleteReadError if it is cut off."""
    if "chunked" in headers.get("transfer-encoding", ""):
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
        return
    left = int(headers.get("content-length", -1))
    while left:
        piece = await reader.read(65536 if left < 0 else min(left, 65536))
        if not piece:
            if left > 0:
                raise asyncio.IncompleteReadError(b"", left)
            return
        left -= len(piece) if left > 0 else 0
        yield piece
