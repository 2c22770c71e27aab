"""A tiny OpenAI-compatible server on 127.0.0.1, whose answers a test sets."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from typing import Any

TEXT = "cedar, oak, pine"


def _stream(text: str) -> bytes:
    pieces: list[dict[str, Any]] = [
        {"delta": {"content": word}} for word in re.findall(r"\S+\s*", text)
    ]
    pieces.append({"delta": {}, "finish_reason": "stop"})
    events = [
        b"data: " + json.dumps({"id": "1", "choices": [{"index": 0, **piece}]}).encode() + b"\n\n"
        for piece in pieces
    ]
    return b"".join(events) + b"data: [DONE]\n\n"


@dataclass
class Stub:
    """What it answers, and what it was asked."""

    port: int = 0
    health: int = 200
    status: int = 200
    content_type: str = "text/event-stream"
    body: bytes = field(default_factory=lambda: _stream(TEXT))
    hangs: bool = False
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def fail(self, status: int, error: dict[str, Any]) -> None:
        self.status, self.content_type = status, "application/json"
        self.body = json.dumps({"error": error}).encode()

    async def __aenter__(self) -> Stub:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self._answer(head, reader, writer)
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        lines = head.decode().split("\r\n")
        path = lines[0].split(" ")[1]
        length = next(
            (int(x.split(":")[1]) for x in lines if x.lower().startswith("content-length")), 0
        )
        asked = json.loads(await reader.readexactly(length)) if length else {}
        self.requests.append((path, asked))
        if self.hangs:
            await asyncio.Event().wait()
        status, kind, body = self.status, self.content_type, self.body
        if path == "/health":
            status, kind, body = self.health, "text/plain", b""
        writer.write(
            f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await writer.drain()
