"""From pieces to one message, and back: merging a stream's deltas, replaying a stored answer.

chunks --Assembly--> choices of a non-streamed answer --chunks_of--> chunks that assemble alike
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import msgspec

from gateway.generation import Choice, Chunk, Delta, Generation
from gateway.tool_calls import ToolCalls, merge_pieces

# Every word seen for the end of an answer, in OpenAI's five. An aborted answer is cut short, and
# `length` is the one word that says so to a client; `length` is also never cached.
_FINISH_REASONS = {
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_length": "length",
    "abort": "length",
    "error": "length",
    "error_finish": "length",
}

_PIECE = 512
"""Characters in one content chunk of a replay."""


def normal_finish_reason(reason: str | None) -> str | None:
    """Say a finish reason in OpenAI's words; one that is unknown stays as it is."""
    return _FINISH_REASONS.get(reason, reason) if reason else None


class _TextDelta(Delta):
    content: str = ""
    reasoning_content: None = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None
    annotations: None = None
    audio: None = None
    reasoning: None = None


class _TextChoice(Choice):
    delta: _TextDelta
    index: Literal[0] = 0
    finish_reason: None = None
    logprobs: None = None


class TextChunk(Chunk):
    """A chunk that can only add text to choice 0: nearly every one of nearly every stream.

    That is said by the types, so that decoding one proves it, in C, and nobody need look again.
    """

    choices: Annotated[list[_TextChoice], msgspec.Meta(min_length=1, max_length=1)]  # type: ignore[assignment]
    usage: None = None
    extra: None = None
    error: None = None


class _Message(msgspec.Struct, gc=False):
    """One choice under construction. A struct, whose fields C fills in: one is made per answer."""

    role: str = "assistant"
    content: list[str] = []
    reasoning: list[str] = []
    refusal: str | None = None
    tools: ToolCalls | None = None
    function_call: dict[str, Any] | None = None
    annotations: list[Any] | None = None
    audio: dict[str, Any] | None = None
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None

    def add(self, choice: Choice) -> None:
        delta = choice.delta
        if delta.role:
            self.role = delta.role
        if delta.content:
            self.content.append(delta.content)
        if delta.reasoning_content:
            self.reasoning.append(delta.reasoning_content)
        if delta.refusal:
            self.refusal = (self.refusal or "") + delta.refusal
        if delta.tool_calls:
            if self.tools is None:
                self.tools = ToolCalls()
            for piece in delta.tool_calls:
                self.tools.add(piece)
        if delta.function_call:
            self.function_call = self.function_call or {}
            merge_pieces(self.function_call, delta.function_call)
        if delta.annotations:
            self.annotations = [*(self.annotations or ()), *delta.annotations]
        if delta.audio:
            self.audio = self.audio or {}
            merge_pieces(self.audio, delta.audio, once=("id",))
        if choice.logprobs:
            self.logprobs = self.logprobs or {}
            _merge_logprobs(self.logprobs, choice.logprobs)
        if choice.finish_reason:
            self.finish_reason = normal_finish_reason(choice.finish_reason)

    def choice(self, index: int, answer_id: str) -> dict[str, Any]:
        tool_calls: list[dict[str, Any]] = []
        if self.tools is not None:
            tool_calls = self.tools.finished(f"{answer_id}-{index}" if index else answer_id)
        content: str | None = "".join(self.content)
        if not content and (tool_calls or self.function_call or self.refusal or self.audio):
            content = None
        message: dict[str, Any] = {
            "role": self.role,
            "content": content,
            "refusal": self.refusal,
            "annotations": list(self.annotations or ()),
        }
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if tool_calls:
            message["tool_calls"] = tool_calls
        if self.function_call:
            message["function_call"] = dict(self.function_call)
        if self.audio:
            message["audio"] = dict(self.audio)
        return {
            "index": index,
            "message": message,
            "finish_reason": self.finish_reason,
            "logprobs": self.logprobs,
        }


def _merge_logprobs(into: dict[str, Any], piece: dict[str, Any]) -> None:
    """Concatenate lists of token records under each key; a null never removes what is there."""
    for key, value in piece.items():
        before = into.get(key)
        if isinstance(before, list) and isinstance(value, list):
            before.extend(value)
        elif value is not None or key not in into:
            into[key] = list(value) if isinstance(value, list) else value


class Assembly(msgspec.Struct, gc=False):
    """One answer, merged from its chunks as they pass.

    Attributes:
        id, model, created: as the first chunk that names them says.
        usage: the last usage seen, None if none came.
        extra: every unknown top-level field seen; a later value replaces an earlier one.
        has_content: whether anything came that a caller would see (behaviour.md, B15).
    """

    id: str = ""
    model: str = ""
    created: int = 0
    usage: dict[str, Any] | None = None
    extra: dict[str, Any] = {}
    has_content: bool = False
    _first: _Message = msgspec.field(default_factory=_Message)
    _others: dict[int, _Message] = {}

    def add(self, chunk: Chunk) -> None:
        """Merge one chunk."""
        self.add_all((chunk,))

    def add_all(self, chunks: Iterable[Chunk]) -> None:
        """Merge chunks in order."""
        plain, has_content = self._first.content, self.has_content
        for chunk in chunks:
            # The one hot case; an answer's first chunks bear its names, and are merged whole.
            if has_content and type(chunk) is TextChunk:
                plain.append(chunk.choices[0].delta.content)
            else:
                self._merge(chunk)
                has_content = self.has_content

    def _merge(self, chunk: Chunk) -> None:
        self.id = self.id or chunk.id
        self.model = self.model or chunk.model
        self.created = self.created or chunk.created
        if chunk.usage is not None:
            self.usage = chunk.usage
        if chunk.extra:
            self.extra.update(chunk.extra)
        for choice in chunk.choices:
            (self._other(choice.index) if choice.index else self._first).add(choice)
            if not self.has_content:
                self.has_content = choice.delta.carries()

    def _other(self, index: int) -> _Message:
        message = self._others.get(index)
        if message is None:
            message = self._others[index] = _Message()
        return message

    def text(self) -> str:
        """The first choice's content so far."""
        return "".join(self._first.content)

    def continuable(self) -> bool:
        """Whether somebody who is told `text` could go on from there: it is one text, begun and
        not ended, and nothing else that a caller has seen the beginning of.
        """
        first = self._first
        beside = (first.tools, first.function_call, first.refusal, first.audio)
        under_way = bool(first.content) and first.finish_reason is None
        return under_way and not self._others and all(part is None for part in beside)

    @property
    def finish_reason(self) -> str | None:
        """Why the first choice ended, in OpenAI's words; None while it has not."""
        return self._first.finish_reason

    def choices(self) -> list[dict[str, Any]]:
        """The choices of a non-streamed answer, with every key strict clients ask for.

        `content` is null where the message is something else (a tool call, a refusal);
        `refusal` and `logprobs` are null, `annotations` is `[]` where there are none.
        """
        choices = [self._first.choice(0, self.id)]
        for index in sorted(self._others):
            choices.append(self._others[index].choice(index, self.id))  # noqa: PERF401 - seldom any
        return choices


def chunks_of(generation: Generation) -> list[Chunk]:
    """Replay a finished answer as the stream it could have been.

    Order: a role chunk, reasoning, content in pieces, tool calls, finish, usage. Assembling the
    result gives back the same choices, usage and extra.
    """
    stamp: dict[str, Any] = {
        "id": generation.id,
        "model": generation.served.model,
        "created": generation.created,
    }
    opening = [
        Choice(Delta(role=choice["message"].get("role") or "assistant"), index=choice["index"])
        for choice in generation.choices
    ]
    chunks = [Chunk(opening, **stamp, extra=generation.extra or None)]
    for choice in generation.choices:
        chunks.extend(Chunk([piece], **stamp) for piece in _pieces(choice))
    usage = generation.usage
    if usage.details or usage.total_tokens:
        counts = {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        }
        chunks.append(Chunk([], **stamp, usage=usage.details or counts))
    return chunks


def _pieces(choice: dict[str, Any]) -> Iterator[Choice]:
    """The deltas that add up to one finished choice."""
    index: int = choice["index"]
    message: dict[str, Any] = choice["message"]
    reasoning: str = message.get("reasoning_content") or ""
    content: str = message.get("content") or ""
    for start in range(0, len(reasoning), _PIECE):
        yield Choice(Delta(reasoning_content=reasoning[start : start + _PIECE]), index=index)
    for start in range(0, len(content), _PIECE):
        yield Choice(Delta(content=content[start : start + _PIECE]), index=index)
    if message.get("refusal"):
        yield Choice(Delta(refusal=message["refusal"]), index=index)
    if message.get("annotations"):
        yield Choice(Delta(annotations=message["annotations"]), index=index)
    if message.get("audio"):
        yield Choice(Delta(audio=message["audio"]), index=index)
    if message.get("function_call"):
        yield Choice(Delta(function_call=message["function_call"]), index=index)
    for position, call in enumerate(message.get("tool_calls") or ()):
        yield Choice(Delta(tool_calls=[{"index": position, **call}]), index=index)
    yield Choice(
        Delta(),
        index=index,
        finish_reason=choice.get("finish_reason"),
        logprobs=choice.get("logprobs"),
    )
