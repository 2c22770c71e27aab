"""Our bare client, one provider, and the gateway with everything on."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import msgspec

from gateway.config import Config
from gateway.gateway import Gateway
from gateway.generation import CacheControl
from gateway.modes import TargetOptions
from gateway.providers.base import Call as ProviderCall
from gateway.registry import Clients, build_provider
from gateway.sse import END, SSESplitter
from gateway.transport.base import Origin, request_head
from gateway.transport.pool import HTTP1Client
from tests.benchmarks.library.asking import (
    QUESTION,
    Call,
    Given,
    Kinds,
    body,
    check_events,
    messages,
)
from tests.benchmarks.upstream import modes

_NO_CACHE = CacheControl(read=False, store=False)
_SLOW_S, _LIMIT_S, _PROBE_S = 0.3, 1.0, 5.0
"""With an attempt limited to 1 s, 0.3 s without a first token is slow (shipped: 10 s of 15 s); a
probe each 5 s, as the peers with a breaker have it."""


async def bare(stack: AsyncExitStack, given: Given) -> Kinds:
    """The least a caller does: encode, send, read, (split,) decode."""
    origin = Origin.from_url(given.urls[0])
    headers = [("content-type", "application/json"), ("authorization", "Bearer pretended")]
    head = request_head("POST", "/v1/chat/completions", origin, headers)
    client = HTTP1Client()
    stack.push_async_callback(client.aclose)

    async def whole(number: int) -> object:
        asked = msgspec.json.encode(body(number, stream=False))
        response = await client.request(origin, head, asked)
        return msgspec.json.decode(await response.read_all())

    async def streamed(number: int) -> object:
        asked = msgspec.json.encode(body(number, stream=True))
        response = await client.request(origin, head, asked)
        splitter, events = SSESplitter(), []
        while data := await response.read_some():
            events += [msgspec.json.decode(one) for one in splitter.feed(data) if one != END]
        check_events(len(events))
        return events

    return {"json": whole, "stream": streamed}


async def provider(stack: AsyncExitStack, given: Given) -> Kinds:
    """A target called directly: no cache, no ladder, no clocks."""
    clients = Clients()
    stack.push_async_callback(clients.aclose)

    def kind(*, stream: bool) -> Call:
        options = TargetOptions(
            kind="openai", base_url=given.urls[0], model="creative", stream_upstream=stream
        )
        target = build_provider(options, clients)

        async def call(number: int) -> object:
            asked = ProviderCall(messages(number), {"temperature": 0.2}, f"bench-{number}")
            reply = await target.open(asked)
            chunks = []
            while some := await reply.read():
                chunks += some
            reply.close()
            return chunks

        return call

    return {"json": kind(stream=False), "stream": kind(stream=True)}


def gateway_for(given: Given, *, stream: bool) -> Gateway:
    """Everything on, as shipped but for what `given` and `stream` say."""
    tables: dict[str, Any] = {"modes": modes(given.urls, stream_upstream=stream)}
    if given.failover:
        tables["circuit"] = {"slow_s": _SLOW_S, "early_probe_s": _PROBE_S}
        for mode in tables["modes"].values():
            mode["first_token_s"] = _LIMIT_S
    return Gateway(Config.from_dict(tables))


async def generate(stack: AsyncExitStack, given: Given) -> Kinds:
    """`generate` and `stream` as an application calls them."""
    return await _gateway(stack, given, cache=True)


async def generate_uncached(stack: AsyncExitStack, given: Given) -> Kinds:
    """The same, neither reading the cache nor keeping anything in it."""
    return await _gateway(stack, given, cache=False)


async def _gateway(stack: AsyncExitStack, given: Given, *, cache: bool) -> Kinds:
    control = CacheControl() if cache else _NO_CACHE
    whole, streamed = gateway_for(given, stream=False), gateway_for(given, stream=True)
    for one in (whole, streamed):
        stack.push_async_callback(one.aclose)

    def kind(gateway: Gateway) -> Call:
        async def call(number: int) -> object:
            prompt = f"{QUESTION}{number}"
            return await gateway.generate(prompt, "creative", cache=control, temperature=0.2)

        return call

    async def iterate(number: int) -> object:
        count = 0
        prompt = f"{QUESTION}{number}"
        async with streamed.stream(prompt, "creative", temperature=0.2) as stream:
            async for _ in stream:
                count += 1
        check_events(count)
        return count

    async def batches(number: int) -> object:
        count = 0
        prompt = f"{QUESTION}{number}"
        async with streamed.stream(prompt, "creative", temperature=0.2) as stream:
            async for some in stream.batches():
                count += len(some)
        check_events(count)
        return count

    return {
        "json": kind(whole),
        "stream": kind(streamed),
        "iterate": iterate,
        "batches": batches,
    }
