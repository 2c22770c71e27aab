"""`gateway.transport()`: the ladder under the real openai package, in one line."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import openai
import pytest

from gateway import Gateway

MESSAGES = [{"role": "user", "content": "hello"}]


class Qwen:
    """A client whose creative mode can be cut off."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.broken = False
        self.breaks_after: int | None = None
        self.calls = 0

    async def __call__(self, prompt: str) -> AsyncIterator[str]:
        self.calls += 1
        if self.broken:
            raise ConnectionError("no route to creative")
        return self._stream()

    async def _stream(self) -> AsyncIterator[str]:
        for number, word in enumerate(self.words):
            if self.breaks_after == number:
                raise ConnectionResetError("cut")
            yield word


@pytest.fixture
def creative() -> Qwen:
    return Qwen(["Cedar", ", ", "vetiver"])


@pytest.fixture
def balanced() -> Qwen:
    return Qwen(["Oak"])


@pytest.fixture
async def sdk(creative: Qwen, balanced: Qwen) -> AsyncIterator[openai.AsyncOpenAI]:
    async with Gateway.wrap({"creative": creative, "balanced": balanced}) as gateway:
        http = httpx.AsyncClient(transport=gateway.transport())
        async with openai.AsyncOpenAI(
            http_client=http, base_url="http://gateway/v1", api_key="unused", max_retries=0
        ) as client:
            yield client


async def test_whole_answer(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(model="creative", messages=MESSAGES)
    assert answer.choices[0].message.content == "Cedar, vetiver"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.id.startswith("gen-")
    assert answer.model_extra and answer.model_extra["gateway"]["mode"] == "creative"


async def test_stream_ends_with_done_and_usage_only_if_asked(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(
        model="creative",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Cedar, vetiver"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    plain = await sdk.chat.completions.create(model="creative", messages=MESSAGES, stream=True)
    assert all(chunk.usage is None for chunk in [chunk async for chunk in plain])


async def test_a_failing_mode_is_walked_past_and_said(
    sdk: openai.AsyncOpenAI, creative: Qwen
) -> None:
    creative.broken = True
    raw = await sdk.chat.completions.with_raw_response.create(model="creative", messages=MESSAGES)
    assert raw.parse().choices[0].message.content == "Oak"
    assert raw.headers["x-gateway-requested-mode"] == "creative"
    assert raw.headers["x-gateway-mode"] == "balanced"
    assert raw.headers["x-gateway-degraded"] == "failed"


async def test_a_model_that_is_no_mode_gets_the_best_mode(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(model="qwen-max", messages=MESSAGES)
    assert answer.model_extra and answer.model_extra["gateway"]["requested_mode"] == "creative"


async def test_degrading_can_be_refused_by_header(
    sdk: openai.AsyncOpenAI, creative: Qwen, balanced: Qwen
) -> None:
    creative.broken = True
    with pytest.raises(openai.APIStatusError) as caught:
        await sdk.chat.completions.create(
            model="creative",
            messages=MESSAGES,
            extra_headers={"x-gateway-allow-degrade": "false"},
        )
    assert caught.value.status_code == 502
    assert balanced.calls == 0


async def test_a_cut_stream_is_an_error_and_never_done(
    sdk: openai.AsyncOpenAI, creative: Qwen
) -> None:
    creative.breaks_after = 2
    stream = await sdk.chat.completions.create(model="creative", messages=MESSAGES, stream=True)
    text = ""
    with pytest.raises(openai.APIError, match="broke off"):
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert text == "Cedar, "


async def test_both_modes_down_is_one_clear_error_before_the_stream(
    sdk: openai.AsyncOpenAI, creative: Qwen, balanced: Qwen
) -> None:
    creative.broken = balanced.broken = True
    with pytest.raises(openai.APIStatusError) as caught:
        await sdk.chat.completions.create(model="creative", messages=MESSAGES, stream=True)
    assert caught.value.status_code == 503
    assert caught.value.code == "all_modes_failed"
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_leaving_a_stream_early_frees_everything(creative: Qwen) -> None:
    async with Gateway.wrap({"creative": creative}) as gateway:
        async with httpx.AsyncClient(transport=gateway.transport()) as http:
            body = {"model": "creative", "messages": MESSAGES, "stream": True}
            url = "http://gateway/v1/chat/completions"
            async with http.stream("POST", url, json=body) as response:
                async for _ in response.aiter_lines():
                    break
        assert gateway.status()["in_flight"] == 0
        assert gateway.status()["modes"]["creative"]["in_flight"] == {
            "native": 0,
            "downshifted": 0,
        }


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"{", 400, "JSON"),
        (b"[]", 400, "object"),
        (b"\xff", 400, "JSON"),
        (b"[" * 100_000, 400, "JSON"),
        (b'{"model": "creative"}', 400, "messages"),
        (b'{"messages": []}', 400, "messages is empty"),
        (b'{"messages": [1]}', 400, "messages[0]"),
        (b'{"messages": [{"role": "user", "content": 5}]}', 400, "messages[0].content"),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": 5}', 400, "model"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stream": "yes"}', 400, "stream"),
    ],
)
async def test_bad_bodies_get_openais_envelope(
    creative: Qwen, body: bytes, status: int, word: str
) -> None:
    async with (
        Gateway.wrap({"creative": creative}) as gateway,
        httpx.AsyncClient(transport=gateway.transport()) as http,
    ):
        answer = await http.post("http://gateway/v1/chat/completions", content=body)
        error = answer.json()["error"]
        assert answer.status_code == status
        assert word in error["message"]
        assert error["type"] == "invalid_request_error"
        assert creative.calls == 0


async def test_models_are_the_modes_and_other_routes_are_not_found(creative: Qwen) -> None:
    async with (
        Gateway.wrap({"creative": creative, "fast": creative}) as gateway,
        httpx.AsyncClient(transport=gateway.transport()) as http,
    ):
        models = (await http.get("http://gateway/v1/models")).json()
        assert [model["id"] for model in models["data"]] == ["creative", "fast", "auto"]
        missing = await http.post("http://gateway/v1/images", json={})
        assert missing.status_code == 404
        assert json.loads(missing.content)["error"]["code"] == "not_found"


async def test_cache_control_is_honoured(creative: Qwen) -> None:
    async with (
        Gateway.wrap({"creative": creative}) as gateway,
        httpx.AsyncClient(transport=gateway.transport()) as http,
    ):
        url, body = "http://gateway/v1/chat/completions", {"messages": MESSAGES}
        first = await http.post(url, json=body)
        second = await http.post(url, json=body)
        third = await http.post(url, json=body, headers={"cache-control": "no-cache"})
        states = [r.headers["x-gateway-cache"] for r in (first, second, third)]
        assert states == ["miss", "hit", "miss"]
        assert creative.calls == 2
