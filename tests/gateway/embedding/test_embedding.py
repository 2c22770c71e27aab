"""Vectors: who is asked, what passes through, what happens when a target fails."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from gateway import Gateway
from gateway.config import Config
from gateway.errors import (
    AdmissionRejected,
    AllModesFailed,
    CircuitOpen,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from gateway.events import AttemptFinished, CircuitChanged, Event, RequestFinished, TargetResting
from gateway.simulator.clock import run

VECTORS = [[0.25, -1.0], [0.1, 2.0]]
USAGE = {"prompt_tokens": 4, "total_tokens": 4}


class Upstream:
    """An embedding server that a test scripts."""

    def __init__(self, name: str = "bge-real") -> None:
        self.name = name
        self.asked: list[dict[str, Any]] = []
        self.status = 200
        self.error: dict[str, Any] = {"message": "boom"}
        self.headers: dict[str, str] = {}
        self.hangs = False
        self.body: bytes | None = None
        self.on_ask: Callable[[], None] = lambda: None

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(json.loads(request.content))
        assert request.url.path == "/v1/embeddings"
        if self.hangs:
            await asyncio.Event().wait()
        if self.status != 200:
            body = {"error": self.error}
            refusal = httpx.Response(self.status, json=body, headers=self.headers)
            self.on_ask()
            return refusal
        if self.body is not None:
            return httpx.Response(200, content=self.body)
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(VECTORS)]
        answer = {"object": "list", "model": self.name, "data": data, "usage": USAGE, "id": "e1"}
        return httpx.Response(200, json=answer)


def target(upstream: Upstream, model: str = "bge", **more: Any) -> dict[str, Any]:
    options = {"transport": httpx.MockTransport(upstream)}
    return {
        **{"kind": "vllm", "base_url": f"http://{id(upstream)}/v1", "model": model},
        **{"transport": "httpx", "options": options, **more},
    }


def config(*targets: dict[str, Any], **tables: Any) -> Config:
    modes = {"fast": {"targets": [{"kind": "simulated"}]}}
    return Config.from_dict({"modes": modes, "embeddings": {"targets": list(targets)}, **tables})


async def test_texts_become_vectors_in_their_order() -> None:
    upstream, events = Upstream(), list[Event]()
    async with Gateway(config(target(upstream)), listeners=[events.append]) as gateway:
        answer = await gateway.embed(["a", "b"], model="bge", dimensions=2, odd={"x": 1})
    assert answer.vectors == VECTORS
    assert (answer.model, answer.target, answer.attempts) == ("bge-real", "vllm/bge", 1)
    assert answer.usage.prompt_tokens == 4
    assert upstream.asked == [
        {"dimensions": 2, "odd": {"x": 1}, "input": ["a", "b"], "model": "bge"}
    ]
    attempt, finished = events
    assert isinstance(attempt, AttemptFinished) and isinstance(finished, RequestFinished)
    assert (attempt.mode, attempt.outcome) == ("embeddings", "success")
    assert (finished.mode, finished.model, finished.prompt_tokens) == ("embeddings", "bge-real", 4)


async def test_the_vectors_pass_as_the_bytes_they_came_in() -> None:
    upstream = Upstream()
    data = b'[{"index":0,"embedding":[0.10000000000000000555, 1e-7]}]'
    upstream.body = b'{"data": %b, "model": "m"}' % data
    async with Gateway(config(target(upstream))) as gateway:
        answer = await gateway.embed("a")
    assert bytes(answer.fields["data"]) == data


@pytest.mark.parametrize(("kind", "asked"), [("vllm", "base64"), ("dashscope", "float")])
async def test_base64_is_made_where_the_backend_knows_none(kind: str, asked: str) -> None:
    upstream = Upstream()
    async with Gateway(config(target(upstream, kind=kind))) as gateway:
        answer = await gateway.embed(["a", "b"], encoding_format="base64")
    assert upstream.asked[0]["encoding_format"] == asked
    data = json.loads(bytes(answer.fields["data"]))
    packed = base64.b64decode(data[0]["embedding"])
    assert struct.unpack("<2f", packed) == (0.25, -1.0)
    assert answer.vectors[0] == [0.25, -1.0]


async def test_the_first_model_is_the_default_and_aliases_count() -> None:
    first, second = Upstream("first"), Upstream("second")
    configuration = config(
        target(first, "one"), target(second, "two"), aliases={"text-embedding-3-small": "two"}
    )
    async with Gateway(configuration) as gateway:
        assert (await gateway.embed("a")).model == "first"
        assert (await gateway.embed("a", model="auto")).model == "first"
        assert (await gateway.embed("a", model="text-embedding-3-small")).model == "second"


async def test_an_unknown_model_is_told_which_there_are() -> None:
    async with Gateway(config(target(Upstream(), "one"), target(Upstream(), "two"))) as gateway:
        with pytest.raises(InvalidRequest, match="one, two") as caught:
            await gateway.embed("a", model="three")
    assert caught.value.http_status == 404


async def test_without_a_target_the_remedy_is_named() -> None:
    async with Gateway(config()) as gateway:
        with pytest.raises(InvalidRequest, match=r"\[\[embeddings.targets\]\]") as caught:
            await gateway.embed("a")
    assert caught.value.http_status == 404


@pytest.mark.parametrize(
    "texts", ["", [], [""], ["a", ""], [[]], [1.5], ["a", 1], {"a": 1}, None, True, ["x"] * 2049]
)
async def test_what_is_no_text_is_refused_before_anything_is_sent(texts: Any) -> None:
    upstream = Upstream()
    async with Gateway(config(target(upstream))) as gateway:
        with pytest.raises(InvalidRequest) as caught:
            await gateway.embed(texts)
    assert (caught.value.param or "").startswith("input")
    assert not upstream.asked


@pytest.mark.parametrize("texts", [[1, 2], [[1, 2], [3]]])
async def test_tokens_pass(texts: Any) -> None:
    upstream = Upstream()
    async with Gateway(config(target(upstream))) as gateway:
        await gateway.embed(texts)
    assert upstream.asked[0]["input"] == texts


async def test_a_failing_target_is_walked_past_to_one_of_the_same_model_only() -> None:
    bad, good, other = Upstream(), Upstream(), Upstream()
    bad.status = 504
    targets = target(bad), target(good), target(other, "another")
    async with Gateway(config(*targets)) as gateway:
        answer = await gateway.embed("a", model="bge")
        assert answer.attempts == 2
        assert (len(bad.asked), len(good.asked), len(other.asked)) == (1, 1, 0)
        await gateway.embed("b", model="bge")
        assert len(bad.asked) == 1  # it failed a moment ago, so it comes last


async def test_a_quick_failure_is_tried_once_more_where_there_is_no_other() -> None:
    upstream = Upstream()
    upstream.status = 500

    def mend() -> None:
        upstream.status = 200

    upstream.on_ask = mend
    async with Gateway(config(target(upstream))) as gateway:
        assert (await gateway.embed("a")).attempts == 2


def test_three_failures_open_the_circuit_and_a_probe_closes_it() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        upstream, events = Upstream(), list[Event]()
        upstream.status = 504
        gateway = Gateway(config(target(upstream)), clock=loop.time, listeners=[events.append])
        async with gateway:
            for _ in range(3):
                with pytest.raises(UpstreamUnavailable):
                    await gateway.embed("a")
            with pytest.raises(CircuitOpen) as caught:
                await gateway.embed("a")
            assert caught.value.retry_after == pytest.approx(5.0)
            assert len(upstream.asked) == 3
            upstream.status = 200
            await asyncio.sleep(5.0)
            assert (await gateway.embed("a")).attempts == 1
        phases = [(e.old, e.new) for e in events if isinstance(e, CircuitChanged)]
        assert phases[0] == ("closed", "open")
        assert phases[-1][1] == "closed"

    run(scenario)


async def test_a_throttled_target_rests_and_nothing_counts_against_it() -> None:
    upstream, events = Upstream(), list[Event]()
    upstream.status, upstream.error = 429, {"message": "slow down", "code": "limit_requests"}
    upstream.headers = {"retry-after": "30"}
    async with Gateway(config(target(upstream)), listeners=[events.append]) as gateway:
        for _ in range(5):
            with pytest.raises((UpstreamThrottled, CircuitOpen)):
                await gateway.embed("a")
    assert len(upstream.asked) == 1
    assert not [e for e in events if isinstance(e, CircuitChanged)]
    (rest,) = [e for e in events if isinstance(e, TargetResting)]
    assert rest.for_s == 30.0


def test_a_short_retry_after_is_waited_for_once() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        upstream = Upstream()
        upstream.status, upstream.error = 429, {"message": "slow", "code": "limit_requests"}
        upstream.headers = {"retry-after": "1"}

        def mend() -> None:
            upstream.status = 200

        upstream.on_ask = mend
        async with Gateway(config(target(upstream)), clock=loop.time) as gateway:
            began = loop.time()
            assert (await gateway.embed("a")).attempts == 2
            assert loop.time() - began == pytest.approx(1.0)

    run(scenario)


def test_a_silent_target_leaves_the_others_their_share_of_the_time() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        silent, good = Upstream(), Upstream()
        silent.hangs = True
        async with Gateway(config(target(silent), target(good)), clock=loop.time) as gateway:
            answer = await gateway.embed("a", deadline=10)
            assert answer.attempts == 2
            assert loop.time() == pytest.approx(5.0)

    run(scenario)


def test_a_deadline_ends_it() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        upstream = Upstream()
        upstream.hangs = True
        async with Gateway(config(target(upstream)), clock=loop.time) as gateway:
            with pytest.raises(DeadlineExceeded):
                await gateway.embed("a", deadline=3)
            assert loop.time() == pytest.approx(3.0)

    run(scenario)


async def test_a_callers_mistake_is_raised_at_once() -> None:
    first, second = Upstream(), Upstream()
    first.status = second.status = 400
    async with Gateway(config(target(first), target(second))) as gateway:
        with pytest.raises(UpstreamRejected, match="boom"):
            await gateway.embed("a")
    assert len(first.asked) + len(second.asked) == 1


async def test_several_failures_are_all_named() -> None:
    first, second = Upstream(), Upstream()
    first.status = second.status = 504
    targets = target(first), target(second, kind="sglang")
    async with Gateway(config(*targets)) as gateway:
        with pytest.raises(AllModesFailed) as caught:
            await gateway.embed("a")
    assert caught.value.causes.keys() == {"vllm/bge", "sglang/bge"}


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{}", b'{"data": {}}', b'{"data": []}', b'{"data": "x"}', b"\xff"),
        *(b'{"data": [{"embedding": ["a"]}]}', b'{"error": {"message": "inside a 200"}}'),
    ],
)
async def test_an_answer_that_is_no_vectors_is_a_failure(body: bytes) -> None:
    bad, good = Upstream(), Upstream()
    bad.body = body
    async with Gateway(config(target(bad), target(good))) as gateway:
        answer = await gateway.embed(["a", "b"], encoding_format="base64")
    assert (answer.attempts, answer.vectors[0]) == (2, [0.25, -1.0])


async def test_a_cancelled_request_counts_for_nothing_and_is_told() -> None:
    upstream, events = Upstream(), list[Event]()
    upstream.hangs = True
    async with Gateway(config(target(upstream)), listeners=[events.append]) as gateway:
        task = asyncio.ensure_future(gateway.embed("a"))
        while not upstream.asked:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    attempt, finished = events
    assert isinstance(attempt, AttemptFinished) and attempt.outcome == "ignored"
    assert isinstance(finished, RequestFinished) and finished.outcome == "abandoned"


async def test_the_limits_of_a_key_count_here_too() -> None:
    key = {"hash": "sha256:" + "0" * 64, "requests_per_min": 1}
    configuration = config(target(Upstream()), keys={"team": key})
    async with Gateway(configuration) as gateway:
        await gateway.embed("a", key="team")
        with pytest.raises(AdmissionRejected):
            await gateway.embed("a", key="team")


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"kind": "simulated", "model": "x"}, "cannot embed"),
        ({"kind": "local"}, "cannot embed"),
        ({"kind": "vllm"}, "which model"),
        ({"kind": "vllm", "model": "x", "base_url": "ftp://x"}, "http"),
        ({"kind": "vllm", "model": "x", "api_key_env": "NO_SUCH_KEY_HERE"}, "NO_SUCH_KEY_HERE"),
    ],
)
def test_a_target_that_cannot_be_is_said_at_once(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        Gateway(config(wrong))
    assert caught.value.table == "embeddings.targets[0]"


async def test_a_reload_follows_the_targets_and_keeps_how_they_stand() -> None:
    first, second = Upstream("first"), Upstream("second")
    first.status = 504
    one, two = target(first), target(second)
    async with Gateway(config(one)) as gateway:
        for _ in range(3):
            with pytest.raises(UpstreamUnavailable):
                await gateway.embed("a")
        gateway.reload(config(one, two))
        assert (await gateway.embed("a")).model == "second"
        assert len(first.asked) == 3
        with pytest.raises(ConfigError):
            gateway.reload(config({"kind": "vllm"}))
        assert (await gateway.embed("a")).model == "second"


async def test_a_credential_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBED_KEY", "sk-very-secret")
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(401, json={"error": {"message": "bad key sk-very-secret"}})

    options = {"transport": httpx.MockTransport(answer)}
    secret = {**target(Upstream()), "options": options, "api_key_env": "EMBED_KEY"}
    async with Gateway(config(secret)) as gateway:
        with pytest.raises(UpstreamRejected) as caught:
            await gateway.embed("a")
    assert seen == ["Bearer sk-very-secret"]
    assert "sk-very-secret" not in str(caught.value)
