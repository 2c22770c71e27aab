"""Whatever chunks come in whatever order and batches: events strict clients take, nothing lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from gateway.assembly import Assembly
from gateway.generation import Choice, Chunk, Delta, Served
from gateway.openai_api.chat_answer import ChatWriter
from gateway.openai_api.completions_answer import CompletionWriter
from gateway.openai_api.responses_stream import ResponseWriter
from gateway.openai_api.serving import Writer
from gateway.providers.decoding import text_chunk

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ECHO: dict[str, Any] = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}

TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
MAYBE = st.none() | TEXT
PIECE = st.fixed_dictionaries(
    {"index": st.integers(0, 2), "function": st.fixed_dictionaries({"arguments": TEXT})},
    optional={"id": st.sampled_from(["a", "b"]), "type": st.just("function")},
)
DELTA = st.builds(
    Delta,
    role=st.sampled_from([None, None, "assistant", ""]),
    content=MAYBE,
    reasoning_content=MAYBE,
    refusal=MAYBE,
    tool_calls=st.none() | st.lists(PIECE, max_size=2),
)
CHOICE = st.builds(
    Choice,
    delta=DELTA,
    index=st.sampled_from([0, 0, 0, 1]),
    finish_reason=st.sampled_from([None, None, None, "stop", "eos", "length", "tool_calls"]),
    logprobs=st.none(),
)
USAGE = st.sampled_from([None, {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}])
PLAIN = TEXT.map(lambda t: text_chunk(json.dumps({"choices": [{"delta": {"content": t}}]})))
CHUNK = PLAIN | st.builds(
    Chunk,
    choices=st.lists(CHOICE, max_size=2),
    usage=USAGE,
    extra=st.sampled_from([None, {"x": 1}]),
)
BATCHES = st.lists(st.lists(CHUNK, min_size=1, max_size=4), max_size=5)


class Answering:
    id = "gen-1"
    served = Served(requested_mode="creative", mode="creative", model="m")


def written(writer: Writer, batches: list[list[Chunk]]) -> list[Any]:
    stream = writer.begin(Answering())
    for batch in batches:
        stream += writer.write(batch)
    stream += writer.end()
    lines = [line for line in stream.decode().split("\n") if line.startswith("data: ")]
    assert stream.endswith(b"\n\n")
    data = [line.removeprefix("data: ") for line in lines]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def content_of(batches: list[list[Chunk]], index: int) -> str:
    chunks = [chunk for batch in batches for chunk in batch]
    return "".join(c.delta.content or "" for x in chunks for c in x.choices if c.index == index)


@settings(max_examples=60, deadline=None)
@given(BATCHES, st.booleans())
def test_a_chat_is_always_a_role_then_what_comes_then_one_finish(
    batches: list[list[Chunk]], include_usage: bool
) -> None:
    events = written(ChatWriter(include_usage=include_usage), batches)
    assert events.pop() == "[DONE]"
    last = [e for e in events if not e["choices"] or e["choices"][0]["finish_reason"]]
    assert all("gateway" in event for event in (events[0], *last))
    assert (events[-1]["choices"] == []) is include_usage
    choices: dict[int, list[Any]] = {}
    for event in events:
        ChatCompletionChunk.model_validate(event, strict=True)
        for choice in event["choices"]:
            choices.setdefault(choice["index"], []).append(choice)
    for index, parts in choices.items():
        assert parts[0]["delta"]["role"] == "assistant"
        assert all("role" not in part["delta"] for part in parts[1:])
        assert sum(part["finish_reason"] is not None for part in parts) == 1
        text = "".join(part["delta"].get("content") or "" for part in parts)
        assert text == content_of(batches, index)


@settings(max_examples=40, deadline=None)
@given(BATCHES, st.booleans())
def test_a_completion_is_always_text_and_one_finish(
    batches: list[list[Chunk]], include_usage: bool
) -> None:
    events = written(CompletionWriter(include_usage=include_usage), batches)
    assert events.pop() == "[DONE]"
    texts: dict[int, str] = {}
    finished: list[int] = []
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
            finished += [choice["index"]] if choice["finish_reason"] else []
            event["choices"][0]["finish_reason"] = choice["finish_reason"] or "stop"
        if event["choices"] and event["choices"][0]["finish_reason"] != "tool_calls":
            Completion.model_validate(event, strict=True)
    assert sorted(finished) == sorted(texts)
    for index, text in texts.items():
        assert text == content_of(batches, index)


@settings(max_examples=60, deadline=None)
@given(BATCHES, st.booleans())
def test_a_response_is_always_items_that_begin_and_end(
    batches: list[list[Chunk]], summarize: bool
) -> None:
    events = written(ResponseWriter(ECHO, summarize=summarize), batches)
    begun: list[str] = []
    done: list[str] = []
    for number, event in enumerate(events):
        assert event["sequence_number"] == number
        EVENT.validate_python(event, strict=True)
        if event["type"] == "response.output_item.added":
            begun.append(event["item"]["id"])
            assert event["output_index"] == len(begun) - 1
        elif event["type"] == "response.output_item.done":
            done.append(event["item"]["id"])
    output = events[-1]["response"]["output"]
    assert begun == [item["id"] for item in output]
    assert sorted(done) == sorted(begun)
    parts = [part for item in output if item["type"] == "message" for part in item["content"]]
    assert "".join(part.get("text", "") for part in parts) == content_of(batches, 0)


@settings(max_examples=60, deadline=None)
@given(BATCHES)
def test_what_a_client_puts_together_is_what_a_whole_answer_says(
    batches: list[list[Chunk]],
) -> None:
    assembly = Assembly()
    for batch in batches:
        assembly.add_all(batch)
    pieces: dict[int, str] = {}
    for event in written(ChatWriter(include_usage=False), batches)[:-1]:
        for choice in event["choices"]:
            for piece in choice["delta"].get("tool_calls", []) if choice["index"] == 0 else []:
                arguments = piece["function"].get("arguments", "")
                pieces[piece["index"]] = pieces.get(piece["index"], "") + arguments
    whole = assembly.choices()[0]["message"].get("tool_calls", [])
    assert list(pieces.values()) == [call["function"]["arguments"] for call in whole]


@pytest.mark.parametrize("include_usage", [True, False])
def test_an_answer_of_nothing_is_still_an_answer(include_usage: bool) -> None:
    events = written(ChatWriter(include_usage=include_usage), [])
    assert [len(e["choices"]) for e in events[:-1]] == [1, 1, 0] if include_usage else [1, 1]


def token(text: str) -> dict[str, Any]:
    return {"content": [{"token": text, "logprob": -1.0, "bytes": [1], "top_logprobs": []}]}


# A token that is part of a character, its rest, and what a cached answer has behind its text.
SCORED = [
    Chunk([Choice(Delta(role="assistant", content=""))]),
    Chunk([Choice(Delta(content=""), logprobs=token("a"))]),
    Chunk([Choice(Delta(content="é"), logprobs=token("b"))]),
    Chunk([Choice(Delta(), finish_reason="stop", logprobs=token("c"))]),
]


@pytest.mark.parametrize("together", [True, False])
def test_no_log_probability_is_lost_for_want_of_text(together: bool) -> None:
    batches = [SCORED] if together else [[chunk] for chunk in SCORED]
    chat = written(ChatWriter(include_usage=False), batches)
    said = [e["choices"][0]["logprobs"] for e in chat if e != "[DONE]"]
    assert [t["token"] for of in said if of for t in of["content"]] == ["a", "b", "c"]
    events = written(ResponseWriter(ECHO, summarize=False), batches)
    for event in events:
        EVENT.validate_python(event)
    deltas = [e for e in events if e["type"] == "response.output_text.delta"]
    assert [t["token"] for e in deltas for t in e["logprobs"]] == ["a", "b", "c"]
    part = events[-1]["response"]["output"][0]["content"][0]
    assert part["text"] == "é"
    assert [t["token"] for t in part["logprobs"]] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "odd", [{"content": 5}, {"content": [1, {"token": "a", "top_logprobs": ["x"]}]}, {"x": 1}]
)
def test_odd_log_probabilities_break_no_response(odd: dict[str, Any]) -> None:
    events = written(
        ResponseWriter(ECHO, summarize=False), [[Chunk([Choice(Delta(content="x"), logprobs=odd)])]]
    )
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "x"


def test_the_arguments_of_a_call_may_go_on_behind_a_text() -> None:
    function = {"name": "f", "arguments": '{"a":'}
    begun = {"index": 0, "id": "c", "type": "function", "function": function}
    ended = {"index": 0, "function": {"arguments": "1}"}}
    deltas = [Delta(tool_calls=[begun]), Delta(content="\n"), Delta(tool_calls=[ended])]
    events = written(
        ResponseWriter(ECHO, summarize=False), [[Chunk([Choice(delta)])] for delta in deltas]
    )
    for event in events:
        EVENT.validate_python(event)
    call, text = events[-1]["response"]["output"]
    assert call["arguments"] == '{"a":1}'
    assert text["content"][0]["text"] == "\n"
    done = [e["output_index"] for e in events if e["type"] == "response.output_item.done"]
    assert sorted(done) == [0, 1]
