"""What streamed chats and legacy completions have in common: stamps, who answers, the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from gateway.generation import Served, Usage
from gateway.openai_api.answers import created, facts, usage_of
from gateway.openai_api.errors import envelope
from gateway.openai_api.serving import Opened
from gateway.sse import DONE

encode = msgspec.json.Encoder().encode


class EventWriter:
    """Writes the events of one streamed answer.

    Args:
        include_usage: whether to end with a usage event; all others then have `usage: null`.
    """

    object: ClassVar[str]
    """OpenAI's name for such an event."""

    def __init__(self, *, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._usage: dict[str, Any] | None = None
        self._extra: dict[str, Any] = {}
        self._told = False
        self._created = created()
        self._answer: Opened
        self._served: Served | None = None
        self._head = b""

    def fail(self, error: BaseException) -> bytes:
        """The event that ends a broken answer; no `[DONE]` follows."""
        return b"data: " + envelope(error) + b"\n\n"

    def _serve(self, served: Served) -> None:
        """From here on `served` answers; all that is the same on every event is encoded once."""
        self._served = served
        self._stamp = {
            "id": self._answer.id,
            "object": self.object,
            "created": self._created,
            "model": served.model,
        }
        self._head = b"data: " + encode(self._stamp)[:-1] + b',"choices":'

    def _plain(self, choices: Sequence[Any]) -> bytes:
        return b"".join((self._head, encode(choices), self._tail))

    def _telling(self, choices: Sequence[Any], **more: Any) -> bytes:
        """An event that also says who answers, and what else the upstream said."""
        self._told = True
        if self._include_usage:
            more.setdefault("usage", None)
        gateway, extra = facts(self._answer.served), self._extra
        self._extra = {}
        event = {**extra, **self._stamp, "choices": choices, **more, "gateway": gateway}
        return b"data: " + encode(event) + b"\n\n"

    def _done(self, events: list[bytes]) -> bytes:
        """The last events: the usage if it was asked for, then `[DONE]`."""
        if self._include_usage:
            events.append(self._telling([], usage=usage_of(Usage.of(self._usage))))
        return b"".join((*events, DONE))
