"""A streamed answer as the events of the Responses API.

    created, in_progress
    for each item:  output_item.added, (part added, deltas, text done, part done), output_item.done
    completed | incomplete | failed

Every event bears its name, its number in the stream, and where it belongs.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.generation import Choice, Chunk, Delta, Usage
from gateway.openai_api import responses_answer as made
from gateway.openai_api.answers import created
from gateway.openai_api.errors import error_fields
from gateway.openai_api.serving import Opened
from gateway.openai_api.tool_deltas import ToolDeltas

_encode = msgspec.json.Encoder().encode


class _Item:
    """One item of the output under construction.

    `part` is the kind of what is being written: output_text, refusal, reasoning, arguments.
    """

    __slots__ = ("call_id", "head", "id", "index", "name", "part", "parts", "texts")

    def __init__(self, item_id: str, index: int, part: str) -> None:
        self.id = item_id
        self.index = index
        self.part = part
        self.parts: list[dict[str, Any]] = []  # of a message: those that are finished
        self.texts: list[str] = []  # of the one under way
        self.head = b""
        self.call_id = self.name = ""


class ResponseWriter:
    """Writes one response. See `gateway.openai_api.serving.Writer`.

    Args:
        echo: what it repeats of the request.
        summarize: whether reasoning is told as its summary.
    """

    def __init__(self, echo: dict[str, Any], *, summarize: bool) -> None:
        self._echo = echo
        self._summarize = summarize
        self._answer: Opened | None = None
        self._created_at = created()
        self._number = 0
        self._output: list[dict[str, Any]] = []  # by index; replaced when an item is done
        self._open: _Item | None = None  # reasoning or message
        self._calls: dict[int, _Item] = {}  # function calls, which may come side by side
        self._logprobs: list[dict[str, Any]] = []
        self._annotations: list[Any] = []
        self._usage: dict[str, Any] | None = None
        self._finish_reason: str | None = None

    def begin(self, answer: Opened) -> bytes:
        """The first token is there: what to send before it."""
        self._answer = answer
        self._tools = ToolDeltas(answer.id)
        started = self._response("in_progress")
        return self._event("response.created", response=started) + self._event(
            "response.in_progress", response=started
        )

    def write(self, chunks: list[Chunk]) -> bytes:
        """The events of one batch."""
        events: list[bytes] = []
        for chunk in chunks:
            if chunk.usage is not None:
                self._usage = chunk.usage
            for choice in chunk.choices:
                if choice.index == 0:
                    self._add(choice, events)
        return b"".join(events)

    def end(self) -> bytes:
        """What ends a complete answer."""
        why = made.incomplete(self._finish_reason)
        status = "incomplete" if why else "completed"
        events: list[bytes] = []
        self._close_all(status, events)
        usage = Usage.of(self._usage)
        ended = self._response(status, usage=usage, why=why)
        events.append(self._event(f"response.{status}", response=ended))
        return b"".join(events)

    def fail(self, error: BaseException) -> bytes:
        """What ends a broken answer. Of one that never began there is no response to speak of."""
        said = error_fields(error)
        told = self._event("error", **{name: said[name] for name in ("code", "message", "param")})
        if self._answer is None:
            return told
        return told + self._event("response.failed", response=self._response("failed", error=error))

    # -- what arrives ---------------------------------------------------------------------------

    def _add(self, choice: Choice, events: list[bytes]) -> None:
        delta = choice.delta
        if delta.reasoning_content:
            self._grow(self._reasoning(events), delta.reasoning_content, events)
        if delta.annotations:
            self._annotations.extend(delta.annotations)
        if delta.content or (choice.logprobs and self._of_text(delta)):
            item = self._message("output_text", events)
            logprobs = made.logprobs_of(choice.logprobs)
            self._logprobs += logprobs
            self._grow(item, delta.content or "", events, logprobs)
        if delta.refusal:
            self._grow(self._message("refusal", events), delta.refusal, events)
        if delta.tool_calls:
            for piece in self._tools.pieces(delta.tool_calls):
                self._call(piece, events)
        if choice.finish_reason:
            self._finish_reason = choice.finish_reason

    def _of_text(self, delta: Delta) -> bool:
        """Whether log probabilities that come without text are a text's: those of a token that is
        only part of a character, or, from the cache, all of them behind the last piece.
        """
        under_way = self._open is not None and self._open.part == "output_text"
        return delta.content is not None or under_way

    def _grow(
        self,
        item: _Item,
        text: str,
        events: list[bytes],
        logprobs: list[dict[str, Any]] | None = None,
    ) -> None:
        """One delta: all but its number and its text was encoded when its part began."""
        item.texts.append(text)
        self._number += 1
        more = b',"logprobs":%b' % _encode(logprobs or []) if item.part == "output_text" else b""
        tail = b'"sequence_number":%d%b}\n\n' % (self._number - 1, more)
        events += (item.head, _encode(text), b",", tail)

    def _call(self, piece: dict[str, Any], events: list[bytes]) -> None:
        function = piece.get("function") or {}
        item = self._calls.get(piece["index"])
        if item is None:
            if "id" not in piece:
                return
            self._close_open("completed", events)
            item = self._calls[piece["index"]] = self._new("fc", "arguments")
            item.call_id, item.name = piece["id"], function.get("name", "")
            call = made.call_item(item.id, item.call_id, item.name, "", "in_progress")
            self._added(item, call, events)
            item.head = self._delta_head("response.function_call_arguments.delta", item)
        elif function.get("name"):
            item.name += function["name"]
        if function.get("arguments"):
            self._grow(item, function["arguments"], events)

    # -- items ----------------------------------------------------------------------------------

    def _reasoning(self, events: list[bytes]) -> _Item:
        item = self._open
        if item is not None and item.part == "reasoning":
            return item
        self._close_open("completed", events)
        item = self._open = self._new("rs", "reasoning")
        empty = made.reasoning_item(item.id, "", "in_progress", summarize=self._summarize)
        self._added(item, empty, events)
        if self._summarize:
            part = {"type": "summary_text", "text": ""}
            name = "response.reasoning_summary_part.added"
            events.append(self._event(name, **self._where(item), part=part))
            item.head = self._delta_head("response.reasoning_summary_text.delta", item)
        else:
            part = {"type": "reasoning_text", "text": ""}
            events.append(
                self._event("response.content_part.added", **self._where(item), part=part)
            )
            item.head = self._delta_head("response.reasoning_text.delta", item)
        return item

    def _message(self, part: str, events: list[bytes]) -> _Item:
        item = self._open
        if item is not None and item.part == part:
            return item
        if item is None or item.part == "reasoning":
            self._close_open("completed", events)  # calls may go on behind a text between them
            item = self._open = self._new("msg", part)
            self._added(item, made.message_item(item.id, [], "in_progress"), events)
        else:  # a text turns into a refusal
            self._close_part(item, events)
            item.part = part
        empty = made.text_part("") if part == "output_text" else made.refusal_part("")
        events.append(self._event("response.content_part.added", **self._where(item), part=empty))
        item.head = self._delta_head(f"response.{part}.delta", item)
        return item

    def _new(self, prefix: str, part: str) -> _Item:
        index = len(self._output)
        return _Item(f"{prefix}_{self._id}_{index}", index, part)

    def _added(self, item: _Item, empty: dict[str, Any], events: list[bytes]) -> None:
        self._output.append(empty)
        name = "response.output_item.added"
        events.append(self._event(name, output_index=item.index, item=empty))

    def _close_all(self, status: str, events: list[bytes]) -> None:
        self._close_open(status, events)
        for item in self._calls.values():
            arguments = "".join(item.texts)
            where = {"item_id": item.id, "output_index": item.index}
            name = "response.function_call_arguments.done"
            events.append(self._event(name, **where, name=item.name, arguments=arguments))
            call = made.call_item(item.id, item.call_id, item.name, arguments, status)
            self._done(item, call, events)
        self._calls.clear()

    def _close_open(self, status: str, events: list[bytes]) -> None:
        item, self._open = self._open, None
        if item is None:
            return
        if item.part == "reasoning":
            self._close_reasoning(item, status, events)
        else:
            self._close_part(item, events)
            self._done(item, made.message_item(item.id, item.parts, status), events)

    def _close_reasoning(self, item: _Item, status: str, events: list[bytes]) -> None:
        text, where = "".join(item.texts), self._where(item)
        if self._summarize:
            text_done, kind = "response.reasoning_summary_text.done", "summary_text"
            part_done = "response.reasoning_summary_part.done"
        else:
            text_done, kind = "response.reasoning_text.done", "reasoning_text"
            part_done = "response.content_part.done"
        events.append(self._event(text_done, **where, text=text))
        events.append(self._event(part_done, **where, part={"type": kind, "text": text}))
        whole = made.reasoning_item(item.id, text, status, summarize=self._summarize)
        self._done(item, whole, events)

    def _close_part(self, item: _Item, events: list[bytes]) -> None:
        text, where = "".join(item.texts), self._where(item)
        if item.part == "output_text":
            part = made.text_part(text, self._annotations)
            part["logprobs"] = self._logprobs
            said = {"text": text, "logprobs": self._logprobs}
            self._annotations, self._logprobs = [], []
        else:
            part, said = made.refusal_part(text), {"refusal": text}
        events.append(self._event(f"response.{item.part}.done", **where, **said))
        events.append(self._event("response.content_part.done", **where, part=part))
        item.parts.append(part)
        item.texts = []

    def _done(self, item: _Item, whole: dict[str, Any], events: list[bytes]) -> None:
        self._output[item.index] = whole
        name = "response.output_item.done"
        events.append(self._event(name, output_index=item.index, item=whole))

    # -- events ---------------------------------------------------------------------------------

    @property
    def _id(self) -> str:
        return self._answer.id if self._answer else ""

    def _where(self, item: _Item) -> dict[str, Any]:
        summary = item.part == "reasoning" and self._summarize
        part = {"summary_index" if summary else "content_index": len(item.parts)}
        return {"item_id": item.id, "output_index": item.index, **part}

    def _delta_head(self, name: str, item: _Item) -> bytes:
        where = self._where(item)
        if item.part == "arguments":
            del where["content_index"]
        stamp = _encode({"type": name, **where})[:-1]
        return b"event: %b\ndata: %b" % (name.encode(), stamp) + b',"delta":'

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        served = self._answer.served if self._answer else None
        return made.response(
            self._echo,
            self._id,
            status=status,
            served=served,
            output=list(self._output),
            created_at=self._created_at,
            **more,
        )

    def _event(self, name: str, /, **fields: Any) -> bytes:
        event = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(event))
