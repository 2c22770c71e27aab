"""openai-python: answers whole and streamed, sync and async, tools, schemas; the real model."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
from facts import ask, caught, real, scenario
from openai_common import (
    FIND_NOTES,
    Perfume,
    Verdict,
    aclient,
    call_facts,
    client,
    stream_facts,
    user,
    whole_facts,
)


@scenario
def versions() -> dict[str, Any]:
    return {"openai": openai.__version__}


@scenario
def whole() -> dict[str, Any]:
    answer = client.chat.completions.create(
        model="creative", messages=user(ask("whole")), top_p=0.9
    )
    return whole_facts(answer)


@scenario
def streamed() -> dict[str, Any]:
    chunks = client.chat.completions.create(
        model="creative",
        messages=user(ask("streamed")),
        stream=True,
        stream_options={"include_usage": True},
    )
    return stream_facts(list(chunks))


@scenario
def streamed_plain() -> dict[str, Any]:
    chunks = client.chat.completions.create(
        model="auto", messages=user(ask("streamed_plain")), stream=True
    )
    return stream_facts(list(chunks))


@scenario
async def async_whole() -> dict[str, Any]:
    async with aclient() as own:
        messages = user(ask("async_whole"))
        return whole_facts(await own.chat.completions.create(model="creative", messages=messages))


@scenario
async def async_streamed() -> dict[str, Any]:
    async with aclient() as own:
        chunks = await own.chat.completions.create(
            model="qwen-large",
            messages=user(ask("async_streamed")),
            stream=True,
            stream_options={"include_usage": True},
        )
        return stream_facts([chunk async for chunk in chunks])


@scenario
async def many_at_once() -> dict[str, Any]:
    async with aclient() as own:

        async def one(number: int) -> str:
            messages = user(ask(f"many_at_once.{number}", "*=drip"))
            stream = await own.chat.completions.create(
                model="creative", messages=messages, stream=True
            )
            pieces = [c.choices[0].delta.content or "" async for c in stream]
            return "".join(pieces)

        return {"texts": await asyncio.gather(*map(one, range(20)))}


@scenario
def extra_fields() -> dict[str, Any]:
    answer = client.chat.completions.create(
        model="creative",
        messages=user(ask("extra_fields")),
        seed=7,
        extra_body={"top_k": 11, "chat_template_kwargs": {"enable_thinking": False}},
    )
    return whole_facts(answer)


@scenario
def reasoning() -> dict[str, Any]:
    messages = user(ask("reasoning", "*=reasoning_only"))
    answer = client.chat.completions.create(model="creative", messages=messages)
    chunks = client.chat.completions.create(
        model="creative", messages=user(ask("reasoning.stream", "*=reasoning_only")), stream=True
    )
    deltas = [c.delta.model_extra or {} for chunk in chunks for c in chunk.choices]
    return {
        "whole": (answer.choices[0].message.model_extra or {}).get("reasoning_content"),
        "streamed": "".join(delta.get("reasoning_content") or "" for delta in deltas),
        "finish": answer.choices[0].finish_reason,
    }


@scenario
def tools_whole() -> dict[str, Any]:
    answer = client.chat.completions.create(
        model="creative", messages=user(ask("tools_whole")), tools=[FIND_NOTES]
    )
    choice = answer.choices[0]
    return {"calls": call_facts(choice.message.tool_calls), "finish": choice.finish_reason}


@scenario
def tools_streamed() -> dict[str, Any]:
    with client.chat.completions.stream(
        model="creative",
        messages=user(ask("tools_streamed", say="Find 3 notes, twice.")),
        tools=[FIND_NOTES],
    ) as stream:
        events = [event.type for event in stream]
        choice = stream.get_final_completion().choices[0]
    deltas = sum(kind == "tool_calls.function.arguments.delta" for kind in events)
    calls = call_facts(choice.message.tool_calls)
    return {"calls": calls, "finish": choice.finish_reason, "deltas": deltas}


@scenario
def tools_answered() -> dict[str, Any]:
    messages = user(ask("tools_answered"))
    first = client.chat.completions.create(model="creative", messages=messages, tools=[FIND_NOTES])
    message = first.choices[0].message
    call = message.tool_calls[0]  # type: ignore[index]
    result = {"role": "tool", "tool_call_id": call.id, "content": "cedar"}
    messages += [message, result]
    second = client.chat.completions.create(model="creative", messages=messages, tools=[FIND_NOTES])
    return whole_facts(second)


@scenario
async def tools_async() -> dict[str, Any]:
    async with (
        aclient() as own,
        own.chat.completions.stream(
            model="creative", messages=user(ask("tools_async")), tools=[FIND_NOTES]
        ) as stream,
    ):
        choice = (await stream.get_final_completion()).choices[0]
    return {"calls": call_facts(choice.message.tool_calls), "finish": choice.finish_reason}


@scenario
def structured_whole() -> dict[str, Any]:
    answer = client.chat.completions.parse(
        model="creative", messages=user(ask("structured_whole")), response_format=Perfume
    )
    parsed = answer.choices[0].message.parsed
    assert parsed is not None
    return {"parsed": parsed.model_dump()}


@scenario
def structured_streamed() -> dict[str, Any]:
    with client.chat.completions.stream(
        model="creative", messages=user(ask("structured_streamed")), response_format=Perfume
    ) as stream:
        parsed = stream.get_final_completion().choices[0].message.parsed
    assert parsed is not None
    return {"parsed": parsed.model_dump()}


@real
def real_text() -> dict[str, Any]:
    messages = user("What is the capital of France? Answer in one sentence.")
    whole = client.chat.completions.create(model="creative", messages=messages)
    chunks = client.chat.completions.create(
        model="creative",
        messages=messages,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"cache-control": "no-cache"},
    )
    return {"whole": whole_facts(whole), "streamed": stream_facts(list(chunks))}


@real
def real_schema() -> dict[str, Any]:
    answer = client.chat.completions.parse(
        model="balanced",
        messages=user("Is cedar a woody or a citrus note, and is it strong? Answer as JSON."),
        response_format=Verdict,
    )
    parsed = answer.choices[0].message.parsed
    assert parsed is not None
    return {"parsed": parsed.model_dump(), "model": answer.model}


@real
def real_too_long() -> dict[str, Any]:
    messages = user("word " * 20000)
    return caught(lambda: client.chat.completions.create(model="creative", messages=messages))
