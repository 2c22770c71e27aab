"""openai-python: downshifts, the cache, patience, leaving early."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from facts import ask, caught, scenario
from openai_common import aclient, client, create, stream_facts, user, whole_facts


@scenario
def downshift() -> dict[str, Any]:
    messages = user(ask("downshift", "qwen-large=html"))
    raw = client.chat.completions.with_raw_response.create(model="creative", messages=messages)
    return {**whole_facts(raw.parse()), "headers": dict(raw.headers)}


@scenario
def downshift_streamed() -> dict[str, Any]:
    messages = user(ask("downshift_streamed", "qwen-large=html"))
    raw = client.chat.completions.with_raw_response.create(
        model="creative", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    return {**stream_facts(list(raw.parse())), "headers": dict(raw.headers)}


@scenario
def cached() -> dict[str, Any]:
    messages = user(ask("cached"))
    create = client.chat.completions.with_raw_response.create
    first, second = (create(model="creative", messages=messages) for _ in range(2))
    fresh = create(model="creative", messages=messages, extra_headers={"cache-control": "no-cache"})
    raws = (first, second, fresh)
    return {
        "cache": [raw.headers["x-gateway-cache"] for raw in raws],
        "texts": [raw.parse().choices[0].message.content for raw in raws],
    }


@scenario
def impatient() -> dict[str, Any]:
    """Nobody answers: the gateway says so a little before the client would give up."""
    return caught(lambda: create("impatient", "*=silent", timeout=1.5))


@scenario
def impatient_downshift() -> dict[str, Any]:
    """The best mode is silent: a lower one still answers within the client's patience."""
    began = time.monotonic()
    answer = create("impatient_downshift", "qwen-large=silent", timeout=1.5)
    return {**whole_facts(answer), "took_s": time.monotonic() - began}


@scenario
def left_stream() -> dict[str, Any]:
    with create("left_stream", "*=forever", stream=True) as stream:
        for number, _ in enumerate(stream):
            if number == 3:
                break
    return {"left_at": time.time()}


@scenario
def left_stalled() -> dict[str, Any]:
    stream = create("left_stalled", "*=one_token_then_stall", stream=True)
    next(chunk for chunk in stream if chunk.choices[0].delta.content)
    stream.close()
    return {"left_at": time.time()}


@scenario
async def left_async() -> dict[str, Any]:
    """Gives up before the first token, as `asyncio.timeout` does it."""
    async with aclient() as own:
        messages = user(ask("left_async", "*=headers_then_silence"))
        asking = asyncio.create_task(
            own.chat.completions.create(model="creative", messages=messages, stream=True)
        )
        await asyncio.wait({asking}, timeout=0.5)
        asking.cancel()
        await asyncio.wait({asking})
        left_at = time.time()
        return {"left_at": left_at, "cancelled": asking.cancelled()}


@scenario
async def left_whole() -> dict[str, Any]:
    async with aclient() as own:
        messages = user(ask("left_whole", "*=forever"))
        asking = asyncio.create_task(
            own.chat.completions.create(model="creative", messages=messages)
        )
        await asyncio.wait({asking}, timeout=0.5)
        asking.cancel()
        await asyncio.wait({asking})
        return {"left_at": time.time()}
