"""Plain clients, as their READMEs start them, and with our wire or the whole gateway under them."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack

import httpx

from gateway.sse import END, SSESplitter
from gateway.transport.httpx import HTTP1Transport
from tests.benchmarks.library.asking import Given, Kinds, body, check_events
from tests.benchmarks.library.callers.ours import gateway_for

_HEADERS = {"content-type": "application/json", "authorization": "Bearer pretended"}


async def by_httpx(stack: AsyncExitStack, given: Given) -> Kinds:
    """httpx with JSON in and out."""
    return _httpx(stack, given, None)


async def by_httpx_over_ours(stack: AsyncExitStack, given: Given) -> Kinds:
    """httpx's face over our wire."""
    return _httpx(stack, given, HTTP1Transport())


async def by_openai(stack: AsyncExitStack, given: Given) -> Kinds:
    """The openai SDK."""
    return _openai(stack, given, None, None)


async def by_openai_over_ours(stack: AsyncExitStack, given: Given) -> Kinds:
    """The SDK with the ladder, the cache and our wire under it."""
    found = []
    for stream in (False, True):
        gateway = gateway_for(given, stream=stream)
        stack.push_async_callback(gateway.aclose)
        found.append(httpx.AsyncClient(transport=gateway.transport()))
    return _openai(stack, given, *found)


def _httpx(
    stack: AsyncExitStack, given: Given, transport: httpx.AsyncBaseTransport | None
) -> Kinds:
    client = httpx.AsyncClient(transport=transport, timeout=60)
    stack.push_async_callback(client.aclose)
    url = f"{given.urls[0]}/chat/completions"

    async def whole(number: int) -> object:
        asked = json.dumps(body(number, stream=False)).encode()
        return json.loads((await client.post(url, content=asked, headers=_HEADERS)).content)

    async def streamed(number: int) -> object:
        asked = json.dumps(body(number, stream=True)).encode()
        splitter, events = SSESplitter(), []
        async with client.stream("POST", url, content=asked, headers=_HEADERS) as response:
            async for data in response.aiter_bytes():
                events += [json.loads(one) for one in splitter.feed(data) if one != END]
        check_events(len(events))
        return events

    return {"json": whole, "stream": streamed, "iterate": streamed}


def _openai(
    stack: AsyncExitStack,
    given: Given,
    for_whole: httpx.AsyncClient | None,
    for_streams: httpx.AsyncClient | None,
) -> Kinds:
    from openai import AsyncOpenAI

    def client(inner: httpx.AsyncClient | None) -> AsyncOpenAI:
        made = AsyncOpenAI(
            base_url=given.urls[0], api_key="pretended", max_retries=0, http_client=inner
        )
        stack.push_async_callback(made.close)
        return made

    wholes, streams = client(for_whole), client(for_streams)

    async def whole(number: int) -> object:
        return await wholes.chat.completions.create(**body(number, stream=False))

    async def streamed(number: int) -> object:
        answer = await streams.chat.completions.create(**body(number, stream=True))
        chunks = [chunk async for chunk in answer]
        check_events(len(chunks))
        return chunks

    return {"json": whole, "stream": streamed, "iterate": streamed}
