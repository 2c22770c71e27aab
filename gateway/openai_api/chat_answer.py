"""Our answers -> OpenAI's chat JSON: whole, and as server-sent events. Bytes out, no I/O.

What strict clients need is always there (`logprobs`, `refusal`, `annotations`); `model` is the
model that really answered; who answered and why stands beside it under `gateway`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.assembly import TextChunk
from gateway.generation import Choice, Chunk, Delta, Generation, Served
from gateway.openai_api.answers import FINISHED, created, facts, finish_reason, usage_of
from gateway.openai_api.events import EventWriter
from gateway.openai_api.events import encode as _encode
from gateway.openai_api.serving import Opened
from gateway.openai_api.tool_deltas import ToolDeltas

_NOTHING = Delta()


def completion(generation: Generation) -> bytes:
    """A whole answer as a chat completion."""
    return _encode(
        {
            **generation.extra,
            "id": generation.id,
            "object": "chat.completion",
            "created": created(generation.created),
            "model": generation.served.model,
            "choices": [_whole(choice) for choice in generation.choices],
            "usage": usage_of(generation.usage),
            "gateway": facts(generation.served),
        }
    )


def _whole(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice["message"]
    reasoning = message.get("reasoning_content")
    if not reasoning and choice["finish_reason"] in FINISHED:
        return choice
    if reasoning:  # `reasoning` is what vLLM and Ollama, and so their clients, call it
        message = {**message, "reasoning": reasoning}
    reason = finish_reason(choice["finish_reason"], called_tools="tool_calls" in message)
    return {**choice, "message": message, "finish_reason": reason}


class ChatWriter(EventWriter):
    """A streamed answer as server-sent events, one `bytes` for each batch of chunks.

    For each choice: a role chunk, what comes, a chunk that only finishes it. Then the usage if it
    was asked for, then `[DONE]`. The first chunk and the last ones say who answers.

    Args:
        include_usage: whether to end with a usage event; all others then have `usage: null`.
    """

    object = "chat.completion.chunk"

    def __init__(self, *, include_usage: bool) -> None:
        super().__init__(include_usage=include_usage)
        self._tools: dict[int, ToolDeltas] = {}
        self._open: dict[int, bool] = {}  # choices that have begun; False once they finished

    def begin(self, answer: Opened) -> bytes:
        """The answer is there. Nothing is said before its first chunk."""
        self._answer = answer
        self._serve(answer.served)
        return b""

    def write(self, chunks: list[Chunk]) -> bytes:
        """The events of one batch."""
        served = self._answer.served
        if served is not self._served:  # an interrupted answer goes on in another mode
            self._serve(served)
        before, after, begun = self._before_text, self._after_text, 0 in self._open
        events: list[bytes] = []
        for chunk in chunks:
            # The one hot case: text for a choice that has begun. Its type says that it is no more.
            if begun and type(chunk) is TextChunk:
                events += (before, _encode(chunk.choices[0].delta.content), after)
            else:
                self._carefully(chunk, events)
                begun = 0 in self._open
        return b"".join(events)

    def end(self) -> bytes:
        """What ends a complete answer: never sent after a broken one."""
        events: list[bytes] = []
        if not self._open:
            self._begin_choice(0, events)
        for index, unfinished in list(self._open.items()):
            if unfinished:
                self._finish(index, None, None, events)
        return self._done(events)

    # -- the careful way ------------------------------------------------------------------------

    def _carefully(self, chunk: Chunk, events: list[bytes]) -> None:
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.extra:
            self._extra.update(chunk.extra)
        for choice in chunk.choices:
            index, reason = choice.index, choice.finish_reason
            if index not in self._open:
                self._begin_choice(index, events)
            delta = self._delta(choice)
            logprobs = choice.logprobs
            # A token that is only part of a character has no text yet, but its log probability.
            if delta != _NOTHING or (logprobs and reason is None):
                piece = Choice(delta, index=index, logprobs=logprobs)
                events += (self._head, _encode([piece]), self._tail)
                logprobs = None
            if reason is not None and self._open[index]:
                self._finish(index, reason, logprobs, events)

    def _begin_choice(self, index: int, events: list[bytes]) -> None:
        self._open[index] = True
        opening = Choice(Delta(role="assistant", content=""), index=index)
        events.append(self._plain([opening]) if self._told else self._telling([opening]))

    def _finish(
        self, index: int, reason: str | None, logprobs: dict[str, Any] | None, events: list[bytes]
    ) -> None:
        self._open[index] = False
        reason = finish_reason(reason, called_tools=index in self._tools)
        events.append(
            self._telling([Choice(_NOTHING, index=index, finish_reason=reason, logprobs=logprobs)])
        )

    def _delta(self, choice: Choice) -> Delta:
        """What a choice adds, in the one form every client reads; the role has been said."""
        delta = choice.delta
        calls = None
        if delta.tool_calls:
            tools = self._tools.get(choice.index)
            if tools is None:
                name = f"{self._answer.id}-{choice.index}" if choice.index else self._answer.id
                tools = self._tools[choice.index] = ToolDeltas(name)
            calls = tools.pieces(delta.tool_calls) or None
        return msgspec.structs.replace(
            delta,
            role=None,
            content=delta.content or None,
            reasoning_content=delta.reasoning_content or None,
            reasoning=delta.reasoning_content or None,
            tool_calls=calls,
        )

    # -- events ---------------------------------------------------------------------------------

    def _serve(self, served: Served) -> None:
        super()._serve(served)
        self._before_text = self._head + b'[{"index":0,"delta":{"content":'
        self._after_text = b'},"logprobs":null,"finish_reason":null}]' + self._tail
