"""Any error as OpenAI's envelope and headers, and the errors only HTTP knows.

Clients decide by status, `type`, `code` and, some of them, by phrases in the message; what each
of our errors becomes stands in one table (`_KINDS`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec

from gateway.detectors.failures import Outcome, judge
from gateway.errors import (
    AllModesFailed,
    ErrorKind,
    GatewayError,
    InvalidRequest,
    UpstreamError,
)

_encode = msgspec.json.Encoder().encode

# A client that reads a wait of more than a minute gives up (openai-node) or really waits it out.
_WAIT_BOUNDS_S = (1.0, 60.0)
# Trying again this soon meets a place that is free by then.
_SOON_S = 2.0

_SERVER_ERROR = {
    "message": "the gateway failed; see its log",
    "type": "server_error",
    "param": None,
    "code": "internal_error",
}


class NotFound(InvalidRequest):
    """No such path."""

    http_status = 404
    type = "not_found_error"
    code = "not_found"


class ModelNotFound(InvalidRequest):
    """No mode, alias or model of that name."""

    http_status = 404
    type = "not_found_error"
    code = "model_not_found"


class PermissionDenied(InvalidRequest):
    """The key is known but may not do this."""

    http_status = 403
    type = "permission_error"
    code = "permission_denied"


class MethodNotAllowed(InvalidRequest):
    """The path is there, for other methods."""

    http_status = 405
    code = "method_not_allowed"

    def __init__(self, method: str, allowed: list[str]) -> None:
        super().__init__(f"{method[:20]} is not allowed here; use {' or '.join(allowed)}")
        self.headers = [("allow", ", ".join(allowed))]


class RequestTimedOut(InvalidRequest):
    """The client took too long to send its request."""

    http_status = 408
    code = "request_timeout"


class BodyTooLarge(InvalidRequest):
    """The body is longer than `[server] max_body_bytes`."""

    http_status = 413
    code = "request_too_large"


class UnsupportedMediaType(InvalidRequest):
    """Not JSON."""

    http_status = 415
    code = "unsupported_media_type"


class _Wire(NamedTuple):
    """What an upstream's error is to the client; None leaves the error's own.

    `phrases` are what clients that read messages look for (LangChain, qwen-agent): if one of them
    is missing, `hint`, which has them all, is added.
    """

    status: int | None = None
    type: str | None = None
    code: str | None = None
    phrases: tuple[str, ...] = ()
    hint: str = ""


_KINDS: dict[ErrorKind, _Wire] = {
    ErrorKind.CONNECT: _Wire(502, "server_error", "upstream_connection_error"),
    ErrorKind.OVERLOADED: _Wire(503, "server_error", "upstream_overloaded"),
    ErrorKind.LOADING: _Wire(503, "server_error", "upstream_loading"),
    ErrorKind.BILLING: _Wire(429, "rate_limit_error", "insufficient_quota"),
    # It is our key that is wrong, not the caller's.
    ErrorKind.AUTH: _Wire(502, "server_error", "upstream_authentication"),
    ErrorKind.MODEL: _Wire(404, "not_found_error", "model_not_found"),
    ErrorKind.CONTEXT: _Wire(
        400,
        "invalid_request_error",
        "context_length_exceeded",
        ("context_length_exceeded", "maximum context length", "exceeds the context window"),
        "context_length_exceeded: it exceeds the context window, the maximum context length",
    ),
    ErrorKind.CONTENT: _Wire(
        400,
        "invalid_request_error",
        "content_filter",
        ("inappropriate content",),
        "content_filter: inappropriate content",
    ),
}
_OWN = _Wire()


def status_of(error: BaseException) -> int:
    """The HTTP status of any error."""
    if not isinstance(error, GatewayError):
        return 500
    status = _wire(error).status or error.http_status
    return status if 400 <= status <= 599 else 502


def error_fields(error: BaseException) -> dict[str, Any]:
    """OpenAI's error object; what is not ours says nothing of its inside."""
    if not isinstance(error, GatewayError):
        return _SERVER_ERROR
    wire = _wire(error)
    fields: dict[str, Any] = {
        "message": _message(error.message, wire),
        "type": wire.type or error.type,
        "param": getattr(error, "param", None),
        "code": wire.code or error.code,
    }
    if isinstance(error, AllModesFailed):
        fields["causes"] = {mode: cause.message for mode, cause in error.causes.items()}
    return fields


def envelope(error: BaseException) -> bytes:
    """Any error as the body of an answer, or as the event that ends a stream."""
    return _encode({"error": error_fields(error)})


def error_headers(error: BaseException) -> list[tuple[str, str]]:
    """`retry-after` (1 to 60 s, in both units) where trying again can help, and whether to."""
    headers = [("content-type", "application/json"), *getattr(error, "headers", ())]
    said = _wait_s(error)
    if said is not None:
        low, high = _WAIT_BOUNDS_S
        wait = min(high, max(low, said))  # in this order a NaN ends up as `low`
        headers.append(("retry-after", str(math.ceil(wait))))
        headers.append(("retry-after-ms", str(math.ceil(wait * 1000))))
    headers.append(("x-should-retry", "true" if _can_help(error, said) else "false"))
    return headers


def error_reply(error: BaseException) -> tuple[int, list[tuple[str, str]], bytes]:
    """Any error as a whole reply."""
    return status_of(error), error_headers(error), envelope(error)


def _wire(error: GatewayError) -> _Wire:
    return _KINDS.get(error.kind, _OWN) if isinstance(error, UpstreamError) else _OWN


def _wait_s(error: BaseException) -> float | None:
    """What the error says, else how long we ourselves leave that upstream alone."""
    wait: float | None = getattr(error, "retry_after", None)
    if wait is None and isinstance(error, UpstreamError):
        judgement = judge(error)
        wait = None if judgement.out else judgement.cool_s or None
    return wait


def _can_help(error: BaseException, wait: float | None) -> bool:
    """Whether the same client should ask again: who was told a limit and a time, or will find a
    place in a moment. Never where our own attempts failed: that multiplies an outage.
    """
    if wait is None or _spent(error):
        return False
    return wait <= (_WAIT_BOUNDS_S[1] if status_of(error) == 429 else _SOON_S)


def _spent(error: BaseException) -> bool:
    """Whether we have tried, and failed."""
    if isinstance(error, AllModesFailed):
        return any(map(_spent, error.causes.values()))
    return isinstance(error, UpstreamError) and judge(error).outcome is Outcome.FAILURE


def _message(message: str, wire: _Wire) -> str:
    # msgspec refuses lone surrogates, and an error must always be sayable.
    message = message.encode("utf-8", "replace").decode()
    lower = message.lower()
    return message if all(p in lower for p in wire.phrases) else f"{message} ({wire.hint})"
