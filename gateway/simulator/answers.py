"""What simulated models say: numbered words that follow from the question.

`amber-0 rose-1 musk-2 ` shows at a glance, and to an assertion, whether a token was lost, doubled
or came from another answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

WORDS = ("amber", "cedar", "clove", "fig", "iris", "jasmine", "musk", "neroli", "pepper", "rose")


def numbered_words(asked: object, count: int, *, first: int = 0) -> list[str]:
    """Tokens number `first` to `count` of the answer to `asked`, each with its trailing space.

    Args:
        asked: whatever the answer shall follow from, such as `[model, messages]`.
        count: tokens of the whole answer.
        first: the number to begin with, to continue an interrupted answer.
    """
    digest = hashlib.blake2b(msgspec.json.encode(asked, order="deterministic")).digest()
    return [
        f"{WORDS[digest[number % len(digest)] % len(WORDS)]}-{number} "
        for number in range(first, count)
    ]


def count_words(messages: Sequence[dict[str, Any]]) -> int:
    """The words of a prompt: what simulated models take for tokens."""
    return sum(len(str(message.get("content") or "").split()) for message in messages)
