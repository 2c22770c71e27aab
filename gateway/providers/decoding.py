"""From an upstream's JSON to chunks: a fast way for the usual event, a careful one for the rest.

The fast way decodes straight into `Chunk` and looks at nothing twice; it serves events that only
add to a choice, and whole answers of text. The careful way decodes untyped, so it sees errors,
unknown top-level fields and nulls where the specification has none; the first event, every event
that ends a choice, and every event without choices take it, because that is where those things are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec

from gateway.assembly import TextChunk, normal_finish_reason
from gateway.errors import ErrorKind, UpstreamError, UpstreamUnavailable
from gateway.generation import Choice, Chunk, Delta
from gateway.providers.dialects import broken_finish, parse_event_error

fast_chunk = msgspec.json.Decoder(Chunk).decode
"""Decode an event that is like the specification says; `msgspec.ValidationError` if it is not."""

text_chunk = msgspec.json.Decoder(TextChunk).decode
"""Decode an event that adds text and nothing else; `msgspec.ValidationError` if it is another."""


class _WholeMessage(Delta):
    tool_calls: Annotated[list[Any], msgspec.Meta(max_length=0)] | None = None
    reasoning: None = None


class _WholeChoice(Choice, kw_only=True):
    delta: _WholeMessage = msgspec.field(name="message")
    finish_reason: Literal["stop", "length", "content_filter"]


class _Whole(Chunk, forbid_unknown_fields=True):
    """A whole answer as OpenAI, vLLM and llama.cpp send it: one choice of text. The types say so,
    and it decodes into the chunk it is. What else it may bear is for `extra`: the careful way's.
    """

    choices: Annotated[list[_WholeChoice], msgspec.Meta(min_length=1, max_length=1)]  # type: ignore[assignment]
    extra: None = None
    object: str = ""
    system_fingerprint: str | None = None
    service_tier: str | None = None
    timings: dict[str, Any] | None = None
    prompt_logprobs: None = None  # vLLM's, if nobody asked for them
    prompt_token_ids: None = None
    kv_transfer_params: None = None


_whole = msgspec.json.Decoder(_Whole).decode

_untyped = msgspec.json.Decoder().decode

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for bytes that are no JSON; `msgspec.ValidationError` is one of them."""

_NAMED = frozenset({"choices", "id", "model", "created", "usage", "object"})
_PLAIN = frozenset({"role", "content"})


def fast_whole(payload: bytes) -> Chunk | None:
    """The chunk of a whole answer that is one choice of text; None if it needs a careful look."""
    try:
        whole = _whole(payload)
    except NOT_JSON:
        return None
    extra: dict[str, Any] = {}
    if whole.system_fingerprint is not None:
        extra["system_fingerprint"] = whole.system_fingerprint
    if whole.service_tier is not None:
        extra["service_tier"] = whole.service_tier
    if whole.timings is not None:
        extra["timings"] = whole.timings
    chunk: Chunk = whole
    chunk.extra = extra or None
    return chunk


@dataclass(frozen=True, slots=True)
class CarefulDecoder:
    """The careful way, and the errors of one target.

    Args:
        kind: the backend's kind, see `capabilities`.
        target: the target's name, for errors.
        secrets: credentials, which no error may show.
    """

    kind: str
    target: str
    secrets: Sequence[str] = field(default=(), repr=False)

    def chunk(self, payload: bytes) -> Chunk | None:
        """Decode any event or whole answer. None if it says nothing at all (a ping).

        Raises:
            UpstreamUnavailable: kind MALFORMED if it is no JSON object.
            UpstreamError: it is an error in a 200's clothes, or ends its answer in failure.
        """
        try:
            data = _untyped(payload)
        except NOT_JSON:
            data = None
        if not isinstance(data, dict):
            raise self.malformed("something that is no JSON object")
        if is_error(data):
            raise self.error(data)
        chunk = chunk_of(data)
        return chunk if chunk.choices or chunk.usage is not None or "choices" in data else None

    def error(self, payload: object) -> UpstreamError:
        """The error that an event means, see `parse_event_error`."""
        return parse_event_error(payload, kind=self.kind, target=self.target, secrets=self.secrets)

    def malformed(self, what: str) -> UpstreamUnavailable:
        """The error for an answer that is no answer."""
        return UpstreamUnavailable(
            f"{self.target} answered with {what}", kind=ErrorKind.MALFORMED, target=self.target
        )


def is_error(data: dict[str, Any]) -> bool:
    """Whether an event is an error: an `error`, DashScope's flat one, or a broken finish."""
    if data.get("error"):
        return True
    if not data.get("choices"):
        return data.get("object") == "error" or bool(data.get("code") and "message" in data)
    return broken_finish(data) is not None


def chunk_of(data: dict[str, Any]) -> Chunk:
    """Make a chunk of an event or a whole answer, whatever its nulls and types.

    A whole answer has a `message` where an event has a `delta`; its chunk adds all of it at once.
    A completion of a raw text has a `text` in the place of both.
    """
    choices = data.get("choices")
    usage = data.get("usage")
    unnamed = data.keys() - _NAMED
    extra = {name: data[name] for name in unnamed if data[name] is not None} if unnamed else None
    return Chunk(
        choices=[
            _choice(choice, position)
            for position, choice in enumerate(choices if isinstance(choices, list) else ())
            if isinstance(choice, dict)
        ],
        id=_str(data.get("id")) or "",
        model=_str(data.get("model")) or "",
        created=_int(data.get("created"), 0),
        usage=usage if isinstance(usage, dict) else None,
        extra=extra or None,
    )


def fold_reasoning(delta: Delta) -> None:
    """Move `reasoning` (vLLM, Ollama) to where the house keeps it."""
    if not delta.reasoning_content:
        delta.reasoning_content = delta.reasoning
    delta.reasoning = None


def _choice(choice: dict[str, Any], position: int) -> Choice:
    whole = "message" in choice and "delta" not in choice
    message = choice.get("message" if whole else "delta")
    logprobs = choice.get("logprobs")
    if message is None and "text" in choice:
        message = {"content": choice["text"]}
    return Choice(
        delta=_delta(message if isinstance(message, dict) else {}, whole=whole),
        index=_int(choice.get("index"), position),
        finish_reason=normal_finish_reason(_str(choice.get("finish_reason"))),
        logprobs=logprobs if isinstance(logprobs, dict) else None,
    )


def _delta(message: dict[str, Any], *, whole: bool) -> Delta:
    delta = Delta(role=_str(message.get("role")) or None, content=_content(message.get("content")))
    if message.keys() <= _PLAIN:
        return delta
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    delta.reasoning_content = _content(reasoning)
    delta.refusal = _str(message.get("refusal"))
    calls = message.get("tool_calls")
    if calls and isinstance(calls, list):
        delta.tool_calls = [
            {"index": position, **call} if whole else call
            for position, call in enumerate(calls)
            if isinstance(call, dict)
        ]
    for name, shape in (("function_call", dict), ("annotations", list), ("audio", dict)):
        value = message.get(name)
        if value and isinstance(value, shape):
            setattr(delta, name, value)
    return delta


def _content(content: object) -> str | None:
    """Text, or the text of a list of parts, as multimodal models answer."""
    if not isinstance(content, list):
        return _str(content)
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    return "".join(text for text in texts if isinstance(text, str))


def _str(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) else None


def _int(value: object, default: int) -> int:
    if isinstance(value, float) and math.isfinite(value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else default
