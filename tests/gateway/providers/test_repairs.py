"""Sentences that teach, and what they teach."""

from __future__ import annotations

import pytest

from gateway.errors import ErrorKind, UpstreamRejected
from gateway.providers.repairs import Lessons, learn


def refusal(message: str, kind: ErrorKind = ErrorKind.REQUEST) -> UpstreamRejected:
    return UpstreamRejected(f"t answered 400: {message}", kind=kind, status=400)


@pytest.mark.parametrize(
    ("message", "lessons"),
    [
        (
            "This model only support stream mode, please enable the stream parameter",
            Lessons(stream_only=True),
        ),
        ("current user api does not support http call", Lessons(stream_only=True)),
        (
            "parameter.enable_thinking must be set to false for non-streaming calls",
            Lessons(stream_only=True),
        ),
        (
            "The value of the enable_thinking parameter is restricted to True.",
            Lessons(always_thinks=True),
        ),
        ("parameter.enable_thinking must be true", Lessons(always_thinks=True)),
        ("Range of max_tokens should be [1, 8192]", Lessons(max_tokens=8192)),
        (
            "Unexpected fields in the request: {'top_k', 'foo'}",
            Lessons(refused=frozenset({"top_k"})),
        ),
        (
            "Unrecognized request arguments supplied: top_k, min_p",
            Lessons(refused=frozenset({"top_k", "min_p"})),
        ),
        (
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            Lessons(refused=frozenset({"max_tokens"})),
        ),
        (
            "Unsupported value: 'temperature' does not support 0.7 with this model.",
            Lessons(refused=frozenset({"temperature"})),
        ),
        ("body.top_k: Extra inputs are not permitted", Lessons(refused=frozenset({"top_k"}))),
    ],
)
def test_what_a_sentence_teaches(message: str, lessons: Lessons) -> None:
    assert learn(Lessons(), refusal(message)) == lessons
    assert learn(lessons, refusal(message)) is None, "known already: no third try"


def test_a_model_that_cannot_think_is_not_asked_to() -> None:
    better = learn(Lessons(), refusal('"qwen2.5" does not support thinking'))
    assert better is not None
    assert {"reasoning_effort", "chat_template_kwargs", "enable_thinking"} <= better.refused


@pytest.mark.parametrize(
    "message", ["Unexpected fields in the request: {'foo'}", "temperature must be a number", ""]
)
def test_what_teaches_nothing(message: str) -> None:
    assert learn(Lessons(), refusal(message)) is None


def test_only_refused_requests_teach() -> None:
    error = refusal("only support stream mode", ErrorKind.CONTENT)
    assert learn(Lessons(), error) is None


def test_lessons_add_up() -> None:
    one = Lessons(stream_only=True, refused=frozenset({"top_k"}), max_tokens=100)
    two = Lessons(always_thinks=True, refused=frozenset({"min_p"}), max_tokens=50)
    assert one | two == Lessons(
        stream_only=True,
        always_thinks=True,
        refused=frozenset({"top_k", "min_p"}),
        max_tokens=50,
    )
    assert Lessons() | one == one
