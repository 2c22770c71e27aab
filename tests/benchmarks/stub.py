"""A fast pretended OpenAI backend in a process of its own, one port per pretended backend.

    python tests/benchmarks/stub.py [--ports 3] [--cpu 1]

Serves where no C compiler is; else `native/stub.c` does, with the answers made here. Prints its
ports as one JSON line and runs until its standard input is closed, so it never outlives whoever
started it. Control, on each port: `GET /__set?mode=ok|error|hang&delay_s=0&interval_s=0` and
`GET /__stats`. With `interval_s` 0 all 64 events leave in one write ("burst"), otherwise one event
per write and interval ("paced").
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import cast
from urllib.parse import parse_qs, urlsplit

EVENTS = 64
STAMP = "0" * 16  # the stub in C puts the microsecond of sending here, in paced streams
TOKENS = EVENTS - 2  # the first event bears the role, the last the reason it ended
_STREAM = re.compile(rb'"stream":\s*true')
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_CONTENT = (
    "Paris is the capital and most populous city of France. It lies on the Seine in the north of "
    "the country, and has been one of the world's major centres of finance, diplomacy, commerce, "
    "culture, fashion and gastronomy since the 17th century; its airports and stations carry "
    "more travellers than those of any other city on the continent."
)


def _answer(status: str, body: object) -> bytes:
    data = json.dumps(body, separators=(",", ":")).encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nx-request-id: req_0123456789\r\n"
    )
    return b"%bContent-Length: %d\r\n\r\n%b" % (head.encode(), len(data), data)


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(number: int) -> bytes:
    first, last = number == 0, number == EVENTS - 1
    delta = (
        {"role": "assistant", "content": ""}
        if first
        else {"content": f" token{number:02d} {STAMP}"}
    )
    chunk = {
        "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
        "object": "chat.completion.chunk",
        "created": 1741569952,
        "model": "pretended-7b-instruct-2025",
        "service_tier": "default",
        "system_fingerprint": "fp_06737a9306",
        "choices": [
            {
                "index": 0,
                "delta": {} if last else delta,
                "logprobs": None,
                "finish_reason": "stop" if last else None,
            }
        ],
    }
    return b"data: %b\n\n" % json.dumps(chunk, separators=(",", ":")).encode()


WHOLE = _answer(
    "200 OK",
    {
        "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
        "object": "chat.completion",
        "created": 1741569952,
        "model": "pretended-7b-instruct-2025",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": _CONTENT,
                    "refusal": None,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 19,
            "completion_tokens": 62,
            "total_tokens": 81,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        },
        "service_tier": "default",
        "system_fingerprint": "fp_06737a9306",
    },
)
ERROR = _answer(
    "500 Internal Server Error",
    {"error": {"message": "The server had an error.", "type": "server_error", "code": None}},
)
EVENT_BYTES = [_event(number) for number in range(EVENTS)]
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nx-request-id: req_0123456789\r\nTransfer-Encoding: chunked\r\n\r\n"
)
FRAMES = [_framed(event) for event in EVENT_BYTES]
FRAMES[-1] = _framed(EVENT_BYTES[-1] + b"data: [DONE]\n\n") + b"0\r\n\r\n"
BURST = STREAM_HEAD + b"".join(FRAMES)
PACED = [STREAM_HEAD + FRAMES[0], *FRAMES[1:]]


@dataclass(slots=True)
class Port:
    """How one port behaves, and what it has seen."""

    mode: str = "ok"
    delay_s: float = 0.0
    interval_s: float = 0.0
    requests: int = 0
    connections: int = 0
    first_us: int = 0  # when it first answered after it was last told how to behave


class Exchange(asyncio.Protocol):
    """One connection; requests are not pipelined."""

    __slots__ = ("_held", "_loop", "_port", "_transport")

    def __init__(self, port: Port) -> None:
        self._port = port
        self._held = b""
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._port.connections += 1

    def data_received(self, data: bytes) -> None:
        if self._held:
            data = self._held + data
            self._held = b""
        end = data.find(b"\r\n\r\n")
        length = _LENGTH.search(data) if end > 0 else None
        if end < 0 or (length and len(data) < end + 4 + int(length[1])):
            self._held = data
        elif data.startswith(b"GET /__"):
            self._transport.write(self._control(data[4 : data.find(b" ", 4)].decode()))
        else:
            self._answer(stream=_STREAM.search(data, end) is not None)

    def _control(self, target: str) -> bytes:
        address, port = urlsplit(target), self._port
        for name, values in parse_qs(address.query).items():
            port.first_us = 0
            setattr(port, name, values[0] if name == "mode" else float(values[0]))
        return _answer("200 OK", asdict(port))

    def _answer(self, *, stream: bool) -> None:
        port = self._port
        port.requests += 1
        if port.mode == "hang":
            return
        if port.delay_s:
            self._loop.call_later(port.delay_s, self._send, stream)
        else:
            self._send(stream)

    def _send(self, stream: bool) -> None:
        port = self._port
        port.first_us = port.first_us or time.monotonic_ns() // 1000
        if port.mode == "error":
            self._transport.write(ERROR)
        elif not stream:
            self._transport.write(WHOLE)
        elif port.interval_s:
            self._drip(0, self._loop.time())
        else:
            self._transport.write(BURST)

    def _drip(self, number: int, due: float) -> None:
        """Send one event and see to the next, on a beat that does not drift."""
        if self._transport.is_closing():
            return
        self._transport.write(PACED[number])
        if number + 1 < EVENTS:
            due += self._port.interval_s
            self._loop.call_at(due, self._drip, number + 1, due)


async def serve(ports: int) -> None:
    """Listen on free ports of the loopback until standard input ends."""
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(partial(Exchange, Port()), "127.0.0.1", 0, backlog=1024)
        for _ in range(ports)
    ]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for server in servers:
        server.close()


def _fast_loop() -> asyncio.AbstractEventLoop:
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.new_event_loop()
    return new_event_loop()


def main() -> None:
    parser = argparse.ArgumentParser(description="a fast pretended OpenAI backend")
    parser.add_argument("--ports", type=int, default=3)
    parser.add_argument("--cpu", type=int, default=-1, help="pin to this core")
    options = parser.parse_args()
    if options.cpu >= 0 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.cpu})
    with asyncio.Runner(loop_factory=_fast_loop) as runner:
        runner.run(serve(options.ports))


if __name__ == "__main__":
    main()
