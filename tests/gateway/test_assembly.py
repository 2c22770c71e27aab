"""Merging deltas into messages, and replaying messages as deltas."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.assembly import Assembly, chunks_of, normal_finish_reason
from gateway.generation import Choice, Chunk, Delta, Generation, Served, Usage


def text(content: str, index: int = 0) -> Chunk:
    return Chunk([Choice(Delta(content=content), index=index)])


def tool(*calls: dict[str, Any]) -> Chunk:
    return Chunk([Choice(Delta(tool_calls=list(calls)))])


def end(reason: str = "stop", index: int = 0) -> Chunk:
    return Chunk([Choice(Delta(), index=index, finish_reason=reason)])


def assembled(*chunks: Chunk) -> Assembly:
    assembly = Assembly()
    assembly.add_all(chunks)
    return assembly


def calls(*chunks: Chunk) -> list[dict[str, Any]]:
    merged: list[dict[str, Any]] = assembled(*chunks).choices()[0]["message"]["tool_calls"]
    return merged


def function(name: str | None = None, arguments: Any = None) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def test_text_is_joined_and_the_message_has_every_key_strict_clients_ask_for() -> None:
    assembly = Assembly()
    assembly.add(Chunk([Choice(Delta(role="assistant"))], id="c1", model="qwen", created=7))
    assert not assembly.has_content
    assembly.add(text("Hel"))
    assembly.add(text("lo"))
    assert assembly.has_content
    assert assembly.text() == "Hello"
    assert assembly.finish_reason is None
    assembly.add_all([end(), Chunk([], usage={"total_tokens": 3}, extra={"timings": 1})])
    assert assembly.choices() == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hello",
                "refusal": None,
                "annotations": [],
            },
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    assert (assembly.id, assembly.model, assembly.created) == ("c1", "qwen", 7)
    assert assembly.usage == {"total_tokens": 3}
    assert assembly.extra == {"timings": 1}
    assert assembly.finish_reason == "stop"


def test_an_answer_with_nothing_in_it_has_no_content() -> None:
    assembly = assembled(Chunk([Choice(Delta(role="assistant", content=""))]), end())
    assert not assembly.has_content
    assert assembly.choices()[0]["message"]["content"] == ""
    assert assembled().text() == ""


def test_reasoning_refusal_annotations_and_usage_ride_beside_text() -> None:
    assembly = assembled(
        Chunk([Choice(Delta(reasoning_content="Hm"))], usage={"total_tokens": 1}),
        Chunk([Choice(Delta(content="Yes", reasoning_content="m."))]),
        Chunk([Choice(Delta(content="!", annotations=[{"type": "url_citation"}]))]),
        Chunk([Choice(Delta(content="?"))], usage={"total_tokens": 9}, extra={"a": 1}),
    )
    message = assembly.choices()[0]["message"]
    assert message["reasoning_content"] == "Hmm."
    assert message["content"] == "Yes!?"
    assert message["annotations"] == [{"type": "url_citation"}]
    assert assembly.usage == {"total_tokens": 9}
    assert assembly.extra == {"a": 1}
    refused = assembled(*[Chunk([Choice(Delta(refusal=piece))]) for piece in ("I ", "won't")])
    message = refused.choices()[0]["message"]
    assert (message["content"], message["refusal"]) == (None, "I won't")
    assert refused.has_content


@pytest.mark.parametrize(
    "hidden",
    [
        {"reasoning_content": "x"},
        {"refusal": "x"},
        {"tool_calls": [{"index": 0}]},
        {"function_call": {"name": "f"}},
        {"annotations": [1]},
        {"audio": {"id": "a"}},
    ],
)
def test_text_hides_nothing_that_travels_with_it(hidden: dict[str, Any]) -> None:
    plain = assembled(text("a"), text("b")).choices()
    mixed = assembled(text("a"), Chunk([Choice(Delta(content="b", **hidden))])).choices()
    assert mixed != plain
    assert mixed[0]["message"]["content"] == "ab"


def test_several_choices_keep_apart_whatever_their_order() -> None:
    assembly = assembled(
        text("b", 1),
        Chunk([Choice(Delta(content="a0")), Choice(Delta(content="b1"), index=1)]),
        text("a1"),
        end("length", 1),
        end("stop", 0),
    )
    first, second = assembly.choices()
    assert (first["index"], first["message"]["content"]) == (0, "a0a1")
    assert (second["index"], second["message"]["content"]) == (1, "bb1")
    assert (first["finish_reason"], second["finish_reason"]) == ("stop", "length")
    assert assembly.text() == "a0a1"
    assert assembly.finish_reason == "stop"


def test_tool_calls_merge_by_index_and_leave_content_null() -> None:
    assembly = assembled(
        tool({"index": 0, "id": "c0", "type": "function", "function": function("get_", "")}),
        tool({"index": 1, "id": "c1", "type": "function", "function": function("time", "{}")}),
        tool({"index": 0, "function": function("weather", '{"city":')}),
        tool({"index": 0, "function": function(arguments='"Oslo"}')}),
        end("tool_calls"),
    )
    message = assembly.choices()[0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {
            "id": "c0",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'},
        },
        {"id": "c1", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]
    assert assembly.has_content


def test_text_beside_a_tool_call_stays() -> None:
    message = assembled(text("Looking"), tool({"index": 0, "id": "a"})).choices()[0]["message"]
    assert message["content"] == "Looking"


def test_a_repeated_name_and_id_are_one_call() -> None:
    piece = {"index": 0, "id": "c", "function": function("f", "1")}
    (call,) = calls(tool(piece), tool(piece))
    assert call["function"] == {"name": "f", "arguments": "11"}
    assert call["id"] == "c"


def test_a_new_id_with_a_name_is_a_new_call_even_at_the_same_index() -> None:
    found = calls(
        tool({"index": 0, "id": "a", "function": function("f", "{")}),
        tool({"index": 0, "function": function(arguments="}")}),
        tool({"index": 0, "id": "b", "function": function("f", "[")}),
        tool({"index": 0, "function": function(arguments="]")}),
    )
    assert [(call["id"], call["function"]["arguments"]) for call in found] == [
        ("a", "{}"),
        ("b", "[]"),
    ]


def test_a_fresh_id_on_every_piece_is_still_one_call() -> None:
    (call,) = calls(
        tool({"index": 0, "id": "x1", "type": "function", "function": function("f", "{")}),
        tool({"index": 0, "id": "x2", "type": "function", "function": function(arguments="}")}),
    )
    assert call["id"] == "x1"
    assert call["function"]["arguments"] == "{}"


def test_calls_without_an_index_are_told_apart_by_id() -> None:
    found = calls(
        tool({"id": "a", "function": function("f", "1")}),
        tool({"function": function(arguments="2")}),
        tool({"id": "b", "function": function("g", "3")}),
        tool({"id": "a", "function": function(arguments="4")}),
    )
    assert [(call["id"], call["function"]["arguments"]) for call in found] == [
        ("a", "124"),
        ("b", "3"),
    ]


def test_two_calls_with_the_same_id_stay_two() -> None:
    found = calls(
        tool({"index": 0, "id": "same", "function": function("f", "1")}),
        tool({"index": 1, "id": "same", "function": function("g", "2")}),
    )
    assert [call["function"]["name"] for call in found] == ["f", "g"]


def test_object_arguments_become_json_text_and_missing_parts_are_filled() -> None:
    found = calls(
        Chunk([], id="gen"),
        tool({"function": function("f", {"city": "Oslo"})}, {"index": "odd", "id": 5}),
        tool({"index": 3, "id": "s", "function": "nonsense", "extra_content": {"k": "v"}}),
    )
    assert found[0] == {
        "id": "call_gen_0",
        "type": "function",
        "function": {"name": "f", "arguments": '{"city":"Oslo"}'},
    }
    assert found[1]["function"] == {"name": "", "arguments": ""}
    assert found[1]["extra_content"] == {"k": "v"}


def test_the_old_function_call_and_audio_are_merged_too() -> None:
    message = assembled(
        Chunk([Choice(Delta(function_call={"name": "f", "arguments": "{"}))]),
        Chunk([Choice(Delta(function_call={"name": None, "arguments": "}"}))]),
    ).choices()[0]["message"]
    assert message["function_call"] == {"name": "f", "arguments": "{}"}
    assert message["content"] is None
    message = assembled(
        Chunk([Choice(Delta(audio={"id": "au", "data": "QUJD", "transcript": "he"}))]),
        Chunk([Choice(Delta(audio={"id": "au", "data": "REVG", "transcript": "llo"}))]),
        Chunk([Choice(Delta(audio={"expires_at": 9}))]),
    ).choices()[0]["message"]
    assert message["audio"] == {
        "id": "au",
        "data": "QUJDREVG",
        "transcript": "hello",
        "expires_at": 9,
    }


def test_logprobs_are_concatenated_and_a_null_removes_nothing() -> None:
    assembly = assembled(
        Chunk(
            [Choice(Delta(content="a"), logprobs={"content": [{"token": "a"}], "refusal": None})]
        ),
        Chunk(
            [Choice(Delta(content="b"), logprobs={"content": [{"token": "b"}], "refusal": None})]
        ),
        Chunk([Choice(Delta(), logprobs={"content": None, "refusal": [1]})]),
    )
    assert assembly.choices()[0]["logprobs"] == {
        "content": [{"token": "a"}, {"token": "b"}],
        "refusal": [1],
    }


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("stop", "stop"),
        ("eos", "stop"),
        ("eos_token", "stop"),
        ("abort", "length"),
        ("error", "length"),
        ("error_finish", "length"),
        ("tool_calls", "tool_calls"),
        ("content_filter", "content_filter"),
        ("brand_new", "brand_new"),
        (None, None),
        ("", None),
    ],
)
def test_finish_reasons_speak_openai(theirs: str | None, ours: str | None) -> None:
    assert normal_finish_reason(theirs) == ours
    if theirs:
        assert assembled(end(theirs)).finish_reason == ours


words = st.text(max_size=6)
deltas = st.builds(
    Delta,
    role=st.sampled_from([None, "assistant"]),
    content=st.none() | words | st.just("x" * 700),
    reasoning_content=st.none() | words,
    refusal=st.none() | words,
    tool_calls=st.none()
    | st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "index": st.integers(0, 2) | st.none(),
                "id": st.sampled_from(["a", "b", "", None]),
                "type": st.sampled_from(["function", "custom", None]),
                "function": st.fixed_dictionaries(
                    {},
                    optional={
                        "name": st.sampled_from([None, "", "f", "g"]),
                        "arguments": st.none() | words | st.just({"k": 1}),
                    },
                ),
            },
        ),
        max_size=3,
    ),
    function_call=st.none() | st.just({"name": "f", "arguments": "{}"}),
    annotations=st.none() | st.just([{"type": "url_citation"}]),
    audio=st.none() | st.just({"id": "a", "data": "QUJD"}),
)
chunks = st.builds(
    Chunk,
    choices=st.lists(
        st.builds(
            Choice,
            delta=deltas,
            index=st.integers(0, 2),
            finish_reason=st.sampled_from([None, "stop", "length", "eos", "tool_calls"]),
            logprobs=st.none() | st.just({"content": [{"token": "t"}], "refusal": None}),
        ),
        max_size=2,
    ),
    id=st.sampled_from(["", "gen-1"]),
    model=st.sampled_from(["", "qwen"]),
    created=st.integers(0, 3),
    usage=st.none() | st.just({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}),
    extra=st.none() | st.just({"system_fingerprint": "fp"}),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(chunks, max_size=8), st.integers(0, 8))
def test_a_replay_assembles_to_the_same_answer(stream: list[Chunk], cut: int) -> None:
    """And it does not matter how the stream was grouped into reads."""
    assembly = assembled(*stream)
    grouped = Assembly()
    grouped.add_all(stream[:cut])
    grouped.add_all(stream[cut:])
    assert grouped.choices() == assembly.choices()

    usage = assembly.usage or {}
    answer = Generation(
        id="gen-1",
        choices=assembly.choices(),
        served=Served(requested_mode="fast", mode="fast", model=assembly.model),
        usage=Usage(**usage, details=usage),
        created=assembly.created,
        extra=assembly.extra,
    )
    replayed = assembled(*chunks_of(answer))
    assert replayed.choices() == answer.choices
    assert replayed.usage == assembly.usage
    assert replayed.extra == assembly.extra
    assert replayed.model == assembly.model
    assert replayed.created == assembly.created


def test_a_replay_looks_like_a_stream() -> None:
    content = "word " * 300
    answer = Generation(
        id="g",
        choices=assembled(text(content), end("stop")).choices(),
        served=Served(requested_mode="fast", mode="fast", model="m"),
        usage=Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3),
    )
    stream = chunks_of(answer)
    assert stream[0].choices[0].delta.role == "assistant"
    assert not stream[0].carries()
    pieces = [chunk.text for chunk in stream if chunk.text]
    assert len(pieces) > 1
    assert "".join(pieces) == content
    assert stream[-2].finish_reason == "stop"
    assert stream[-1].choices == []
    assert stream[-1].usage == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert {chunk.id for chunk in stream} == {"g"}
    assert {chunk.model for chunk in stream} == {"m"}
