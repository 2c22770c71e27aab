"""OpenAI's chat JSON <-> our words: bytes in and out, no I/O.

What strict clients need is always there (`logprobs`, `refusal`, `annotations`); `model` is the
model that really answered; who answered and why stands beside it under `gateway`.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from gateway.errors import InvalidRequest
from gateway.generation import Choice, Chunk, Generation, Message, Served, Usage
from gateway.openai_api.errors import envelope

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class ChatRequest(msgspec.Struct):
    """A parsed chat completion request.

    Attributes:
        model: as the client named it; a mode, or a model the gateway does not know.
        messages: the chat messages, unchecked.
        params: every other body field, forwarded whole.
        stream: whether the client wants server-sent events.
        include_usage: whether a stream ends with a usage event.
    """

    model: str
    messages: list[Message]
    params: dict[str, Any]
    stream: bool
    include_usage: bool


def parse_chat(body: bytes) -> ChatRequest:
    """Read the body of `POST /chat/completions`.

    Raises:
        InvalidRequest: no JSON object, or `messages`, `model`, `stream` are not what they must be.
    """
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object")
    messages, model = fields.pop("messages", None), fields.pop("model", "")
    stream, options = fields.pop("stream", False), fields.pop("stream_options", None)
    if not isinstance(messages, list):
        raise InvalidRequest("messages must be a list", param="messages")
    if not isinstance(model or "", str):
        raise InvalidRequest("model must be a string", param="model")
    if not isinstance(stream or False, bool):
        raise InvalidRequest("stream must be true or false", param="stream")
    asked = isinstance(options, dict) and options.get("include_usage") is True
    return ChatRequest(model or "", messages, fields, bool(stream), asked)


def completion(generation: Generation) -> bytes:
    """A whole answer as a chat completion."""
    usage = generation.usage
    return _encode(
        {
            **generation.extra,
            "id": generation.id,
            "object": "chat.completion",
            "created": generation.created or int(time.time()),
            "model": generation.model,
            "choices": generation.choices,
            "usage": _usage(usage),
            "gateway": facts(generation.served),
        }
    )


class StreamWriter:
    """A streamed answer as server-sent events, one `bytes` for each batch of chunks.

    Args:
        generation_id: the same on every event.
        served: who answers.
        include_usage: whether to end with a usage event.
    """

    def __init__(self, generation_id: str, served: Served, *, include_usage: bool) -> None:
        self._head = {
            "id": generation_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": served.model,
        }
        self._served = served
        self._include_usage = include_usage
        self._usage: dict[str, Any] | None = None
        self._first = True

    def write(self, chunks: list[Chunk]) -> bytes:
        """The events of one batch."""
        events: list[bytes] = []
        for chunk in chunks:
            if chunk.usage is not None:
                self._usage = chunk.usage
            if chunk.choices:
                events.append(self._event([_choice(choice) for choice in chunk.choices]))
        return b"".join(events)

    def end(self) -> bytes:
        """The usage event, if asked for, and `[DONE]`: only after a complete answer."""
        if not self._include_usage:
            return DONE
        usage = _usage(Usage.of(self._usage))
        return self._event([], usage=usage, gateway=facts(self._served)) + DONE

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        fields = {**self._head, "choices": choices, **more}
        if self._first:
            self._first = False
            fields["gateway"] = facts(self._served)
        return _event(_encode(fields))


def error_event(error: BaseException) -> bytes:
    """The event that ends a broken answer; no `[DONE]` follows."""
    return _event(envelope(error))


def facts(served: Served) -> dict[str, Any]:
    """Who answered and why, as plain data."""
    return {
        "requested_mode": served.requested_mode,
        "mode": served.mode,
        "target": served.target,
        "degraded": served.degraded,
        "reason": served.reason,
        "until_s": served.until,
        "cached": served.cached,
        "stale": served.stale,
        "age_s": served.age_s,
        "attempts": served.attempts,
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "index": choice.index,
        "delta": choice.delta,
        "finish_reason": choice.finish_reason,
        "logprobs": choice.logprobs,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        **usage.details,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
