"""The Responses API, judged by the openai package: its types validate every object and event."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from api_stage import USAGE, Stage, Upstream, chunk, config, sse, stage
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {
    "type": "function",
    "name": "weather",
    "description": None,
    "parameters": PARAMETERS,
    "strict": True,
}


def call_piece(index: int, arguments: str, call_id: str = "", name: str = "") -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": name} if name else {})}
    piece = {"index": index, "function": function}
    return {**piece, "id": call_id, "type": "function"} if call_id else piece


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
async def s(upstream: Upstream) -> AsyncIterator[Stage]:
    async with stage(config(upstream, cache={"enabled": False})) as staged:
        yield staged


@pytest.fixture
def sdk(s: Stage) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(http_client=s.http, base_url="http://gateway/v1", api_key="x")


async def events(s: Stage, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream: framing, names, numbers and types are checked."""
    answer = await s.post("/responses", {"input": "hi", "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.text.endswith("\n\n")
    found = []
    for number, event in enumerate(answer.text.removesuffix("\n\n").split("\n\n")):
        name, data = event.split("\n")
        decoded = json.loads(data.removeprefix("data: "))
        assert name == f"event: {decoded['type']}"
        assert decoded["sequence_number"] == number
        EVENT.validate_python(decoded, strict=True)
        found.append(decoded)
    return found


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in found]


async def test_a_whole_answer(s: Stage, upstream: Upstream) -> None:
    answer = await s.post(
        "/responses", {"model": "creative", "input": "hi", "metadata": {"a": "b"}}
    )
    body = answer.json()
    response = Response.model_validate(body, strict=True)
    assert response.output_text == "cedar"
    assert response.status == "completed"
    assert response.model == "qwen-real"
    assert response.id == f"resp_{answer.headers['x-gateway-id']}"
    assert response.metadata == {"a": "b"}
    assert body["store"] is False
    assert body["gateway"]["mode"] == "creative"
    assert body["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 5,
    }
    assert upstream.asked[0]["messages"] == [{"role": "user", "content": "hi"}]
    assert "metadata" not in upstream.asked[0]


async def test_the_events_of_a_text(s: Stage) -> None:
    found = await events(s)
    assert kinds(found) == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done", "completed"),
    ]
    assert [e["delta"] for e in found if "delta" in e] == ["ce", "dar"]
    last = found[-1]["response"]
    assert last["output"][0]["content"][0]["text"] == "cedar"
    assert last["usage"]["total_tokens"] == USAGE["total_tokens"]
    assert found[0]["response"]["output"] == [] and found[0]["response"]["usage"] is None
    assert len({e["response"]["id"] for e in found if "response" in e}) == 1
    assert found[0]["response"]["gateway"] == last["gateway"]


async def test_the_sdks_own_reader_follows_the_stream(sdk: openai.AsyncOpenAI) -> None:
    text = ""
    async with sdk.responses.stream(model="creative", input="hi") as stream:
        async for event in stream:
            if event.type == "response.output_text.delta":
                text += event.delta
        final = await stream.get_final_response()
    assert text == final.output_text == "cedar"
    assert final.usage is not None and final.usage.output_tokens == 2


@pytest.mark.parametrize("summary", [None, "auto"])
async def test_reasoning_is_an_item_of_its_own(
    s: Stage, upstream: Upstream, summary: str | None
) -> None:
    upstream.body = sse(
        chunk({"reasoning_content": "h"}),
        chunk({"reasoning_content": "m"}),
        chunk({"content": "a"}),
        chunk({}, "stop"),
    )
    found = await events(s, reasoning={"effort": "low", "summary": summary})
    assert upstream.asked[0]["reasoning_effort"] == "low"
    part = "reasoning_summary_part" if summary else "content_part"
    text = "reasoning_summary_text" if summary else "reasoning_text"
    assert kinds(found)[2:9] == [
        *("output_item.added", f"{part}.added", f"{text}.delta", f"{text}.delta"),
        *(f"{text}.done", f"{part}.done", "output_item.done"),
    ]
    whole = (await s.post("/responses", {"input": "hi", "reasoning": {"summary": summary}})).json()
    Response.model_validate(whole, strict=True)
    for response in (found[-1]["response"], whole):
        item, message = response["output"]
        told = item["summary"] if summary else item["content"]
        assert [p["text"] for p in told] == ["hm"]
        assert message["content"][0]["text"] == "a"


async def test_function_calls_come_as_items_with_their_arguments(
    s: Stage, upstream: Upstream
) -> None:
    upstream.body = sse(
        chunk({"content": "see"}),
        chunk({"tool_calls": [call_piece(0, "", "c0", "weather")]}),
        chunk({"tool_calls": [call_piece(0, '{"city":')]}),
        chunk({"tool_calls": [call_piece(1, '{"city":"B"}', "c1", "weather")]}),
        chunk({"tool_calls": [call_piece(0, '"A"}')]}),
        chunk({}, "tool_calls"),
    )
    found = await events(s, tools=[TOOL], tool_choice="required", parallel_tool_calls=True)
    asked = upstream.asked[0]
    assert asked["tools"] == [
        {
            "type": "function",
            "function": {"name": "weather", "parameters": PARAMETERS, "strict": True},
        }
    ]
    assert asked["tool_choice"] == "required"
    done = [e for e in found if e["type"] == "response.function_call_arguments.done"]
    assert [(e["name"], e["arguments"]) for e in done] == [
        ("weather", '{"city":"A"}'),
        ("weather", '{"city":"B"}'),
    ]
    whole = (await s.post("/responses", {"input": "hi", "tools": [TOOL]})).json()
    Response.model_validate(whole, strict=True)
    for response in (found[-1]["response"], whole):
        assert [item["type"] for item in response["output"]] == [
            *("message", "function_call", "function_call")
        ]
        first = response["output"][1]
        assert (first["call_id"], first["name"]) == ("c0", "weather")
        assert first["arguments"] == '{"city":"A"}'
        assert response["tools"] == [TOOL]


async def test_a_conversation_with_calls_becomes_a_chat(s: Stage, upstream: Upstream) -> None:
    await s.post(
        "/responses",
        {
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
                {
                    "type": "reasoning",
                    "id": "rs",
                    "summary": [{"type": "summary_text", "text": "hm"}],
                },
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
                },
                {"type": "function_call", "call_id": "a", "name": "w", "arguments": "{}"},
                {"type": "function_call", "call_id": "b", "name": "w", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "a", "output": "sun"},
                {
                    "type": "function_call_output",
                    "call_id": "b",
                    "output": [{"type": "input_text", "text": "rain"}],
                },
                {"role": "developer", "content": "Hurry."},
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "And this?"},
                        {"type": "input_image", "image_url": "data:x", "detail": "low"},
                    ],
                },
            ],
        },
    )
    function = {"name": "w", "arguments": "{}"}
    assert upstream.asked[0]["messages"] == [
        {"role": "system", "content": "Be brief.\n\nHurry."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning": "hm",
            "tool_calls": [
                {"id": "a", "type": "function", "function": function},
                {"id": "b", "type": "function", "function": function},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "sun"},
        {"role": "tool", "tool_call_id": "b", "content": "rain"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And this?"},
                {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}},
            ],
        },
    ]


async def test_what_comes_out_goes_in_again(
    s: Stage, sdk: openai.AsyncOpenAI, upstream: Upstream
) -> None:
    """The loop of every agent: append the output items and the results, and ask again."""
    upstream.body = sse(
        chunk({"reasoning_content": "hm"}),
        chunk({"tool_calls": [call_piece(0, "{}", "c0", "weather")]}),
        chunk({}, "tool_calls"),
    )
    first = await sdk.responses.create(model="creative", input="hi", tools=[TOOL])  # type: ignore[list-item]
    items: list[Any] = [{"role": "user", "content": "hi"}]
    items += [item.model_dump(exclude_unset=True) for item in first.output]
    items.append({"type": "function_call_output", "call_id": "c0", "output": "sun"})
    await sdk.responses.create(model="creative", input=items)
    roles = [message["role"] for message in upstream.asked[-1]["messages"]]
    assert roles == ["user", "assistant", "tool"]
    assert upstream.asked[-1]["messages"][1]["reasoning"] == "hm"


async def test_structured_output_and_limits_go_upstream(
    sdk: openai.AsyncOpenAI, upstream: Upstream
) -> None:
    class Note(BaseModel):
        name: str

    upstream.body = sse(chunk({"content": '{"name":"cedar"}'}), chunk({}, "stop"))
    parsed = await sdk.responses.parse(
        model="creative",
        input="hi",
        text_format=Note,
        max_output_tokens=50,
        temperature=0.1,
        extra_body={"seed": 3},
    )
    assert parsed.output_parsed == Note(name="cedar")
    asked = upstream.asked[0]
    assert asked["response_format"]["type"] == "json_schema"
    assert asked["response_format"]["json_schema"]["name"] == "Note"
    assert asked["response_format"]["json_schema"]["strict"] is True
    assert (asked["max_tokens"], asked["temperature"], asked["seed"]) == (50, 0.1, 3)


@pytest.mark.parametrize(
    ("reason", "why"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
async def test_a_cut_answer_is_incomplete(
    s: Stage, upstream: Upstream, reason: str, why: str
) -> None:
    upstream.body = sse(chunk({"content": "a"}), chunk({}, reason))
    found = await events(s)
    whole = (await s.post("/responses", {"input": "hi"})).json()
    assert found[-1]["type"] == "response.incomplete"
    for response in (found[-1]["response"], whole):
        Response.model_validate(response, strict=True)
        assert response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": why}
        assert response["output"][0]["status"] == "incomplete"


async def test_a_refusal_is_a_part_of_the_message(s: Stage, upstream: Upstream) -> None:
    upstream.body = sse(chunk({"content": "No: "}), chunk({"refusal": "never"}), chunk({}, "stop"))
    found = await events(s)
    assert "refusal.delta" in kinds(found) and "refusal.done" in kinds(found)
    whole = (await s.post("/responses", {"input": "hi"})).json()
    for response in (found[-1]["response"], whole):
        assert [part["type"] for part in response["output"][0]["content"]] == [
            *("output_text", "refusal")
        ]


async def test_logprobs_and_citations_are_told_flat(s: Stage, upstream: Upstream) -> None:
    token = {"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": []}
    url = {"start_index": 0, "end_index": 1, "title": "t", "url": "u"}
    piece = chunk({"content": "a"})
    piece["choices"][0]["logprobs"] = {"content": [token]}
    cited = {"annotations": [{"type": "url_citation", "url_citation": url}]}
    upstream.body = sse(piece, chunk(cited), chunk({}, "stop"))
    found = await events(s, include=["message.output_text.logprobs"], top_logprobs=1)
    assert upstream.asked[0]["logprobs"] is True and upstream.asked[0]["top_logprobs"] == 1
    whole = (await s.post("/responses", {"input": "hi"})).json()
    for response in (found[-1]["response"], whole):
        part = response["output"][0]["content"][0]
        assert part["annotations"] == [{"type": "url_citation", **url}]
        assert part["logprobs"] == [{**token, "bytes": [97]}]


async def test_a_break_is_told_and_nothing_is_completed(s: Stage, upstream: Upstream) -> None:
    upstream.body = sse(chunk({"content": "a"}), done=False)
    found = await events(s)
    assert kinds(found)[-2:] == ["error", "failed"]
    assert found[-1]["response"]["status"] == "failed"
    assert found[-1]["response"]["error"]["code"] == "server_error"


async def test_an_error_before_the_first_token_has_its_own_status(
    s: Stage, upstream: Upstream
) -> None:
    upstream.fail(400, "the prompt is too long")
    answer = await s.post("/responses", {"input": "hi", "stream": True})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": " "}, "input"),
        ({"input": [{"role": "user", "content": ""}]}, "input"),
        ({"input": {}}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": []}]}, "input[0].type"),
        ({"input": [{"role": "nobody", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [5]}]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].image_url",
        ),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0].name"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"text": {"format": "json"}}, "text.format.type"),
        ({"reasoning": {"effort": 5}}, "reasoning.effort"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"include": "logprobs"}, "include"),
    ],
)
async def test_bad_fields_are_named(
    s: Stage, upstream: Upstream, fields: dict[str, Any], param: str
) -> None:
    answer = await s.post("/responses", {"input": "hi", **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert not upstream.asked


async def test_a_choice_among_allowed_tools_leaves_only_those(s: Stage, upstream: Upstream) -> None:
    choice = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "weather"}],
    }
    tools = [TOOL, {**TOOL, "name": "other"}]
    await s.post("/responses", {"input": "hi", "tools": tools, "tool_choice": choice})
    asked = upstream.asked[0]
    assert [tool["function"]["name"] for tool in asked["tools"]] == ["weather"]
    assert asked["tool_choice"] == "required"
    named = {"type": "function", "name": "other"}
    await s.post("/responses", {"input": "hi", "tools": tools, "tool_choice": named})
    assert upstream.asked[1]["tool_choice"] == {"type": "function", "function": {"name": "other"}}


async def test_reasoning_belongs_to_what_follows_it_at_once(s: Stage, upstream: Upstream) -> None:
    def thought(text: str) -> dict[str, Any]:
        return {
            "type": "reasoning",
            "id": "rs",
            "summary": [{"type": "summary_text", "text": text}],
        }

    given = [
        thought("cut off"),  # an answer that ended before its first word
        {"role": "user", "content": "go on"},
        {"role": "assistant", "content": "well"},
        {"role": "user", "content": "and?"},
        thought("first"),
        thought("then"),
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "thanks"},
    ]
    await s.post("/responses", {"input": given})
    sent = upstream.asked[0]["messages"]
    reasoning = [m.get("reasoning") or m.get("reasoning_content") for m in sent]
    assert reasoning == [None, None, None, "first\n\nthen", None]
