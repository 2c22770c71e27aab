"""How the public face is used, as far as a type checker can see. Checked, never run."""

from __future__ import annotations

from typing import Any

import httpx

from gateway import (
    CacheControl,
    Chunk,
    Config,
    Event,
    Gateway,
    Generation,
    GenerationStream,
    Served,
    Usage,
)


async def ask(gateway: Gateway) -> None:
    answer: Generation = await gateway.generate("hello", "creative")
    text: str = answer.text
    mode: str = answer.mode
    degraded: bool = answer.degraded
    until: float | None = answer.until
    usage: Usage = answer.usage
    finish_reason: str | None = answer.finish_reason
    served: Served = answer.served
    tools: list[dict[str, Any]] = answer.tool_calls
    print(text, mode, degraded, until, usage.total_tokens, finish_reason, served.reason, tools)
    await gateway.generate(
        [{"role": "user", "content": "hello"}],
        mode="fast",
        deadline=3,
        allow_degrade=False,
        cache=CacheControl(max_age_s=60),
        tenant="a",
        temperature=0.2,
        extra_body={"priority": 3},
    )
    await gateway.feedback(answer.id, 4.5, user_id="user_123")


async def listen(gateway: Gateway) -> None:
    async with gateway.stream("hello", mode="balanced", on_interrupt="continue") as stream:
        entered: GenerationStream = stream
        async for chunk in entered:
            one: Chunk = chunk
            print(one.text, one.reasoning, one.finish_reason)
        whole: Generation = await stream.finish()
        print(whole.text)


async def own() -> None:
    async with Gateway.from_toml("config.toml") as gateway:
        status: dict[str, Any] = gateway.status()
        gateway.force("creative", "open")
        gateway.reload()
        gateway.reload("other.toml")
        gateway.reload(Config.from_dict({"modes": {}}))
        print(status, gateway.modes)

    def heard(event: Event) -> None:
        print(event.at)

    Gateway(Config.from_toml("config.toml"), listeners=[heard])


def script() -> str:
    def qwen(prompt: str) -> str:
        return prompt

    async def qwen_async(prompt: str) -> str:
        return prompt

    wrapped = Gateway.wrap({"creative": qwen, "fast": qwen_async}, config={"cache": {"ttl_s": 60}})
    text: str = wrapped.generate_sync("hello").text
    Gateway.wrap(object(), model="qwen3-max")
    Gateway.wrap(object(), model={"creative": "qwen3-max", "fast": "qwen-flash"})
    wrapped.close()
    return text


def under_an_sdk(gateway: Gateway) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=gateway.transport())
