"""What every provider promises (gateway/providers/base.py), whoever it is.

The same scripts are played by a real HTTP server, behind `OpenAICompatible` for every kind and
behind OpenAI's SDK, and by plain functions and generators.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest

from gateway.assembly import Assembly
from gateway.errors import ErrorKind, UpstreamError
from gateway.generation import Chunk, Message
from gateway.modes import TargetOptions
from gateway.providers.base import Call, Provider, Reply
from gateway.providers.callable import wrap_client
from gateway.providers.capabilities import KINDS
from gateway.providers.openai_compatible import OpenAICompatible
from gateway.transport.pool import HTTP1Client

SAFETY_S = 20.0
JSON = "application/json"


def event(delta: dict[str, Any], index: int = 0, finish: str | None = None, **more: Any) -> Any:
    choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
    choice.update(more)
    return {"id": "c1", "created": 1, "model": "m", "choices": [choice]}


ROLE = event({"role": "assistant", "content": None})
HELLO = [event({"content": "Hel"}), event({"content": "lo"})]
STOP = event({}, finish="stop")
USAGE = {
    "id": "c1",
    "created": 1,
    "model": "m",
    "choices": [],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}


@dataclass
class Script:
    """What an upstream does: events, then the end, a hang, or an answer that is no stream."""

    events: list[Any] = field(default_factory=lambda: [ROLE, *HELLO, STOP, USAGE])
    done: bool = True
    hang: bool = False
    status: int = 200
    body: bytes | None = None
    content_type: str = JSON

    def over_http(self) -> tuple[bytes, bytes]:
        """Head and first piece; a stream is chunked and its last piece left to the server."""
        if self.body is not None:
            head = f"HTTP/1.1 {self.status} X\r\ncontent-type: {self.content_type}\r\n"
            return f"{head}content-length: {len(self.body)}\r\n\r\n".encode(), self.body
        head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked"
        payloads = [json.dumps(data) for data in self.events] + ["[DONE]"] * self.done
        data = "".join(f"data: {payload}\n\n" for payload in payloads).encode()
        pieces = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        return f"{head}\r\n\r\n".encode(), pieces + (b"" if self.hang else b"0\r\n\r\n")


class Server:
    """Plays a script for each request, on connections that stay open."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.split("content-length: ")[1].split("\r\n")[0])
                self.bodies.append(json.loads(await reader.readexactly(length)))
                for piece in self.script.over_http():
                    writer.write(piece)
                    await asyncio.sleep(0)
                if self.script.hang:
                    await reader.read()
        writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            async with asyncio.timeout(SAFETY_S):
                yield self
        finally:
            server.close()
            await server.wait_closed()
            for writer in self.writers:
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()


class Bench:
    """One provider and the upstream behind it."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.client: HTTP1Client | None = None
        self.server: Server | None = None

    async def settle(self) -> None:
        """Let sockets and tasks that are being let go finish going."""
        await self.provider.aclose()
        for _ in range(20):
            await asyncio.sleep(0)

    def busy(self) -> int:
        """Connections that neither are closed nor wait in the pool."""
        return self.client.open_connections - self.client.idle_connections if self.client else 0


def generator(script: Script) -> Any:
    async def play(messages: list[Message], **_: Any) -> AsyncIterator[Any]:
        for data in script.events:
            yield json.loads(json.dumps(data))
            await asyncio.sleep(0)
        if script.hang:
            await asyncio.Event().wait()

    return play


def blocking_iterator(script: Script) -> Any:
    def play(messages: list[Message]) -> Iterator[Any]:
        for data in script.events:
            yield json.loads(json.dumps(data))

    return play


def dashscope_like(script: Script) -> Any:
    """DashScope's own shape: `message` for `delta`, usage in its own words, errors as responses."""

    def response(data: dict[str, Any]) -> dict[str, Any]:
        if "error" in data:
            return {"status_code": 500, "code": "InternalError", "message": "x", "output": None}
        choices = [
            {
                **choice,
                "message": choice["delta"],
                "finish_reason": choice["finish_reason"] or "null",
            }
            for choice in data["choices"]
        ]
        for choice in choices:
            del choice["delta"]
        output = {"choices": choices}
        return {**data, "request_id": "c1", "status_code": 200, "output": output}

    class Generation:
        @staticmethod
        async def call(**_: Any) -> AsyncIterator[Any]:
            async def play() -> AsyncIterator[Any]:
                for data in script.events:
                    yield response(data)
                    await asyncio.sleep(0)
                if script.hang:
                    await asyncio.Event().wait()

            return play()

    return Generation


FUNCTIONS = {
    "generator": generator,
    "blocking": blocking_iterator,
    "dashscope-sdk": dashscope_like,
}
EVERYONE = [*KINDS, "openai-sdk", *FUNCTIONS]


@asynccontextmanager
async def bench(who: str, script: Script | None = None) -> AsyncIterator[Bench]:
    script = script or Script()
    async with AsyncExitStack() as stack:
        if who in FUNCTIONS:
            yield Bench(wrap_client(FUNCTIONS[who](script), model="m"))
            return
        server = await stack.enter_async_context(Server(script).running())
        url = f"http://127.0.0.1:{server.port}/v1"
        if who == "openai-sdk":
            sdk = await stack.enter_async_context(openai.AsyncOpenAI(base_url=url, api_key="k"))
            found = Bench(wrap_client(sdk, model="m"))
        else:
            client = HTTP1Client()
            stack.push_async_callback(client.aclose)
            options = TargetOptions(kind=who, base_url=url, model="m")
            found = Bench(OpenAICompatible(options, client, api_key="k"))
            found.client = client
        found.server = server
        yield found


@pytest.fixture(params=EVERYONE)
def who(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def call(**params: Any) -> Call:
    return Call([{"role": "user", "content": "Hi"}], params, request_id="req-1")


async def read_all(provider: Provider, asked: Call | None = None) -> Assembly:
    reply = await provider.open(asked or call())
    assembly = Assembly()
    try:
        while chunks := await reply.read():
            assembly.add_all(chunks)
    finally:
        reply.close()
    return assembly


async def failure(provider: Provider) -> tuple[UpstreamError, str]:
    texts: list[str] = []
    with pytest.raises(UpstreamError) as caught:
        reply = await provider.open(call())
        try:
            while chunks := await reply.read():
                texts += [chunk.text for chunk in chunks]
        finally:
            reply.close()
    return caught.value, "".join(texts)


async def test_it_opens_reads_and_ends(who: str) -> None:
    async with bench(who) as upstream:
        provider = upstream.provider
        assert isinstance(provider, Provider)
        assert provider.model == "m"
        assert provider.name
        reply = await provider.open(call())
        assert isinstance(reply, Reply)
        chunks: list[Chunk] = []
        while got := await reply.read():
            chunks += got
        assert await reply.read() == []
        reply.close()
        reply.close()
        assert "".join(chunk.text for chunk in chunks) == "Hello"
        assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
        assert [chunk.usage["total_tokens"] for chunk in chunks if chunk.usage] == [3]
        await upstream.settle()
        assert upstream.busy() == 0


async def test_everything_an_answer_can_hold_comes_through(who: str) -> None:
    logprobs = {"content": [{"token": "x", "logprob": -1.0, "bytes": None, "top_logprobs": []}]}
    first = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"x":1}'}}
    events = [
        event({"role": "assistant", "content": ""}),
        event({"role": "assistant", "content": ""}, index=1),
        event({"reasoning_content": "h"}),
        event({"reasoning_content": "m"}),
        event({"content": "one"}, logprobs=logprobs),
        event({"content": " more"}, logprobs=logprobs),
        event({"tool_calls": [first]}, index=1),
        event({"tool_calls": [more]}, index=1),
        STOP,
        event({}, index=1, finish="tool_calls"),
        USAGE,
    ]
    async with bench(who, Script(events)) as upstream:
        asked = call(
            n=2,
            logprobs=True,
            tools=[{"type": "function", "function": {"name": "f"}}],
            response_format={"type": "json_object"},
        )
        assembly = await read_all(upstream.provider, asked)
        text, tool = assembly.choices()
        assert text["message"]["content"] == "one more"
        assert text["message"]["reasoning_content"] == "hm"
        assert text["finish_reason"] == "stop"
        assert text["logprobs"]["content"] == logprobs["content"] * 2
        assert tool["finish_reason"] == "tool_calls"
        assert tool["message"]["content"] is None
        assert tool["message"]["tool_calls"] == [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
        ]
        assert assembly.usage is not None
        assert assembly.usage["completion_tokens"] == 2
        assert assembly.id == "c1"
        if upstream.server is not None:
            (body,) = upstream.server.bodies
            assert {name: body[name] for name in asked.params} == asked.params
            assert body["stream"] is True


async def test_an_answer_without_an_end_is_an_interruption(who: str) -> None:
    async with bench(who, Script([ROLE, *HELLO], done=False)) as upstream:
        error, text = await failure(upstream.provider)
        assert error.kind is ErrorKind.INTERRUPTED
        assert text == "Hello"
        await upstream.settle()
        assert upstream.busy() == 0


async def test_an_error_inside_the_answer_comes_after_what_came_before(who: str) -> None:
    broken = {"error": {"message": "engine died", "type": "InternalServerError", "code": 500}}
    async with bench(who, Script([ROLE, *HELLO, broken])) as upstream:
        error, text = await failure(upstream.provider)
        assert error.kind is ErrorKind.SERVER
        assert text == "Hello"
        await upstream.settle()
        assert upstream.busy() == 0


async def test_an_answer_that_ends_in_failure_is_not_an_answer(who: str) -> None:
    events = [ROLE, *HELLO, event({"content": "Throttled"}, finish="error_finish")]
    async with bench(who, Script(events)) as upstream:
        error, text = await failure(upstream.provider)
        assert error.kind is ErrorKind.SERVER
        assert text == "Hello", "the error's words are no content"


@pytest.mark.parametrize("hang", [False, True], ids=["whole", "silent"])
async def test_cancelled_at_any_turn_of_the_loop_nothing_is_left(who: str, hang: bool) -> None:
    """B17: before the headers, between them and the first token, mid-stream, at the end."""
    script = Script(hang=hang, done=False, events=[ROLE, *HELLO] if hang else [ROLE, *HELLO, STOP])
    async with bench(who, script) as upstream:
        if upstream.server is not None:  # a connection is there already, as it mostly is
            upstream.server.script = Script()
            await read_all(upstream.provider)
            upstream.server.script = script
        await upstream.settle()
        before = asyncio.all_tasks()
        served = len(upstream.server.writers) if upstream.server else 0
        for turns in (*range(14), 20, 40):
            task = asyncio.create_task(read_all(upstream.provider))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError, UpstreamError):
                await task
            await upstream.settle()
            assert upstream.busy() == 0, f"a connection is held after {turns} turns"
        left = asyncio.all_tasks() - before
        connections = len(upstream.server.writers) - served if upstream.server else 0
        # The server has one task of its own for each connection.
        assert len(left) <= connections


async def test_a_dropped_reply_frees_its_connection_at_once() -> None:
    async with bench("vllm", Script([ROLE], done=False, hang=True)) as upstream:
        reply = await upstream.provider.open(call())
        await reply.read()
        assert upstream.busy() == 1
        reply.close()
        for _ in range(5):
            await asyncio.sleep(0)
        assert upstream.client is not None
        assert upstream.client.open_connections == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_one_connection_serves_one_call_after_another(kind: str) -> None:
    async with bench(kind) as upstream:
        for _ in range(3):
            assert (await read_all(upstream.provider)).text() == "Hello"
            await upstream.settle()
        assert upstream.server is not None
        assert len(upstream.server.bodies) == 3
        assert len(upstream.server.writers) == 1


@pytest.mark.parametrize(
    ("kind", "status", "body", "content_type", "what"),
    [
        (
            "llama_cpp",
            503,
            b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}',
            JSON,
            ErrorKind.LOADING,
        ),
        (
            "sglang",
            503,
            b'{"object":"error","message":"The request queue is full.","type":"503","code":503}',
            JSON,
            ErrorKind.OVERLOADED,
        ),
        (
            "transformers",
            422,
            b'{"detail":"Unexpected fields in the request: {\'foo\'}"}',
            JSON,
            ErrorKind.REQUEST,
        ),
        ("transformers", 500, b"Internal Server Error", "text/plain", ErrorKind.SERVER),
        (
            "tgi",
            429,
            b'{"error":"Model is overloaded","error_type":"overloaded"}',
            JSON,
            ErrorKind.OVERLOADED,
        ),
        (
            "dashscope",
            429,
            b'{"error":{"message":"You exceeded your current quota, please check your plan and'
            b' billing details.","type":"insufficient_quota","code":"insufficient_quota"}}',
            JSON,
            ErrorKind.TOKENS,
        ),
        ("vllm", 200, b"<html>login</html>", "text/html", ErrorKind.MALFORMED),
        ("vllm", 200, b"{not json", JSON, ErrorKind.MALFORMED),
    ],
)
async def test_refusals_over_the_wire_leave_the_connection_fit_for_the_next_call(
    kind: str, status: int, body: bytes, content_type: str, what: ErrorKind
) -> None:
    script = Script(status=status, body=body, content_type=content_type)
    async with bench(kind, script) as upstream:
        error, _ = await failure(upstream.provider)
        assert error.kind is what
        assert error.target == f"{kind}/m"
        await upstream.settle()
        assert upstream.busy() == 0
        script.body = None
        assert (await read_all(upstream.provider)).text() == "Hello"


def stream_body(*lines: str) -> Script:
    text = "".join(line + "\n" for line in lines)
    return Script(body=text.encode(), content_type="text/event-stream")


async def test_dashscopes_native_error_event_inside_a_200() -> None:
    script = stream_body(
        "id:1",
        "event:error",
        ":HTTP_STATUS/429",
        'data:{"code":"Throttling.RateQuota","message":"Requests rate limit exceeded"}',
        "",
    )
    async with bench("dashscope", script) as upstream:
        error, _ = await failure(upstream.provider)
        assert (error.kind, error.upstream_code) == (ErrorKind.RATE, "Throttling.RateQuota")


async def test_llama_cpps_stream_as_captured() -> None:
    start = (
        'data: {"created":1,"id":"c","model":"m","system_fingerprint":"b0","choices":[{"index":0,'
    )
    script = stream_body(
        start + '"finish_reason":null,"delta":{"role":"assistant","content":null}}]}',
        "",
        start + '"finish_reason":null,"delta":{"content":"Hello"}}]}',
        "",
        start + '"finish_reason":"length","delta":{}}]}',
        "",
        'data: {"choices":[],"usage":{"completion_tokens":3,"prompt_tokens":31,"total_tokens":34},'
        '"timings":{"prompt_ms":207.03}}',
        "",
        "data: [DONE]",
        "",
    )
    async with bench("llama_cpp", script) as upstream:
        assembly = await read_all(upstream.provider)
    assert (assembly.text(), assembly.finish_reason) == ("Hello", "length")
    assert assembly.extra == {"system_fingerprint": "b0", "timings": {"prompt_ms": 207.03}}
    assert assembly.usage is not None
    assert assembly.usage["total_tokens"] == 34


async def test_transformers_stream_as_captured() -> None:
    script = stream_body(
        'data: {"id":"x","choices":[{"delta":{"content":"Hello","role":"assistant"},"index":0}]}',
        "",
        'data: {"id":"x","choices":[{"delta":{},"index":0,"finish_reason":"length"}],'
        '"usage":{"completion_tokens":3,"prompt_tokens":20,"total_tokens":23}}',
        "",
    )
    async with bench("transformers", script) as upstream:
        assembly = await read_all(upstream.provider)
    assert (assembly.text(), assembly.finish_reason) == ("Hello", "length")
    assert assembly.usage is not None
