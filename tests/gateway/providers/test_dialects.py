"""What upstreams say when they fail, in all their dialects (reference/ecosystem.md, Appendix A)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import (
    ErrorKind,
    StreamInterrupted,
    UpstreamError,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from gateway.providers.capabilities import KINDS
from gateway.providers.dialects import parse_error, parse_event_error, retry_after


def parse(status: int, body: object, kind: str = "vllm", **headers: str) -> UpstreamError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return parse_error(status, named, raw, kind=kind, target="t/m")


def nested(message: str, code: object = None, type_: str | None = None) -> object:
    return {"error": {"message": message, "type": type_, "param": None, "code": code}}


DASHSCOPE_QUOTA = "You exceeded your current quota, please check your plan and billing details."

WIRE: list[tuple[str, int, object, ErrorKind, str | None]] = [
    # kind, status, body, what it means, upstream code
    (
        "llama_cpp",
        400,
        {
            "error": {
                "code": 400,
                "message": "request (6031 tokens) exceeds the available context size (2048 tokens),"
                " try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 6031,
                "n_ctx": 2048,
            }
        },
        ErrorKind.CONTEXT,
        "400",
    ),
    ("llama_cpp", 503, nested("Loading model", 503, "unavailable_error"), ErrorKind.LOADING, "503"),
    (
        "llama_cpp",
        501,
        nested("This server does not support embeddings.", 501, "not_supported_error"),
        ErrorKind.REQUEST,
        "501",
    ),
    (
        "llama_cpp",
        400,
        nested("Field 'temperature': type must be number", 400, "invalid_request_error"),
        ErrorKind.REQUEST,
        "400",
    ),
    (
        "sglang",
        503,
        {"object": "error", "message": "The request queue is full.", "type": "503", "code": 503},
        ErrorKind.OVERLOADED,
        "503",
    ),
    (
        "sglang",
        503,
        {"object": "error", "message": "Request waiting timeout reached.", "code": 503},
        ErrorKind.OVERLOADED,
        "503",
    ),
    (
        "sglang",
        503,
        {"object": "error", "message": "aborted by a higher priority request", "code": 503},
        ErrorKind.OVERLOADED,
        "503",
    ),
    (
        "sglang",
        400,
        {
            "object": "error",
            "message": "The input (9 tokens) is longer than the model's context length (8 tokens).",
            "type": "BadRequestError",
            "code": 400,
        },
        ErrorKind.CONTEXT,
        "400",
    ),
    (
        "vllm",
        503,
        nested(
            "The engine is currently busy and cannot accept new requests. Please try again later"
            " or on a different instance.",
            503,
            "Service Unavailable",
        ),
        ErrorKind.OVERLOADED,
        "503",
    ),
    (
        "vllm",
        500,
        nested("The server had an error while processing your request.", 500, "InternalServerErr"),
        ErrorKind.SERVER,
        "500",
    ),
    (
        "vllm",
        404,
        nested("The model `nope` does not exist.", 404, "NotFoundError"),
        ErrorKind.MODEL,
        "404",
    ),
    (
        "vllm",
        400,
        nested("This model's maximum context length is 8 tokens. However, ...", 400),
        ErrorKind.CONTEXT,
        "400",
    ),
    (
        "ollama",
        503,
        nested("server busy, please try again.  maximum pending requests exceeded", None, "api"),
        ErrorKind.OVERLOADED,
        "api",
    ),
    (
        "ollama",
        404,
        nested('model "qwen9" not found, try pulling it first', None, "not_found_error"),
        ErrorKind.MODEL,
        "not_found_error",
    ),
    ("ollama", 500, {"error": "llama runner exited"}, ErrorKind.SERVER, None),
    (
        "transformers",
        422,
        {"detail": "Unexpected fields in the request: {'foo'}"},
        ErrorKind.REQUEST,
        None,
    ),
    (
        "transformers",
        400,
        {"detail": "Server is pinned to '/m'; requested 'nope/nope'."},
        ErrorKind.MODEL,
        None,
    ),
    (
        "transformers",
        422,
        {"detail": [{"loc": ["body", "top_k"], "msg": "Extra inputs are not permitted"}]},
        ErrorKind.REQUEST,
        None,
    ),
    ("transformers", 500, b"Internal Server Error", ErrorKind.SERVER, None),
    (
        "tgi",
        429,
        {"error": "Model is overloaded", "error_type": "overloaded"},
        ErrorKind.OVERLOADED,
        "overloaded",
    ),
    (
        "tgi",
        424,
        {"error": "Request failed during generation", "error_type": "generation"},
        ErrorKind.SERVER,
        "generation",
    ),
    (
        "tgi",
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8",
            "error_type": "validation",
        },
        ErrorKind.CONTEXT,
        "validation",
    ),
    (
        "dashscope",
        429,
        {
            **nested("You exceeded your current requests list.", "limit_requests"),  # type: ignore[dict-item]
            "request_id": "r",
        },
        ErrorKind.RATE,
        "limit_requests",
    ),
    (
        "dashscope",
        429,
        nested("Request rate increased too quickly. To ensure ...", "limit_burst_rate"),
        ErrorKind.BURST,
        "limit_burst_rate",
    ),
    (
        "dashscope",
        429,
        nested(DASHSCOPE_QUOTA, "insufficient_quota"),
        ErrorKind.TOKENS,
        "insufficient_quota",
    ),
    (
        "dashscope",
        429,
        nested("Free allocated quota exceeded.", "insufficient_quota"),
        ErrorKind.BILLING,
        "insufficient_quota",
    ),
    (
        "dashscope",
        429,
        {"code": "Throttling.AllocationQuota", "message": "Allocated quota exceeded"},
        ErrorKind.TOKENS,
        "Throttling.AllocationQuota",
    ),
    (
        "dashscope",
        429,
        {"code": "Throttling.BurstRate", "message": "x"},
        ErrorKind.BURST,
        "Throttling.BurstRate",
    ),
    ("dashscope", 429, {"code": "Throttling", "message": "x"}, ErrorKind.RATE, "Throttling"),
    (
        "dashscope",
        429,
        {"code": "PrepaidBillOverdue", "message": "x"},
        ErrorKind.BILLING,
        "PrepaidBillOverdue",
    ),
    ("dashscope", 400, {"code": "Arrearage", "message": "x"}, ErrorKind.BILLING, "Arrearage"),
    (
        "dashscope",
        403,
        {"code": "AllocationQuota.FreeTierOnly", "message": "x"},
        ErrorKind.BILLING,
        "AllocationQuota.FreeTierOnly",
    ),
    (
        "dashscope",
        403,
        {"code": "Model.AccessDenied", "message": "x"},
        ErrorKind.AUTH,
        "Model.AccessDenied",
    ),
    (
        "dashscope",
        401,
        nested("Incorrect API key provided.", "invalid_api_key"),
        ErrorKind.AUTH,
        "invalid_api_key",
    ),
    ("dashscope", 404, nested("x", "model_not_found"), ErrorKind.MODEL, "model_not_found"),
    (
        "dashscope",
        400,
        nested("Model not exist.", "InvalidParameter"),
        ErrorKind.MODEL,
        "InvalidParameter",
    ),
    (
        "dashscope",
        400,
        nested("<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 9]"),
        ErrorKind.CONTEXT,
        None,
    ),
    (
        "dashscope",
        400,
        nested("Input or output data may contain inappropriate content.", "data_inspection_failed"),
        ErrorKind.CONTENT,
        "data_inspection_failed",
    ),
    (
        "dashscope",
        500,
        nested("list index out of range", "InternalError.Algo"),
        ErrorKind.REQUEST,
        "InternalError.Algo",
    ),
    ("dashscope", 500, nested("x", "InternalError"), ErrorKind.SERVER, "InternalError"),
    (
        "dashscope",
        503,
        nested("throttled due to system capacity limits", "ModelServingError"),
        ErrorKind.OVERLOADED,
        "ModelServingError",
    ),
    ("openai", 429, nested(DASHSCOPE_QUOTA, "insufficient_quota"), ErrorKind.BILLING, None),
    (
        "openai",
        429,
        nested("Rate limit reached on tokens per min (TPM): Limit 9", "rate_limit_exceeded"),
        ErrorKind.TOKENS,
        None,
    ),
    (
        "openai",
        429,
        nested("Rate limit reached on requests per min", "rate_limit_exceeded"),
        ErrorKind.RATE,
        None,
    ),
    ("openai", 404, nested("x", "model_not_found"), ErrorKind.MODEL, None),
    ("openai", 400, nested("x", "context_length_exceeded"), ErrorKind.CONTEXT, None),
    ("openai", 400, nested("x", "content_filter"), ErrorKind.CONTENT, None),
    (
        "lmdeploy",
        503,
        {"message": "engine is not available", "type": "engine_unavailable", "code": 503},
        ErrorKind.SERVER,
        None,
    ),
    ("lmdeploy", 499, {"message": "request cancelled", "code": 499}, ErrorKind.OVERLOADED, None),
    ("vllm", 502, b"<html><title>502 Bad Gateway</title></html>", ErrorKind.SERVER, None),
    ("vllm", 503, b"<h1>Service Temporarily Unavailable</h1>", ErrorKind.SERVER, None),
    ("vllm", 503, b"", ErrorKind.SERVER, None),
    ("vllm", 529, b"", ErrorKind.OVERLOADED, None),
    ("vllm", 504, b"upstream request timeout", ErrorKind.SERVER, None),
    ("vllm", 408, b"", ErrorKind.SERVER, None),
    ("vllm", 402, b"", ErrorKind.BILLING, None),
    ("vllm", 403, b"", ErrorKind.AUTH, None),
    ("vllm", 404, b"404 page not found", ErrorKind.MODEL, None),
    ("vllm", 413, b"", ErrorKind.REQUEST, None),
    ("vllm", 429, b"slow down", ErrorKind.RATE, None),
    ("vllm", 301, b"moved", ErrorKind.MALFORMED, None),
]


@pytest.mark.parametrize(("kind", "status", "body", "what", "code"), WIRE)
def test_every_dialect_says_what_went_wrong(
    kind: str, status: int, body: object, what: ErrorKind, code: str | None
) -> None:
    error = parse(status, body, kind)
    assert error.kind is what
    assert error.status == status
    assert error.target == "t/m"
    if code is not None:
        assert error.upstream_code == code
    throttled = {ErrorKind.RATE, ErrorKind.BURST, ErrorKind.TOKENS, ErrorKind.BILLING}
    rejected = {ErrorKind.AUTH, ErrorKind.MODEL, ErrorKind.CONTEXT} | {
        ErrorKind.CONTENT,
        ErrorKind.REQUEST,
    }
    expected = (
        UpstreamThrottled
        if what in throttled
        else UpstreamRejected
        if what in rejected
        else UpstreamUnavailable
    )
    assert type(error) is expected


def test_the_upstreams_own_words_are_kept() -> None:
    """Clients look for phrases in them (qwen-agent: "maximum context length")."""
    error = parse(400, nested("This model's maximum context length is 8 tokens.", 400))
    assert "This model's maximum context length is 8 tokens." in str(error)
    assert (error.http_status, error.code) == (400, "context_length_exceeded")
    detail = [{"loc": ["body", "n"], "msg": "bad", "input": "the whole prompt"}]
    error = parse(422, {"detail": detail})
    assert "body.n: bad" in str(error)
    assert "prompt" not in str(error)
    assert "502 Bad Gateway" in str(parse(502, b"<html>\n<title>502 Bad  Gateway</title></html>"))
    assert len(str(parse(400, nested("long " * 1000)))) < 600


@pytest.mark.parametrize(
    "words",
    [
        "Incorrect API key provided: sk-abcdef123456. Find yours at https://x.",
        "header Authorization: Bearer abcdef123456 refused",
        'config {"api_key": "abcdef123456"} is wrong',
        "GET https://user:abcdef123456@host/ failed",
        "my-secret-abcdef123456-here",
    ],
)
def test_no_credential_is_repeated(words: str) -> None:
    error = parse_error(
        401,
        {},
        json.dumps(nested(words)).encode(),
        kind="openai",
        target="t",
        secrets=("my-secret-abcdef123456-here",),
    )
    assert "abcdef123456" not in str(error)
    assert "[redacted]" in str(error)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "1000000000"}, 1e9),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "tomorrow"}, None),
        ({}, None),
        (
            {
                "retry-after": "Wed, 21 Oct 2015 07:28:30 GMT",
                "date": "Wed, 21 Oct 2015 07:28:00 GMT",
            },
            30.0,
        ),
        (
            {
                "retry-after": "Wed, 21 Oct 2015 07:27:00 GMT",
                "date": "Wed, 21 Oct 2015 07:28:00 GMT",
            },
            0.0,
        ),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}, None),
        ({"retry-after": "Wed, 99 Foo 20155 07:28:30 GMT", "date": "x"}, None),
    ],
)
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_a_date_without_a_date_header_is_measured_against_the_given_time() -> None:
    headers = {"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}
    assert retry_after(headers, now=1445412500.0) == 10.0
    error = parse_error(429, headers, b"", kind="vllm", target="t", now=1445412500.0)
    assert error.retry_after == 10.0


def test_retry_after_reaches_the_error() -> None:
    assert parse(429, b"", retry_after="12").retry_after == 12.0
    assert parse(503, b"", retry_after_ms="250").retry_after == 0.25
    assert parse(429, b"").retry_after is None


@pytest.mark.parametrize(
    ("payload", "what"),
    [
        (
            b'{"code":"Throttling.RateQuota","message":"Requests rate limit exceeded, please try'
            b' again later.","request_id":"r"}',
            ErrorKind.RATE,
        ),
        (
            {
                "error": {
                    "object": "error",
                    "message": "Request running timeout reached.",
                    "type": "SERVICE_UNAVAILABLE",
                    "code": 503,
                }
            },
            ErrorKind.SERVER,
        ),
        ({"error": {"message": "EngineDead", "code": 500}}, ErrorKind.SERVER),
        ({"error": {"message": "bad", "code": 400}}, ErrorKind.SERVER),
        ({"error": "something broke"}, ErrorKind.SERVER),
        ({"error": {"message": "x", "code": "data_inspection_failed"}}, ErrorKind.CONTENT),
        ({"error": {"message": "maximum context length is 8"}}, ErrorKind.CONTEXT),
        ({"error": {"message": "The queue is full", "code": 503}}, ErrorKind.OVERLOADED),
        (b"no json at all", ErrorKind.SERVER),
        ({"choices": [{"finish_reason": "error", "delta": {}}]}, ErrorKind.SERVER),
    ],
)
def test_errors_inside_a_200_are_failures_unless_they_say_what_they_are(
    payload: object, what: ErrorKind
) -> None:
    error = parse_event_error(payload, kind="dashscope", target="t")
    assert error.kind is what
    assert error.status is None
    assert 400 <= error.http_status < 600


def test_error_finish_is_a_servers_fault_and_its_content_the_reason() -> None:
    event = {
        "choices": [
            {"delta": {"content": "Throttling: slow down"}, "finish_reason": "error_finish"}
        ]
    }
    error = parse_event_error(event, kind="dashscope", target="t")
    assert error.kind is ErrorKind.SERVER
    assert error.upstream_code == "error_finish"
    assert "slow down" in str(error)


def test_an_aborted_answer_was_interrupted() -> None:
    event = {"choices": [{"delta": {"content": "half"}, "finish_reason": "abort"}]}
    error = parse_event_error(event, kind="vllm", target="t")
    assert isinstance(error, StreamInterrupted)
    assert error.kind is ErrorKind.INTERRUPTED


KEYS = [
    "error",
    "message",
    "code",
    "type",
    "detail",
    "loc",
    "msg",
    "choices",
    "delta",
    "finish_reason",
    "content",
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 999), st.binary(max_size=60) | json_values, st.sampled_from(KINDS))
def test_whatever_is_sent_makes_an_error_and_never_raises(
    status: int, body: object, kind: str
) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    error = parse_error(status, {"retry-after": "x"}, raw, kind=kind, target="t")
    assert isinstance(error, UpstreamError)
    assert len(str(error)) < 600
    event = parse_event_error(body, kind=kind, target="t")
    assert isinstance(event, UpstreamError)
    assert len(str(event)) < 600


@pytest.mark.parametrize("code", ["9" * 5000, int("9" * 30), "٤٢٩"])
def test_a_code_of_any_length_is_an_error_like_another(code: object) -> None:
    event = {"error": {"message": "broken", "code": code}}
    assert parse_event_error(event, kind="vllm", target="t").kind is ErrorKind.SERVER
