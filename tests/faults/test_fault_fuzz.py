"""Good answers with bytes spoilt at random: whatever comes, a whole answer or a typed error."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest
from lab import Lab

from gateway.errors import GatewayError, StreamInterrupted
from gateway.simulator.scripted import Exchange

SEED = 1
TIMES = 200


def good(exchange: Exchange) -> bytes:
    """A good answer as it goes over the wire."""
    if not exchange.stream:
        body = msgspec.json.encode(exchange.completion({"content": "".join(exchange.tokens)}))
        return (
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
    events = [exchange.chunk({"role": "assistant", "content": ""})]
    events += [exchange.chunk({"content": token}) for token in exchange.tokens]
    events.append(exchange.chunk({}, finish_reason="stop"))
    lines = [b"data: %b\n\n" % msgspec.json.encode(event) for event in events]
    pieces = [b"%x\r\n%b\r\n" % (len(line), line) for line in [*lines, b"data: [DONE]\n\n"]]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    return b"%b\r\n%b0\r\n\r\n" % (head, b"".join(pieces))


def spoilt(data: bytes, dice: random.Random) -> bytes:
    """The same with some bytes lost, doubled, changed or made up."""
    for _ in range(dice.choice((1, 1, 1, 2))):
        here = dice.randrange(len(data) + 1)
        there = min(len(data), here + dice.choice((1, 1, 1, 3, 50)))
        piece = data[here:there]
        match dice.choice(("lost", "doubled", "changed", "made up", "cut")):
            case "lost":
                piece = b""
            case "doubled":
                piece += piece
            case "changed":
                piece = bytes(byte ^ (1 << dice.randrange(8)) for byte in piece)
            case "made up":
                piece = dice.randbytes(len(piece))
            case "cut":
                data, piece = data[:there], b""
        data = data[:here] + piece + data[there:]
    return data


@pytest.mark.parametrize("transport", ["http1", "httpx"])
@pytest.mark.parametrize("stream_upstream", [True, False], ids=["stream", "whole"])
async def test_spoilt_answers_harm_nobody(lab: Lab, transport: str, stream_upstream: bool) -> None:
    dice = random.Random(f"{SEED} {stream_upstream}")

    async def play(exchange: Exchange) -> None:
        exchange.raw(spoilt(good(exchange), dice))

    lab.start(
        modes=("creative", "balanced"),
        creative={"target": {"transport": transport, "stream_upstream": stream_upstream}},
        tables={
            "circuit": {"failure_threshold": 10_000, "failure_ratio": 0.0, "slow_s": 0},
            "cache": {"enabled": False},
        },
    )
    lab.script("creative", play)
    ends = {"creative": 0, "balanced": 0, "broken": 0}
    for number in range(TIMES):
        prompt = lab.prompt()
        if number % 2:
            heard = await lab.hear(prompt)
            if heard.error is not None:
                assert isinstance(heard.error, StreamInterrupted)
                assert heard.error.partial == heard.text
                ends["broken"] += 1
                continue
            assert heard.whole is not None
            answer = heard.whole
        else:
            answer = await lab.gateway.generate(prompt)
        ends[answer.mode] += 1
        if answer.mode == "balanced":
            lab.check_answer(answer, prompt)
        assert answer.finish_reason is None or isinstance(answer.finish_reason, str)
    await lab.check_at_rest()
    assert min(ends["creative"], ends["balanced"]) >= 10, ends


async def test_many_spoilt_answers_at_once_do_not_mix(lab: Lab) -> None:
    """Half of the answers on shared connections are spoilt; the other half come through."""
    dice = random.Random(7)

    async def play(exchange: Exchange) -> None:
        data = good(exchange)
        if dice.random() < 0.5:
            exchange.raw(spoilt(data, dice))
        else:
            exchange.raw(data)
            exchange.ended = True

    lab.start(
        modes=("creative", "balanced"),
        tables={"circuit": {"failure_threshold": 10_000, "failure_ratio": 0.0}},
    )
    lab.script("creative", play)

    async def ask() -> bool:
        prompt = lab.prompt()
        try:
            answer = await lab.gateway.generate(prompt)
        except GatewayError:
            return False
        return answer.text == lab.says(answer.mode, prompt)

    for _ in range(10):
        right = await asyncio.gather(*(ask() for _ in range(10)))
        assert sum(right) >= 5
