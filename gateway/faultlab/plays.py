"""What the lab's upstreams play beside the catalogue of `gateway.simulator.scripted`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.simulator.scripted.exchange import Exchange
from gateway.simulator.scripted.fault import Play
from gateway.simulator.scripted.good import ok


def error(
    status: int, message: str, kind: str = "server_error", *, retry_after: int | None = None
) -> Play:
    """An HTTP error in OpenAI's envelope."""
    body = {"error": {"message": message, "type": kind, "param": None, "code": str(status)}}
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}

    async def play(exchange: Exchange) -> None:
        exchange.json(body, status, headers)

    return play


FAILS = error(500, "Internal server error")
DOWN = error(503, "The service is down for the moment")
THROTTLED = error(429, "Too many requests", "rate_limit_error")


def _whole_body(exchange: Exchange) -> bytes:
    body = exchange.completion({"content": "".join(exchange.tokens)})
    return msgspec.json.encode(body)


async def _begin(exchange: Exchange, tokens: int) -> None:
    """The first tokens of the answer, read as a segment of their own."""
    if exchange.stream:
        exchange.head()
        exchange.role()
        exchange.say(*exchange.tokens[:tokens])
    else:
        body = _whole_body(exchange)
        exchange.head(content_type="application/json", length=len(body))
        exchange.write(body[: len(body) * tokens // len(exchange.tokens)])
    await exchange.pause()


def cut_after(tokens: int, *, rst: bool = False) -> Play:
    """The answer cut off, connection and all: after so many tokens, or that share of the body."""

    async def play(exchange: Exchange) -> None:
        await _begin(exchange, tokens)
        if rst:
            exchange.reset()

    return play


def stall_after(tokens: int, seconds: float) -> Play:
    """So many tokens, then silence, then nothing more."""

    async def play(exchange: Exchange) -> None:
        await _begin(exchange, tokens)
        await asyncio.sleep(seconds)

    return play


def late(seconds: float) -> Play:
    """Headers at once, the answer so much later."""

    async def play(exchange: Exchange) -> None:
        if exchange.stream:
            exchange.head()
            await asyncio.sleep(seconds)
            exchange.role()
            exchange.say(*exchange.tokens)
            exchange.finish()
            return
        body = _whole_body(exchange)
        exchange.head(content_type="application/json", length=len(body))
        await asyncio.sleep(seconds)
        exchange.write(body)
        exchange.end()

    return play


def slow(seconds: float, then: Play = ok) -> Play:
    """Nothing for so long, then what `then` plays."""

    async def play(exchange: Exchange) -> None:
        await asyncio.sleep(seconds)
        await then(exchange)

    return play


def paced(interval_s: float, tokens: int) -> Play:
    """So many tokens, one at a time, then the rest at once; a whole answer takes as long."""

    async def play(exchange: Exchange) -> None:
        if not exchange.stream:
            await asyncio.sleep(interval_s * tokens)
            await ok(exchange)
            return
        exchange.head()
        exchange.role()
        for token in exchange.tokens[:tokens]:
            exchange.say(token)
            await asyncio.sleep(interval_s)
        exchange.say(*exchange.tokens[tokens:])
        exchange.finish()

    return play


def tokenless(interval_s: float, *, pings: bool) -> Play:
    """Comments or empty deltas for ever, never a token."""

    async def play(exchange: Exchange) -> None:
        exchange.head()
        while True:
            if pings:
                exchange.write(b": keep-alive\n\n")
            else:
                exchange.role()
            await asyncio.sleep(interval_s)

    return play


def broken_event(tokens: int) -> Play:
    """An event of broken JSON in the middle of a good stream; a whole answer of broken JSON."""

    async def play(exchange: Exchange) -> None:
        if not exchange.stream:
            exchange.document(_whole_body(exchange)[:-20] + b'"}]]', "application/json")
            return
        await _begin(exchange, tokens)
        exchange.write(b'data: {"choices":[{"index":0,"delta":{"content":\n\n')
        exchange.say(*exchange.tokens[tokens:])
        exchange.finish()

    return play


async def throttled_in_stream(exchange: Exchange) -> None:
    """Ten tokens, then a 429 as an event."""
    await _begin(exchange, 10)
    exchange.event({"error": {"message": "Too many requests", "type": "rate_limit_error",
                              "param": None, "code": 429}})  # fmt: skip
    exchange.end()


async def filtered(exchange: Exchange) -> None:
    """An answer that the provider's filter ended half-way."""
    await _ended_by(exchange, "content_filter")


async def length(exchange: Exchange) -> None:
    """An answer that the token limit ended half-way."""
    await _ended_by(exchange, "length")


async def _ended_by(exchange: Exchange, reason: str) -> None:
    exchange.tokens = exchange.tokens[:20]
    if not exchange.stream:
        message = {"content": "".join(exchange.tokens)}
        exchange.json(exchange.completion(message, finish_reason=reason))
        return
    exchange.head()
    exchange.role()
    exchange.say(*exchange.tokens)
    exchange.finish(reason)


def broken_tool_call(exchange: Exchange) -> Mapping[str, Any]:
    """A call of a tool whose arguments are no JSON."""
    function = {"name": "find_notes", "arguments": '{"family": "woo'}
    return {"id": f"call_{exchange.model}", "type": "function", "function": function}


async def invalid_tool_call(exchange: Exchange) -> None:
    """Calls a tool with arguments that are no JSON."""
    call = broken_tool_call(exchange)
    if not exchange.stream:
        message = {"content": None, "tool_calls": [call]}
        exchange.json(exchange.completion(message, finish_reason="tool_calls"))
        return
    exchange.head()
    exchange.role()
    exchange.event(exchange.chunk({"tool_calls": [{"index": 0, **call}]}))
    exchange.finish("tool_calls")


async def refuses_prefill(exchange: Exchange) -> None:
    """Answers well, but not a chat whose last message is the assistant's."""
    messages = exchange.body.get("messages") or [{}]
    if messages[-1].get("role") == "assistant":
        said = "This model does not support assistant message prefill"
        await error(400, said, "invalid_request_error")(exchange)
        return
    await ok(exchange)
