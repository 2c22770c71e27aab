"""Answers OpenAI's HTTP requests from a gateway: what stands behind `Gateway.transport()`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from gateway import wire
from gateway.errors import GatewayError, InvalidRequest
from gateway.generation import Chunk, Generation, Served

Reply = tuple[int, list[tuple[str, str]], bytes | AsyncIterator[bytes]]
"""Status, headers, and the body: whole, or as it comes."""

_JSON = ("content-type", "application/json")
_SSE = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")]


class OpenAIAPI:
    """OpenAI's chat completions and models, answered by a gateway.

    Args:
        gateway: who answers.
        default_mode: the mode for a `model` that is no mode's name.
    """

    def __init__(self, gateway: Asked, default_mode: str) -> None:
        self._gateway = gateway
        self._default_mode = default_mode

    async def handle(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Reply:
        """Answer one HTTP request. Never raises for what a client can do wrong."""
        route = path.partition("?")[0].rstrip("/")
        try:
            if method == "POST" and route.endswith("/chat/completions"):
                return await self._chat(headers, body)
            if method == "GET" and route.endswith("/models"):
                return 200, [_JSON], self._models()
            raise _NotFound(
                f"{method} {route} is not offered here; chat/completions and models are"
            )
        except GatewayError as error:
            return error.http_status, wire.error_headers(error), wire.envelope(error)

    async def _chat(self, headers: Mapping[str, str], body: bytes) -> Reply:
        asked = wire.parse_chat(body)
        options: dict[str, Any] = {
            "extra_body": asked.params,
            "mode": asked.model if asked.model in self._gateway.modes else self._default_mode,
            "allow_degrade": headers.get("x-gateway-allow-degrade", "true").lower() != "false",
            "cache": wire.cache_control(headers.get("cache-control", "")),
        }
        if not asked.stream:
            whole = await self._gateway.generate(asked.messages, **options)
            facts = wire.served_headers(whole.served, whole.id)
            return 200, [_JSON, *facts], wire.completion(whole)
        stream = self._gateway.stream(asked.messages, **options)
        await stream.__aenter__()
        facts = wire.served_headers(stream.served, stream.id)
        return 200, [*_SSE, *facts], _events(stream, include_usage=asked.include_usage)

    def _models(self) -> bytes:
        return wire.models(self._gateway.modes)


async def _events(stream: Streaming, *, include_usage: bool) -> AsyncIterator[bytes]:
    writer = wire.StreamWriter(stream.id, stream.served, include_usage=include_usage)
    try:
        async for chunks in stream.batches():
            events = writer.write(chunks)
            if events:
                yield events
        yield writer.end()
    except GatewayError as error:
        yield writer.error(error)
    finally:
        await stream.__aexit__(None, None, None)


class _NotFound(InvalidRequest):
    http_status = 404
    code = "not_found"


class Streaming(Protocol):
    """What a streamed answer must offer."""

    id: str

    @property
    def served(self) -> Served:
        """Who answers."""
        ...

    def batches(self) -> AsyncIterator[list[Chunk]]:
        """Chunks as they arrive together."""
        ...

    async def __aenter__(self) -> Any: ...

    async def __aexit__(self, *error: Any) -> None: ...


class Asked(Protocol):
    """What a gateway must offer to be asked over HTTP."""

    @property
    def modes(self) -> list[str]:
        """The modes' names, best first."""
        ...

    async def generate(self, prompt: Any, **options: Any) -> Generation:
        """Answer whole."""
        ...

    def stream(self, prompt: Any, **options: Any) -> Streaming:
        """Answer piece by piece."""
        ...
