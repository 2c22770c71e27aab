"""What a wrapped client raised, as the `UpstreamError` it means.

Clients are told by the shape of their exceptions, so none of their packages is imported: openai's
and httpx's status errors, their timeouts and connection errors, and the built-in ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.errors import (
    ErrorKind,
    StreamInterrupted,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.providers.dialects import parse_error, parse_event_error
from gateway.providers.error_words import presentable

_CONNECTION = frozenset(
    {"APIConnectionError", "TransportError", "ClientConnectionError", "ClientPayloadError"}
)


def upstream_error(error: BaseException, *, kind: str, target: str, begun: bool) -> UpstreamError:
    """Say what an exception of a wrapped client means. The caller raises it `from` the original.

    Args:
        error: what the client raised.
        kind: the backend's kind as far as it is known.
        target: the target's name, for errors.
        begun: whether part of the answer had arrived.
    """
    if isinstance(error, UpstreamError):
        return error
    names = {base.__name__ for base in type(error).__mro__}
    if isinstance(error, TimeoutError) or any("Timeout" in name for name in names):
        phase = "connect" if "ConnectTimeout" in names else "total"
        return UpstreamTimeout(
            f"{target}: its client's timeout ran out", phase=phase, target=target
        )
    response = getattr(error, "response", None)
    status = getattr(error, "status_code", None) or getattr(response, "status_code", None)
    if isinstance(status, int) and status >= 400:
        body = _body(error, response)
        return parse_error(status, _headers(response), body, kind=kind, target=target)
    event = getattr(error, "body", None)
    if isinstance(event, dict):  # openai's APIError: an error event within a stream
        return parse_event_error(event, kind=kind, target=target)
    said = presentable(f"{type(error).__name__}: {error}", ())
    lost = isinstance(error, OSError) or not _CONNECTION.isdisjoint(names)
    if lost and begun:
        return StreamInterrupted(f"{target} was cut short: {said}", target=target)
    what = ErrorKind.CONNECT if lost else ErrorKind.SERVER
    return UpstreamUnavailable(f"{target}: {said}", kind=what, target=target)


def _headers(response: Any) -> dict[str, str]:
    headers = getattr(response, "headers", None)
    if not isinstance(headers, Mapping):
        return {}
    return {str(name).lower(): str(value) for name, value in headers.items()}


def _body(error: BaseException, response: Any) -> bytes:
    """The error body as far as the client kept it: decoded, as bytes, or in its own words."""
    body = getattr(error, "body", None)
    with contextlib.suppress(Exception):  # a body that was never read, or is no JSON
        if body is None:
            body = getattr(response, "content", None)
        if isinstance(body, dict | list):
            body = msgspec.json.encode(body)
    return body if isinstance(body, bytes) else str(body or error).encode("utf-8", "replace")
