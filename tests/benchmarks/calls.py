"""The same call made by everyone: our bare client, the provider, the gateway, and the peers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import msgspec

from gateway.config import Config
from gateway.gateway import Gateway
from gateway.generation import CacheControl
from gateway.modes import TargetOptions
from gateway.providers.base import Call
from gateway.registry import Clients, build_provider
from gateway.sse import END, SSESplitter
from gateway.transport.base import Origin, request_head
from gateway.transport.httpx import HTTP1Transport
from gateway.transport.pool import HTTP1Client
from tests.benchmarks.stub import EVENTS
from tests.benchmarks.upstream import Upstream, modes

BARE = "bare client"
PROVIDER = "provider alone"
GENERATE = "gateway.generate"
NO_CACHE = "gateway.generate, cache=False"
STREAM = "gateway.stream"
BATCHES = "gateway.stream, batches()"
HTTPX = "httpx.AsyncClient, default"
HTTPX_OURS = "httpx.AsyncClient over HTTP1Transport"
OPENAI = "openai SDK, default"
OPENAI_OURS = "openai SDK over gateway.transport()"

Make = Callable[[int], Awaitable[object]]

_encode = msgspec.json.encode
_decode = msgspec.json.decode
_QUESTION = "Name three woody perfume notes and say in one sentence each what they smell like. No. "
_NO_CACHE = CacheControl(read=False, store=False)


def _body(number: int, *, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": "creative",
        "messages": [{"role": "user", "content": f"{_QUESTION}{number}"}],
        "temperature": 0.2,
    }
    return {**body, "stream": True} if stream else body


class Callers:
    """Everyone, on the loop that runs now; made by `callers`."""

    def __init__(self, upstream: Upstream, stack: AsyncExitStack) -> None:
        self._url = upstream.url()
        self._origin = Origin.from_url(self._url)
        headers = [("content-type", "application/json"), ("authorization", "Bearer pretended")]
        self._head = request_head("POST", "/v1/chat/completions", self._origin, headers)
        self._client = HTTP1Client()
        stack.push_async_callback(self._client.aclose)
        self._upstream = upstream
        self._stack = stack

    # -- ours -----------------------------------------------------------------------------------

    async def bare(self, number: int) -> object:
        """The least a caller of one JSON answer does: encode, send, read, decode."""
        body = _encode(_body(number, stream=False))
        response = await self._client.request(self._origin, self._head, body)
        return _decode(await response.read_all())

    async def bare_stream(self, number: int) -> object:
        """The least a reader of a stream does: split and decode each event."""
        body = _encode(_body(number, stream=True))
        response = await self._client.request(self._origin, self._head, body)
        splitter, events = SSESplitter(), []
        while data := await response.read_some():
            events += [_decode(payload) for payload in splitter.feed(data) if payload != END]
        _check(len(events))
        return events

    def provider(self, *, stream: bool) -> Make:
        """A target called directly: no cache, no ladder, no clocks."""
        options = TargetOptions(
            kind="openai", base_url=self._url, model="creative", stream_upstream=stream
        )
        clients = Clients()
        self._stack.push_async_callback(clients.aclose)
        provider = build_provider(options, clients)

        async def call(number: int) -> object:
            messages = [{"role": "user", "content": f"{_QUESTION}{number}"}]
            reply = await provider.open(Call(messages, {"temperature": 0.2}, f"bench-{number}"))
            chunks = []
            while some := await reply.read():
                chunks += some
            reply.close()
            _check(len(chunks), stream=stream)
            return chunks

        return call

    def gateway(self, *, stream: bool) -> Gateway:
        """A gateway with every feature on, whose modes are the stub's ports."""
        tables = {"modes": modes(self._upstream, stream_upstream=stream)}
        gateway = Gateway(Config.from_dict(tables))
        self._stack.push_async_callback(gateway.aclose)
        return gateway

    # -- peers ----------------------------------------------------------------------------------

    def by_httpx(self, *, stream: bool, transport: httpx.AsyncBaseTransport | None = None) -> Make:
        """httpx with JSON in and out; for a stream, its bytes split by our splitter."""
        client = httpx.AsyncClient(transport=transport, timeout=60)
        self._stack.push_async_callback(client.aclose)
        url = f"{self._url}/chat/completions"
        headers = {"content-type": "application/json", "authorization": "Bearer pretended"}

        async def whole(number: int) -> object:
            body = _encode(_body(number, stream=False))
            response = await client.post(url, content=body, headers=headers)
            return _decode(response.content)

        async def streamed(number: int) -> object:
            body = _encode(_body(number, stream=True))
            splitter, events = SSESplitter(), []
            async with client.stream("POST", url, content=body, headers=headers) as response:
                async for data in response.aiter_bytes():
                    events += [_decode(event) for event in splitter.feed(data) if event != END]
            _check(len(events))
            return events

        return streamed if stream else whole

    def by_openai(
        self, *, stream: bool, http_client: httpx.AsyncClient | None = None
    ) -> Make | None:
        """The openai SDK; None if it is not installed."""
        try:
            from openai import AsyncOpenAI
        except ImportError:
            return None
        client = AsyncOpenAI(
            base_url=self._url, api_key="pretended", max_retries=0, http_client=http_client
        )
        self._stack.push_async_callback(client.close)

        async def whole(number: int) -> object:
            return await client.chat.completions.create(**_body(number, stream=False))

        async def streamed(number: int) -> object:
            answer = await client.chat.completions.create(**_body(number, stream=True))
            chunks = [chunk async for chunk in answer]
            _check(len(chunks))
            return chunks

        return streamed if stream else whole

    def by_httpx_over_ours(self, *, stream: bool) -> Make:
        """httpx's face over our own wire."""
        return self.by_httpx(stream=stream, transport=HTTP1Transport())

    def by_openai_over_ours(self, gateway: Gateway, *, stream: bool) -> Make | None:
        """The SDK with the ladder, the cache and our wire under it."""
        return self.by_openai(
            stream=stream, http_client=httpx.AsyncClient(transport=gateway.transport())
        )


@asynccontextmanager
async def callers(upstream: Upstream) -> AsyncIterator[Callers]:
    """Everyone; all their connections are closed on the way out."""
    async with AsyncExitStack() as stack:
        yield Callers(upstream, stack)


def generate(gateway: Gateway, *, cache: bool = True) -> Make:
    """`generate`, each time with a prompt nobody asked before."""
    control = CacheControl() if cache else _NO_CACHE

    async def call(number: int) -> object:
        return await gateway.generate(
            f"{_QUESTION}{number}", "creative", cache=control, temperature=0.2
        )

    return call


def iterate(gateway: Gateway, *, batches: bool = False) -> Make:
    """`stream`, read chunk by chunk, or by `batches()`."""

    async def call(number: int) -> object:
        count = 0
        prompt = f"{_QUESTION}{number}"
        async with gateway.stream(prompt, "creative", temperature=0.2) as stream:
            if batches:
                async for some in stream.batches():
                    count += len(some)
            else:
                async for _ in stream:
                    count += 1
        _check(count)
        return count

    return call


def _check(events: int, *, stream: bool = True) -> None:
    """A figure for answers that were not read whole would be worth nothing."""
    if events != (EVENTS if stream else 1):
        raise RuntimeError(f"expected {EVENTS if stream else 1} chunks, got {events}")
