"""The real openai package, wrapped, against a real server on the loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import openai
import pytest

from gateway.assembly import Assembly
from gateway.errors import ConfigError, ErrorKind, StreamInterrupted, UpstreamError
from gateway.providers.base import Call, Provider
from gateway.providers.callable import wrap_client

SAFETY_S = 20.0


def event(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    data = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "real-m"}
    return b"data: " + json.dumps({**data, "choices": [choice], **more}).encode() + b"\n\n"


HELLO = event({"role": "assistant"}) + event({"content": "Hel"}) + event({"content": "lo"})
STOP = event({}, "stop")
USAGE = event({})[:-2].replace(
    b'"choices": [{"index": 0, "delta": {}, "finish_reason": null}]',
    b'"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}',
)
DONE = b"data: [DONE]\n\n"
GOOD = HELLO + STOP + USAGE + b"\n\n" + DONE


def stream(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + body


def refusal(status: int, error: dict[str, Any], **headers: str) -> bytes:
    body = json.dumps({"error": error}).encode()
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{lines}"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


class Server:
    """Gives one scripted answer after another, the last one for ever."""

    def __init__(self, *answers: bytes, hold: bool = False) -> None:
        self.answers = list(answers)
        self.hold = hold  # after the answer, keep the connection open until the client leaves
        self.heads: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        self.writers: list[asyncio.StreamWriter] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.split("content-length: ")[1].split("\r\n")[0])
            self.heads.append(head)
            self.bodies.append(json.loads(await reader.readexactly(length)))
            writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
            await writer.drain()
            if self.hold:
                await reader.read()
        self.left.set()
        writer.close()


@asynccontextmanager
async def serving(*answers: bytes, hold: bool = False) -> AsyncIterator[Server]:
    scripted = Server(*answers, hold=hold)
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    scripted.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        async with asyncio.timeout(SAFETY_S):
            yield scripted
    finally:
        server.close()
        await server.wait_closed()
        for writer in scripted.writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


Make = Callable[[str], Any]


def make_async(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=url, api_key="sk-test-secret")


def make_sync(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="sk-test-secret")


@pytest.fixture(params=[make_async, make_sync], ids=["async", "sync"])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    clients: list[Any] = []

    def remember(url: str) -> Any:
        clients.append(request.param(url))
        return clients[-1]

    yield remember
    for client in clients:
        closing = client.close()
        if closing is not None:
            await closing


def call(**params: Any) -> Call:
    return Call([{"role": "user", "content": "Hi"}], params, request_id="req-1")


async def answer(provider: Provider, asked: Call | None = None) -> Assembly:
    assembly = Assembly()
    reply = await provider.open(asked or call())
    try:
        while chunks := await reply.read():
            assembly.add_all(chunks)
    finally:
        reply.close()
    await provider.aclose()
    return assembly


async def test_an_answer_is_streamed_and_read_whole(make: Make) -> None:
    async with serving(stream(GOOD)) as server:
        provider = wrap_client(make(server.url), name="sdk", model="qwen3")
        assert isinstance(provider, Provider)
        assert (provider.name, provider.model, provider.streams) == ("sdk/qwen3", "qwen3", True)
        assembly = await answer(provider, call(temperature=0.5, top_k=20, brand_new=[1]))
    assert assembly.text() == "Hello"
    assert (assembly.finish_reason, assembly.model) == ("stop", "real-m")
    assert assembly.usage is not None
    assert assembly.usage["total_tokens"] == 3
    (body,) = server.bodies
    assert body == {
        "model": "qwen3",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_k": 20,
        "brand_new": [1],
    }
    assert "x-request-id: req-1" in server.heads[0]


async def test_tool_calls_pass_whole(make: Make) -> None:
    first = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"x":1}'}}
    body = event({"tool_calls": [first]}) + event({"tool_calls": [more]}) + event({}, "tool_calls")
    async with serving(stream(body + DONE)) as server:
        assembly = await answer(wrap_client(make(server.url), model="m"))
    (choice,) = assembly.choices()
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    ]


async def test_an_error_is_read_and_the_sdk_does_not_retry_behind_our_back(make: Make) -> None:
    error = {"message": "slow down sk-abcdef123", "code": "limit_requests", "type": "x"}
    async with serving(refusal(429, error, retry_after="2")) as server:
        with pytest.raises(UpstreamError) as caught:
            await answer(wrap_client(make(server.url), model="m"))
    assert (caught.value.kind, caught.value.status) == (ErrorKind.RATE, 429)
    assert caught.value.retry_after == 2.0
    assert "abcdef123" not in str(caught.value)
    assert len(server.bodies) == 1


async def test_a_field_the_server_refuses_is_left_out_from_then_on(make: Make) -> None:
    error = {"message": "Unrecognized request argument supplied: top_k", "code": None}
    async with serving(refusal(400, error), stream(GOOD)) as server:
        provider = wrap_client(make(server.url), model="m")
        for _ in range(2):
            assert (await answer(provider, call(top_k=20))).text() == "Hello"
    assert ["top_k" in body for body in server.bodies] == [True, False, False]


@pytest.mark.parametrize(
    ("tail", "kind"),
    [
        (b"", ErrorKind.INTERRUPTED),
        (b'data: {"error":{"message":"engine died","code":500}}\n\n', ErrorKind.SERVER),
        (event({"content": "oops"}, "error_finish"), ErrorKind.SERVER),
    ],
)
async def test_what_breaks_midway_is_told_after_what_came_before(
    make: Make, tail: bytes, kind: ErrorKind
) -> None:
    async with serving(stream(HELLO + tail)) as server:
        reply = await wrap_client(make(server.url), model="m").open(call())
        texts: list[str] = []
        with pytest.raises(UpstreamError) as caught:
            while chunks := await reply.read():
                texts += [chunk.text for chunk in chunks]
        reply.close()
    assert "".join(texts) == "Hello"
    assert caught.value.kind is kind
    assert isinstance(caught.value, StreamInterrupted) == (kind is ErrorKind.INTERRUPTED)


async def test_nobody_there_is_a_connection_error(make: Make) -> None:
    async with serving(b"") as server:
        url = server.url
    with pytest.raises(UpstreamError) as caught:
        await answer(wrap_client(make(url), model="m"))
    assert caught.value.kind is ErrorKind.CONNECT


async def test_closing_a_stream_closes_its_socket() -> None:
    async with serving(stream(HELLO), hold=True) as server:
        client = make_async(server.url)
        provider = wrap_client(client, model="m")
        reply = await provider.open(call())
        await reply.read()
        assert not server.left.is_set()
        reply.close()
        await server.left.wait()
        await provider.aclose()
        await client.close()


async def test_cancelling_a_read_closes_the_socket() -> None:
    async with serving(stream(event({"role": "assistant"})), hold=True) as server:
        client = make_async(server.url)
        provider = wrap_client(client, model="m")
        reply = await provider.open(call())
        await reply.read()
        reading = asyncio.create_task(reply.read())
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        reply.close()
        await server.left.wait()
        await provider.aclose()
        await client.close()


def test_a_client_must_be_told_its_model_unless_it_points_at_dashscope() -> None:
    with pytest.raises(ConfigError, match="model"):
        wrap_client(make_sync("http://127.0.0.1:9/v1"))
    hosted = make_sync("https://dashscope-intl.aliyuncs.com/compatible-mode/v1")
    assert wrap_client(hosted).model == "qwen3.8-max"


def test_clients_of_one_server_and_key_share_a_failure_domain_and_show_no_key() -> None:
    one, two = (
        wrap_client(client("http://127.0.0.1:9/v1"), model="m")
        for client in (make_async, make_sync)
    )
    assert one.domain == two.domain
    for shown in (one.domain, one.identity, repr(one)):
        assert "secret" not in shown
