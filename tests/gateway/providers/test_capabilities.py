"""The table of backends: complete, and within the bounds each server takes."""

from __future__ import annotations

import math
from urllib.parse import urlsplit

import pytest

from gateway.errors import ConfigError
from gateway.providers.capabilities import KINDS, Continuation, Range, Thinking, capabilities
from gateway.providers.request_body import _WAYS


def test_there_is_a_row_for_every_kind() -> None:
    assert set(KINDS) == {
        *("dashscope", "vllm", "sglang", "llama_cpp", "ollama", "lmdeploy", "tgi"),
        *("transformers", "openai"),
    }
    with pytest.raises(ConfigError, match="'dashscope', 'vllm'"):
        capabilities("bedrock")


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_makes_sense(kind: str) -> None:
    row = capabilities(kind)
    address = urlsplit(row.base_url)
    assert address.hostname
    assert row.base_url.endswith("/v1")
    assert row.health == "" or row.health.startswith("/")
    assert row.thinking is Thinking.NONE or row.thinking in _WAYS
    assert row.reasoning_in in {"reasoning", "reasoning_content"}
    if row.accepted is not None:
        assert {"messages", "model", "stream", row.max_tokens} <= row.accepted
    for limits in row.ranges.values():
        assert limits.low < limits.high


def test_self_hosted_backends_are_looked_for_on_this_machine() -> None:
    for kind in set(KINDS) - {"dashscope", "openai"}:
        assert capabilities(kind).base_url.startswith("http://127.0.0.1:")


def test_only_backends_that_can_are_asked_to_continue() -> None:
    can = {kind for kind in KINDS if capabilities(kind).continuation is not Continuation.NONE}
    assert can == {"dashscope", "vllm", "sglang", "llama_cpp"}


@pytest.mark.parametrize(
    ("value", "clamped"),
    [(2.0, 1.5), (-1, 0), (1, 1), (0.5, 0.5), (math.inf, 1.5), ("hot", "hot"), (True, True)],
)
def test_only_numbers_are_brought_into_range(value: object, clamped: object) -> None:
    assert Range(0, 1.5).clamp(value) == clamped
