"""Keys and limits through the whole service, ASGI included, and no secret in anything it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from gateway.config import Config
from gateway.openai_api.words import Call
from gateway.policies.keys import key_hash
from gateway.server.app import App
from gateway.simulator.scripted.exchange import Exchange
from gateway.simulator.scripted.server import ScriptedUpstream

ALICE, BOB, ADMIN, UPSTREAM = (
    f"sk-dsg-{name}-0123456789-{name}" for name in ("alice", "bob", "admin", "upstream")
)
CHAT = {"model": "best", "messages": [{"role": "user", "content": "hello"}]}
Serve = Callable[..., AbstractAsyncContextManager[tuple[httpx.AsyncClient, App]]]


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


def config(
    upstream: ScriptedUpstream, server: dict[str, Any] | None = None, **keys: dict[str, Any]
) -> Config:
    target = {"kind": "vllm", "base_url": upstream.base_url, "api_key_env": "UPSTREAM_KEY"}
    return Config.from_dict(
        {
            "modes": {
                "best": {"targets": [{**target, "model": "m"}]},
                "fast": {"targets": [{**target, "model": "f"}]},
            },
            "cache": {"enabled": False},
            "server": {"log": "off", "usage_path": ":memory:", **(server or {})},
            "keys": keys,
        }
    )


@asynccontextmanager
async def served(
    of: Config, key: str = "", base_url: str = "http://127.0.0.1:8080"
) -> AsyncIterator[tuple[httpx.AsyncClient, App]]:
    app = App(of)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    transport = httpx.ASGITransport(app.asgi)
    async with httpx.AsyncClient(transport=transport, base_url=base_url, headers=headers) as client:
        yield client, app
    await app.stop()


@pytest.fixture(autouse=True)
def upstream_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", UPSTREAM)


async def test_a_wrong_key_is_401_on_every_route_but_health(upstream: ScriptedUpstream) -> None:
    of = config(upstream, {"admin_key_hash": key_hash(ADMIN)}, alice={"hash": key_hash(ALICE)})
    async with served(of, "sk-dsg-wrong") as (client, app):
        for method, path in app.service.router.routes:
            answer = await client.request(method, path)
            if path in ("/livez", "/readyz", "/health", "/health/liveness", "/health/readiness"):
                assert answer.status_code == 200
            elif path != "/dashboard/":
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert "wrong" not in answer.text.replace("wrong API key", "")
    assert upstream.stats("m").requests == 0


async def test_another_host_name_is_refused_where_there_are_no_keys(
    upstream: ScriptedUpstream,
) -> None:
    async with served(config(upstream), base_url="http://rebound.example") as (client, _):
        answer = await client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "permission_error"
        assert (await client.get("/livez")).status_code == 200
    async with served(config(upstream)) as (client, _):
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_a_form_is_415_with_the_remedy(upstream: ScriptedUpstream) -> None:
    async with served(config(upstream)) as (client, _):
        answer = await client.post("/v1/chat/completions", data={"model": "best"})
        assert answer.status_code == 415
        assert "content-type: application/json" in answer.json()["error"]["message"]


async def test_a_key_may_ask_for_its_modes_only(upstream: ScriptedUpstream) -> None:
    of = config(upstream, alice={"hash": key_hash(ALICE), "modes": ["fast"]})
    async with served(of, ALICE) as (client, _):
        answer = await client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "permission_denied"
        answer = await client.post("/v1/chat/completions", json={**CHAT, "model": "fast"})
        assert answer.status_code == 200


async def test_limits_are_said_in_headers_and_kept(upstream: ScriptedUpstream) -> None:
    limits = {"requests_per_min": 3, "tokens_per_min": 100_000}
    of = config(upstream, alice={"hash": key_hash(ALICE), **limits})
    async with served(of, ALICE) as (client, _):
        answer = await client.post("/v1/chat/completions", json=CHAT)
        said = answer.headers
        assert said["x-ratelimit-limit-requests"] == "3"
        assert said["x-ratelimit-remaining-requests"] == "2"
        assert said["x-ratelimit-reset-requests"].endswith("s")
        spent = answer.json()["usage"]["total_tokens"]
        # All but what was used has come back, and in this moment some of that, too.
        assert 100_000 - spent <= int(said["x-ratelimit-remaining-tokens"]) <= 100_000
        streamed = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        assert streamed.headers["x-ratelimit-remaining-requests"] == "1"
        assert int(streamed.headers["x-ratelimit-remaining-tokens"]) < 99_999 - spent
        await client.post("/v1/chat/completions", json=CHAT)
        refused = await client.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert 18_000 <= int(refused.headers["retry-after-ms"]) <= 20_000
    assert upstream.stats("m").requests == 3


async def test_a_spent_month_is_not_worth_another_try(upstream: ScriptedUpstream) -> None:
    of = config(upstream, alice={"hash": key_hash(ALICE), "monthly_tokens": 500})
    async with served(of, ALICE) as (client, app):
        answer = await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 900})
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "insufficient_quota"
        assert answer.json()["error"]["type"] == "insufficient_quota"
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
        answer = await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 100})
        used = app.gateway.status()["keys"]["alice"]["monthly_tokens"]["used"]
        assert used == answer.json()["usage"]["total_tokens"]


async def test_a_client_that_leaves_gives_its_place_back(upstream: ScriptedUpstream) -> None:
    upstream.script("m", ["silent"])
    of = config(upstream, alice={"hash": key_hash(ALICE), "concurrency": 1})
    async with served(of, ALICE) as (client, app):
        headers = {"authorization": f"Bearer {ALICE}", "content-type": "application/json"}
        call = Call("POST", "/chat/completions", headers, body=json.dumps(CHAT).encode())
        asking = asyncio.create_task(app.service.handle(call))
        await upstream.until(lambda: upstream.stats("m").requests == 1)
        refused = await client.post("/v1/chat/completions", json={**CHAT, "model": "fast"})
        assert refused.status_code == 429
        assert "concurrency" in refused.json()["error"]["message"]
        asking.cancel()
        await asyncio.wait([asking])
        answer = await client.post("/v1/chat/completions", json={**CHAT, "model": "fast"})
        assert answer.status_code == 200
        assert app.gateway.status()["keys"]["alice"]["in_flight"] == 0


async def test_keys_come_and_go_with_a_reload(upstream: ScriptedUpstream) -> None:
    of = config(upstream, alice={"hash": key_hash(ALICE), "requests_per_min": 2})
    async with served(of, ALICE) as (client, app):
        assert (await client.get("/v1/models")).status_code == 200
        await client.post("/v1/chat/completions", json=CHAT)
        app.gateway.reload(config(upstream, bob={"hash": key_hash(BOB)}))
        assert (await client.get("/v1/models")).status_code == 401
        bob = {"authorization": f"Bearer {BOB}"}
        assert (await client.get("/v1/models", headers=bob)).status_code == 200
        app.gateway.reload(of)
        answer = await client.post("/v1/chat/completions", json=CHAT)
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize("depth", [101, 1000, 100_000])
@pytest.mark.parametrize(("opens", "closes"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/embeddings", "/feedback"])
async def test_nesting_is_400_and_costs_nothing(
    upstream: ScriptedUpstream, path: str, depth: int, opens: bytes, closes: bytes
) -> None:
    of = config(upstream, alice={"hash": key_hash(ALICE), "monthly_tokens": 10**6})
    async with served(of, ALICE) as (client, app):
        inside = opens * depth + (b"1" if closes == b"}" else b"") + closes * depth
        body = b'{"model":"best","prompt":"x","input":"x","messages":[{"role":"user","content":'
        answer = await client.post(
            "/v1" + path,
            content=body + b'"x"}],"odd":' + inside + b"}",
            headers={"content-type": "application/json"},
        )
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
        keys = app.gateway.status()["keys"]["alice"]
        assert keys == {"in_flight": 0, "monthly_tokens": {"limit": 10**6, "used": 0}}


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "n"])
@pytest.mark.parametrize("value", ["-1", "0", "1.5", "true", '"9"', "[]", "1e400", "9" * 400])
async def test_absurd_lengths_are_400_and_cost_nothing(
    upstream: ScriptedUpstream, field: str, value: str
) -> None:
    of = config(upstream, alice={"hash": key_hash(ALICE), "monthly_tokens": 10**6})
    async with served(of, ALICE) as (client, app):
        body = json.dumps(CHAT)[:-1] + f',"{field}":{value}}}'
        answer = await client.post(
            "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400
        assert app.gateway.status()["keys"]["alice"]["monthly_tokens"]["used"] == 0


async def test_nothing_it_says_holds_a_secret(
    upstream: ScriptedUpstream, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def tells_tales(exchange: Exchange) -> None:
        """An upstream that quotes what it was sent, as some do."""
        key = exchange.headers["authorization"]
        exchange.json({"error": {"message": f"bad {key}", "code": "x"}}, status=401)

    async def breaks(exchange: Exchange) -> None:
        exchange.json({"detail": exchange.headers["authorization"]}, status=500)

    upstream.script("m", [tells_tales, breaks])
    upstream.script("f", [breaks, tells_tales])
    of = config(
        upstream,
        {"admin_key_hash": key_hash(ADMIN), "log": "json"},
        alice={"hash": key_hash(ALICE), "requests_per_min": 8, "expires": "2999-01-31"},
        bob={"hash": key_hash(BOB), "expires": "2020-01-31"},
    )
    said = [repr(of), str(of), repr(of.keys), repr(of.server), repr(replace(of, source="x"))]
    async with served(of) as (client, app):
        for key in (ALICE, BOB, ADMIN, ALICE[:-1], ADMIN + "x"):
            for path in ("/v1/chat/completions", "/v1/completions", "/admin/force", "/admin/reload",
                         "/status", "/metrics", "/v1/models", "/", "/nowhere"):  # fmt: skip
                for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
                    body = {**CHAT, "prompt": "x", "mode": "best", "how": "auto"}
                    method = "GET" if path in ("/status", "/metrics", "/v1/models", "/") else "POST"
                    answer = await client.request(method, path, json=body, headers=headers)
                    said += [answer.text, *answer.headers.values()]
        said += [json.dumps(app.gateway.status()), repr(app.gateway.config)]
        said += [repr(app.service.access), repr(vars(app.gateway.accounts))]
    out, err = capfd.readouterr()
    said += [out, err, caplog.text]
    assert '"http_finished"' in err
    whole = "\n".join(said)
    for key in (ALICE, BOB, ADMIN, UPSTREAM):
        assert key not in whole
        assert key_hash(key).removeprefix("sha256:") not in whole
