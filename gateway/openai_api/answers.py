"""What every answer bears, whatever its route: who gave it, when, what it cost, why it ended."""

from __future__ import annotations

import time
from typing import Any

from gateway.generation import Served, Usage

FINISHED = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
"""The only finish reasons strict clients know."""

_DETAILS = ("prompt_tokens_details", "completion_tokens_details")
# Before and after these a time stamp is no count of Unix seconds (some servers say 0, or ms).
_EARLIEST, _LATEST = 1_000_000_000, 4_000_000_000


def facts(served: Served) -> dict[str, Any]:
    """Who answered and why, as plain data: the key `gateway` of an answer."""
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


def usage_of(usage: Usage) -> dict[str, Any]:
    """Token counts: the three every client reads, and the upstream's details where it has any."""
    counts: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    if len(usage.details) > len(counts):
        counts = {**usage.details, **counts}
        for name in _DETAILS:  # vLLM sends null, which LangChain's reading does not survive
            if name in counts and not isinstance(counts[name], dict):
                del counts[name]
    return counts


def detail(usage: Usage, part: str, name: str) -> int:
    """A count inside the usage details, 0 where the upstream does not say."""
    details = usage.details.get(part)
    count = details.get(name) if isinstance(details, dict) else None
    return count if isinstance(count, int) else 0


def finish_reason(reason: str | None, *, called_tools: bool = False) -> str:
    """Why an answer that is whole ended; who did not say meant one of these two."""
    if reason in FINISHED:
        return str(reason)
    return "tool_calls" if called_tools else "stop"


def created(stamp: int = 0) -> int:
    """`stamp` if it can be Unix seconds, else now."""
    return stamp if _EARLIEST < stamp < _LATEST else int(time.time())
