"""What a caller may try: break lines, name places, borrow others' answers, pose as an operator."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.config import Config
from gateway.openai_api.words import Call
from gateway.policies.keys import key_hash
from gateway.server.app import App
from gateway.simulator.scripted import Exchange, ScriptedUpstream
from gateway.telemetry.logs import log_listener

KEYS = {"alice": "sk-alice-1", "bob": "sk-bob-2", "ann": "sk-ann-3"}
ADMIN = "sk-admin-4"


@asynccontextmanager
async def served(upstream: ScriptedUpstream, **more: Any) -> AsyncIterator[App]:
    target = {"kind": "vllm", "base_url": upstream.base_url, "model": "m"}
    keys = {name: {"hash": key_hash(key)} for name, key in KEYS.items()}
    keys["ann"]["tenant"] = "alice"
    config = {
        "modes": {"best": {"targets": [target]}},
        "keys": keys,
        "feedback": {"path": ":memory:"},
        "server": {"log": "off", "admin_key_hash": key_hash(ADMIN)},
        **more,
    }
    app = App(Config.from_dict(config))
    try:
        yield app
    finally:
        await app.stop()


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


async def ask(
    app: App,
    path: str = "/chat/completions",
    key: str = "alice",
    method: str = "POST",
    **fields: Any,
) -> tuple[int, dict[str, str], dict[str, Any]]:
    headers = fields.pop("headers", {})
    body = {"model": "best", "messages": [{"role": "user", "content": "hi"}], **fields}
    headers = {"authorization": f"Bearer {KEYS.get(key, key)}", **headers}
    call = Call(method, path, headers, json.dumps(body).encode(), peer="127.0.0.1")
    status, said, data = await app.service.handle(call)
    assert isinstance(data, bytes)
    for name, value in said:
        assert (name + value).isprintable(), (name, value)
        (name + value).encode("latin-1")
    return status, dict(said), json.loads(data)


async def test_answers_are_not_shared_between_tenants_whatever_they_claim(
    upstream: ScriptedUpstream,
) -> None:
    async with served(upstream) as app:
        hit = []
        for key, more in (
            ("alice", {}),
            ("alice", {}),
            ("ann", {}),  # of the same tenant
            ("bob", {}),
            ("bob", {"headers": {"x-tenant": "alice", "x-gateway-tenant": "alice"}}),
        ):
            _, headers, _ = await ask(app, key=key, **more)
            hit.append(headers["x-gateway-cache"])
        assert hit == ["miss", "hit", "hit", "miss", "hit"]
        assert upstream.stats("m").requests == 2
        for claim in ("tenant", "user", "owner", "cache_key", "caller", "api_key"):
            _, headers, _ = await ask(app, key="bob", temperature=0.1, **{claim: "alice"})
            _, headers, _ = await ask(app, key="alice", temperature=0.1, **{claim: "alice"})
            assert headers["x-gateway-cache"] == "miss", claim


async def test_a_request_cannot_say_where_it_goes(upstream: ScriptedUpstream) -> None:
    """Fields that steer an SDK or another gateway are words to us, and so are addresses."""
    async with ScriptedUpstream() as trap, served(upstream) as app:
        for place in ("base_url", "api_base", "api_url", "endpoint", "proxy", "url", "host"):
            status, _, _ = await ask(app, **{place: trap.base_url})
            assert status == 200
        image = {"type": "image_url", "image_url": {"url": f"{trap.base_url}/x.png"}}
        for more in (
            {"extra_headers": {"host": "evil", "authorization": "Bearer evil"}},
            {"extra_query": {"a": "b"}, "api_key": "evil"},
            {
                "headers": {
                    "x-forwarded-host": f"127.0.0.1:{trap.port}",
                    "x-api-base": trap.base_url,
                }
            },
            {"messages": [{"role": "user", "content": [image, {"type": "text", "text": "?"}]}]},
            {"model": trap.base_url},
            {"model": "vllm/../../x"},
        ):
            await ask(app, **more)
        assert trap.connections == 0
        for headers in upstream.stats("m").headers:
            assert headers["host"] == f"127.0.0.1:{upstream.port}"
            assert "authorization" not in headers
            assert {name for name in headers if name.startswith("x-")} == {"x-request-id"}
            assert headers["x-request-id"].startswith("gen-")


@pytest.mark.parametrize("transport", ["http1", "httpx"])
async def test_an_upstream_cannot_send_us_elsewhere(
    upstream: ScriptedUpstream, transport: str
) -> None:
    async with ScriptedUpstream() as trap:

        async def elsewhere(exchange: Exchange) -> None:
            place = {"location": f"{trap.base_url}/chat/completions"}
            exchange.document(b"{}", "application/json", status=307, headers=place)

        upstream.script("m", [elsewhere])
        target = {
            "kind": "vllm", "base_url": upstream.base_url, "model": "m", "transport": transport,
        }  # fmt: skip
        async with served(upstream, modes={"best": {"targets": [target]}}) as app:
            status, _, said = await ask(app)
        assert status in (502, 503), said
        assert trap.connections == 0


async def test_names_cannot_break_a_header(upstream: ScriptedUpstream) -> None:
    name = "béla\r\nx-evil: 1\x00\u2028"
    target = {"kind": "vllm", "base_url": upstream.base_url, "model": "m\r\nx-evil: 1"}
    keys = {f"{name} key": {"hash": key_hash(KEYS["alice"]), "requests_per_min": 3}}
    async with served(upstream, modes={name: {"targets": [target]}}, keys=keys) as app:
        for _ in range(5):
            status, headers, said = await ask(app, model=name)
            assert "x-evil" not in headers
        assert status == 429, said
        status, headers, _ = await ask(
            app, model="x\r\nx-evil: 1", headers={"x-request-id": "a\tb"}
        )
        assert status in (404, 429)
        assert headers["x-request-id"] != "a\tb"


@pytest.mark.parametrize("in_json", [True, False], ids=["json", "console"])
async def test_nobody_writes_lines_of_his_own_into_the_log(
    upstream: ScriptedUpstream, in_json: bool
) -> None:
    """A line break would forge a line, an escape sequence would steer the reader's terminal."""
    evil = 'x\n{"level":"info","event":"forged"}\r\x1b[2J\x1b]0;forged\x07\x9b31m\u2028'

    async def tells(exchange: Exchange) -> None:
        exchange.json({"error": {"message": evil, "code": evil, "type": evil}}, status=500)

    upstream.script("m", ["ok", tells])
    out = io.StringIO()
    log = log_listener(json=in_json, file=out, colors=False)
    async with served(upstream) as app:
        app.gateway.listen(log)
        app.service._tell = log
        for more in (
            {},
            {"temperature": 0.3},
            {"model": evil},
            {"user": evil, "temperature": 0.4},
            {"path": f"/{evil}"},
            {"key": evil},
            {"headers": {"traceparent": evil, "user-agent": evil, "x-request-id": evil}},
        ):
            await ask(app, **more)
    text = out.getvalue()
    lines = text.splitlines()
    assert text.count("\n") > 5
    for line in lines:
        assert line.isprintable(), repr(line)
        if in_json:
            assert json.loads(line)["event"] != "forged"


async def test_a_key_sees_and_moves_nothing_of_another(upstream: ScriptedUpstream) -> None:
    async with served(upstream) as app:
        _, headers, _ = await ask(app)
        rated = {"generation_id": headers["x-gateway-id"], "tenant": "alice"}
        assert (await ask(app, "/feedback", rating=5, **rated))[0] == 200
        assert (await ask(app, "/feedback", key="bob", rating=1, **rated))[0] == 200
        store = app.gateway._ratings._store
        assert store is not None
        (kept,) = await store.recent()
        assert (kept.rating, kept.tenant) == (5, "alice"), "bob has guessed the id in vain"
        assert (await ask(app, "/feedback", key="ann", rating=4, **rated))[0] == 200
        assert (await store.recent())[0].rating == 4, "of the same tenant"
        for key, seen in (("alice", {"alice"}), ("bob", {"bob"}), (ADMIN, {"alice", "bob", "ann"})):
            _, _, status = await ask(app, "/status", key=key, method="GET")
            assert status["keys"].keys() == seen


async def test_only_headers_bear_keys_and_only_the_admin_key_steers(
    upstream: ScriptedUpstream,
) -> None:
    async with served(upstream) as app:
        for headers in (
            {"authorization": ""},
            {"authorization": "Bearer"},
            {"authorization": "Bearer "},
            {"authorization": f"Basic {KEYS['alice']}"},
            {"authorization": KEYS["alice"]},
            {"authorization": f"Bearer {KEYS['alice']},{KEYS['bob']}"},
            {"authorization": f"Bearer {KEYS['alice']}\x00"},
            {"authorization": "Bearer wrong", "x-api-key": KEYS["alice"]},
            {"authorization": "", "cookie": f"key={KEYS['alice']}"},
            {"authorization": "Bearer " + key_hash(KEYS["alice"])},
            {"authorization": "Bearer " + "k" * 60_000},
        ):
            status, said, _ = await ask(app, headers=headers)
            assert status == 401, headers
            assert said["www-authenticate"] == "Bearer"
        call = Call("POST", "/chat/completions", {}, b"{}", query=f"key={KEYS['alice']}&api_key=x")
        assert (await app.service.handle(call))[0] == 401
        for path in ("/admin/force", "/admin/reload"):
            assert (await ask(app, path))[0] == 403
            assert (await ask(app, path, key="sk-wrong"))[0] == 401
            for how in ("HEAD", "OPTIONS", "PUT", "get"):
                assert (await ask(app, path, method=how))[0] in (401, 403, 405)
        for path in ("//admin/force", "/admin//force", "/admin/./force", "/ADMIN/force", "/admin/"):
            assert (await ask(app, path))[0] == 404, path
        status, _, _ = await ask(app, "/admin/force", key=ADMIN, mode="best", how="auto")
        assert status == 200
