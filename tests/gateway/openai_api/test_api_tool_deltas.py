"""Pieces of tool calls: whatever servers send, strict clients can put it together."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.openai_api.tool_deltas import ToolDeltas
from gateway.tool_calls import ToolCalls


def run(*events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    tools = ToolDeltas("gen-1")
    return [tools.pieces(event) for event in events]


def first(index: int, call_id: str, name: str, arguments: str = "") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": call_id, "type": "function", "function": function}


def more(index: int, arguments: str) -> dict[str, Any]:
    return {"index": index, "function": {"arguments": arguments}}


def test_pieces_that_are_right_pass_as_they_are() -> None:
    events = [[first(0, "a", "f")], [more(0, "{")], [first(1, "b", "g")], [more(1, "}")]]
    assert run(*events) == events


def test_what_is_missing_of_the_first_piece_is_made_up() -> None:
    assert run([{"function": {"name": "f"}}]) == [[first(0, "call_gen-1_0", "f")]]


def test_repeated_ids_and_names_are_said_once() -> None:
    assert run([first(0, "a", "f", "{")], [first(0, "a", "f", "}")]) == [
        [first(0, "a", "f", "{")],
        [more(0, "}")],
    ]


def test_a_new_id_with_a_name_is_a_new_call_although_the_index_is_taken() -> None:
    assert run([first(0, "a", "f", "{}"), first(0, "b", "g", "{}")]) == [
        [first(0, "a", "f", "{}"), first(1, "b", "g", "{}")]
    ]


def test_a_new_id_alone_is_not_a_new_call() -> None:
    fresh = {"index": 0, "id": "b", "function": {"arguments": "}"}}
    assert run([first(0, "a", "f", "{")], [fresh])[1] == [more(0, "}")]


PARALLEL = [
    [{"function": {"name": "f", "arguments": "{}"}}, {"function": {"name": "g", "arguments": "1"}}],
    [{**first(0, "", "f", "{}")}, {**first(0, "", "g", "1")}],
]


@pytest.mark.parametrize("given", PARALLEL)
@pytest.mark.parametrize("together", [True, False])
def test_another_name_behind_arguments_is_another_call(
    given: list[dict[str, Any]], together: bool
) -> None:
    events = run(given) if together else run(*[[piece] for piece in given])
    pieces = [piece for event in events for piece in event]
    assert pieces == [first(0, "call_gen-1_0", "f", "{}"), first(1, "call_gen-1_1", "g", "1")]
    whole = ToolCalls()
    for piece in given:
        whole.add(piece)
    said = [call["function"] for call in whole.finished("gen-1")]
    assert said == [{"name": "f", "arguments": "{}"}, {"name": "g", "arguments": "1"}]


def test_pieces_without_an_index_belong_by_id_or_to_the_latest_call() -> None:
    a, b = {**first(0, "a", "f")}, {**first(0, "b", "g")}
    del a["index"], b["index"]
    late = {"id": "a", "function": {"arguments": "1"}}
    assert run([a, b], [late], [{"function": {"arguments": "2"}}]) == [
        [first(0, "a", "f"), first(1, "b", "g")],
        [more(0, "1")],
        [more(1, "2")],
    ]


def test_arguments_as_an_object_become_text() -> None:
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": {"x": 1}}}
    assert run([call]) == [[first(0, "a", "f", '{"x":1}')]]


def test_a_late_name_is_said_and_an_empty_piece_is_not() -> None:
    opening = {"index": 0, "id": "a", "function": {"arguments": ""}}
    name = {"index": 0, "function": {"name": "f", "arguments": ""}}
    assert run([opening], [name], [more(0, "")]) == [
        [first(0, "a", "")],
        [{"index": 0, "function": {"name": "f"}}],
        [],
    ]


@pytest.mark.parametrize("junk", [{}, {"index": "0"}, {"id": 5, "function": "f"}, {"type": None}])
def test_junk_never_raises(junk: dict[str, Any]) -> None:
    (pieces,) = run([junk])
    assert pieces[0]["index"] == 0 and isinstance(pieces[0]["id"], str)
    assert isinstance(pieces[0]["function"]["arguments"], str)


def test_what_a_client_puts_together_is_what_a_whole_answer_says() -> None:
    events = [[first(0, "a", "f", "{")], [first(0, "a", "f", '"x":')], [first(0, "c", "g", "{}")]]
    whole, again = ToolCalls(), ToolCalls()
    for event in events:
        for piece in event:
            whole.add(piece)
    for event in run(*events):
        for piece in event:
            again.add(piece)
    assert again.finished("gen-1") == whole.finished("gen-1")
