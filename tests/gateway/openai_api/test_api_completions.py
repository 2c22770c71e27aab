"""The legacy route: a raw text in, `text_completion` out."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from api_stage import USAGE, Upstream, config, events_of, sse, stage
from openai.types import Completion


def piece(text: str, finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "text": text, "finish_reason": finish, **more}
    return {"id": "up", "model": "qwen-real", "created": 1700000000, "choices": [choice]}


LOGPROBS = {"tokens": ["x"], "token_logprobs": [-0.1], "top_logprobs": None, "text_offset": [0]}
FINE = sse(piece("ce"), piece("dar"), piece("", "stop"), {"choices": [], "usage": USAGE})


@pytest.fixture
def upstream() -> Upstream:
    return Upstream(FINE)


async def test_a_whole_completion(upstream: Upstream) -> None:
    async with stage(config(upstream)) as s:
        answer = await s.post(
            "/completions",
            {"model": "creative", "prompt": "Oak, ", "suffix": "!", "logprobs": 2, "echo": True},
        )
    assert upstream.paths == ["/v1/completions"]
    asked = upstream.asked[0]
    assert asked["prompt"] == "Oak, "
    assert (asked["suffix"], asked["logprobs"], asked["echo"]) == ("!", 2, True)
    body = answer.json()
    Completion.model_validate(body, strict=True)
    choice = {"text": "cedar", "index": 0, "logprobs": None, "finish_reason": "stop"}
    assert body["choices"] == [choice]
    assert body["object"] == "text_completion"
    assert body["model"] == "qwen-real"
    assert body["usage"] == USAGE
    assert body["gateway"]["mode"] == answer.headers["x-gateway-mode"] == "creative"


async def test_a_stream(upstream: Upstream) -> None:
    async with stage(config(upstream)) as s:
        answer = await s.post(
            "/completions",
            {"prompt": ["x"], "stream": True, "stream_options": {"include_usage": True}},
        )
    events = events_of(answer)
    assert events[-1] == "[DONE]"
    texts = [(e["choices"][0]["text"], e["choices"][0]["finish_reason"]) for e in events[:-2]]
    assert texts == [("ce", None), ("dar", None), ("", "stop")]
    assert events[-2]["choices"] == [] and events[-2]["usage"] == USAGE
    assert ["gateway" in e for e in events[:-1]] == [True, False, True, True]
    assert [e["usage"] for e in events[:-2]] == [None] * 3
    for event in events[:-1]:
        assert event["object"] == "text_completion"
    assert len({e["id"] for e in events[:-1]}) == 1


async def test_logprobs_pass_in_their_own_shape(upstream: Upstream) -> None:
    upstream.body = sse(piece("a"), piece("b", logprobs=LOGPROBS), piece("", "stop"))
    async with stage(config(upstream)) as s:
        whole = (await s.post("/completions", {"prompt": "x", "logprobs": 1})).json()
        parts = events_of(await s.post("/completions", {"prompt": "y", "stream": True}))
    assert whole["choices"][0]["logprobs"] == LOGPROBS
    assert parts[1]["choices"][0]["logprobs"] == LOGPROBS


async def test_several_prompts_are_answered_in_their_order(upstream: Upstream) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        text = f"<{json.loads(request.content)['prompt']}>"
        usage = {"choices": [], "usage": USAGE}
        body = sse(piece(text, "stop"), piece("b" + text, "length", index=1), usage)
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body)

    upstream.answer = answer
    async with stage(config(upstream)) as s:
        body = (await s.post("/completions", {"prompt": ["x", "y"], "n": 2})).json()
    assert [(c["index"], c["text"]) for c in body["choices"]] == [
        *((0, "<x>"), (1, "b<x>"), (2, "<y>"), (3, "b<y>"))
    ]
    assert body["usage"]["total_tokens"] == 2 * USAGE["total_tokens"]  # type: ignore[operator]
    assert len(body["gateway"]["prompts"]) == 2


async def test_one_failed_prompt_fails_the_request_and_leaves_nothing(upstream: Upstream) -> None:
    upstream.fail(400, "no")
    async with stage(config(upstream)) as s:
        answer = await s.post("/completions", {"prompt": ["x", "y", "z"]})
        assert answer.status_code == 400
        assert s.gateway.status()["in_flight"] == 0


async def test_a_break_is_an_error_event_without_done(upstream: Upstream) -> None:
    upstream.body = sse(piece("a"), done=False)
    async with stage(config(upstream)) as s:
        events = events_of(await s.post("/completions", {"prompt": "x", "stream": True}))
    assert events[-1]["error"]["code"] == "stream_interrupted"


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({}, "prompt", "string"),
        ({"prompt": None}, "prompt", "string"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "list"),
        ({"prompt": [1, 2, 3]}, "prompt", "token numbers"),
        ({"prompt": [[1, 2]]}, "prompt", "token numbers"),
        ({"prompt": ["x", {}]}, "prompt[1]", "a string"),
        ({"prompt": ["x"] * 33}, "prompt", "at most 32"),
        ({"prompt": ["x", "y"], "stream": True}, "prompt", "one prompt"),
        ({"prompt": "x", "messages": []}, "prompt", "/chat/completions"),
        ({"prompt": "x", "logprobs": True}, "logprobs", "whole number"),
        ({"prompt": "x", "echo": "yes"}, "echo", "true or false"),
        ({"prompt": "x", "best_of": 0}, "best_of", "whole number"),
    ],
)
async def test_bad_fields_are_named(
    upstream: Upstream, fields: dict[str, Any], param: str, word: str
) -> None:
    async with stage(config(upstream)) as s:
        answer = await s.post("/completions", fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert word in error["message"]
    assert not upstream.asked


async def test_the_sdk_reads_both(upstream: Upstream) -> None:
    async with stage(config(upstream)) as s:
        sdk = openai.AsyncOpenAI(http_client=s.http, base_url="http://gateway/v1", api_key="x")
        whole = await sdk.completions.create(model="creative", prompt="x")
        stream = await sdk.completions.create(model="creative", prompt="y", stream=True)
        parts = [event.choices[0].text async for event in stream]
    assert whole.choices[0].text == "".join(parts) == "cedar"
