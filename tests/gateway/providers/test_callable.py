"""Clients that already exist as providers: functions, OpenAI's real SDK, DashScope's shape."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.assembly import Assembly
from gateway.errors import ConfigError, ErrorKind, StreamInterrupted, UpstreamError
from gateway.generation import Choice, Chunk, Delta, Message
from gateway.providers.base import Call, Provider
from gateway.providers.callable import wrap_client

SAID: list[Message] = [{"role": "user", "content": "Hi"}]


def call(*messages: Message, thinking: bool | None = None, **params: Any) -> Call:
    return Call(list(messages) or SAID, params, request_id="req-1", thinking=thinking)


async def answer(provider: Provider, asked: Call | None = None) -> Assembly:
    assembly = Assembly()
    reply = await provider.open(asked or call())
    try:
        while chunks := await reply.read():
            assembly.add_all(chunks)
        assert await reply.read() == []
    finally:
        reply.close()
    await provider.aclose()
    return assembly


async def failure(client: Any, asked: Call | None = None) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await answer(wrap_client(client), asked)
    return caught.value


# -- functions ---------------------------------


def blocking(prompt: str) -> str:
    return f"{prompt}!"


async def asynchronous(prompt: str) -> str:
    return f"{prompt}!"


def pieces(prompt: str) -> Iterator[str]:
    yield from (prompt, "!")


async def async_pieces(prompt: str) -> AsyncIterator[str]:
    for piece in (prompt, "!"):
        yield piece


def returns_iterator(prompt: str) -> Iterator[str]:
    return iter((prompt, "!"))


async def returns_async_iterator(prompt: str) -> AsyncIterator[str]:
    return async_pieces(prompt)


def hands_out_a_coroutine(prompt: str) -> Awaitable[str]:
    return asynchronous(prompt)


def openai_dict(prompt: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": f"{prompt}!"}
    return {"model": "m", "choices": [{"message": message, "finish_reason": "stop"}]}


def openai_object(prompt: str) -> SimpleNamespace:
    message = SimpleNamespace(role="assistant", content=f"{prompt}!", tool_calls=None)
    return SimpleNamespace(choices=[SimpleNamespace(message=message, finish_reason="stop")])


def chunk_dicts(prompt: str) -> Iterator[dict[str, Any]]:
    yield {"choices": [{"delta": {"role": "assistant", "content": prompt}}]}
    yield {"choices": [{"delta": {"content": "!"}, "finish_reason": "stop"}]}


async def our_chunks(prompt: str) -> AsyncIterator[Chunk]:
    yield Chunk([Choice(Delta(content=prompt))])
    yield Chunk([Choice(Delta(content="!"), finish_reason="stop")])


class Model:
    """A callable object, and one with a bound method."""

    model = "tiny"

    async def __call__(self, prompt: str) -> str:
        return f"{prompt}!"

    def ask(self, prompt: str) -> str:
        return f"{prompt}!"


@pytest.mark.parametrize(
    "function",
    [
        *(blocking, asynchronous, pieces, async_pieces, returns_iterator, returns_async_iterator),
        *(hands_out_a_coroutine, openai_dict, openai_object, chunk_dicts, our_chunks),
        *(Model(), Model().ask),
    ],
)
async def test_a_function_of_a_prompt_answers(function: Callable[..., Any]) -> None:
    assembly = await answer(wrap_client(function))
    assert assembly.text() == "Hi!"
    assert assembly.finish_reason == "stop"


def test_what_is_known_of_a_function() -> None:
    provider = wrap_client(blocking, name="mine")
    assert isinstance(provider, Provider)
    assert (provider.name, provider.model, provider.continues) == ("mine", "", False)
    assert wrap_client(Model(), name="mine").name == "mine/tiny"
    assert not provider.streams
    assert wrap_client(pieces).streams
    assert wrap_client(async_pieces).streams
    assert wrap_client(blocking).domain == wrap_client(blocking).domain
    one, two = wrap_client(lambda prompt: "1"), wrap_client(lambda prompt: "2")
    assert one.identity != two.identity, "no answer of one is the other's"
    assert one.domain != two.domain


async def test_a_function_gets_what_it_asks_for() -> None:
    seen: list[Any] = []

    async def messages_please(messages: list[Message], *, temperature: float = 0) -> str:
        seen.append((messages, temperature))
        return "ok"

    async def everything(prompt: str, **fields: Any) -> str:
        seen.append((prompt, fields))
        return "ok"

    fields: dict[str, Any] = {"temperature": 0.5, "seed": 1}
    await answer(wrap_client(messages_please), call(**fields))
    await answer(wrap_client(everything), call(**fields))
    await answer(wrap_client(blocking), call(**fields))
    assert seen == [(SAID, 0.5), ("Hi", fields)]


async def test_a_conversation_becomes_a_transcript_for_a_function_of_a_prompt() -> None:
    parts = [{"type": "text", "text": "Hello"}, {"type": "image_url", "image_url": {}}]
    messages: list[Message] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None},
    ]
    assembly = await answer(wrap_client(blocking), call(*messages))
    assert assembly.text() == "system: Be kind.\n\nuser: Hello\n\nassistant: !"


@pytest.mark.parametrize("client", [3, "text", None, object(), lambda: "x", lambda a, b: "x"])
def test_what_cannot_be_called_is_said_so(client: Any) -> None:
    with pytest.raises(ConfigError):
        wrap_client(client)


@pytest.mark.parametrize("result", [None, 3, b"bytes", ["a"], {"text": "x"}, object()])
async def test_what_is_not_understood_is_malformed(result: Any) -> None:
    error = await failure(lambda prompt: result)
    assert error.kind is ErrorKind.MALFORMED
    assert type(result).__name__ in str(error)


async def test_an_exception_is_the_upstreams_with_the_original_as_its_cause() -> None:
    original = ValueError("broken")

    def broken(prompt: str) -> str:
        raise original

    async def breaks_midway(prompt: str) -> AsyncIterator[str]:
        yield "half"
        raise original

    async def loses_connection(prompt: str) -> AsyncIterator[str]:
        yield "half"
        raise ConnectionResetError("gone")

    for client in (broken, breaks_midway):
        error = await failure(client)
        assert error.kind is ErrorKind.SERVER
        assert error.__cause__ is original
        assert error.target == "client"
    assert isinstance(await failure(loses_connection), StreamInterrupted)
    assert (await failure(lambda prompt: 1 / 0)).kind is ErrorKind.SERVER


async def test_an_error_object_is_an_error() -> None:
    error = await failure(lambda prompt: {"error": {"message": "x", "code": "Throttling"}})
    assert error.kind is ErrorKind.RATE
    assert error.__cause__ is None


async def test_chunks_that_stop_without_a_finish_reason_are_an_interruption() -> None:
    def truncated(prompt: str) -> Iterator[Any]:
        yield {"choices": [{"delta": {"content": "half"}}]}

    assert (await failure(truncated)).kind is ErrorKind.INTERRUPTED


async def test_an_iterator_without_anything_is_an_empty_answer() -> None:
    assembly = await answer(wrap_client(lambda prompt: iter(())))
    assert not assembly.has_content
    assert assembly.finish_reason == "stop"


async def test_cancelling_closes_an_asynchronous_generator_behind() -> None:
    closed = asyncio.Event()

    async def endless(prompt: str) -> AsyncIterator[str]:
        try:
            while True:
                yield "x"
        finally:
            await asyncio.sleep(0)
            closed.set()

    provider = wrap_client(endless)
    reply = await provider.open(call())
    assert (await reply.read())[0].text == "x"
    reply.close()
    reply.close()
    assert await reply.read() == []
    assert not closed.is_set(), "closing does not wait"
    await provider.aclose()
    assert closed.is_set()


@pytest.mark.parametrize("when", ["open", "read"])
async def test_cancelling_a_call_under_way_reaches_the_client(when: str) -> None:
    cancelled = asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def slow(prompt: str) -> str:
        await hang()
        return "never"

    async def slow_pieces(prompt: str) -> AsyncIterator[str]:
        await hang()
        yield "never"

    async def run() -> None:
        reply = await wrap_client(slow if when == "open" else slow_pieces).open(call())
        try:
            await reply.read()
        finally:
            reply.close()

    task = asyncio.create_task(run())
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled.is_set()


async def test_a_client_that_ends_up_cancelled_by_itself_has_failed() -> None:
    async def confused(prompt: str) -> str:
        raise asyncio.CancelledError

    assert (await failure(confused)).kind is ErrorKind.SERVER


async def test_the_result_of_a_dropped_blocking_call_is_dropped() -> None:
    entered, release, left = threading.Event(), threading.Event(), threading.Event()

    def slow(prompt: str) -> str:
        entered.set()
        release.wait(10)
        left.set()
        return "nobody wants it"

    opening = asyncio.create_task(wrap_client(slow).open(call()))
    assert await asyncio.to_thread(entered.wait, 10)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    release.set()
    assert await asyncio.to_thread(left.wait, 10)


# -- DashScope's own SDK, by its shape ---------------------------------


class DashScopeResponse(dict[str, Any]):
    """A dict whose keys are attributes too, as dashscope's are."""

    __getattr__ = dict.__getitem__


def dash(content: str, finish: str = "null", **more: Any) -> DashScopeResponse:
    message = {"role": "assistant", "content": content, **more.pop("message", {})}
    return DashScopeResponse(
        status_code=200,
        request_id="r",
        code="",
        message="",
        output={"choices": [{"finish_reason": finish, "message": message}]},
        usage={"input_tokens": 3, "output_tokens": 2},
        **more,
    )


class Generation:
    asked: dict[str, Any]
    responses: list[DashScopeResponse]

    @classmethod
    def call(cls, **fields: Any) -> Iterator[DashScopeResponse]:
        cls.asked = fields
        return iter(cls.responses)


class AioGeneration:
    @classmethod
    async def call(cls, **fields: Any) -> AsyncIterator[DashScopeResponse]:
        async def stream() -> AsyncIterator[DashScopeResponse]:
            for response in Generation.responses:
                yield response

        return stream()


@pytest.mark.parametrize("client", [Generation, AioGeneration])
async def test_dashscopes_generation_answers(client: Any) -> None:
    Generation.responses = [
        dash("", message={"reasoning_content": "hm"}),
        dash("Hel"),
        dash("lo", "stop"),
    ]
    provider = wrap_client(client, model="qwen3.7-plus")
    assert provider.streams
    assembly = await answer(provider, call(thinking=False, temperature=2.0))
    message = assembly.choices()[0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Hello", "hm")
    assert assembly.finish_reason == "stop"
    assert assembly.usage is not None
    assert assembly.usage["total_tokens"] == 5
    assert assembly.id == "r"


async def test_dashscope_is_asked_in_its_own_way() -> None:
    Generation.responses = [dash("ok", "stop")]
    await answer(wrap_client(Generation, model="qwen3.7-plus"), call(thinking=False, top_p=0))
    asked = Generation.asked
    assert asked["model"] == "qwen3.7-plus"
    assert asked["messages"] == SAID
    assert (asked["stream"], asked["incremental_output"]) == (True, True)
    assert asked["result_format"] == "message"
    assert asked["enable_thinking"] is False
    assert asked["top_p"] > 0
    assert "stream_options" not in asked


async def test_dashscopes_errors_are_responses() -> None:
    Generation.responses = [
        DashScopeResponse(
            status_code=429, code="Throttling.AllocationQuota", message="Allocated", output=None
        )
    ]
    error = await failure(Generation)
    assert (error.kind, error.status) == (ErrorKind.TOKENS, 429)
    Generation.responses = [dash("half")]
    assert (await failure(Generation)).kind is ErrorKind.INTERRUPTED


async def test_dashscopes_older_text_format_is_understood() -> None:
    response = dash("")
    response["output"] = {"text": "Hello", "finish_reason": "stop", "choices": None}
    assert (await answer(wrap_client(lambda prompt: response))).text() == "Hello"
