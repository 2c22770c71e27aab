"""A gateway over an upstream that a test scripts byte for byte, and a client of it. No sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from gateway import Gateway
from gateway.config import Config
from gateway.events import Event

MESSAGES = [{"role": "user", "content": "hello"}]


def sse(*events: dict[str, Any] | str, done: bool = True) -> bytes:
    """Events as they go over the wire."""
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    lines += ["[DONE]"] if done else []
    return b"".join(b"data: " + line.encode() + b"\n\n" for line in lines)


def chunk(
    delta: dict[str, Any] | None = None,
    finish: str | None = None,
    *,
    index: int = 0,
    **more: Any,
) -> dict[str, Any]:
    """One event of a chat stream."""
    choices = [] if delta is None else [{"index": index, "delta": delta, "finish_reason": finish}]
    return {"id": "up-1", "model": "qwen-real", "created": 1700000000, "choices": choices, **more}


USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
FINE = sse(
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "ce"}),
    chunk({"content": "dar"}),
    chunk({}, "stop"),
    chunk(None, usage=USAGE),
)


@dataclass
class Upstream:
    """What it answers, and what it was asked. `answer` may look at the request."""

    body: bytes = FINE
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    answer: Callable[[httpx.Request], httpx.Response] | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def fail(self, status: int, message: str, code: Any = None, **headers: str) -> None:
        self.status, self.headers = status, dict(headers)
        self.body = json.dumps({"error": {"message": message, "code": code}}).encode()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(json.loads(request.content))
        self.paths.append(request.url.path)
        if self.answer is not None:
            return self.answer(request)
        streamed = self.status == 200 and self.body.startswith(b"data:")
        kind = "text/event-stream" if streamed else "application/json"
        headers = {"content-type": kind, **self.headers}
        return httpx.Response(self.status, headers=headers, content=self.body)


def target(upstream: Upstream, **more: Any) -> dict[str, Any]:
    return {
        "kind": "vllm",
        "base_url": "http://upstream/v1",
        "model": "qwen",
        "transport": "httpx",
        "options": {"transport": httpx.MockTransport(upstream)},
        **more,
    }


def config(*upstreams: Upstream, **tables: Any) -> Config:
    """A ladder with one target a mode, and further tables."""
    names = ("creative", "balanced", "fast")[: len(upstreams)]
    modes = {name: {"targets": [target(up)]} for name, up in zip(names, upstreams, strict=True)}
    return Config.from_dict({"modes": modes, **tables})


@dataclass
class Stage:
    gateway: Gateway
    http: httpx.AsyncClient
    events: list[Event]

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.http.post(path, content=content, headers=headers)

    async def chat(self, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"model": "creative", "messages": MESSAGES, **fields}
        return await self.post("/chat/completions", body, **(headers or {}))


@asynccontextmanager
async def stage(configuration: Config) -> AsyncIterator[Stage]:
    """A gateway and an HTTP client in one process."""
    events: list[Event] = []
    async with (
        Gateway(configuration, listeners=[events.append]) as gateway,
        httpx.AsyncClient(transport=gateway.transport(), base_url="http://gateway/v1") as http,
    ):
        yield Stage(gateway, http, events)


def events_of(response: httpx.Response) -> list[Any]:
    """The events of a whole stream; checks its framing. `[DONE]` stays a string."""
    text = response.text
    assert text.endswith("\n\n")
    found: list[Any] = []
    for event in text.removesuffix("\n\n").split("\n\n"):
        assert event.startswith("data: ") and "\n" not in event
        data = event.removeprefix("data: ")
        found.append(data if data == "[DONE]" else json.loads(data))
    return found
