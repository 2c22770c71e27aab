"""One parser for what upstreams say when they fail.

Six shapes of error body are in use: `{"error": {...}}` (OpenAI, DashScope, vLLM, llama.cpp), the
same flat (SGLang, LMDeploy, DashScope's own API), `{"error": "...", "error_type": "..."}` (TGI),
`{"error": "..."}` (Ollama), `{"detail": ...}` (FastAPI, so transformers), and plain text or HTML
(proxies). What they mean is told by codes first, then by phrases, then by the HTTP status.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from gateway.errors import (
    ErrorKind,
    StreamInterrupted,
    UpstreamError,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from gateway.providers.error_words import Words, presentable, read, read_object


class _Rule(NamedTuple):
    """A phrase that tells the kind of an error.

    `pattern` is searched in `code | type | message`, lower case. `statuses` narrows it to some HTTP
    statuses; None also matches inside a stream, where there is no status.
    """

    pattern: re.Pattern[str]
    kind: ErrorKind
    statuses: frozenset[int] | None = None


def _rule(pattern: str, kind: ErrorKind, *statuses: int) -> _Rule:
    return _Rule(re.compile(pattern), kind, frozenset(statuses) or None)


# First match wins. Codes as DashScope's error page, OpenAI's and the servers' sources have them.
_RULES: tuple[_Rule, ...] = (
    # Dead until a person acts. DashScope's "Free allocated quota exceeded" is one of these; the
    # same code without "free" is tokens per minute, and heals within one.
    _rule(
        r"\barrearage\b|billoverdue|commoditynotpurchased|unpurchased|freetieronly"
        r"|billing_hard_limit|billing_not_active|free (allocated )?quota|free tier"
        r"|(insufficient_|allocation)quota\b.*\bfree\b",
        ErrorKind.BILLING,
    ),
    _rule(
        r"data_?inspection_?failed|content_filter|content_policy_violation|inappropriate content",
        ErrorKind.CONTENT,
    ),
    _rule(
        r"context_length_exceeded|exceed_context_size_error|maximum context length"
        r"|longer than the model's context length|exceeds the available context size"
        r"|range of input length should be|input tokens exceed the configured limit"
        r"|prompt is too long|`inputs` tokens \+ `max_new_tokens` must be",
        ErrorKind.CONTEXT,
    ),
    _rule(r"burst_?rate|rate increased too quickly", ErrorKind.BURST),
    _rule(r"allocationquota|insufficient_quota|allocated quota", ErrorKind.TOKENS),
    _rule(r"tokens per min|\btpm\b", ErrorKind.TOKENS, 429),
    _rule(r"^throttling|\blimit_?requests\b|ratequota|rate_limit_exceeded", ErrorKind.RATE),
    _rule(r"overloaded|queue is full|server busy|at capacity", ErrorKind.OVERLOADED, 429),
    _rule(r"model_?not_?found|model_not_supported", ErrorKind.MODEL),
    _rule(
        r"\bmodel:? ?[`'\"]?[\w./:@-]*[`'\"]? (does not exist|not found|not exist)"
        r"|server is pinned to",
        ErrorKind.MODEL,
        *(400, 403, 404, 422),
    ),
    _rule(r"invalid_?api_?key|not authorized|accessdenied", ErrorKind.AUTH),
    _rule(r"overloaded_error|modelservingerror|modelunavailable", ErrorKind.OVERLOADED),
    _rule(
        r"(?<!error )(?<!failed )\bloading (the )?model|\b(is|still|currently) loading"
        r"|warming up|starting up",
        ErrorKind.LOADING,
        503,
    ),
    _rule(
        r"queue|overload|\bbusy\b|capacity|too many|pending requests|higher priority"
        r"|waiting timeout",
        ErrorKind.OVERLOADED,
        *(503, 529),
    ),
    # DashScope answers 500 to some mistakes of the caller.
    _rule(r"list index out of range|role must be in", ErrorKind.REQUEST, 500),
)

_STATUSES: dict[int, ErrorKind] = {
    401: ErrorKind.AUTH,
    402: ErrorKind.BILLING,
    403: ErrorKind.AUTH,
    # A chat route that is not there is this target's fault, not the caller's: a mode further
    # down can answer, and a person must look.
    404: ErrorKind.MODEL,
    405: ErrorKind.MODEL,
    408: ErrorKind.SERVER,
    409: ErrorKind.OVERLOADED,  # LMDeploy: the session is in use
    424: ErrorKind.SERVER,  # TGI: generation failed
    429: ErrorKind.RATE,
    499: ErrorKind.OVERLOADED,  # LMDeploy: the engine dropped the request
    501: ErrorKind.REQUEST,  # llama.cpp, vLLM: this server does not offer what was asked
    529: ErrorKind.OVERLOADED,
}

_BROKEN = ("error", "error_finish", "abort")

_CLASSES: dict[ErrorKind, type[UpstreamError]] = {
    ErrorKind.RATE: UpstreamThrottled,
    ErrorKind.BURST: UpstreamThrottled,
    ErrorKind.TOKENS: UpstreamThrottled,
    ErrorKind.BILLING: UpstreamThrottled,
    ErrorKind.AUTH: UpstreamRejected,
    ErrorKind.MODEL: UpstreamRejected,
    ErrorKind.CONTEXT: UpstreamRejected,
    ErrorKind.CONTENT: UpstreamRejected,
    ErrorKind.REQUEST: UpstreamRejected,
}


def parse_error(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    kind: str,
    target: str,
    now: float | None = None,
    secrets: Sequence[str] = (),
) -> UpstreamError:
    """Turn an answer that is no 2xx into the error it means. Never raises.

    Args:
        status: the HTTP status.
        headers: names in lower case.
        body: as far as it was read.
        kind: the backend's kind, see `capabilities`: codes differ in meaning.
        target: for the error's `target` and message.
        now: Unix seconds, for a Retry-After that is a date beside no `Date` header.
        secrets: credentials that must not appear in it.
    """
    words = read(body)
    what = _known(words, status, kind) or _by_status(status)
    said = words.message or words.code or "no more was said"
    return _CLASSES.get(what, UpstreamUnavailable)(
        f"{target} answered {status}: {presentable(said, secrets)}",
        kind=what,
        target=target,
        status=status,
        upstream_code=presentable(words.code or words.type, secrets)[:100] or None,
        retry_after=retry_after(headers, now=now),
    )


def parse_event_error(
    payload: object, *, kind: str, target: str, secrets: Sequence[str] = ()
) -> UpstreamError:
    """Turn an error inside a 200 into the error it means. Never raises.

    A throttle, a filtered text and the like keep their meaning; everything else is a server's
    fault (behaviour.md, *What counts*), whatever code it puts on it, and so is an answer whose
    finish reason is an error (DashScope's `error_finish` puts the words into the content).

    Args:
        payload: the event: decoded, or the bytes of an event named `error`.
        kind: the backend's kind.
        target: for the error's `target` and message.
        secrets: credentials that must not appear in it.
    """
    finish = broken_finish(payload)
    if finish == "abort":
        return StreamInterrupted(f"{target} aborted its answer", target=target)
    words = read(payload) if isinstance(payload, bytes) else read_object(payload)
    if finish and not words.code:
        words = Words(_finish_words(payload) if finish == "error_finish" else words.message, finish)
    status = int(words.code) if re.fullmatch("[1-5][0-9]{2}", words.code) else 0
    what = (None if finish else _known(words, status, kind)) or ErrorKind.SERVER
    said = words.message or words.code or "no more was said"
    return _CLASSES.get(what, UpstreamUnavailable)(
        f"{target} failed within its answer: {presentable(said, secrets)}",
        kind=what,
        target=target,
        upstream_code=presentable(words.code or words.type, secrets)[:100] or None,
    )


def broken_finish(payload: object) -> str | None:
    """The finish reason that says an event ends its answer in failure, None if none does."""
    choices = payload.get("choices") if isinstance(payload, dict) else None
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("finish_reason") in _BROKEN:
            return str(choice["finish_reason"])
    return None


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Seconds an upstream asks us to wait, None if it does not say or says nonsense.

    A date is measured against the answer's own `Date` header, so our clock need not be right.
    The value is not bounded: whoever waits decides what is absurd. Never negative, never raises.

    Args:
        headers: names in lower case; `retry-after-ms` (OpenAI) goes before `retry-after`.
        now: Unix seconds to measure a date against if there is no `Date` header.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is None:
        until = _date(text)
        since = _date(headers.get("date"))
        base = since if since is not None else now
        if until is None or base is None:
            return None
        seconds = until - base
    return max(0.0, seconds)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _date(text: str | None) -> float | None:
    try:
        date: datetime = parsedate_to_datetime(text or "")
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _known(words: Words, status: int, kind: str) -> ErrorKind | None:
    """The kind that the words tell, None if they tell none."""
    text = f"{words.code} | {words.type} | {words.message}"[:4096].lower()
    for rule in _RULES:
        if (rule.statuses is None or status in rule.statuses) and rule.pattern.search(text):
            if rule.kind is ErrorKind.TOKENS:
                return _quota(text, kind)
            return rule.kind
    return None


def _quota(text: str, kind: str) -> ErrorKind:
    """Tell an empty account from a minute's tokens used up: the code is the same."""
    spent_for_good = kind == "openai" and "insufficient_quota" in text
    return ErrorKind.BILLING if spent_for_good else ErrorKind.TOKENS


def _by_status(status: int) -> ErrorKind:
    if status >= 500:
        return _STATUSES.get(status, ErrorKind.SERVER)
    if status >= 400:
        return _STATUSES.get(status, ErrorKind.REQUEST)
    return ErrorKind.MALFORMED  # a redirect, or no answer at all: nothing a chat route may send


def _finish_words(payload: Any) -> str:
    """The error text that DashScope sends as content, or nothing."""
    choices = [choice for choice in payload["choices"] if isinstance(choice, dict)]
    deltas = [choice.get("delta") or choice.get("message") for choice in choices]
    contents = [delta.get("content") for delta in deltas if isinstance(delta, dict)]
    return "".join(content for content in contents if isinstance(content, str))
