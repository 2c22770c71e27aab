"""Answers that are right, however odd their form: a provider must give back every word of them."""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.simulator.scripted.exchange import Exchange
from gateway.simulator.scripted.fault import ScriptedFault, enter

UNICODE_TEXT = "香根草 · vétiver · 🌲"
"""What `split_utf8` says: two-, three- and four-byte characters."""

GOOD: Final[dict[str, ScriptedFault]] = {}


@enter(GOOD)
async def ok(exchange: Exchange) -> None:
    """A good answer."""
    if not exchange.stream:
        exchange.json(exchange.completion({"content": "".join(exchange.tokens)}))
        return
    exchange.head()
    exchange.role()
    exchange.say(*exchange.tokens)
    exchange.finish()


@enter(GOOD)
async def drip(exchange: Exchange) -> None:
    """A good answer, one token (or a tenth of the body) at a time."""
    if exchange.stream:
        exchange.head()
        exchange.role()
        for token in exchange.tokens:
            await exchange.pause()
            exchange.say(token)
        exchange.finish()
        return
    body = msgspec.json.encode(exchange.completion({"content": "".join(exchange.tokens)}))
    exchange.head(content_type="application/json", length=len(body))
    step = len(body) // 10
    for start in range(0, len(body), step):
        await exchange.pause()
        exchange.write(body[start : start + step])
    exchange.end()


@enter(GOOD, text="")
async def reasoning_only(exchange: Exchange) -> None:
    """Reasoning only, then out of tokens: finish_reason length."""
    if not exchange.stream:
        message = {"content": "", "reasoning_content": "".join(exchange.tokens)}
        exchange.json(exchange.completion(message, finish_reason="length"))
        return
    exchange.head()
    exchange.role()
    for token in exchange.tokens:
        exchange.event(exchange.chunk({"reasoning_content": token}))
    exchange.finish("length")


@enter(GOOD, text="")
async def tool_calls(exchange: Exchange) -> None:
    """A tool call, its arguments in pieces."""
    await _call_tool(exchange, names=["find_notes"])


@enter(GOOD, form="stream", text="")
async def tool_name_split(exchange: Exchange) -> None:
    """A tool call whose name comes in two pieces."""
    await _call_tool(exchange, names=["find_", "notes"])


async def _call_tool(exchange: Exchange, names: list[str]) -> None:
    call = {"id": "call_1", "type": "function"}
    if not exchange.stream:
        function = {"name": "".join(names), "arguments": '{"family": "woody"}'}
        message = {"content": None, "tool_calls": [{**call, "function": function}]}
        exchange.json(exchange.completion(message, finish_reason="tool_calls"))
        return
    exchange.head()
    exchange.role()
    first, *rest = names
    pieces = [{**call, "function": {"name": first, "arguments": ""}}]
    pieces += [{"function": {"name": name}} for name in rest]
    pieces += [{"function": {"arguments": part}} for part in ('{"family"', ': "woo', 'dy"}')]
    for piece in pieces:
        exchange.event(exchange.chunk({"tool_calls": [{"index": 0, **piece}]}))
    exchange.finish("tool_calls")


@enter(GOOD)
async def two_choices(exchange: Exchange) -> None:
    """Two choices, their tokens interleaved."""
    if not exchange.stream:
        answer = exchange.completion({"content": "".join(exchange.tokens)})
        second = {**answer["choices"][0], "index": 1}
        exchange.json({**answer, "choices": [answer["choices"][0], second]})
        return
    exchange.head()
    for token in exchange.tokens:
        for index in (0, 1):
            exchange.event(exchange.chunk({"content": token}, index=index))
    exchange.event(exchange.chunk({}, index=1, finish_reason="stop"))
    exchange.finish()


@enter(GOOD)
async def logprobs(exchange: Exchange) -> None:
    """Log probabilities with every token."""
    told = [{"token": token, "logprob": -0.5, "top_logprobs": []} for token in exchange.tokens]
    if not exchange.stream:
        message = {"content": "".join(exchange.tokens)}
        exchange.json(exchange.completion(message, logprobs={"content": told}))
        return
    exchange.head()
    exchange.role()
    for token, one in zip(exchange.tokens, told, strict=True):
        exchange.event(exchange.chunk({"content": token}, logprobs={"content": [one]}))
    exchange.finish()


@enter(GOOD)
async def renamed_model(exchange: Exchange) -> None:
    """Another model name in the answer than in the question."""
    exchange.model = "qwen-of-another-name"
    await ok(exchange)


# Odd but legal streams.


@enter(GOOD, form="stream")
async def byte_by_byte(exchange: Exchange) -> None:
    """One byte at a time."""
    exchange.head()
    events = [exchange.chunk({"content": token}) for token in exchange.tokens]
    events.append(exchange.chunk({}, finish_reason="stop"))
    for event in events:
        for byte in b"data: %b\n\n" % msgspec.json.encode(event):
            exchange.write(bytes([byte]))
    exchange.write(b"data: [DONE]\n\n")
    exchange.end()


@enter(GOOD, form="stream", text=UNICODE_TEXT)
async def split_utf8(exchange: Exchange) -> None:
    """Characters split between two segments."""
    exchange.head()
    exchange.role()
    event = b"data: %b\n\n" % msgspec.json.encode(exchange.chunk({"content": UNICODE_TEXT}))
    inside = [place for place, byte in enumerate(event) if byte & 0xC0 == 0x80]
    for start, stop in zip([0, *inside], [*inside, len(event)], strict=True):
        exchange.write(event[start:stop])
        await exchange.pause()
    exchange.finish()


@enter(GOOD, form="stream")
async def comments(exchange: Exchange) -> None:
    """Comments between and around the events."""
    exchange.head()
    exchange.write(b": welcome\n\n")
    for token in exchange.tokens:
        exchange.write(b": keep-alive\n")
        exchange.say(token)
        exchange.write(b":\n\n")
    exchange.finish()


@enter(GOOD, form="stream")
async def crlf(exchange: Exchange) -> None:
    """Lines ending in CR LF."""
    exchange.head()
    for token in exchange.tokens:
        event = msgspec.json.encode(exchange.chunk({"content": token}))
        exchange.write(b"data: %b\r\n\r\n" % event)
    exchange.finish()


@enter(GOOD, form="stream")
async def sse_fields(exchange: Exchange) -> None:
    """Id, event and retry lines, and no space after `data:`."""
    exchange.head()
    exchange.write(b"retry: 3000\n\n")
    for number, token in enumerate(exchange.tokens):
        event = msgspec.json.encode(exchange.chunk({"content": token}))
        exchange.write(b"id:%d\nevent: message\ndata:%b\n\n" % (number, event))
    exchange.finish()


@enter(GOOD, form="stream", text="x" * 1_000_000)
async def huge_event(exchange: Exchange) -> None:
    """One event of a megabyte."""
    exchange.head()
    exchange.say("x" * 1_000_000)
    exchange.finish()


@enter(GOOD, form="stream")
async def no_done(exchange: Exchange) -> None:
    """Ends with a finish_reason but without [DONE]."""
    exchange.head()
    exchange.say(*exchange.tokens)
    exchange.finish(done=False)


@enter(GOOD, form="stream")
async def done_without_finish(exchange: Exchange) -> None:
    """Ends with [DONE] but without a finish_reason."""
    exchange.head()
    exchange.say(*exchange.tokens)
    exchange.write(b"data: [DONE]\n\n")
    exchange.end()


@enter(GOOD, form="stream")
async def lingers(exchange: Exchange) -> None:
    """A finished answer whose body then stays open."""
    exchange.head()
    exchange.say(*exchange.tokens)
    exchange.event(exchange.chunk({}, finish_reason="stop"))
    exchange.write(b"data: [DONE]\n\n")
    await exchange.forever()
