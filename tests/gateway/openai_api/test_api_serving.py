"""How a caller's headers steer an answer, and streams that begin late, break, or are left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from api_stage import FINE, MESSAGES, Upstream, config

from gateway import Gateway
from gateway.events import RequestFinished
from gateway.generation import Choice, Chunk, Delta, GenerationRequest, Served
from gateway.middleware.base import Answer
from gateway.openai_api.api import OpenAIAPI
from gateway.openai_api.headers import cache_control, patience_s, served_headers, was_retried
from gateway.openai_api.words import Reply
from gateway.simulator.clock import run

CHAT = {"model": "creative", "messages": MESSAGES, "stream": True}


class Late(Upstream):
    """Answers after a while on the loop's clock."""

    def __init__(self, after_s: float, status: int = 200) -> None:
        super().__init__()
        self.after_s = after_s
        self.late_status = status

    async def later(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(json.loads(request.content))
        await asyncio.sleep(self.after_s)
        kind = "text/event-stream" if self.late_status == 200 else "application/json"
        body = FINE if self.late_status == 200 else b'{"error":{"message":"no"}}'
        return httpx.Response(self.late_status, headers={"content-type": kind}, content=body)


def late(after_s: float, status: int = 200) -> Any:
    upstream = Late(after_s, status)
    options = {"transport": httpx.MockTransport(upstream.later)}
    target = {"kind": "vllm", "model": "q", "transport": "httpx", "options": options}
    from gateway.config import Config

    return upstream, Config.from_dict({"modes": {"creative": {"targets": [target]}}})


async def ask(api: OpenAIAPI, headers: dict[str, str] | None = None, **fields: Any) -> Reply:
    body = json.dumps({**CHAT, **fields}).encode()
    return await api.handle("POST", "/v1/chat/completions", headers or {}, body)


async def read(body: bytes | AsyncIterator[bytes]) -> bytes:
    assert not isinstance(body, bytes)
    return b"".join([piece async for piece in body])


@pytest.mark.parametrize(("status", "last"), [(200, b"[DONE]"), (400, b"upstream_rejected")])
def test_a_stream_without_a_first_token_begins_with_an_empty_200(status: int, last: bytes) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        _, configuration = late(9.0, status)
        async with Gateway(configuration, clock=loop.time) as gateway:
            reply = await ask(OpenAIAPI(gateway, headers_s=5.0))
            assert (reply[0], loop.time()) == (200, pytest.approx(5.0))
            assert not [name for name, _ in reply[1] if name.startswith("x-gateway")]
            events = await read(reply[2])
            assert loop.time() == pytest.approx(9.0)
            assert last in events.split(b"\n\n")[-2]

    run(scenario)


def test_an_error_in_time_has_its_own_status() -> None:
    async def scenario() -> None:
        _, configuration = late(1.0, 400)
        loop = asyncio.get_running_loop()
        async with Gateway(configuration, clock=loop.time) as gateway:
            reply = await ask(OpenAIAPI(gateway, headers_s=5.0))
            assert reply[0] == 400 and isinstance(reply[2], bytes)

    run(scenario)


@pytest.mark.parametrize("after_s", [1.0, 7.0])
def test_who_leaves_before_the_first_token_frees_everything(after_s: float) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        upstream, configuration = late(60.0)
        events: list[Any] = []
        async with Gateway(configuration, clock=loop.time, listeners=[events.append]) as gateway:

            async def caller() -> None:
                reply = await ask(OpenAIAPI(gateway, headers_s=5.0))
                await read(reply[2])

            task = asyncio.ensure_future(caller())
            await asyncio.sleep(after_s)
            assert upstream.asked
            task.cancel()
            await asyncio.wait([task])
            await asyncio.sleep(0.1)
            assert gateway.status()["in_flight"] == 0
        (ended,) = [e for e in events if isinstance(e, RequestFinished)]
        assert ended.outcome == "abandoned"

    run(scenario)  # which finds tasks left behind


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("headers_s", [None, 5.0])
@pytest.mark.parametrize("after_s", [1.0, 10.0])
def test_a_body_that_is_closed_frees_everything_read_or_not(
    begun: bool, headers_s: float | None, after_s: float
) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        _, configuration = late(after_s)
        async with Gateway(configuration, clock=loop.time) as gateway:
            reply = await ask(OpenAIAPI(gateway, headers_s=headers_s))
            body: Any = reply[2]
            if begun:
                reading = asyncio.ensure_future(anext(body))
                await asyncio.sleep(1)
                reading.cancel()
                await asyncio.wait([reading])
            await body.aclose()
            await body.aclose()
            await asyncio.sleep(0.1)
            assert gateway.status()["in_flight"] == 0

    run(scenario)


class _Broken(Answer):
    """Breaks with an error that is nobody's."""

    __slots__ = ("_reads", "closed")

    def __init__(self) -> None:
        super().__init__(Served(requested_mode="creative", mode="creative"))
        self._reads = 0
        self.closed = False

    async def read(self) -> list[Chunk]:
        self._reads += 1
        if self._reads > 1:
            raise ZeroDivisionError("a secret")
        return [Chunk([Choice(Delta(content="a"))])]

    async def finish(self) -> Any:
        raise ZeroDivisionError("a secret")

    def close(self) -> None:
        self.closed = True

    def arrived(self) -> Any:
        return []


async def test_an_error_of_ours_ends_a_stream_as_an_error_and_is_raised_to_be_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = _Broken()

    async def broken(request: GenerationRequest) -> Answer:
        return answer

    async with Gateway(config(Upstream())) as gateway:
        monkeypatch.setattr(gateway._in_force.pipeline, "answer", broken)
        reply = await ask(OpenAIAPI(gateway))
        body, events = reply[2], b""
        assert not isinstance(body, bytes)
        with pytest.raises(ZeroDivisionError):
            async for piece in body:
                events += piece
    assert b"internal_error" in events and b"secret" not in events and b"[DONE]" not in events
    assert answer.closed


def test_the_clients_own_timeout_is_a_deadline_for_whole_answers_only() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        _, configuration = late(9.0)
        headers = {"x-stainless-read-timeout": "3"}
        async with Gateway(configuration, clock=loop.time) as gateway:
            api = OpenAIAPI(gateway)
            reply = await ask(api, headers, stream=False)
            assert (reply[0], loop.time()) == (504, pytest.approx(2.75, abs=0.05))
            assert (await ask(api, headers))[0] == 200

    run(scenario)


def test_headers_are_read_as_their_senders_mean_them() -> None:
    assert patience_s({"x-stainless-read-timeout": "600"}) == 599.75
    assert patience_s({"x-stainless-timeout": "10"}) == 9.75
    assert patience_s({}) is None
    assert was_retried({"x-stainless-retry-count": "2"})
    assert not was_retried({"x-stainless-retry-count": "0"})
    asked = cache_control('No-Cache, MAX-AGE="60"')
    assert (asked.read, asked.store, asked.max_age_s) == (False, True, 60.0)
    assert cache_control("no-store").store is False
    assert cache_control("no-store").stale_if_error is False
    assert cache_control("max-age=x").max_age_s is None


def test_what_is_served_stale_is_said_and_names_fit_into_headers() -> None:
    served = Served(
        requested_mode="créatif ☃", mode="rapide", cached=True, stale=True, age_s=4000.5
    )
    headers = dict(served_headers(served, "gen-1"))
    assert headers["cache-status"] == "downshift-gateway; hit; detail=stale-if-error"
    assert headers["x-gateway-cache"] == "stale"
    assert headers["age"] == "4000"
    assert headers["x-gateway-requested-mode"] == "cr%C3%A9atif%20%E2%98%83"
    assert "x-gateway-overhead-ms" not in headers
