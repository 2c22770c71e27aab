"""A raw prompt: asked at `/completions` where there is such a route, as a chat where there is none.

Over real sockets throughout, and once with the embedded real model.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from stub_upstream import TEXT, Stub

from gateway import Gateway
from gateway.assembly import Assembly
from gateway.config import Config
from gateway.errors import ErrorKind, GatewayError, UpstreamRejected
from gateway.modes import TargetOptions
from gateway.providers.base import Call
from gateway.providers.capabilities import KINDS, capabilities
from gateway.providers.openai_compatible import OpenAICompatible
from gateway.providers.request_body import Accent
from gateway.transport.pool import HTTP1Client

ROUTE, CHAT = "/v1/completions", "/v1/chat/completions"
WITH_ROUTE = [kind for kind in KINDS if capabilities(kind).completions]


def raw(prompt: str = "Once upon", prefix: str = "", **params: Any) -> Call:
    messages = [{"role": "user", "content": prompt}]
    return Call(messages, params, "req-1", thinking=False, prefix=prefix, raw=True)


def piece(text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": finish, **more}
    return {"id": "cmpl-1", "object": "text_completion", "model": "m", "choices": [choice]}


def events(*pieces: dict[str, Any]) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(p).encode() for p in pieces) + b"data: [DONE]\n\n"


@asynccontextmanager
async def target(stub: Stub, kind: str = "vllm", **options: Any) -> AsyncIterator[OpenAICompatible]:
    client = HTTP1Client()
    try:
        address = TargetOptions(kind=kind, model="m", base_url=stub.base_url, **options)
        yield OpenAICompatible(address, client, api_key=None)
    finally:
        await client.aclose()


async def answer(provider: OpenAICompatible, call: Call) -> Assembly:
    assembly = Assembly()
    reply = await provider.open(call)
    try:
        while chunks := await reply.read():
            assembly.add_all(chunks)
    finally:
        reply.close()
    return assembly


def test_which_backends_complete_a_text() -> None:
    assert set(WITH_ROUTE) == {"vllm", "sglang", "llama_cpp", "ollama", "lmdeploy", "openai"}


async def test_a_text_is_streamed_from_the_completions_route() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 2}}
    async with Stub() as stub, target(stub) as provider:
        stub.body = events(piece(" a"), piece(" time"), piece("", "length"), usage)
        told = await answer(provider, raw(temperature=0.5, min_p=0.1))
        [(path, body)] = stub.requests
        assert path == ROUTE
        assert body == {
            "model": "m",
            "prompt": "Once upon",
            "temperature": 0.5,
            "min_p": 0.1,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        assert (told.text(), told.finish_reason, told.model) == (" a time", "length", "m")
        assert told.usage == usage["usage"]
        assert told.choices()[0]["message"]["role"] == "assistant"


async def test_a_text_comes_whole_with_its_logprobs() -> None:
    logprobs = {"tokens": [" a", " time"], "token_logprobs": [-0.1, -0.2], "text_offset": [0, 2]}
    async with Stub(content_type="application/json") as stub:
        async with target(stub, stream_upstream=False) as provider:
            stub.body = json.dumps(piece(" a time", "stop", logprobs=logprobs)).encode()
            told = await answer(provider, raw(logprobs=2))
        path, body = stub.requests[0]
        assert (path, body["stream"], body["logprobs"]) == (ROUTE, False, 2)
        assert "stream_options" not in body
        [choice] = told.choices()
        assert (choice["message"]["content"], choice["finish_reason"]) == (" a time", "stop")
        assert choice["logprobs"] == logprobs


async def test_streamed_logprobs_are_joined() -> None:
    async with Stub() as stub, target(stub) as provider:
        stub.body = events(
            piece(" a", logprobs={"tokens": [" a"], "token_logprobs": [-0.1]}),
            piece(" b", "stop", logprobs={"tokens": [" b"], "token_logprobs": [-0.2]}),
        )
        [choice] = (await answer(provider, raw(logprobs=1))).choices()
        assert choice["logprobs"] == {"tokens": [" a", " b"], "token_logprobs": [-0.1, -0.2]}


@pytest.mark.parametrize("kind", WITH_ROUTE)
def test_nothing_that_only_a_chat_knows_is_sent(kind: str) -> None:
    call = raw(
        max_completion_tokens=9,
        tools=[{"type": "function"}],
        tool_choice="auto",
        chat_template_kwargs={"enable_thinking": True},
        enable_thinking=True,
        thinking_budget=100,
        reasoning_effort="high",
        logprobs=True,
        top_logprobs=3,
        grammar="root ::= [a-z]+",
    )
    call.thinking = True
    asked = dict(call.params)
    body = Accent(capabilities(kind), "m").raw_body(call, stream=False)
    assert body == {
        "model": "m",
        "prompt": "Once upon",
        "stream": False,
        "max_tokens": 9,
        "logprobs": 3,
        "grammar": "root ::= [a-z]+",
    }
    assert call.params == asked, "the call is another mode's too"


def test_fields_are_renamed_and_brought_into_range_here_too() -> None:
    call = raw(repetition_penalty=1.1, top_p=0, top_k=5)
    assert Accent(capabilities("llama_cpp"), "").raw_body(call, stream=False) == {
        **{"prompt": "Once upon", "repeat_penalty": 1.1, "top_p": 0, "top_k": 5, "stream": False}
    }
    body = Accent(capabilities("vllm"), "").raw_body(call, stream=False)
    assert body["top_p"] == 0.001


def test_an_interrupted_text_is_continued_where_it_stopped() -> None:
    body = Accent(capabilities("vllm"), "").raw_body(raw(prefix=" a time"), stream=True)
    assert body["prompt"] == "Once upon a time"
    assert "continue_final_message" not in body


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(WITH_ROUTE)))
async def test_a_backend_without_the_route_is_asked_as_a_chat(kind: str) -> None:
    async with Stub() as stub, target(stub, kind) as provider:
        assert (await answer(provider, raw(logprobs=2))).text() == TEXT
        [(path, body)] = stub.requests
        assert path == CHAT
        assert body["messages"] == [{"role": "user", "content": "Once upon"}]
        assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
        assert "prompt" not in body


class Routes(Stub):
    """A stub that answers some routes with an error."""

    missing: dict[str, int]  # set after the start

    async def _answer(self, head: bytes, *pipe: Any) -> None:
        path = head.split(b" ", 2)[1].decode()
        ok = self.status, self.content_type, self.body
        if path in self.missing:
            self.fail(self.missing[path], {"message": "no such thing here"})
        try:
            await super()._answer(head, *pipe)
        finally:
            self.status, self.content_type, self.body = ok


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_server_that_lacks_the_route_is_asked_as_a_chat_and_that_is_remembered(
    status: int,
) -> None:
    async with Routes() as stub, target(stub, "openai") as provider:
        stub.missing = {ROUTE: status}
        for _ in range(2):
            assert (await answer(provider, raw())).text() == TEXT
        assert [path for path, _ in stub.requests] == [ROUTE, CHAT, CHAT]


async def test_a_model_that_is_not_there_does_not_cost_it_the_route() -> None:
    async with Routes() as stub, target(stub) as provider:
        stub.missing = {ROUTE: 404, CHAT: 404}
        with pytest.raises(UpstreamRejected) as refused:
            await provider.open(raw())
        assert refused.value.kind is ErrorKind.MODEL
        stub.missing = {}
        stub.body = events(piece(" a"), piece("", "stop"))
        assert (await answer(provider, raw())).text() == " a"
        assert [path for path, _ in stub.requests] == [ROUTE, CHAT, ROUTE]


async def test_a_refusal_of_the_text_itself_is_the_callers() -> None:
    async with Routes() as stub, target(stub) as provider:
        stub.missing = {ROUTE: 400}
        with pytest.raises(UpstreamRejected, match="no such thing"):
            await provider.open(raw())
        assert len(stub.requests) == 1


def config(base_url: str) -> Config:
    vllm = {"kind": "vllm", "model": "m", "base_url": base_url}
    return Config.from_dict({"modes": {"solo": {"targets": [vllm]}}})


async def test_from_the_door_to_the_wire_and_back() -> None:
    async with Stub() as stub, Gateway(config(stub.base_url)) as gateway:
        stub.body = events(piece(" a"), piece(" time"), piece("", "stop"))
        assert (await gateway.generate("Once upon", raw=True)).text == " a time"
        async with gateway.stream("Once upon", raw=True, cache=False) as stream:
            assert [chunk.text async for chunk in stream] == [" a", " time", ""]
        assert (await gateway.generate("Once upon", raw=True)).cached
        stub.body = events({"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]})
        assert (await gateway.generate("Once upon")).text == "hi", "a chat is another question"
        assert [path for path, _ in stub.requests] == [ROUTE, ROUTE, CHAT]
        with pytest.raises(GatewayError, match="raw takes a string"):
            await gateway.generate([{"role": "user", "content": "Once upon"}], raw=True)


@pytest.mark.model
async def test_the_real_model_completes_a_text_that_a_chat_would_answer(tmp_path: Path) -> None:
    tables = {
        "modes": {
            "creative": {"targets": [{"kind": "local"}]},
            "fast": {"targets": [{"kind": "local", "stream_upstream": False}]},
        },
        "feedback": {"path": str(tmp_path / "feedback.sqlite")},
    }
    prompt = "One, two, three, four, five, six, seven,"
    ask: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "cache": False}
    async with asyncio.timeout(60), Gateway(Config.from_dict(tables)) as gateway:
        streamed = await gateway.generate(prompt, "creative", raw=True, **ask)
        assert streamed.text.startswith(" eight,")
        assert streamed.finish_reason == "length"
        assert streamed.usage.completion_tokens == 8
        whole = await gateway.generate(prompt, "fast", raw=True, **ask)
        assert whole.text == streamed.text
        chat = await gateway.generate(prompt, "creative", **ask)
        assert not chat.text.startswith(" eight,")
        assert chat.usage.prompt_tokens > streamed.usage.prompt_tokens, "the template is sent too"
