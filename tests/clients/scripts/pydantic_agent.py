"""pydantic-ai: an agent with typed output, tools, streams."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pydantic_ai
from facts import KEY, URL, ask, caught, error_facts, play_all, real, scenario
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Note(BaseModel):
    name: str
    strength: int


class Perfume(BaseModel):
    title: str
    notes: list[Note]


def model(name: str = "creative") -> OpenAIChatModel:
    return OpenAIChatModel(name, provider=OpenAIProvider(base_url=URL, api_key=KEY))


def agent(name: str = "creative", **options: Any) -> Agent[None, Any]:
    return Agent(model(name), **options)


def result_facts(result: Any, text: str) -> dict[str, Any]:
    last, usage = result.all_messages()[-1], result.usage
    return {
        "text": text,
        "model": last.model_name,
        "finish": last.finish_reason,
        "id": last.provider_response_id,
        "usage": {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens},
        "requests": usage.requests,
    }


@scenario
def versions() -> dict[str, Any]:
    return {"pydantic-ai": pydantic_ai.__version__}


@scenario
def whole() -> dict[str, Any]:
    result = agent().run_sync(ask("whole"))
    return result_facts(result, result.output)


@scenario
async def async_whole() -> dict[str, Any]:
    result = await agent().run(ask("async_whole"))
    return result_facts(result, result.output)


@scenario
async def streamed() -> dict[str, Any]:
    async with agent().run_stream(ask("streamed")) as result:
        pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
        return {**result_facts(result, "".join(pieces)), "chunks": len(pieces)}


@scenario
async def tools_whole() -> dict[str, Any]:
    """The agent calls the tool and goes on with what it said."""
    asking, calls = agent(), []

    @asking.tool_plain
    def find_notes(family: str, count: int) -> str:
        calls.append({"name": "find_notes", "arguments": {"family": family, "count": count}})
        return "cedar"

    result = await asking.run(ask("tools_whole"))
    return {**result_facts(result, result.output), "calls": calls}


@scenario
async def tools_streamed() -> dict[str, Any]:
    asking, calls = agent(), []

    @asking.tool_plain
    def find_notes(family: str, count: int) -> str:
        calls.append({"name": "find_notes", "arguments": {"family": family, "count": count}})
        return "cedar"

    async with asking.run_stream(ask("tools_streamed", say="Find 3 notes, twice.")) as result:
        text = await result.get_output()
    return {"calls": calls, "text": text}


@scenario
async def structured_whole() -> dict[str, Any]:
    """By a tool that the answer must call."""
    result = await agent(output_type=Perfume).run(ask("structured_whole"))
    return {"parsed": result.output.model_dump()}


@scenario
async def structured_streamed() -> dict[str, Any]:
    """By a JSON schema."""
    typed = agent(output_type=NativeOutput(Perfume))
    async with typed.run_stream(ask("structured_streamed")) as result:
        return {"parsed": (await result.get_output()).model_dump()}


@scenario
async def responses() -> dict[str, Any]:
    """The same agent over the Responses API."""
    provider = OpenAIProvider(base_url=URL, api_key=KEY)
    result = await Agent(OpenAIResponsesModel("creative", provider=provider)).run(ask("responses"))
    return result_facts(result, result.output)


@scenario
def keys() -> dict[str, Any]:
    stranger = OpenAIProvider(base_url=URL, api_key="sk-nobody-has-this-key-at-all")
    asking = Agent(OpenAIChatModel("creative", provider=stranger))
    return {"wrong": caught(lambda: asking.run_sync(ask("keys.wrong")))}


@scenario
def too_long() -> dict[str, Any]:
    return caught(lambda: agent().run_sync(ask("too_long", "*=400_context_vllm")))


@scenario
def unknown_model() -> dict[str, Any]:
    return caught(lambda: agent("gpt-nope").run_sync(ask("unknown_model")))


@scenario
async def throttled_shortly() -> dict[str, Any]:
    began = time.monotonic()
    settings: Any = {"timeout": 10.0, "extra_headers": {"x-gateway-allow-degrade": "false"}}
    prompt = ask("throttled_shortly", "*=429_retry_after_ms,answer")
    result = await agent("fast").run(prompt, model_settings=settings)
    return {**result_facts(result, result.output), "took_s": time.monotonic() - began}


@scenario
def all_failed() -> dict[str, Any]:
    return caught(lambda: agent().run_sync(ask("all_failed", "*=html")))


@scenario
async def broken_streams() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for fault in ("cut_fin", "error_mid_stream"):
        text = ""
        try:
            async with agent().run_stream(ask(f"broken.{fault}", f"*={fault}")) as result:
                async for piece in result.stream_text(delta=True, debounce_by=None):
                    text += piece
        except Exception as error:
            found[fault] = error_facts(error, text=text, finish=[])
    return found


@scenario
async def downshift() -> dict[str, Any]:
    result = await agent().run(ask("downshift", "qwen-large=html"))
    return result_facts(result, result.output)


@scenario
def impatient() -> dict[str, Any]:
    settings: Any = {"timeout": 1.5}
    prompt = ask("impatient", "*=silent")
    return caught(lambda: agent().run_sync(prompt, model_settings=settings))


@scenario
async def left_stream() -> dict[str, Any]:
    """The program drops the run, as a web server does whose own client went away."""

    async def read() -> None:
        async with agent().run_stream(ask("left_stream", "*=forever")) as result:
            async for _ in result.stream_text(delta=True, debounce_by=None):
                began.set()

    began = asyncio.Event()
    reading = asyncio.create_task(read())
    await began.wait()
    reading.cancel()
    await asyncio.wait({reading})
    return {"left_at": time.time()}


@real
def real_text() -> dict[str, Any]:
    prompt = "What is the capital of France? Answer in one sentence."
    result = agent().run_sync(prompt)

    async def stream() -> dict[str, Any]:
        settings: Any = {"extra_headers": {"cache-control": "no-cache"}}
        async with agent().run_stream(prompt, model_settings=settings) as streaming:
            pieces = [p async for p in streaming.stream_text(delta=True, debounce_by=None)]
            return {**result_facts(streaming, "".join(pieces)), "chunks": len(pieces)}

    return {"whole": result_facts(result, result.output), "streamed": asyncio.run(stream())}


play_all()
