"""A changed configuration file, by signal, by request and by itself."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from gateway.simulator.scripted.server import ScriptedUpstream
from tests.server.conftest import UVICORN, Serve
from tests.server.live import Live, chat, post

pytestmark = UVICORN


def rename_model(live: Live, old: str, new: str) -> None:
    text = live.file.read_text(encoding="utf-8")
    assert old in text
    live.file.write_text(text.replace(old, new), encoding="utf-8")


async def test_by_signal_and_requests_under_way_keep_what_they_began_with(
    serve: Serve, upstream: ScriptedUpstream
) -> None:
    async with serve() as live:
        upstream.pace_s = 0.05
        upstream.script("creative-model", ["drip"])
        client = await live.connect()
        client.send(post("/v1/chat/completions", chat("creative", stream=True)))
        await client.head()
        rename_model(live, "creative-model", "better-model")
        live.send_signal(signal.SIGHUP)
        await live.says(lambda line: '"config_reloaded"' in line and '"applied"' in line)
        body = b"".join([piece async for piece in client.chunks()])
        assert body.endswith(b"data: [DONE]\n\n")
        after = await live.post("/v1/chat/completions", chat("creative"))
        assert json.loads(after.body)["model"] == "better-model"


async def test_by_request_and_circuits_keep_their_state(serve: Serve) -> None:
    async with serve() as live:
        forced = await live.post("/admin/force", {"mode": "creative", "how": "open"})
        assert forced.status == 200
        rename_model(live, "creative-model", "better-model")
        rename_model(live, "[server]", "[server]\nping_s = 1")
        answer = await live.post("/admin/reload", {})
        assert answer.status == 200
        found = json.loads(answer.body)
        assert found["last_reload"] == "applied"
        assert found["restart_needed"] == ["ping_s"]
        status = json.loads((await live.get("/status")).body)
        assert status["modes"]["creative"]["phase"] == "forced_open"
        assert status["modes"]["creative"]["targets"][0]["model"] == "better-model"


async def test_a_broken_file_changes_nothing_and_is_named(
    serve: Serve, upstream: ScriptedUpstream
) -> None:
    async with serve() as live:
        rename_model(live, 'kind = "vllm"', 'kind = "vlm"')
        answer = await live.post("/admin/reload", {})
        assert answer.status == 400
        assert answer.error["code"] == "config_error"
        for part in (str(live.file), "modes.creative.targets[0]", "kind", "'vllm'"):
            assert part in answer.error["message"]
        since = len(live.log)
        live.send_signal(signal.SIGHUP)
        await live.says(lambda line: '"refused"' in line, since)
        assert (await live.post("/v1/chat/completions", chat("creative"))).status == 200
        assert (await live.get("/readyz")).status == 200


async def test_one_that_makes_things_worse_is_taken_back(
    serve: Serve, upstream: ScriptedUpstream
) -> None:
    async with serve() as live:
        for _ in range(20):
            assert (await live.post("/v1/chat/completions", chat("creative"))).status == 200
        upstream.script("worse-model", ["500"])
        rename_model(live, "creative-model", "worse-model")
        assert (await live.post("/admin/reload", {})).status == 200
        client = await live.connect()
        for _ in range(200):
            client.send(post("/v1/chat/completions", chat("creative")))
            await client.answer()
            if any('"rolled_back"' in line for line in live.log):
                break
        await live.says(lambda line: '"rolled_back"' in line)
        status = json.loads((await live.get("/status")).body)
        assert status["config"]["last_reload"] == "rolled_back"
        assert status["modes"]["creative"]["targets"][0]["model"] == "creative-model"


async def test_by_itself_when_a_kubernetes_volume_is_swapped(serve: Serve, tmp_path: Path) -> None:
    async with serve(watch=True) as live:
        new = tmp_path / "..2026"
        new.mkdir()
        text = live.file.read_text(encoding="utf-8").replace("creative-model", "better-model")
        (new / "config.toml").write_text(text, encoding="utf-8")
        (tmp_path / "..data").symlink_to(new)
        link = tmp_path / "link"
        link.symlink_to(Path("..data") / "config.toml")
        link.replace(live.file)
        await live.says(lambda line: '"config_reloaded"' in line and '"applied"' in line)
