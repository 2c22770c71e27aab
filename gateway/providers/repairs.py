"""What a target's refusals teach: mended once, remembered, applied to every later call.

Some limits of a model are told only by the 400 that breaks them. Each row below knows such a
sentence and what to change; the request is sent once more, and the lesson is kept. Only what a
mode profile or this package itself set is ever taken away (`_OURS`): a field that only a caller
can have meant is the caller's to hear about.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from gateway.errors import ErrorKind, UpstreamRejected


@dataclass(frozen=True, slots=True)
class Lessons:
    """What one target has taught so far.

    Attributes:
        stream_only: it answers only as a stream.
        always_thinks: its reasoning cannot be turned off, and asking is refused.
        refused: fields it refuses.
        max_tokens: the most it lets an answer have, None if it has not said.
    """

    stream_only: bool = False
    always_thinks: bool = False
    refused: frozenset[str] = frozenset()
    max_tokens: int | None = None

    def __or__(self, other: Lessons) -> Lessons:
        """Both lessons; two calls may learn different things at the same time."""
        caps = [cap for cap in (self.max_tokens, other.max_tokens) if cap is not None]
        return Lessons(
            self.stream_only or other.stream_only,
            self.always_thinks or other.always_thinks,
            self.refused | other.refused,
            min(caps, default=None),
        )


_THINKING = frozenset(
    {"chat_template_kwargs", "enable_thinking", "reasoning_effort"}
    | {"thinking_budget", "thinking_token_budget"}
)

_OURS = _THINKING | {
    *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "repeat_penalty", "max_tokens", "stream_options"),
}


def _needs_a_stream(lessons: Lessons, _: re.Match[str]) -> Lessons:
    return replace(lessons, stream_only=True)


def _cannot_stop_thinking(lessons: Lessons, _: re.Match[str]) -> Lessons:
    return replace(lessons, always_thinks=True)


def _cannot_think(lessons: Lessons, _: re.Match[str]) -> Lessons:
    return replace(lessons, refused=lessons.refused | _THINKING)


def _has_a_cap(lessons: Lessons, found: re.Match[str]) -> Lessons:
    return replace(lessons, max_tokens=int(found["cap"]))


def _refuses(lessons: Lessons, found: re.Match[str]) -> Lessons:
    named = frozenset(re.findall(r"\w+", found["names"]))
    return replace(lessons, refused=lessons.refused | (named & _OURS))


_Change = Callable[[Lessons, re.Match[str]], Lessons]

_TABLE: tuple[tuple[re.Pattern[str], _Change], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), change)
    for pattern, change in (
        # DashScope: Omni, QwQ, and the open Qwen3 while thinking
        (r"only supports? stream", _needs_a_stream),
        (r"does not support http call", _needs_a_stream),
        (r"enable_thinking must be set to false for non-streaming", _needs_a_stream),
        (r"enable_thinking.{0,80}(restricted to|must be) true", _cannot_stop_thinking),
        (r"range of max_tokens should be \[1, ?(?P<cap>\d{1,9})\]", _has_a_cap),
        # Ollama
        (r"does not support thinking", _cannot_think),
        # transformers; OpenAI; FastAPI with pydantic's `extra="forbid"`
        (r"un(expected|supported) fields in the request: (?P<names>.*)", _refuses),
        (r"unrecognized request arguments? supplied: (?P<names>.*)", _refuses),
        (r"un(supported|known) (parameter|value): ?(?P<names>'\w+')", _refuses),
        (r"body\.(?P<names>\w+): extra inputs are not permitted", _refuses),
    )
)


def learn(lessons: Lessons, error: UpstreamRejected) -> Lessons | None:
    """What a refusal adds to what the refused call already knew.

    Returns:
        The lessons to try again with, None if the refusal teaches nothing new.
    """
    if error.kind is not ErrorKind.REQUEST:
        return None
    for pattern, change in _TABLE:
        found = pattern.search(error.message)
        if found:
            better = change(lessons, found)
            if better != lessons:
                return better
    return None
