"""Every way a request can fail, as one tree.

    GatewayError
    ├── ConfigError (also ValueError)   names file, table, key and the remedy
    ├── RequestRejected                 we refused; nothing was sent upstream
    │   ├── InvalidRequest         400
    │   ├── AuthenticationFailed   401
    │   ├── AdmissionRejected      429
    │   └── CircuitOpen            503
    ├── UpstreamError                   something was sent; `kind` says what went wrong
    │   ├── UpstreamTimeout        504  phase: connect | headers | first_token | stall | total
    │   ├── UpstreamUnavailable    502
    │   ├── UpstreamThrottled      429
    │   ├── UpstreamRejected       4xx
    │   └── StreamInterrupted      502  carries the partial text
    ├── DeadlineExceeded (also TimeoutError) 504
    └── AllModesFailed (also ExceptionGroup) 503   one cause per mode tried

Catch a broad class to handle, a narrow one to recover. Errors carry plain values (never a request
or a response object), so they can be logged, pickled and raised across layers without a circle.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, ClassVar


class ErrorKind(StrEnum):
    """What an upstream did wrong, in the terms a policy needs (behaviour.md, *What counts*)."""

    CONNECT = "connect"  # refused, DNS, TLS, reset before any byte of the answer
    TIMEOUT = "timeout"  # one of our own clocks ran out
    SERVER = "server"  # 500, 502, 504, an error event inside a 200, `error_finish`
    MALFORMED = "malformed"  # broken JSON, wrong content type
    INTERRUPTED = "interrupted"  # ended without finish_reason or [DONE]
    EMPTY = "empty"  # a complete answer with nothing in it
    OVERLOADED = "overloaded"  # 503/529, queue full
    LOADING = "loading"  # 503 while the model loads
    RATE = "rate"  # 429: requests per minute
    BURST = "burst"  # 429: rate grew too quickly
    TOKENS = "tokens"  # 429: tokens per minute
    BILLING = "billing"  # unpaid, free tier exhausted: dead until a person acts
    AUTH = "auth"  # 401, 403: our key, not the caller's
    MODEL = "model"  # unknown model at this target
    CONTEXT = "context"  # prompt longer than the model's window
    CONTENT = "content"  # content filter
    REQUEST = "request"  # any other 4xx: the caller's fault


class GatewayError(Exception):
    """Base of everything this package raises on purpose.

    Attributes:
        http_status: the status an HTTP server should answer with.
        type: OpenAI's `error.type`.
        code: OpenAI's `error.code`, a stable string.
        retry_after: seconds after which trying again can help, or None.
    """

    http_status: int = 500
    type: str = "server_error"
    code: str = "gateway_error"
    retry_after: float | None = None

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        if retry_after is not None:
            self.retry_after = retry_after

    @property
    def message(self) -> str:
        """What happened and, where something can be done about it, what."""
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy by value: the constructors' keywords are attributes by then."""
        return _rebuilt, (type(self), self.args, dict(self.__dict__))


def _rebuilt(
    kind: type[GatewayError], args: tuple[Any, ...], state: dict[str, Any]
) -> GatewayError:
    error = kind.__new__(kind, *args)
    error.args = args[:1]
    error.__dict__.update(state)
    return error


class ConfigError(GatewayError, ValueError):
    """The configuration is wrong. The message names the place, what was expected, and the remedy.

    Args:
        message: one sentence: what is wrong and how to mend it.
        file: path of the file, or None for a configuration built in code.
        table: the TOML table, such as `modes.creative.targets[0]`.
        key: the key in that table.

    Attributes:
        reason: the message without the place.
    """

    code = "config_error"

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        table: str | None = None,
        key: str | None = None,
    ) -> None:
        place = ": ".join(part for part in (file, f"[{table}]" if table else None, key) if part)
        super().__init__(f"{place}: {message}" if place else message)
        self.reason = message
        self.file, self.table, self.key = file, table, key


class RequestRejected(GatewayError):
    """We refused; nothing was sent upstream, so repeating the request is always safe."""

    http_status = 503
    code = "request_rejected"


class InvalidRequest(RequestRejected):
    """The call itself is wrong: the message names the argument and the remedy."""

    http_status = 400
    type = "invalid_request_error"
    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class AuthenticationFailed(RequestRejected):
    """The caller's own key is missing or wrong."""

    http_status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class AdmissionRejected(RequestRejected):
    """Every allowed mode is at its limit and the queue is full or too slow for the deadline."""

    http_status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class CircuitOpen(RequestRejected):
    """The requested mode is held open and the caller forbade a lower one."""

    code = "circuit_open"

    def __init__(self, message: str, *, mode: str, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.mode = mode


class UpstreamError(GatewayError):
    """Something was sent upstream and went wrong.

    Args:
        message: what happened, in words; never a credential, never a prompt.
        kind: what went wrong, see `ErrorKind`.
        target: which target, such as `dashscope/qwen3.8-max`.
        status: the upstream's HTTP status, if there was one.
        upstream_code: the upstream's own error code, as a string.
        retry_after: seconds the upstream asked us to wait.
    """

    http_status = 502
    code = "upstream_error"
    default_kind: ClassVar[ErrorKind] = ErrorKind.SERVER

    def __init__(
        self,
        message: str,
        *,
        kind: ErrorKind | None = None,
        target: str = "",
        status: int | None = None,
        upstream_code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.kind = kind or self.default_kind
        self.target = target
        self.status = status
        self.upstream_code = upstream_code


class UpstreamTimeout(UpstreamError, TimeoutError):
    """One of our own clocks ran out: `phase` says which."""

    http_status = 504
    code = "upstream_timeout"
    default_kind = ErrorKind.TIMEOUT

    def __init__(self, message: str, *, phase: str, target: str = "") -> None:
        super().__init__(message, target=target)
        self.phase = phase


class UpstreamUnavailable(UpstreamError):
    """No connection, a 5xx, a broken or empty answer, or an overloaded upstream."""

    code = "upstream_unavailable"


class UpstreamThrottled(UpstreamError):
    """A 429, or a credential that is out of quota: heard by limits, ignored by circuits."""

    http_status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    default_kind = ErrorKind.RATE


class UpstreamRejected(UpstreamError):
    """A 4xx. `http_status` is the upstream's own where it is the caller's fault, else 502."""

    type = "invalid_request_error"
    code = "upstream_rejected"
    default_kind = ErrorKind.REQUEST

    _CODES: ClassVar[dict[ErrorKind, tuple[int | None, str]]] = {
        ErrorKind.AUTH: (502, "upstream_authentication"),
        ErrorKind.MODEL: (404, "model_not_found"),
        ErrorKind.CONTEXT: (400, "context_length_exceeded"),
        ErrorKind.CONTENT: (400, "content_filter"),
    }

    def __init__(
        self,
        message: str,
        *,
        kind: ErrorKind | None = None,
        target: str = "",
        status: int | None = None,
        upstream_code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(
            message,
            kind=kind,
            target=target,
            status=status,
            upstream_code=upstream_code,
            retry_after=retry_after,
        )
        fixed, code = self._CODES.get(self.kind, (None, self.code))
        self.http_status = fixed or status or 400
        self.code = code


class StreamInterrupted(UpstreamError):
    """The answer stopped before its end. `partial` is the text that had arrived."""

    code = "stream_interrupted"
    default_kind = ErrorKind.INTERRUPTED

    def __init__(
        self,
        message: str,
        *,
        kind: ErrorKind | None = None,
        target: str = "",
        mode: str = "",
        partial: str = "",
    ) -> None:
        super().__init__(message, kind=kind, target=target)
        self.mode = mode
        self.partial = partial


class DeadlineExceeded(GatewayError, TimeoutError):
    """The caller's deadline passed. `partial` is the text that had arrived by then."""

    http_status = 504
    code = "deadline_exceeded"

    def __init__(self, message: str, *, partial: str = "") -> None:
        super().__init__(message)
        self.partial = partial


class AllModesFailed(GatewayError, ExceptionGroup):
    """Every mode the request was allowed to use failed or was closed to it.

    An `ExceptionGroup` with one cause per mode tried, so `except* UpstreamTimeout` works;
    `causes` holds the same as `{mode: error}`; `retry_after` is the earliest that can heal.
    """

    http_status = 503
    code = "all_modes_failed"

    def __new__(
        cls,
        message: str,
        causes: dict[str, GatewayError] | Sequence[GatewayError],
        *,
        retry_after: float | None = None,
    ) -> AllModesFailed:
        members = list(causes.values()) if isinstance(causes, dict) else list(causes)
        return super().__new__(cls, message, members)

    def __init__(
        self,
        message: str,
        causes: dict[str, GatewayError] | Sequence[GatewayError],
        *,
        retry_after: float | None = None,
    ) -> None:
        GatewayError.__init__(self, message, retry_after=retry_after)
        self.causes: dict[str, GatewayError] = dict(causes) if isinstance(causes, dict) else {}

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), (self.message, self.exceptions), dict(self.__dict__))

    def derive(self, excs: Sequence[Exception]) -> ExceptionGroup:  # type: ignore[override]
        """Keep the parts that `except*` did not take as a plain group."""
        return ExceptionGroup(self.message, list(excs))
