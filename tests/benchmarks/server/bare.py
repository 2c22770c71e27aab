"""The least a Python gateway costs: uvicorn, JSON, our own client. `bare.py PORT STUB`."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import uvicorn

from gateway.transport.base import Origin, request_head
from gateway.transport.pool import HTTP1Client

_JSON = [(b"content-type", b"application/json")]
_SSE = [(b"content-type", b"text/event-stream")]


class Bare:
    """Reads, decodes, forwards, decodes, answers; relays a stream read by read."""

    def __init__(self, stub: int) -> None:
        self._origin = Origin.from_url(f"http://127.0.0.1:{stub}")
        headers = [("content-type", "application/json")]
        self._head = request_head("POST", "/v1/chat/completions", self._origin, headers)
        self._client = HTTP1Client()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        asked = msgspec.json.decode((await receive())["body"])
        body = msgspec.json.encode(asked)
        response = await self._client.request(self._origin, self._head, body)
        if asked.get("stream"):
            await send({"type": "http.response.start", "status": 200, "headers": _SSE})
            while data := await response.read_some():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        answer = msgspec.json.encode(msgspec.json.decode(await response.read_all()))
        length = (b"content-length", str(len(answer)).encode())
        start = {"type": "http.response.start", "status": 200, "headers": [*_JSON, length]}
        await send(start)
        await send({"type": "http.response.body", "body": answer})


if __name__ == "__main__":
    port, stub = map(int, sys.argv[1:])
    uvicorn.run(Bare(stub), port=port, access_log=False, log_level="warning", lifespan="off")
