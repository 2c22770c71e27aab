"""Gateways that lie, in a few bytes each, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from gateway.faultlab.scenario import Form, Grade, Run, Scenario, Verdict
from gateway.faultlab.trial import Address, Trial
from gateway.faultlab.words import answer_tokens, find_question

CREATIVE, BALANCED = "creative-s0-stream", "balanced-s0-stream"


async def _never(_: Trial) -> Verdict:
    return Verdict(Grade.PASS)


def run(form: Form = "stream", **more: Any) -> Run:
    """A run of a scenario that demands nothing."""
    return Run(Scenario(id="0", title="t", demands="d", check=_never, facts=True, **more), form)


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def delta(said: dict[str, Any], finish: str | None = None, model: str = CREATIVE) -> bytes:
    choice = {"index": 0, "delta": said, "finish_reason": finish}
    return event({"object": "chat.completion.chunk", "model": model, "choices": [choice]})


ROLE, STOP = delta({"role": "assistant", "content": ""}), delta({}, "stop")
DONE = b"data: [DONE]\n\n"
ERROR = event({"error": {"message": "worker died", "type": "server_error", "code": 500}})


def tokens(number: str, count: int = 1000, model: str = CREATIVE) -> bytes:
    said = answer_tokens(model, number)[:count]
    return b"".join(delta({"content": token}, model=model) for token in said)


def sse(body: bytes, *, ended: bool = True) -> bytes:
    """A chunked response; not `ended` is cut off."""
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    return head + b"%x\r\n%b\r\n" % (len(body), body) + (b"0\r\n\r\n" if ended else b"")


def document(payload: object, status: int = 200, *, length: int | None = None) -> bytes:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    lines = [
        f"HTTP/1.1 {status} X",
        "content-type: application/json",
        f"content-length: {len(body) if length is None else length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def completion(text: str, *, model: str = CREATIVE, finish: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"object": "chat.completion", "model": model, "choices": [choice]}


Respond = Callable[[str], bytes]
"""From a question's number to the bytes of the response; empty bytes never answer."""


@asynccontextmanager
async def fake(respond: Respond) -> AsyncIterator[str]:
    """A gateway that answers with these bytes; its base URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            asked = json.loads(await reader.readexactly(length))
            data = respond(find_question(asked["messages"]).number)
            writer.write(data)
            await writer.drain()
            if not data:
                await reader.read()  # until the caller gives up
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def trial(respond: Respond, form: Form = "stream") -> AsyncIterator[Trial]:
    """A trial of such a gateway; its upstream is nobody."""
    async with fake(respond) as url:
        yield Trial(run(form), Address(url, "m"), "http://127.0.0.1:1")
