"""What is asked and answered in the lab: questions with a number, answers that prove themselves.

    [q3fa9c1x12~cut]                       a question, with the mark that picks one play of several
    creative-s08-stream on q3fa9c1x12: 1 2 3 ... 56 end.        its answer

An answer names its model and its question, and counts. Whoever reads it sees at once whether it is
whole, whose it is, and whether a piece was lost, doubled or taken from another.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

LENGTHS = {"creative": 60, "balanced": 50, "fast": 40}
"""Tokens of each role's answer; they differ, so that usage tells who answered."""

_QUESTION = re.compile(r"\[(q[0-9a-f]+x\d+)(?:~([\w.-]+))?\]")


class Question(NamedTuple):
    """A question: its number, which nobody used before, and its mark."""

    number: str
    mark: str

    @property
    def text(self) -> str:
        """As it is asked."""
        mark = f"~{self.mark}" if self.mark else ""
        return f"Please count, for question [{self.number}{mark}]."


def questions() -> Iterator[str]:
    """Numbers for questions; no cache of any gateway has met them."""
    base = secrets.token_hex(3)
    return (f"q{base}x{count}" for count in itertools.count(1))


def find_question(messages: Sequence[Mapping[str, Any]]) -> Question:
    """The question in a chat, whatever a gateway has put around it; an empty one if none."""
    found = [_QUESTION.search(str(message.get("content"))) for message in messages]
    for match in reversed(found):
        if match is not None:
            return Question(match[1], match[2] or "")
    return Question("", "")


def answer_tokens(model: str, number: str) -> list[str]:
    """The answer of an upstream's model to a question, token by token."""
    length = LENGTHS.get(model.partition("-")[0], 30)
    counted = [f"{count} " for count in range(1, length - 3)]
    return [f"{model} ", "on ", f"{number}: ", *counted, "end."]


def answer_text(model: str, number: str) -> str:
    """The same in one piece."""
    return "".join(answer_tokens(model, number))
