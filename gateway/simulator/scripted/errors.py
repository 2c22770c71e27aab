"""HTTP errors in the words and shapes of real backends, and what a provider must make of each."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import MappingProxyType
from typing import Any

import msgspec

from gateway.errors import ErrorKind

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class HttpError(msgspec.Struct, frozen=True):
    """One error answer.

    Attributes:
        status: HTTP status.
        body: a JSON document, or text sent as it is.
        kind: what a provider must make of it.
        headers: extra response headers; the value `in 3 s` becomes an HTTP date three seconds on,
            beside a `date` header to measure it against.
        retry_after: the seconds a provider must hear, None if the headers name none it can use.
    """

    status: int
    body: dict[str, Any] | str
    kind: ErrorKind
    headers: Mapping[str, str] = NO_HEADERS
    retry_after: float | None = None

    def header_values(self) -> dict[str, str]:
        """The headers as they go out now."""
        if "in 3 s" not in self.headers.values():
            return dict(self.headers)
        now = datetime.now(UTC)
        dated = {"in 3 s": format_datetime(now + timedelta(seconds=3), usegmt=True)}
        headers = {name: dated.get(value, value) for name, value in self.headers.items()}
        return {"date": format_datetime(now, usegmt=True), **headers}


def _openai(message: str, kind: str, code: str | int | None, **more: Any) -> dict[str, Any]:
    """The nested shape: OpenAI, DashScope, vLLM, llama.cpp, Ollama; `code` differs among them."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code, **more}}


def _dashscope(message: str, code: str) -> dict[str, Any]:
    return {**_openai(message, code, code), "request_id": "5f0c6c1e-scripted"}


def _sglang(message: str, kind: str, code: int) -> dict[str, Any]:
    """The flat shape, LMDeploy's too."""
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


def _llama_cpp(message: str, kind: str, code: int, **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "type": kind, **more}}


def _page(title: str) -> str:
    return f"<html><head><title>{title}</title></head><body>{title}</body></html>"


_FULL = _sglang("The request queue is full.", "503", 503)
_REQUESTS = _dashscope("You exceeded your current requests list.", "limit_requests")


def _slow_down(header: str, value: str, retry_after: float | None) -> HttpError:
    return HttpError(429, _REQUESTS, ErrorKind.RATE, {header: value}, retry_after)


HTTP_ERRORS: dict[str, HttpError] = {
    # Throttled: ignored by circuits, heard by limits.
    "429_requests": HttpError(429, _REQUESTS, ErrorKind.RATE),
    "429_native": HttpError(
        429,
        {
            "code": "Throttling.RateQuota",
            "message": "Requests rate limit exceeded, please try again later.",
            "request_id": "5f0c6c1e-scripted",
        },
        ErrorKind.RATE,
    ),
    "429_text": HttpError(429, "Too Many Requests", ErrorKind.RATE),
    "429_burst": HttpError(
        429,
        _dashscope(
            "Request rate increased too quickly. To ensure system stability, please adjust your "
            "client logic to scale requests more smoothly over time.",
            "limit_burst_rate",
        ),
        ErrorKind.BURST,
    ),
    "429_tokens": HttpError(
        429,
        _dashscope(
            "Allocated quota exceeded, please increase your quota limit.", "insufficient_quota"
        ),
        ErrorKind.TOKENS,
    ),
    "429_retry_after_seconds": _slow_down("retry-after", "2", 2.0),
    "429_retry_after_ms": _slow_down("retry-after-ms", "1500", 1.5),
    "429_retry_after_date": _slow_down("retry-after", "in 3 s", 3.0),
    "429_retry_after_zero": _slow_down("retry-after", "0", 0.0),
    "429_retry_after_negative": _slow_down("retry-after", "-5", 0.0),
    "429_retry_after_absurd": _slow_down("retry-after", "1000000000", 1e9),
    "429_retry_after_words": _slow_down("retry-after", "in a while", None),
    # Unpaid: dead until a person acts.
    "429_free_quota": HttpError(
        429, _dashscope("Free allocated quota exceeded.", "insufficient_quota"), ErrorKind.BILLING
    ),
    "429_overdue": HttpError(
        429, _dashscope("Postpaid bill is overdue.", "PostpaidBillOverdue"), ErrorKind.BILLING
    ),
    "400_arrearage": HttpError(
        400,
        _dashscope(
            "Access denied, please make sure your account is in good standing.", "Arrearage"
        ),
        ErrorKind.BILLING,
    ),
    "402": HttpError(
        402, _openai("Insufficient Balance", "billing_error", "billing"), ErrorKind.BILLING
    ),
    "403_free_tier": HttpError(
        403,
        _dashscope(
            "The free tier of the model has been exhausted.", "AllocationQuota.FreeTierOnly"
        ),
        ErrorKind.BILLING,
    ),
    # Busy or loading: ignored by circuits, cooled for a moment.
    "503_loading": HttpError(
        503, _llama_cpp("Loading model", "unavailable_error", 503), ErrorKind.LOADING
    ),
    "503_vllm": HttpError(
        503,
        _openai(
            "The engine is currently busy and cannot accept new requests. Please try again later "
            "or on a different instance.",
            "Service Unavailable",
            503,
        ),
        ErrorKind.OVERLOADED,
    ),
    "503_sglang": HttpError(503, _FULL, ErrorKind.OVERLOADED),
    "503_ollama": HttpError(
        503,
        _openai(
            "server busy, please try again.  maximum pending requests exceeded", "api_error", None
        ),
        ErrorKind.OVERLOADED,
    ),
    "503_dashscope": HttpError(
        503,
        _dashscope(
            "Too many requests. Your requests are being throttled due to system capacity limits.",
            "ModelServingError",
        ),
        ErrorKind.OVERLOADED,
    ),
    "503_retry_after": HttpError(503, _FULL, ErrorKind.OVERLOADED, {"retry-after": "4"}, 4.0),
    "529": HttpError(529, _openai("Overloaded", "overloaded_error", None), ErrorKind.OVERLOADED),
    "429_tgi": HttpError(
        429, {"error": "Model is overloaded", "error_type": "overloaded"}, ErrorKind.OVERLOADED
    ),
    # Broken: counts.
    "500": HttpError(500, _dashscope("Internal server error!", "InternalError"), ErrorKind.SERVER),
    "500_vllm": HttpError(
        500,
        _openai(
            "The server had an error while processing your request.", "InternalServerError", 500
        ),
        ErrorKind.SERVER,
    ),
    "500_text": HttpError(500, "Internal Server Error", ErrorKind.SERVER),
    "500_broken_json": HttpError(500, '{"error": {"message": "out of', ErrorKind.SERVER),
    "503_text": HttpError(503, "Service Unavailable", ErrorKind.SERVER),
    "502_html": HttpError(502, _page("502 Bad Gateway"), ErrorKind.SERVER),
    "504_html": HttpError(504, _page("504 Gateway Time-out"), ErrorKind.SERVER),
    # The credential, or the model's name: dead here, alive elsewhere.
    "401": HttpError(
        401, _dashscope("Incorrect API key provided.", "invalid_api_key"), ErrorKind.AUTH
    ),
    "403": HttpError(403, _dashscope("Access denied.", "AccessDenied"), ErrorKind.AUTH),
    "404_dashscope": HttpError(
        404,
        _dashscope(
            "The model `scripted` does not exist or you do not have access to it.",
            "model_not_found",
        ),
        ErrorKind.MODEL,
    ),
    "404_vllm": HttpError(
        404, _openai("The model `scripted` does not exist.", "NotFoundError", 404), ErrorKind.MODEL
    ),
    "404_ollama": HttpError(
        404,
        _openai('model "scripted" not found, try pulling it first', "not_found_error", None),
        ErrorKind.MODEL,
    ),
    # The prompt is longer than the window.
    "400_context_openai": HttpError(
        400,
        _openai(
            "This model's maximum context length is 8192 tokens. However, your messages resulted "
            "in 9001 tokens.",
            "invalid_request_error",
            "context_length_exceeded",
        ),
        ErrorKind.CONTEXT,
    ),
    "400_context_vllm": HttpError(
        400,
        _openai(
            "This model's maximum context length is 32768 tokens. However, you requested 40000 "
            "tokens in the messages. Please reduce the length of the messages.",
            "BadRequestError",
            400,
        ),
        ErrorKind.CONTEXT,
    ),
    "400_context_sglang": HttpError(
        400,
        _sglang(
            "The input (9001 tokens) is longer than the model's context length (8192 tokens).",
            "BadRequestError",
            400,
        ),
        ErrorKind.CONTEXT,
    ),
    "400_context_llama_cpp": HttpError(
        400,
        _llama_cpp(
            "request (6031 tokens) exceeds the available context size (2048 tokens), try "
            "increasing it",
            "exceed_context_size_error",
            400,
            n_prompt_tokens=6031,
            n_ctx=2048,
        ),
        ErrorKind.CONTEXT,
    ),
    "400_context_dashscope": HttpError(
        400,
        _dashscope("Range of input length should be [1, 30720]", "invalid_parameter_error"),
        ErrorKind.CONTEXT,
    ),
    "422_context_tgi": HttpError(
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. "
            "Given: 4000 `inputs` tokens and 512 `max_new_tokens`",
            "error_type": "validation",
        },
        ErrorKind.CONTEXT,
    ),
    # The caller's own fault: raised at once, never walked around.
    "400_content_dashscope": HttpError(
        400,
        _dashscope(
            "Input or output data may contain inappropriate content.", "data_inspection_failed"
        ),
        ErrorKind.CONTENT,
    ),
    "400_content_openai": HttpError(
        400,
        _openai(
            "The response was filtered due to the prompt triggering our content policy.",
            "invalid_request_error",
            "content_filter",
        ),
        ErrorKind.CONTENT,
    ),
    "400_thinking_only": HttpError(
        400,
        _dashscope(
            "The value of the enable_thinking parameter is restricted to True.",
            "invalid_parameter_error",
        ),
        ErrorKind.REQUEST,
    ),
    "422_transformers": HttpError(
        422, {"detail": "Unexpected fields in the request: {'foo'}"}, ErrorKind.REQUEST
    ),
    "422_fastapi": HttpError(
        422,
        {"detail": [{"loc": ["body", "messages"], "msg": "Field required", "type": "missing"}]},
        ErrorKind.REQUEST,
    ),
}
