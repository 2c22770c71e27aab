"""Whatever a client sends: OpenAI's envelope with a 4xx that names the field, never a 500."""

from __future__ import annotations

import json
from typing import Any

import pytest
from api_stage import MESSAGES, Upstream, config, stage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROUTES = ["/chat/completions", "/completions", "/embeddings", "/responses"]
BAD_FIELDS: list[tuple[str, Any, str]] = [
    ("temperature", "hot", "temperature"),
    ("temperature", -1, "temperature"),
    ("top_p", 2, "top_p"),
    ("stream", "yes", "stream"),
    ("stream_options", [1], "stream_options"),
    ("messages", {}, "messages"),
    ("messages", None, "messages"),
    ("messages", [], "messages"),
    ("messages", "hello", "messages"),
    ("messages", [1], "messages[0]"),
    ("messages", [{"content": "x"}], "messages[0].role"),
    ("messages", [{"role": "user", "content": 5}], "messages[0].content"),
    ("messages", [{"role": "user", "content": [5]}], "messages[0].content"),
    ("messages", [{"role": "user", "content": " "}], "messages"),
    ("model", 5, "model"),
    ("tools", {}, "tools"),
    ("tools", [5], "tools[0]"),
    ("tools", [{}], "tools[0].type"),
    ("tools", [{"type": "function"}], "tools[0].function"),
    ("tools", [{"type": "function", "function": {"name": ""}}], "tools[0].function.name"),
    ("tool_choice", 5, "tool_choice"),
    ("n", 0, "n"),
    ("n", True, "n"),
    ("n", 10**9, "n"),
    ("max_tokens", -1, "max_tokens"),
    ("max_tokens", 1.5, "max_tokens"),
    ("max_completion_tokens", 0, "max_completion_tokens"),
    ("stop", ["x"] * 10_000, "stop"),
    ("stop", [1], "stop"),
    ("seed", 10**30, "seed"),
    ("logprobs", 3, "logprobs"),
    ("top_logprobs", -1, "top_logprobs"),
    ("logit_bias", [], "logit_bias"),
    ("response_format", "json", "response_format"),
    ("response_format", {}, "response_format"),
    ("reasoning_effort", 3, "reasoning_effort"),
    ("metadata", "x", "metadata"),
    ("user", {}, "user"),
    ("parallel_tool_calls", "no", "parallel_tool_calls"),
]


@pytest.mark.parametrize(("name", "value", "param"), BAD_FIELDS)
async def test_a_wrong_field_is_named_and_nothing_is_sent(
    name: str, value: Any, param: str
) -> None:
    upstream = Upstream()
    async with stage(config(upstream)) as s:
        answer = await s.chat(**{name: value})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "invalid_request"
    assert answer.headers["x-should-retry"] == "false"
    assert not upstream.asked


async def test_a_usage_option_of_a_wrong_type_is_named() -> None:
    async with stage(config(Upstream())) as s:
        answer = await s.chat(stream=True, stream_options={"include_usage": "yes"})
    assert answer.json()["error"]["param"] == "stream_options.include_usage"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "JSON"),
        (b'{"messages": [', "JSON"),
        (b"null", "object"),
        (b'"text"', "object"),
        (b"\xff\xfe{}", "JSON"),
        (b'{"messages": "\xc3\x28"}', "UTF-8"),
        (b'{"a": "\\ud800"}', "JSON"),
        (b'{"temperature": NaN}', "JSON"),
        (b'{"temperature": Infinity}', "JSON"),
        (b'{"temperature": 1e999}', "JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "JSON"),
        (b'{"a":' * 1000 + b"1" + b"}" * 1000, "nested"),
        (b'{"a":' + b"[" * 150 + b"]" * 150 + b"}", "nested more than 100 deep"),
    ],
)
async def test_what_is_no_sane_json_is_said(body: bytes, word: str) -> None:
    async with stage(config(Upstream())) as s:
        for route in ROUTES:
            answer = await s.post(route, body)
            assert answer.status_code == 400, answer.text
            assert word in answer.json()["error"]["message"]


async def test_many_brackets_are_not_deep() -> None:
    async with stage(config(Upstream())) as s:
        assert (await s.chat(metadata={str(i): [{}] for i in range(500)})).status_code == 200


async def test_of_a_key_given_twice_the_last_counts() -> None:
    upstream = Upstream()
    body = b'{"seed": 1, "messages": %b, "seed": 2}' % json.dumps(MESSAGES).encode()
    async with stage(config(upstream)) as s:
        assert (await s.post("/chat/completions", body)).status_code == 200
    assert upstream.asked[0]["seed"] == 2


async def test_a_prompt_of_ten_megabytes_is_refused() -> None:
    async with stage(config(Upstream())) as s:
        answer = await s.chat(messages=[{"role": "user", "content": "x" * 10_000_001}])
    assert answer.status_code == 400
    assert "10000000" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"cache-control": 'max-age=²; =, ,,"'},
        {"cache-control": "max-age=" + "9" * 400},
        {"x-stainless-read-timeout": "soon"},
        {"x-stainless-read-timeout": "nan"},
        {"x-stainless-timeout": "-1e400"},
        {"x-stainless-retry-count": "²"},
        {"x-stainless-retry-count": "1" * 5000},
        {"x-gateway-allow-degrade": "ÿ"},
        {"traceparent": "00-xyz\xff"},
        {"content-type": "JSON"},
    ],
)
async def test_headers_that_say_nothing_sensible_are_ignored(headers: dict[str, str]) -> None:
    raw = {name: value.encode("utf-8") for name, value in headers.items()}
    async with stage(config(Upstream())) as s:
        body = json.dumps({"messages": MESSAGES}).encode()
        answer = await s.http.post("/chat/completions", content=body, headers=raw)  # type: ignore[arg-type]
    assert answer.status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
NAMES = st.sampled_from(
    [
        *("model", "messages", "stream", "stream_options", "temperature", "n", "tools", "stop"),
        *("tool_choice", "max_tokens", "prompt", "input", "text", "reasoning", "instructions"),
        *("response_format", "logprobs", "include", "dimensions", "suffix", "role", "content"),
    ]
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(ROUTES), st.dictionaries(NAMES, JSON, max_size=6) | JSON)
async def test_any_json_is_answered_or_refused(route: str, body: Any) -> None:
    async with stage(config(Upstream())) as s:
        await never_fails(s, route, json.dumps(body).encode())


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(ROUTES), st.binary(max_size=60))
async def test_any_bytes_are_refused(route: str, body: bytes) -> None:
    async with stage(config(Upstream())) as s:
        await never_fails(s, route, body)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["cache-control", "x-stainless-read-timeout", "x-gateway-allow-degrade"]),
    st.binary(max_size=30).map(lambda b: b.replace(b"\r", b"").replace(b"\n", b"")),
)
async def test_any_header_is_survived(name: str, value: bytes) -> None:
    async with stage(config(Upstream())) as s:
        body = json.dumps({"messages": MESSAGES}).encode()
        answer = await s.http.post("/chat/completions", content=body, headers={name: value})  # type: ignore[dict-item]
    assert answer.status_code in (200, 504)  # a deadline of a blink cannot be met


async def never_fails(s: Any, route: str, body: bytes) -> None:
    answer = await s.post(route, body)
    assert answer.status_code in (200, 400, 404)
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error.keys() >= {"message", "type", "param", "code"}
        assert isinstance(error["message"], str) and isinstance(error["code"], str)
