"""What a caller hands in -> a `GenerationRequest`, or an `InvalidRequest` with the remedy."""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, cast

from gateway.errors import InvalidRequest
from gateway.generation import CacheControl, GenerationRequest, Message

MAX_PROMPT_CHARACTERS = 10_000_000
"""Longest prompt taken, all messages together; no model reads that much."""

_OURS = {
    "model": "a mode names its own model; choose one with mode=",
    "stream": "use gateway.stream(...) for a stream",
    "messages": "give the messages as the first argument",
}
_POLICIES = ("error", "continue")
# Ids are unique across processes by their random part, within one by their count.
_process = secrets.token_hex(5)
_count = itertools.count(1)


def new_id() -> str:
    """An id for one request and its generation, such as `gen-5f1c0a9b2e-1a`."""
    return f"gen-{_process}-{next(_count):x}"


def build_request(
    prompt: str | Sequence[Message],
    *,
    mode: str,
    now: float,
    params: Mapping[str, Any],
    extra_body: Mapping[str, Any] | None = None,
    deadline_s: float | None = None,
    allow_degrade: bool = True,
    cache: CacheControl | bool = True,
    tenant: str = "",
    buffered: bool = True,
    on_interrupt: str = "error",
    priority: int = 1,
) -> GenerationRequest:
    """Check a caller's arguments and make a request of them; see `Gateway.generate`.

    Raises:
        InvalidRequest: names the argument and the remedy.
    """
    if deadline_s is not None:
        number = isinstance(deadline_s, (int, float)) and not isinstance(deadline_s, bool)
        if not number or not deadline_s > 0 or math.isinf(deadline_s):
            raise InvalidRequest(
                f"deadline must be a positive number of seconds, got {deadline_s!r}",
                param="deadline",
            )
    params = {**params, **(extra_body or {})}
    for name, remedy in _OURS.items():
        if name in params:
            raise InvalidRequest(f"{name} is not a sampling field: {remedy}", param=name)
    if on_interrupt not in _POLICIES:
        raise InvalidRequest(
            f"on_interrupt must be one of {', '.join(_POLICIES)}, got {on_interrupt!r}",
            param="on_interrupt",
        )
    if isinstance(cache, bool):
        cache = _WITH_CACHE if cache else _WITHOUT_CACHE
    return GenerationRequest(
        id=new_id(),
        mode=mode,
        messages=check_messages(prompt),
        params=params,
        deadline=float("inf") if deadline_s is None else now + deadline_s,
        buffered=buffered,
        on_interrupt=on_interrupt,
        allow_degrade=allow_degrade,
        cache=cache,
        tenant=tenant,
        priority=priority,
        started=now,
    )


def check_messages(prompt: str | Sequence[Message]) -> list[Message]:
    """Return chat messages; a plain string becomes one user message.

    Raises:
        InvalidRequest: empty, too long, or not in the shape of chat messages.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise InvalidRequest("the prompt is empty; say what you want", param="prompt")
        _check_length(len(prompt))
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        raise InvalidRequest(
            f"the prompt must be a string or a list of messages, got {type(prompt).__name__}",
            param="prompt",
        )
    if not prompt:
        raise InvalidRequest("messages is empty; give at least one message", param="messages")
    length = 0
    for number, message in enumerate(prompt):
        length += _check_message(message, f"messages[{number}]")
    _check_length(length)
    return [dict(message) for message in cast("Sequence[Message]", prompt)]


def _check_message(message: Any, place: str) -> int:
    if not isinstance(message, Mapping):
        raise InvalidRequest(
            f'{place} must be a dict such as {{"role": "user", "content": "..."}}, '
            f"got {type(message).__name__}",
            param=place,
        )
    if not isinstance(message.get("role"), str) or not message["role"]:
        raise InvalidRequest(f"{place} has no role, such as 'user'", param=f"{place}.role")
    content = message.get("content")
    if content is None and (message.get("tool_calls") or message.get("function_call")):
        return 0
    if isinstance(content, str):
        return len(content)
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        return sum(len(p["text"]) for p in content if isinstance(p.get("text"), str))
    raise InvalidRequest(
        f"{place}.content must be a string or a list of content parts, "
        f"got {type(content).__name__}",
        param=f"{place}.content",
    )


def _check_length(length: int) -> None:
    if length > MAX_PROMPT_CHARACTERS:
        raise InvalidRequest(
            f"the prompt has {length} characters; at most {MAX_PROMPT_CHARACTERS} are taken",
            param="prompt",
        )


_WITH_CACHE = CacheControl()
_WITHOUT_CACHE = CacheControl(read=False, store=False, stale_if_error=False)
