"""Several workers on one socket: one opinion on each mode, and none of them is missed for long."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from gateway.simulator.scripted.server import ScriptedUpstream
from tests.server.conftest import Serve
from tests.server.live import Answer, Live, chat, post

CIRCUIT = "[circuit]\nbreak_duration_s = 1.0\nslow_s = 0\n"


def workers(live: Live) -> set[int]:
    """Process ids of the workers."""
    pid = live.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    found = set()
    for child in map(int, children):
        if b"gateway.server.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
            found.add(child)
    return found


async def ask_all(live: Live, count: int, body: object = None) -> list[Answer]:
    """Many requests at once, each on a connection of its own, so that every worker gets some."""
    clients = [await live.connect() for _ in range(count)]
    for number, client in enumerate(clients):
        client.send(post("/v1/chat/completions", body or chat("creative", text=f"{number}")))
    answers = [await client.answer() for client in clients]
    for client in clients:
        client.close()
    return answers


def who(answers: list[Answer]) -> set[str]:
    """The workers that answered: ids bear their process's mark."""
    return {answer.headers["x-gateway-id"].split("-")[1] for answer in answers}


async def test_what_an_operator_does_on_one_holds_for_all(
    serve: Serve, upstream: ScriptedUpstream
) -> None:
    async with serve("--workers", "3") as live:
        assert len(workers(live)) == 3
        await live.post("/admin/force", {"mode": "creative", "how": "open"})
        seen: set[str] = set()
        async with asyncio.timeout(20):
            while len(seen) < 3:  # the kernel picks who accepts
                answers = await ask_all(live, 40)
                assert {answer.headers["x-gateway-mode"] for answer in answers} == {"fast"}
                seen |= who(answers)
        assert upstream.stats("creative-model").requests == 0
        await live.post("/admin/force", {"mode": "creative", "how": "auto"})
        text = live.file.read_text(encoding="utf-8")
        live.file.write_text(text.replace("creative-model", "better-model"), encoding="utf-8")
        answer = await live.post("/admin/reload", {})
        assert answer.status == 200, answer.body
        async with asyncio.timeout(10):
            while sum('"applied"' in line for line in live.log) < 3:
                await asyncio.sleep(0.02)
        # All of them have the new configuration, and keep it although creative still ramps up.
        models: set[str] = set()
        async with asyncio.timeout(10):
            while models != {"better-model"}:
                answers = await ask_all(live, 40)
                models = {json.loads(answer.body)["model"] for answer in answers}
        assert not any('"rolled_back"' in line for line in live.log)
        metrics = (await live.get("/metrics")).body.decode()
        counted = sum(
            float(line.rpartition(" ")[2])
            for line in metrics.splitlines()
            if line.startswith("gateway_http_requests_total") and "chat" in line
        )
        assert counted >= 100  # of all of them
        live.send_signal(signal.SIGTERM)
        assert await live.ended() == 0
        assert "Traceback" not in "".join(live.log)


@pytest.mark.slow
async def test_a_dead_upstream_is_found_out_once_and_probed_by_one(
    serve: Serve, upstream: ScriptedUpstream
) -> None:
    async with serve("--workers", "3", tables=CIRCUIT) as live:
        upstream.script("creative-model", ["empty"])  # a failure that is not tried again
        hits = upstream.stats("creative-model")
        loop = asyncio.get_running_loop()
        for _ in range(12):
            (answer,) = await ask_all(live, 1)
            assert answer.headers["x-gateway-mode"] == "fast"
        opened = loop.time()
        assert hits.requests <= 3 + 3
        before, holds = hits.requests, 0.0
        while (holds := loop.time() - opened) < 3.5:
            answers = await ask_all(live, 9)
            assert {answer.status for answer in answers} == {200}
        assert 1 <= hits.requests - before <= holds + 1, "one probe a hold, whoever sends it"
        upstream.script("creative-model", ["ok"])
        async with asyncio.timeout(10):
            while {a.headers["x-gateway-mode"] for a in await ask_all(live, 9)} != {"creative"}:
                await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_killed_worker_is_replaced_while_the_others_serve(serve: Serve) -> None:
    async with serve("--workers", "3") as live:
        before = workers(live)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        async with asyncio.timeout(30):
            while len(workers(live) - {victim}) < 3 or len(who(await ask_all(live, 40))) < 3:
                assert {answer.status for answer in await ask_all(live, 10)} == {200}
        assert victim not in workers(live)
        await live.says(lambda line: "worker ended" in line)


@pytest.mark.slow
async def test_workers_do_not_outlive_their_supervisor(serve: Serve) -> None:
    async with serve("--workers", "2") as live:
        left = workers(live)
        live.process.kill()
        async with asyncio.timeout(10):
            while any(Path(f"/proc/{pid}").exists() for pid in left):
                await asyncio.sleep(0.02)


async def test_workers_that_cannot_start_end_it_with_one_reason(serve: Serve) -> None:
    missing = '[[embeddings.targets]]\nkind = "vllm"\nbase_url = "http://x/v1"\nmodel = "m"\n'
    broken = missing + 'api_key_env = "NOT_SET_ANYWHERE"\n'
    with pytest.raises(AssertionError, match="NOT_SET_ANYWHERE is not set"):
        async with serve("--workers", "2", tables=broken):
            pass


@pytest.mark.model
async def test_the_embedded_model_runs_once_for_all(tmp_path: Path) -> None:
    config = '[modes.fast]\n[[modes.fast.targets]]\nkind = "local"\n[cache]\nenabled = false\n'
    async with Live(config, tmp_path, "--workers", "2") as live:

        def models() -> list[int]:
            return [
                int(path.parent.name)
                for path in Path("/proc").glob("[0-9]*/cmdline")
                if b"llama_server.py" in path.read_bytes() and _parent(path) == live.process.pid
            ]

        answers = await ask_all(live, 8, chat("fast", max_tokens=4))
        assert {answer.status for answer in answers} == {200}
        (first,) = models()
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(30):
            while (await ask_all(live, 1, chat("fast", max_tokens=4)))[0].status != 200:
                await asyncio.sleep(0.1)
        (second,) = models()
        assert second != first
        live.send_signal(signal.SIGTERM)
        assert await live.ended() == 0
        assert not Path(f"/proc/{second}").exists()


def _parent(cmdline: Path) -> int:
    stat = (cmdline.parent / "stat").read_text(encoding="utf-8")
    return int(stat.rpartition(")")[2].split()[1])
