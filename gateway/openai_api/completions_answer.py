"""Our answers -> OpenAI's legacy `text_completion` JSON, whole and as events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.assembly import TextChunk
from gateway.generation import Chunk, Generation, Served, Usage
from gateway.openai_api.answers import created, facts, finish_reason, usage_of
from gateway.openai_api.events import EventWriter
from gateway.openai_api.events import encode as _encode
from gateway.openai_api.serving import Opened


def text_completion(answers: Sequence[Generation]) -> bytes:
    """The answers to the prompts of one request; their choices are numbered through.

    Who answered is said of the first; where others differ, of each under `gateway.prompts`.
    """
    first = answers[0]
    told = facts(first.served)
    if len(answers) > 1:
        told["prompts"] = [facts(answer.served) for answer in answers]
    choices = [choice for answer in answers for choice in answer.choices]
    return _encode(
        {
            **first.extra,
            "id": first.id,
            "object": "text_completion",
            "created": created(first.created),
            "model": first.served.model,
            "choices": [_whole(choice, index) for index, choice in enumerate(choices)],
            "usage": usage_of(first.usage if len(answers) == 1 else _sum(answers)),
            "gateway": told,
        }
    )


def _whole(choice: dict[str, Any], index: int) -> dict[str, Any]:
    return {
        "text": choice["message"].get("content") or "",
        "index": index,
        "logprobs": choice["logprobs"],
        "finish_reason": finish_reason(choice["finish_reason"]),
    }


def _sum(answers: Sequence[Generation]) -> Usage:
    return Usage(
        sum(answer.usage.prompt_tokens for answer in answers),
        sum(answer.usage.completion_tokens for answer in answers),
        sum(answer.usage.total_tokens for answer in answers),
    )


class CompletionWriter(EventWriter):
    """A streamed legacy completion; as `ChatWriter`, but a choice adds text and has no role.

    Args:
        include_usage: whether to end with a usage event; all others then have `usage: null`.
    """

    object = "text_completion"

    def __init__(self, *, include_usage: bool) -> None:
        super().__init__(include_usage=include_usage)
        self._open: dict[int, bool] = {0: True}  # False once it finished

    def begin(self, answer: Opened) -> bytes:
        """The answer is there. Nothing is said before its first chunk."""
        self._answer = answer
        return b""

    def write(self, chunks: list[Chunk]) -> bytes:
        """The events of one batch."""
        if self._answer.served is not self._served:
            self._serve(self._answer.served)
        before, after = self._before_text, self._after_text
        events: list[bytes] = []
        for chunk in chunks:
            if self._told and type(chunk) is TextChunk:  # the one hot case
                events += (before, _encode(chunk.choices[0].delta.content), after)
                continue
            if chunk.usage is not None:
                self._usage = chunk.usage
            if chunk.extra:
                self._extra.update(chunk.extra)
            for choice in chunk.choices:
                unfinished = self._open.setdefault(choice.index, True)
                text = choice.delta.content
                if text or choice.logprobs:
                    events.append(self._event(choice.index, text or "", choice.logprobs))
                if choice.finish_reason is not None and unfinished:
                    self._open[choice.index] = False
                    events.append(self._finish(choice.index, choice.finish_reason))
        return b"".join(events)

    def end(self) -> bytes:
        """What ends a complete answer: never sent after a broken one."""
        if self._served is None:
            self._serve(self._answer.served)
        unfinished = [index for index, still_open in self._open.items() if still_open]
        events = [self._finish(index, None) for index in unfinished]
        return self._done(events)

    def _event(self, index: int, text: str, logprobs: dict[str, Any] | None) -> bytes:
        choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": None}
        if not self._told:
            return self._telling([choice])
        return self._plain([choice])

    def _finish(self, index: int, reason: str | None) -> bytes:
        said = finish_reason(reason)
        return self._telling(
            [{"text": "", "index": index, "logprobs": None, "finish_reason": said}]
        )

    def _serve(self, served: Served) -> None:
        super()._serve(served)
        self._before_text = self._head + b'[{"text":'
        self._after_text = b',"index":0,"logprobs":null,"finish_reason":null}]' + self._tail
