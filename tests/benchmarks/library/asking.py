"""What every caller is given, and what it asks. Needs nothing but Python: peers have their own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.stub import EVENTS, TOKENS

QUESTION = "Name three woody perfume notes and say in one sentence each what they smell like. No. "

Call = Callable[[int], Awaitable[object]]
"""Asks once, given a number that never comes again, so that no cache has the answer."""

Kinds = dict[str, Call]
"""What a caller can do: "json", "stream" (read to its end), and kinds of its own."""


@dataclass(frozen=True, slots=True)
class Given:
    """Where a caller asks, and how.

    Args:
        urls: backends' base URLs, `/v1` included, best first.
        core: the core it is pinned to, -1 for none.
        failover: whether it is to fall back to the next backend, an attempt lasting 1 s at most.
        server: for a caller over HTTP: port, path, headers and body of its questions.
    """

    urls: list[str]
    core: int = -1
    failover: bool = False
    server: dict[str, Any] = field(default_factory=dict)


Make = Callable[[AsyncExitStack, Given], Awaitable[Kinds]]
"""Makes one caller on the running loop; what must be closed goes on the stack."""


def messages(number: int) -> list[dict[str, str]]:
    """A question that nobody asked before."""
    return [{"role": "user", "content": f"{QUESTION}{number}"}]


def body(number: int, *, stream: bool) -> dict[str, Any]:
    """The request as OpenAI's API has it."""
    found: dict[str, Any] = {
        "model": "creative",
        "messages": messages(number),
        "temperature": 0.2,
    }
    return {**found, "stream": True} if stream else found


def check_events(count: int) -> None:
    """A figure for streams that were not read whole would be worth nothing."""
    if not TOKENS <= count <= EVENTS + 1:  # some drop the first or add one with the usage
        raise RuntimeError(f"expected some {EVENTS} chunks, got {count}")
