"""The fast way and the careful way must tell the same story."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.assembly import Assembly
from gateway.errors import ErrorKind, StreamInterrupted, UpstreamError
from gateway.generation import Chunk, Delta
from gateway.providers.decoding import (
    CarefulDecoder,
    chunk_of,
    fast_chunk,
    fast_whole,
    fold_reasoning,
    text_chunk,
)

DECODER = CarefulDecoder("vllm", "t/m", "secret-key")


def careful(data: object) -> Chunk | None:
    return DECODER.chunk(msgspec.json.encode(data))


def event(delta: dict[str, Any], **choice: Any) -> dict[str, Any]:
    return {"id": "c", "created": 5, "model": "m", "choices": [{"delta": delta, **choice}]}


text = st.none() | st.text(max_size=5)
deltas = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["assistant", None]),
        "content": text,
        "reasoning_content": text,
        "reasoning": text,
        "refusal": text,
        "tool_calls": st.just([{"index": 0, "id": "x", "function": {"name": "f"}}]) | st.none(),
        "function_call": st.just({"name": "f"}),
        "audio": st.just({"id": "a"}),
        "annotations": st.just([{"type": "url_citation"}]),
    },
)


fields = st.fixed_dictionaries(
    {"id": st.just("c"), "created": st.sampled_from([5, 5.0, None]), "model": st.just("m")},
    optional={
        "object": st.just("chat.completion"),
        "usage": st.sampled_from([None, {"total_tokens": 3}, "much"]),
        "system_fingerprint": st.sampled_from([None, "fp"]),
        "service_tier": st.sampled_from([None, "default"]),
        "timings": st.just({"ms": 1.5}),
        "prompt_logprobs": st.sampled_from([None, [None]]),
        "unheard_of": st.sampled_from([None, 1]),
    },
)
ends = st.sampled_from([None, "stop", "length", "eos", "tool_calls", "content_filter"])


@settings(max_examples=120, deadline=None)
@given(fields, st.lists(st.tuples(deltas, ends), min_size=0, max_size=2), st.booleans())
def test_both_ways_agree_on_whole_answers(
    fields: dict[str, Any], messages: list[tuple[dict[str, Any], str | None]], logprobs: bool
) -> None:
    more = {"logprobs": {"content": [{"token": "a"}]} if logprobs else None, "stop_reason": None}
    choices = [
        {"index": index, "message": message, "finish_reason": end, **more}
        for index, (message, end) in enumerate(messages)
    ]
    data = {**fields, "choices": choices}
    fast, slow = fast_whole(msgspec.json.encode(data)), careful(data)
    assert slow is not None
    if fast is not None:
        assert told(fast) == told(slow)


def told(*chunks: Chunk) -> tuple[Any, ...]:
    assembly = Assembly()
    assembly.add_all(chunks)
    chunk = chunks[-1]
    return (assembly.choices(), assembly.id, assembly.model, assembly.created, assembly.usage,
            assembly.extra, assembly.has_content, chunk.carries(), chunk.finish_reason)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(deltas, st.integers(0, 1), st.sampled_from([None, "stop"]), st.booleans())
def test_what_is_taken_for_plain_text_is_nothing_else(
    delta: dict[str, Any], index: int, finish_reason: str | None, logprobs: bool
) -> None:
    more = {"logprobs": {"content": [{"token": "a"}]} if logprobs else None}
    data = event(delta, index=index, finish_reason=finish_reason, **more)
    first, payload = careful(event({"content": "so"})), msgspec.json.encode(data)
    assert first is not None
    fast = fast_chunk(payload)
    for choice in fast.choices:
        fold_reasoning(choice.delta)
    try:
        plain = text_chunk(payload)
    except msgspec.ValidationError:
        return
    assert told(first, plain) == told(first, fast)
    assert told(plain) == told(fast)
    assert (plain.text, plain.reasoning) == (fast.text, fast.reasoning)


def test_plain_text_is_recognized() -> None:
    data = {**event({"content": "so"}, index=0, finish_reason=None, logprobs=None), "usage": None}
    assert text_chunk(msgspec.json.encode(data)).text == "so"
    for other in (
        {"usage": {"total_tokens": 1}},
        {"choices": []},
        {"choices": data["choices"] * 2},
    ):
        with pytest.raises(msgspec.ValidationError):
            text_chunk(msgspec.json.encode({**data, **other}))


def test_the_usual_whole_answer_goes_the_fast_way() -> None:
    message = {"role": "assistant", "content": "cedar", "refusal": None, "annotations": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    named = {"id": "c", "object": "chat.completion", "created": 5, "model": "m"}
    data = {**named, "choices": [choice], "usage": {"total_tokens": 3}, "service_tier": "default"}
    fast = fast_whole(msgspec.json.encode({**data, "system_fingerprint": "fp"}))
    assert fast is not None
    assert (fast.text, fast.finish_reason, fast.model) == ("cedar", "stop", "m")
    assert fast.extra == {"service_tier": "default", "system_fingerprint": "fp"}


@pytest.mark.parametrize(
    "data",
    [
        {"error": {"message": "no"}},
        {"error": {"message": "no"}, "choices": []},
        {"object": "error", "message": "no", "code": 500},
        {"choices": [{"message": {"content": "no"}, "finish_reason": "error_finish"}]},
        {"choices": [{"message": {"content": "no"}, "finish_reason": "abort"}]},
        {"choices": [{"message": {"content": "hm"}, "finish_reason": "stop"}], "error": {"a": 1}},
        {"choices": [{"text": "raw", "index": 0, "finish_reason": "stop"}]},
        {"choices": None},
        [],
        "hi",
    ],
)
def test_what_is_no_plain_text_is_left_to_the_careful_way(data: object) -> None:
    assert fast_whole(msgspec.json.encode(data)) is None


@settings(max_examples=60, deadline=None)
@given(deltas, st.integers(0, 2), st.sampled_from([None, "stop", "tool_calls"]))
def test_both_ways_agree_on_what_the_specification_allows(
    delta: dict[str, Any], index: int, finish_reason: str | None
) -> None:
    data = event(delta, index=index, finish_reason=finish_reason, logprobs=None)
    fast = fast_chunk(msgspec.json.encode(data))
    for choice in fast.choices:
        fold_reasoning(choice.delta)
    slow = careful(data)
    assert slow is not None
    for chunk in (fast, slow):  # an empty text and none at all are the same
        for choice in chunk.choices:
            choice.delta.reasoning_content = choice.delta.reasoning_content or None
    assert slow == fast


def test_nulls_numbers_and_oddities_are_understood() -> None:
    chunk = careful(
        {
            "id": None,
            "model": None,
            "created": 1700000000.7,
            "usage": None,
            "system_fingerprint": None,
            "choices": [
                {"index": None, "delta": None, "finish_reason": None, "logprobs": None},
                {"delta": {"content": [{"type": "text", "text": "a"}, "b"], "tool_calls": None}},
                "nonsense",
            ],
        }
    )
    assert chunk is not None
    assert (chunk.id, chunk.model, chunk.created) == ("", "", 1700000000)
    assert chunk.usage is None
    assert chunk.extra is None
    assert [choice.index for choice in chunk.choices] == [0, 1]
    assert chunk.choices[0].delta == Delta()
    assert chunk.choices[1].delta.content == "ab"


def test_unknown_top_level_fields_survive() -> None:
    data = {**event({}), "system_fingerprint": "fp", "timings": {"ms": 1}, "object": "chunk"}
    chunk = careful(data)
    assert chunk is not None
    assert chunk.extra == {"system_fingerprint": "fp", "timings": {"ms": 1}}


def test_a_whole_answer_is_one_chunk_that_adds_everything() -> None:
    calls = [{"id": "a", "type": "function"}, {"id": "b", "type": "function"}]
    message = {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": calls}
    chunk = careful({"choices": [{"index": 0, "message": message, "finish_reason": "eos"}]})
    assert chunk is not None
    (choice,) = chunk.choices
    assert choice.finish_reason == "stop"
    assert choice.delta.reasoning_content == "hm"
    assert choice.delta.tool_calls == [
        {"index": 0, "id": "a", "type": "function"},
        {"index": 1, "id": "b", "type": "function"},
    ]


def test_events_that_say_nothing_are_none() -> None:
    assert careful({}) is None
    assert careful({"type": "ping"}) is None
    usage = careful({"choices": [], "usage": {"total_tokens": 3}})
    assert usage is not None
    assert usage.usage == {"total_tokens": 3}
    filter_results = careful({"choices": [], "prompt_filter_results": []})
    assert filter_results is not None


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b'"x"', b"3", b"null", b'{"a":"\xff"}', b"[" * 100_000, b"<html>"]
)
def test_what_is_no_json_object_is_malformed(payload: bytes) -> None:
    with pytest.raises(UpstreamError) as caught:
        DECODER.chunk(payload)
    assert caught.value.kind is ErrorKind.MALFORMED
    assert caught.value.target == "t/m"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ({"error": {"message": "x"}}, ErrorKind.SERVER),
        ({"error": "x"}, ErrorKind.SERVER),
        ({"code": "Throttling", "message": "x", "request_id": "r"}, ErrorKind.RATE),
        ({"object": "error", "message": "x", "code": 500}, ErrorKind.SERVER),
        (event({}, finish_reason="error"), ErrorKind.SERVER),
        (event({"content": "busy"}, finish_reason="error_finish"), ErrorKind.SERVER),
        (event({}, finish_reason="abort"), ErrorKind.INTERRUPTED),
    ],
)
def test_errors_in_a_200s_clothes_are_raised(data: object, kind: ErrorKind) -> None:
    with pytest.raises(UpstreamError) as caught:
        careful(data)
    assert caught.value.kind is kind
    assert isinstance(caught.value, StreamInterrupted) == (kind is ErrorKind.INTERRUPTED)


def test_no_secret_is_shown() -> None:
    assert "secret-key" not in repr(DECODER)
    assert "secret-key" not in str(DECODER.error({"error": {"message": "key secret-key is bad"}}))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "message", "content", "tool_calls", "index", "usage"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["choices", "usage", "id", "created"]), json_values))
def test_any_object_makes_a_well_typed_chunk(data: dict[str, Any]) -> None:
    chunk = chunk_of(data)
    again = msgspec.json.decode(msgspec.json.encode(chunk), type=Chunk)
    assert again == chunk
