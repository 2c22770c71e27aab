"""openai-python: what goes wrong, and how the client hears of it."""

from __future__ import annotations

import time
from typing import Any

import openai
from facts import ask, caught, error_facts, scenario
from openai_common import aclient, client, create, user, whole_facts


@scenario
def too_long() -> dict[str, Any]:
    return caught(lambda: create("too_long", "*=400_context_vllm"))


@scenario
def unknown_model() -> dict[str, Any]:
    return caught(lambda: create("unknown_model", model="gpt-nope"))


@scenario
def bad_request() -> dict[str, Any]:
    return caught(lambda: client.chat.completions.create(model="creative", messages=[]))


@scenario
def throttled_shortly() -> dict[str, Any]:
    """A wait that is too long for the gateway's callers in a hurry, but not for the client."""
    began = time.monotonic()
    answer = create(
        "throttled_shortly",
        "*=429_retry_after_ms,answer",
        model="fast",
        extra_headers={"x-gateway-allow-degrade": "false"},
        timeout=10.0,
    )
    return {**whole_facts(answer), "took_s": time.monotonic() - began}


@scenario
def all_failed() -> dict[str, Any]:
    return caught(lambda: create("all_failed", "*=html"))


@scenario
def all_failed_streamed() -> dict[str, Any]:
    return caught(lambda: create("all_failed_streamed", "*=html", stream=True))


@scenario
def no_degrade() -> dict[str, Any]:
    no_lower = {"x-gateway-allow-degrade": "false"}
    return caught(lambda: create("no_degrade", "qwen-large=html", extra_headers=no_lower))


def broken(fault: str) -> dict[str, Any]:
    text, finish = [], []
    try:
        for chunk in create(f"broken.{fault}", f"*={fault}", stream=True):
            text.append(chunk.choices[0].delta.content or "")
            finish.append(chunk.choices[0].finish_reason)
    except openai.APIError as error:
        return error_facts(error, text="".join(text), finish=[f for f in finish if f])
    return {"error": None, "text": "".join(text), "finish": finish}


@scenario
def broken_streams() -> dict[str, Any]:
    faults = ("cut_fin", "cut_rst", "cut_clean", "error_mid_stream", "error_finish")
    return {fault: broken(fault) for fault in faults}


@scenario
async def broken_async() -> dict[str, Any]:
    async with aclient() as own:
        messages, text = user(ask("broken_async", "*=cut_fin")), ""
        stream = await own.chat.completions.create(model="creative", messages=messages, stream=True)
        try:
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        except openai.APIError as error:
            return error_facts(error, text=text, finish=[])
    return {"error": None, "text": text}


@scenario
def broken_whole() -> dict[str, Any]:
    """Who wants one piece is answered by the next mode."""
    return whole_facts(create("broken_whole", "qwen-large=cut_fin"))
