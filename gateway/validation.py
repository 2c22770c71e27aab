"""What a caller hands in -> a `GenerationRequest`, or an `InvalidRequest` with the remedy."""

from __future__ import annotations

import itertools
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
_INSTEAD_OF_TEXT = frozenset({"tool_calls", "function_call", "refusal", "audio"})
_USUAL_KINDS = (bool, str, int, str, bool)
_NOT_SAMPLING = frozenset(_OURS)
_FOREVER_S = 1e9
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
    key: str = "",
    raw: bool = False,
    trace: str = "",
    generation_id: str = "",
) -> GenerationRequest:
    """Check a caller's arguments and make a request of them; see `Gateway.generate`.

    Raises:
        InvalidRequest: names the argument and the remedy.
    """
    if deadline_s is not None:
        _check_deadline(deadline_s)
    kinds = (type(allow_degrade), type(tenant), type(priority), type(key), type(raw))
    if kinds != _USUAL_KINDS:  # one comparison instead of five calls, for nearly everyone
        _check_kind(allow_degrade, bool, "allow_degrade", "True or False")
        _check_kind(tenant, str, "tenant", "a string")
        _check_kind(priority, int, "priority", "a whole number, 0 for the first in line")
        _check_kind(key, str, "key", "the name of a [keys.NAME] table")
        _check_kind(raw, bool, "raw", "True or False")
    if raw and not isinstance(prompt, str):
        raise InvalidRequest("raw takes a string, not chat messages", param="prompt")
    if extra_body is not None:
        _check_kind(extra_body, Mapping, "extra_body", "a dict of body fields")
        params = {**params, **extra_body}
    if not _NOT_SAMPLING.isdisjoint(params):
        name = next(name for name in _OURS if name in params)
        raise InvalidRequest(f"{name} is not a sampling field: {_OURS[name]}", param=name)
    if on_interrupt not in _POLICIES:
        raise InvalidRequest(
            f"on_interrupt must be one of {', '.join(_POLICIES)}, got {on_interrupt!r}",
            param="on_interrupt",
        )
    return GenerationRequest(
        id=generation_id or new_id(),
        mode=mode,
        messages=check_messages(prompt),
        params=dict(params),
        deadline=float("inf") if deadline_s is None else now + deadline_s,
        buffered=buffered,
        on_interrupt=on_interrupt,
        allow_degrade=allow_degrade,
        cache=_WITH_CACHE if cache is True else _cache_control(cache),
        tenant=tenant,
        priority=priority,
        key=key,
        raw=raw,
        trace=trace,
        started=now,
    )


def _check_deadline(deadline_s: Any) -> None:
    number = isinstance(deadline_s, (int, float)) and not isinstance(deadline_s, bool)
    if not (number and 0 < deadline_s < _FOREVER_S):
        raise InvalidRequest(
            f"deadline must be a positive number of seconds, got {_short(deadline_s)}",
            param="deadline",
        )


def _check_kind(value: Any, kind: type, param: str, expected: str) -> None:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidRequest(f"{param} must be {expected}, got {_short(value)}", param=param)


def _cache_control(cache: CacheControl | bool) -> CacheControl:
    if isinstance(cache, bool):
        return _WITH_CACHE if cache else _WITHOUT_CACHE
    _check_kind(cache, CacheControl, "cache", "True, False or a CacheControl")
    max_age_s: Any = cache.max_age_s
    if max_age_s is None:
        return cache
    number = isinstance(max_age_s, (int, float)) and not isinstance(max_age_s, bool)
    if not (number and max_age_s >= 0):
        raise InvalidRequest(
            f"max_age_s must be a number of seconds >= 0, got {_short(max_age_s)}", param="cache"
        )
    return cache


def _short(value: Any) -> str:
    """What was given instead, without quoting a whole prompt or a number of a million digits."""
    try:
        shown = repr(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits
        return "a huge number"
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def check_messages(prompt: str | Sequence[Message]) -> list[Message]:
    """Return chat messages; a plain string becomes one user message.

    Raises:
        InvalidRequest: empty, too long, or not in the shape of chat messages.
    """
    if isinstance(prompt, str):
        if not prompt or prompt.isspace():
            raise InvalidRequest("the prompt is empty; say what you want", param="prompt")
        _check_length(len(prompt), "prompt")
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
    if not length:
        raise InvalidRequest("the messages are all empty; say what you want", param="messages")
    _check_length(length, "messages")
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
    # What an assistant may have said instead of text; clients send it back as it came.
    calls = 0
    if not _INSTEAD_OF_TEXT.isdisjoint(message):
        calls = int(any(message.get(said) for said in _INSTEAD_OF_TEXT))
    if isinstance(content, str):
        return calls + (len(content) if content.strip() else 0)
    if content is None and calls:
        return calls
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        return calls + sum(_part_length(part) for part in content)
    raise InvalidRequest(
        f"{place}.content must be a string or a list of content parts, "
        f"got {type(content).__name__}",
        param=f"{place}.content",
    )


def _part_length(part: Mapping[str, Any]) -> int:
    text = part.get("text")
    return len(text) if isinstance(text, str) else 1  # an image is no text, and not nothing either


def _check_length(length: int, param: str) -> None:
    if length > MAX_PROMPT_CHARACTERS:
        raise InvalidRequest(
            f"the prompt has {length} characters; at most {MAX_PROMPT_CHARACTERS} are taken",
            param=param,
        )


_WITH_CACHE = CacheControl()
_WITHOUT_CACHE = CacheControl(read=False, store=False, stale_if_error=False)
