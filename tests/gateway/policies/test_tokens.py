"""Estimates: near enough for limits, and never a traceback."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.generation import Generation, Served
from gateway.policies.tokens import (
    answer_tokens,
    prompt_tokens,
    says_how_long,
    text_tokens,
    written_tokens,
)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("", 0, 0),
        ("a", 1, 1),
        ("The quick brown fox jumps over the lazy dog. " * 10, 90, 120),
        ("白日依山尽，黄河入海流。欲穷千里目，更上一层楼。" * 10, 130, 170),
        ("Съешь же ещё этих мягких французских булок. " * 10, 150, 210),
        ("Où est la bibliothèque, s'il vous plaît ? " * 10, 100, 140),
        ("\ud800", 1, 3),  # half a character: JSON can say it
    ],
)
def test_texts(text: str, low: int, high: int) -> None:
    assert low <= text_tokens(text) <= high


@given(st.text())
def test_a_text_is_never_less_than_nothing_nor_more_than_its_bytes(text: str) -> None:
    assert 0 <= text_tokens(text) <= len(text.encode("utf-8", "surrogatepass")) + 1


def test_prompts_count_what_a_model_reads() -> None:
    plain = prompt_tokens([{"role": "user", "content": "x" * 400}], {})
    assert plain == 104
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"a": "y" * 400}}}]
    assert prompt_tokens([{"role": "user", "content": "x" * 400}], {"tools": tools}) > 200
    parts: list[Any] = [
        {"type": "text", "text": "x" * 400},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10**6}},
    ]
    assert 1100 < prompt_tokens([{"role": "user", "content": parts}], {}) < 1200


def test_any_depth_and_any_kind() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    odd = {"type": ["image"], "x": 1.5, "y": None, "z": deep}
    assert prompt_tokens([{"role": "user", "content": [odd]}], {}) > 0


@pytest.mark.parametrize(
    ("params", "mode", "tokens"),
    [
        ({}, {}, 4096),
        ({}, {"max_tokens": 100}, 100),
        ({"max_tokens": 50}, {"max_tokens": 100}, 50),
        ({"max_completion_tokens": 70, "max_tokens": 50}, {}, 70),
        ({"max_tokens": 50, "n": 3}, {}, 150),
        ({"n": 10**30}, {"max_tokens": 1}, 128),
        ({"max_tokens": 10**30}, {}, 10**9),
        ({"max_tokens": -5}, {"max_tokens": 100}, 100),
        ({"max_tokens": True, "n": "x"}, {"max_tokens": 100}, 100),
        ({"max_tokens": "many", "n": -1}, {"max_tokens": 100}, 100),
        ({"max_tokens": float("nan")}, {"max_tokens": 100}, 100),
    ],
)
def test_longest_answers(params: dict[str, Any], mode: dict[str, Any], tokens: int) -> None:
    assert answer_tokens(params, mode) == tokens


def test_who_says_how_long() -> None:
    assert says_how_long({"max_tokens": 5})
    assert not says_how_long({"max_tokens": 0})
    assert not says_how_long({"temperature": 1})


def test_what_was_written() -> None:
    message = {"role": "assistant", "content": "x" * 400, "reasoning_content": "y" * 400}
    whole = Generation(
        id="g", choices=[{"message": message}], served=Served(requested_mode="a", mode="a")
    )
    assert 200 <= written_tokens(whole) <= 220
