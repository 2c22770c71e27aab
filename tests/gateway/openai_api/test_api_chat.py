"""Chat completions on the wire: what strict clients read, byte for byte."""

from __future__ import annotations

import json
from typing import Any

import pytest
from api_stage import FINE, USAGE, Upstream, chunk, config, events_of, sse, stage
from openai.types.chat import ChatCompletion, ChatCompletionChunk


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


async def streamed(upstream: Upstream, **fields: Any) -> list[Any]:
    async with stage(config(upstream)) as s:
        answer = await s.chat(stream=True, **fields)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        return events_of(answer)


def deltas(events: list[Any]) -> list[Any]:
    return [e["choices"][0]["delta"] for e in events if e != "[DONE]" and e["choices"]]


async def test_a_stream_is_role_content_finish_done(upstream: Upstream) -> None:
    events = await streamed(upstream)
    assert deltas(events) == [
        {"role": "assistant", "content": ""},
        {"content": "ce"},
        {"content": "dar"},
        {},
    ]
    assert events[-1] == "[DONE]"
    chunks = events[:-1]
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({(c["id"], c["created"], c["model"]) for c in chunks}) == 1
    assert chunks[0]["model"] == "qwen-real"
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None, None, None, "stop"]
    assert all(c["choices"][0]["logprobs"] is None for c in chunks)
    assert all("usage" not in c for c in chunks)
    for c in chunks:
        ChatCompletionChunk.model_validate(c, strict=True)


async def test_the_first_and_the_last_chunks_say_who_answers(upstream: Upstream) -> None:
    events = await streamed(upstream, stream_options={"include_usage": True})
    told = ["gateway" in event for event in events[:-1]]
    assert told == [True, False, False, True, True]
    assert events[0]["gateway"]["mode"] == events[-2]["gateway"]["mode"] == "creative"


async def test_usage_is_an_event_of_its_own_and_null_elsewhere(upstream: Upstream) -> None:
    events = await streamed(upstream, stream_options={"include_usage": True})
    assert events[-2]["choices"] == []
    assert events[-2]["usage"] == USAGE
    assert all(event["usage"] is None for event in events[:-2])


async def test_a_role_that_is_missing_or_repeated_is_said_once(upstream: Upstream) -> None:
    upstream.body = sse(
        chunk({"role": "assistant", "content": "a"}),
        chunk({"role": "assistant", "content": "b"}),
        chunk({"role": "assistant", "content": "c"}, "stop"),
    )
    expected = [{"role": "assistant", "content": ""}, *({"content": x} for x in "abc"), {}]
    assert deltas(await streamed(upstream)) == expected
    upstream.body = sse(chunk({"content": "abc"}), chunk({}, "stop"))
    assert deltas(await streamed(upstream)) == [expected[0], {"content": "abc"}, {}]


async def test_an_answer_without_a_finish_reason_still_gets_a_finish_chunk(
    upstream: Upstream,
) -> None:
    upstream.body = sse(chunk({"content": "a"}))
    events = await streamed(upstream)
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-2]["choices"][0]["delta"] == {}


@pytest.mark.parametrize(("said", "told"), [("eos", "stop"), ("abc", "stop"), ("length", "length")])
async def test_finish_reasons_are_openais(upstream: Upstream, said: str, told: str) -> None:
    upstream.body = sse(chunk({"content": "a"}), chunk({}, said))
    assert (await streamed(upstream))[-2]["choices"][0]["finish_reason"] == told


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
async def test_reasoning_has_both_names(upstream: Upstream, name: str) -> None:
    upstream.body = sse(chunk({name: "hm"}), chunk({"content": "a"}), chunk({}, "stop"))
    events = await streamed(upstream)
    assert deltas(events)[1] == {"reasoning_content": "hm", "reasoning": "hm"}
    async with stage(config(upstream)) as s:
        message = (await s.chat()).json()["choices"][0]["message"]
        assert message["reasoning_content"] == message["reasoning"] == "hm"


async def test_choices_of_n_each_have_a_role_and_a_finish(upstream: Upstream) -> None:
    upstream.body = sse(
        chunk({"content": "a"}),
        chunk({"content": "b"}, index=1),
        chunk({"content": "c"}, "stop", index=1),
        chunk({}, "length"),
    )
    events = await streamed(upstream, n=2)
    seen: dict[int, list[Any]] = {0: [], 1: []}
    for event in events[:-1]:
        choice = event["choices"][0]
        seen[choice["index"]].append(choice["finish_reason"] or choice["delta"])
    role = {"role": "assistant", "content": ""}
    assert seen == {
        0: [role, {"content": "a"}, "length"],
        1: [role, {"content": "b"}, {"content": "c"}, "stop"],
    }


async def test_logprobs_and_what_else_the_upstream_says_pass(upstream: Upstream) -> None:
    logprobs = {"content": [{"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
    first = chunk({"content": "a"}, system_fingerprint="fp")
    second = chunk({"content": "b"})
    second["choices"][0]["logprobs"] = logprobs
    upstream.body = sse(first, second, chunk({}, "stop", timings={"ms": 5}))
    events = await streamed(upstream, logprobs=True)
    assert ["system_fingerprint" in event for event in events[:-1]] == [True, False, False, False]
    assert events[2]["choices"][0]["logprobs"] == logprobs
    assert events[-2]["timings"] == {"ms": 5}


async def test_a_break_after_the_first_token_is_an_error_event_and_no_done(
    upstream: Upstream,
) -> None:
    upstream.body = sse(chunk({"content": "a"}), done=False)
    events = await streamed(upstream)
    assert events[-1]["error"]["code"] == "stream_interrupted"
    assert events[-1]["error"]["type"] == "server_error"
    assert "[DONE]" not in events


async def test_a_whole_answer_has_every_key(upstream: Upstream) -> None:
    async with stage(config(upstream)) as s:
        answer = (await s.chat()).json()
    ChatCompletion.model_validate(answer, strict=True)
    choice = answer["choices"][0]
    assert choice["logprobs"] is None
    assert choice["message"] == {
        "role": "assistant",
        "content": "cedar",
        "refusal": None,
        "annotations": [],
    }
    assert answer["usage"] == USAGE
    assert answer["model"] == "qwen-real"
    assert answer["created"] == 1700000000


async def test_usage_details_that_are_null_are_left_out(upstream: Upstream) -> None:
    usage = {**USAGE, "prompt_tokens_details": None}
    upstream.body = sse(chunk({"content": "a"}), chunk({}, "stop"), chunk(None, usage=usage))
    async with stage(config(upstream)) as s:
        answer = (await s.chat()).json()
    assert "prompt_tokens_details" not in answer["usage"]
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 1}


@pytest.mark.parametrize("stamp", [0, -5, 1700000000000])
async def test_a_time_stamp_that_is_none_is_replaced(upstream: Upstream, stamp: int) -> None:
    upstream.body = FINE.replace(b"1700000000", str(stamp).encode())
    async with stage(config(upstream)) as s:
        answer = (await s.chat()).json()
    assert 1_700_000_000 < answer["created"] < 4_000_000_000


async def test_tool_calls_are_deltas_with_index_id_and_name_first(upstream: Upstream) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": '{"a":1}'}}
    upstream.body = sse(
        chunk({"tool_calls": [call]}), chunk({"tool_calls": [more]}), chunk({}, "tool_calls")
    )
    events = await streamed(upstream, tools=[{"type": "function", "function": {"name": "f"}}])
    assert deltas(events)[1:] == [
        {"tool_calls": [call]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":1}'}}]},
        {},
    ]


async def test_unknown_fields_go_upstream_and_nulls_are_left_out(upstream: Upstream) -> None:
    async with stage(config(upstream)) as s:
        await s.chat(
            stream=True,
            stream_options={"include_usage": False, "continuous_usage_stats": True},
            service_tier="flex",
            metadata={"a": "b"},
            temperature=None,
            best_kept_secret={"x": [1, None]},
        )
    asked = upstream.asked[0]
    assert asked["service_tier"] == "flex"
    assert asked["metadata"] == {"a": "b"}
    assert asked["best_kept_secret"] == {"x": [1, None]}
    assert "temperature" not in asked
    assert asked["stream_options"] == {"continuous_usage_stats": True, "include_usage": True}


async def test_past_reasoning_is_taken_under_either_name(upstream: Upstream) -> None:
    for name in ("reasoning", "reasoning_content"):
        past = {"role": "assistant", "content": "a", name: "hm"}
        async with stage(config(upstream)) as s:
            await s.chat(messages=[{"role": "user", "content": "x"}, past])
        assert upstream.asked[-1]["messages"][1] == {
            "role": "assistant",
            "content": "a",
            "reasoning": "hm",
        }


async def test_headers_say_who_answered_and_what_it_cost(upstream: Upstream) -> None:
    async with stage(config(upstream)) as s:
        first, second = await s.chat(), await s.chat()
        third = await s.chat(headers={"cache-control": "no-cache"})
        fourth = await s.chat(stream=True)
    assert first.headers["x-gateway-cache"] == "miss"
    assert first.headers["cache-status"] == "downshift-gateway; fwd=miss; stored; ttl=3600"
    assert first.headers["x-gateway-attempts"] == "1"
    assert 0 <= float(first.headers["x-gateway-overhead-ms"]) < 1000
    assert second.headers["cache-status"].startswith("downshift-gateway; hit; ttl=3")
    assert second.headers["age"] == "0"
    assert second.headers["x-gateway-attempts"] == "0"
    assert third.headers["cache-status"].startswith("downshift-gateway; fwd=request")
    assert fourth.headers["x-gateway-cache"] == "hit"
    assert fourth.headers["x-gateway-id"] == events_of(fourth)[0]["id"]


async def test_a_replayed_answer_is_the_same_stream(upstream: Upstream) -> None:
    async with stage(config(upstream)) as s:
        await s.chat()
        events = events_of(await s.chat(stream=True, stream_options={"include_usage": True}))
    assert deltas(events) == [{"role": "assistant", "content": ""}, {"content": "cedar"}, {}]
    assert events[0]["gateway"]["cached"] is True
    assert events[-2]["usage"] == USAGE
    assert json.dumps(events).count("[DONE]") == 1


async def test_a_broken_stream_goes_on_in_the_next_mode_for_who_asked_for_that(
    upstream: Upstream,
) -> None:
    upstream.body = sse(chunk({"content": "ce"}), done=False)
    lower = Upstream(FINE.replace(b"qwen-real", b"qwen-small").replace(b'"ce"', b'"-"'))
    async with stage(config(upstream, lower)) as s:
        events = events_of(await s.chat({"x-gateway-on-interrupt": "continue"}, stream=True))
    assert "".join(delta.get("content", "") for delta in deltas(events)) == "ce-dar"
    assert sum("role" in delta for delta in deltas(events)) == 1
    assert events[-1] == "[DONE]"
    assert [event["model"] for event in (events[0], events[-2])] == ["qwen-real", "qwen-small"]
    assert [event["gateway"]["mode"] for event in (events[0], events[-2])] == [
        *("creative", "balanced")
    ]
