"""Keys over a real socket: refused in words, served by name, and in no line of the log."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from gateway.policies.keys import key_hash
from gateway.simulator.scripted.server import ScriptedUpstream
from tests.server.conftest import UVICORN, Serve
from tests.server.live import PATIENCE_S, ROOT, Answer, Live, chat

KEY, ADMIN = "sk-dsg-alice-0123456789-alice", "sk-dsg-admin-0123456789-admin"
TABLES = f'[keys.alice]\nhash = "{key_hash(KEY)}"\nrequests_per_min = 5\nmonthly_tokens = 10000\n'


async def get(live: Live, path: str, *headers: str, host: str = "localhost") -> Answer:
    lines = [f"GET {path} HTTP/1.1", f"host: {host}", "connection: close", *headers]
    return await live.ask("\r\n".join([*lines, "", ""]))


async def test_who_bears_a_key_is_served(serve: Serve, upstream: ScriptedUpstream) -> None:
    async with serve(tables=TABLES, admin_key_hash=key_hash(ADMIN)) as live:
        bearer = f"Authorization: BEARER {KEY}"
        for headers in ([], ["authorization: Bearer sk-wrong"], ["x-api-key: sk-wrong"]):
            refused = await live.post("/v1/chat/completions", chat("creative"), *headers)
            assert refused.status == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.error["code"] == "invalid_api_key"
        served = await live.post("/v1/chat/completions", chat("creative"), bearer)
        assert served.status == 200
        assert served.headers["x-ratelimit-remaining-requests"] == "4"
        streamed = await live.post("/v1/chat/completions", chat("fast", stream=True), bearer)
        assert streamed.body.endswith(b"data: [DONE]\n\n")
        assert streamed.headers["x-ratelimit-remaining-requests"] == "3"
        assert (await get(live, "/readyz")).status == 200
        assert (await get(live, "/", "accept: text/html")).status == 200
        assert (await get(live, "/")).status == (await get(live, "/status")).status == 401
        status = json.loads((await get(live, "/status", bearer)).body)
        used = status["keys"]["alice"]["monthly_tokens"]["used"]
        assert (
            0
            < used
            == sum(json.loads(part)["usage"]["total_tokens"] for part in (served.body, served.body))
        )
        force = {"mode": "creative", "how": "open"}
        assert (await live.post("/admin/force", force)).status == 401
        assert (await live.post("/admin/force", force, bearer)).status == 403
        steered = await live.post("/admin/force", force, f"x-api-key: {ADMIN}")
        assert steered.status == 200
        log = await live.told()
        assert '"alice"' in log
        assert KEY not in log and ADMIN not in log and "sk-wrong" not in log
    assert upstream.stats("creative-model").requests == 1


async def test_without_keys_a_page_under_another_name_gets_nothing(serve: Serve) -> None:
    async with serve() as live:
        assert (await get(live, "/v1/models")).status == 200
        assert (await get(live, "/v1/models", host="127.0.0.1:1")).status == 200
        for answer in (
            await get(live, "/v1/models", host="rebound.example"),
            await get(live, "/v1/models", "origin: https://evil.example"),
            await get(live, "/v1/models", "x-forwarded-for: 192.0.2.1"),
        ):
            assert answer.status == 403
            assert answer.error["type"] == "permission_error"


@UVICORN
async def test_what_a_month_has_used_outlives_the_process(serve: Serve, tmp_path: Path) -> None:
    bearer = f"authorization: Bearer {KEY}"
    async with serve(tables=TABLES) as live:
        await live.post("/v1/chat/completions", chat("creative"), bearer)
        before = json.loads((await get(live, "/status", bearer)).body)["keys"]["alice"]
        live.process.kill()
        await live.ended()
    async with serve(tables=TABLES) as live:
        after = json.loads((await get(live, "/status", bearer)).body)["keys"]["alice"]
        assert after["monthly_tokens"] == before["monthly_tokens"]
        assert after["monthly_tokens"]["used"] > 0
    assert (tmp_path / "usage.sqlite").exists()


async def test_without_keys_it_does_not_listen_to_a_network(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[[modes.best.targets]]\nkind = "simulated"\n', encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "serve", "-c", str(file), "--host", "0.0.0.0",
        stderr=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    async with asyncio.timeout(PATIENCE_S):
        _, told = await process.communicate()
    assert process.returncode == 2
    assert b"gateway keys new" in told
