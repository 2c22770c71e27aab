"""Any error as OpenAI's envelope and headers, and the errors only HTTP knows."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.errors import AllModesFailed, GatewayError, InvalidRequest

_encode = msgspec.json.Encoder().encode
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


def envelope(error: BaseException) -> bytes:
    """Any error as OpenAI's error envelope; what is not ours says nothing of its inside."""
    if not isinstance(error, GatewayError):
        return _encode({"error": _SERVER_ERROR})
    fields: dict[str, Any] = {
        "message": error.message,
        "type": error.type,
        "param": getattr(error, "param", None),
        "code": error.code,
    }
    if isinstance(error, AllModesFailed):
        fields["causes"] = {mode: cause.message for mode, cause in error.causes.items()}
    return _encode({"error": fields})


def error_headers(error: BaseException) -> list[tuple[str, str]]:
    """`retry-after` (1 to 60 s, in both units) where trying again can help, and whether to."""
    headers = [("content-type", "application/json"), *getattr(error, "headers", ())]
    wait = getattr(error, "retry_after", None)
    if wait is not None:
        wait = min(60.0, max(1.0, wait))
        headers += [("retry-after", str(round(wait))), ("retry-after-ms", str(round(wait * 1000)))]
    # Our own second attempts are spent: a client that repeats them multiplies an outage.
    headers.append(("x-should-retry", "true" if wait is not None and wait <= 2 else "false"))
    return headers


def error_reply(error: BaseException) -> tuple[int, list[tuple[str, str]], bytes]:
    """Any error as a whole reply."""
    status = error.http_status if isinstance(error, GatewayError) else 500
    return status, error_headers(error), envelope(error)
