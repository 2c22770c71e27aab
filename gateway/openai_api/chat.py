"""`POST /chat/completions`: whole and streamed, by one path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from gateway.errors import GatewayError
from gateway.openai_api import chat_wire
from gateway.openai_api.headers import cache_control, patience_s, served_headers
from gateway.openai_api.models import Models
from gateway.openai_api.words import JSON, Call, Reply, Routes

SSE = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),  # nginx would hold events back
]


class Chat:
    """Answers chat completions.

    Args:
        gateway: who answers.
        models: resolves `model`.
        headers_s: a stream whose first token is not there by then starts with an empty 200, so that
            the connection can be kept warm; until then errors get their own status. None waits.
    """

    def __init__(self, gateway: Any, models: Models, headers_s: float | None) -> None:
        self._gateway = gateway
        self._models = models
        self._headers_s = headers_s

    def routes(self) -> Routes:
        """What this file answers."""
        return {("POST", "/chat/completions"): self.chat}

    async def chat(self, call: Call) -> Reply:
        """Answer one chat completion."""
        asked = chat_wire.parse_chat(call.body)
        options = {"extra_body": asked.params, **self.options(call, asked.model, asked.stream)}
        if not asked.stream:
            whole = await self._gateway.generate(asked.messages, **options)
            facts = served_headers(whole.served, whole.id)
            return 200, [JSON, *facts], chat_wire.completion(whole)
        stream = self._gateway.stream(asked.messages, **options)
        opening = asyncio.ensure_future(stream.__aenter__())
        try:
            await asyncio.wait({opening}, timeout=self._headers_s)
        except asyncio.CancelledError:
            await _abandon(opening, stream)
            raise
        facts = []
        if opening.done():
            opening.result()
            facts = served_headers(stream.served, stream.id)
        return 200, [*SSE, *facts], _events(stream, opening, include_usage=asked.include_usage)

    def options(self, call: Call, model: str, stream: bool) -> dict[str, Any]:
        """How this caller wants to be answered, in `Gateway.generate`'s words."""
        headers, caller = call.headers, call.caller
        mode = self._models.mode(model, caller)
        options: dict[str, Any] = {
            "mode": mode,
            "allow_degrade": headers.get("x-gateway-allow-degrade", "true").lower() != "false",
            "cache": cache_control(headers.get("cache-control", "")),
            "tenant": caller.tenant,
            "key": caller.key,
            "trace": headers.get("traceparent", ""),
            "generation_id": call.take_generation_id(),
            # A retried call is shed first: its caller has already shown it will come again.
            "priority": caller.priority + (headers.get("x-stainless-retry-count", "0") != "0"),
        }
        wait_s = None if stream else patience_s(headers)  # of a stream, it bounds the silences
        if wait_s is not None:
            own = next(m.deadline_s for m in self._gateway.config.modes if m.name == mode)
            options["deadline"] = min(wait_s, own)
        return options


async def _abandon(opening: asyncio.Future[Any], stream: Any) -> None:
    """Stop a stream that may still be opening."""
    if not opening.done():
        opening.cancel()
        await asyncio.wait({opening})
    if not opening.cancelled() and opening.exception() is None:
        await stream.__aexit__(None, None, None)


async def _events(
    stream: Any, opening: asyncio.Future[Any], *, include_usage: bool
) -> AsyncIterator[bytes]:
    writer = None
    try:
        await asyncio.shield(opening)
        writer = chat_wire.StreamWriter(stream.id, stream.served, include_usage=include_usage)
        async for chunks in stream.batches():
            events = writer.write(chunks)
            if events:
                yield events
        yield writer.end()
    except GatewayError as error:
        yield chat_wire.error_event(error)
    finally:
        await _abandon(opening, stream)
