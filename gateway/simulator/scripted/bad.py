"""Answers that are wrong: silent, cut off, failing inside a 200, malformed, empty."""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.errors import ErrorKind
from gateway.simulator.scripted.exchange import CutOff, Exchange
from gateway.simulator.scripted.fault import Play, ScriptedFault, enter
from gateway.simulator.scripted.good import ok

BEFORE_FAULT = 3
"""Content tokens sent before the faults that strike in the middle of a stream."""

BAD: Final[dict[str, ScriptedFault]] = {}


# Silence.


@enter(BAD, kind=ErrorKind.TIMEOUT, status=0)
async def silent(exchange: Exchange) -> None:
    """Accepts the request and never answers."""
    await exchange.forever()


@enter(BAD, kind=ErrorKind.TIMEOUT)
async def headers_then_silence(exchange: Exchange) -> None:
    """Headers, then nothing."""
    if exchange.stream:
        exchange.head()
    else:
        exchange.head(content_type="application/json", length=1000)
    await exchange.forever()


@enter(BAD, kind=ErrorKind.TIMEOUT, form="stream")
async def pings_only(exchange: Exchange) -> None:
    """Comments for ever, never a token."""
    exchange.head()
    while True:
        exchange.write(b": ping\n\n")
        await exchange.pause()


@enter(BAD, kind=ErrorKind.TIMEOUT, form="stream")
async def empty_deltas_only(exchange: Exchange) -> None:
    """Empty deltas for ever, never a token."""
    exchange.head()
    while True:
        exchange.role()
        await exchange.pause()


@enter(BAD, kind=ErrorKind.TIMEOUT, form="stream", tokens=1)
async def one_token_then_stall(exchange: Exchange) -> None:
    """One token, then nothing."""
    exchange.head()
    exchange.role()
    exchange.say(exchange.tokens[0])
    await exchange.forever()


# Cut off.


@enter(BAD, kind=ErrorKind.CONNECT, status=0)
async def close(exchange: Exchange) -> None:
    """Closes without a byte."""


@enter(BAD, kind=ErrorKind.CONNECT, status=0)
async def reset(exchange: Exchange) -> None:
    """Resets the connection without a byte."""
    exchange.reset()


@enter(BAD, kind=ErrorKind.INTERRUPTED, form="stream")
async def cut_after_role(exchange: Exchange) -> None:
    """Closes after the role chunk."""
    exchange.head()
    exchange.role()


async def _begin(exchange: Exchange) -> None:
    """The beginning of a good stream, and time for the client to read it."""
    exchange.head()
    exchange.role()
    exchange.say(*exchange.tokens[:BEFORE_FAULT])
    await exchange.pause()


@enter(BAD, kind=ErrorKind.INTERRUPTED, form="stream", tokens=BEFORE_FAULT)
async def cut_fin(exchange: Exchange) -> None:
    """Closes in mid-stream."""
    await _begin(exchange)


@enter(BAD, kind=ErrorKind.INTERRUPTED, form="stream", tokens=BEFORE_FAULT)
async def cut_rst(exchange: Exchange) -> None:
    """Resets in mid-stream."""
    await _begin(exchange)
    exchange.reset()


@enter(BAD, kind=ErrorKind.INTERRUPTED, form="stream", tokens=BEFORE_FAULT)
async def cut_mid_event(exchange: Exchange) -> None:
    """Closes in mid-event."""
    await _begin(exchange)
    exchange.write(b'data: {"choices":[{"index":0,"delta":{"content":"am')


@enter(BAD, kind=ErrorKind.INTERRUPTED, form="stream", tokens=BEFORE_FAULT)
async def cut_clean(exchange: Exchange) -> None:
    """Ends the body properly, with no finish_reason and no [DONE]."""
    await _begin(exchange)
    exchange.end()


@enter(BAD, kind=ErrorKind.INTERRUPTED, form="whole")
async def body_cut(exchange: Exchange) -> None:
    """Closes after 60 % of the body."""
    body = msgspec.json.encode(exchange.completion({"content": "".join(exchange.tokens)}))
    exchange.head(content_type="application/json", length=len(body))
    exchange.write(body[: len(body) * 6 // 10])


def cut_at_byte(byte: int, *, rst: bool = False) -> Play:
    """A good answer cut at byte `byte` of the response, head included, with FIN or RST."""

    async def play(exchange: Exchange) -> None:
        exchange.cut_at(byte)
        try:
            await ok(exchange)
        except CutOff:
            if rst:
                await exchange.pause()  # a reset may overtake what is not yet sent
                exchange.reset()

    return play


# Errors inside a 200.

_BROKE = {"error": {"message": "worker died", "type": "server_error", "param": None, "code": 500}}


@enter(BAD, kind=ErrorKind.SERVER)
async def error_in_200(exchange: Exchange) -> None:
    """An error in place of the answer, status 200."""
    if not exchange.stream:
        exchange.json(_BROKE)
        return
    exchange.head()
    exchange.event(_BROKE)
    exchange.end()


@enter(BAD, kind=ErrorKind.SERVER, form="stream")
async def error_after_role(exchange: Exchange) -> None:
    """An error after the role chunk."""
    exchange.head()
    exchange.role()
    exchange.event(_BROKE)
    exchange.end()


@enter(BAD, kind=ErrorKind.SERVER, form="stream", tokens=BEFORE_FAULT)
async def error_mid_stream(exchange: Exchange) -> None:
    """An error in mid-stream, then [DONE]."""
    await _begin(exchange)
    exchange.event(_BROKE)
    exchange.write(b"data: [DONE]\n\n")
    exchange.end()


@enter(BAD, kind=ErrorKind.SERVER, form="stream", tokens=BEFORE_FAULT)
async def error_finish(exchange: Exchange) -> None:
    """Ends with finish_reason error_finish, the error told as content."""
    await _begin(exchange)
    told = {"content": "Throttling: please try again later"}
    exchange.event(exchange.chunk(told, finish_reason="error_finish"))
    exchange.write(b"data: [DONE]\n\n")
    exchange.end()


@enter(BAD, kind=ErrorKind.RATE, form="stream")
async def dashscope_throttled_event(exchange: Exchange) -> None:
    """DashScope's own throttling event."""
    _dashscope_event(exchange, 429, "Throttling.RateQuota", "Requests rate limit exceeded.")


@enter(BAD, kind=ErrorKind.SERVER, form="stream")
async def dashscope_error_event(exchange: Exchange) -> None:
    """DashScope's own error event."""
    _dashscope_event(exchange, 500, "InternalError", "Internal server error!")


def _dashscope_event(exchange: Exchange, status: int, code: str, message: str) -> None:
    exchange.head()
    data = msgspec.json.encode({"code": code, "message": message, "request_id": "scripted"})
    exchange.write(b"id:1\nevent:error\n:HTTP_STATUS/%d\ndata:%b\n\n" % (status, data))
    exchange.end()


# Broken and empty answers.


@enter(BAD, kind=ErrorKind.MALFORMED, form="stream", tokens=BEFORE_FAULT)
async def malformed_event(exchange: Exchange) -> None:
    """An event of broken JSON."""
    await _begin(exchange)
    exchange.write(b'data: {"choices":[{"index":0,"delta":{"content":\n\n')
    exchange.say(*exchange.tokens[BEFORE_FAULT:])
    exchange.finish()


@enter(BAD, kind=ErrorKind.MALFORMED, form="stream", tokens=BEFORE_FAULT)
async def invalid_utf8(exchange: Exchange) -> None:
    """Bytes that are no UTF-8."""
    await _begin(exchange)
    exchange.write(b'data: {"choices":[{"index":0,"delta":{"content":"\xff\xfe"}}]}\n\n')
    exchange.finish()


@enter(BAD, kind=ErrorKind.MALFORMED, form="whole")
async def broken_json(exchange: Exchange) -> None:
    """A body of broken JSON."""
    exchange.document(b'{"choices": [{"message": {"content": "amber', "application/json")


@enter(BAD, kind=ErrorKind.MALFORMED)
async def html(exchange: Exchange) -> None:
    """A web page, status 200."""
    exchange.document(b"<html><body>Sign in to continue</body></html>", "text/html")


@enter(BAD, kind=ErrorKind.EMPTY)
async def empty(exchange: Exchange) -> None:
    """A complete answer with nothing in it."""
    if not exchange.stream:
        exchange.json(exchange.completion({"content": ""}))
        return
    exchange.head()
    exchange.role()
    exchange.finish()
