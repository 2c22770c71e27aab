"""The model's process, start to end, with small stand-in programs instead of a model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvloop

from gateway.clock import ManualClock
from gateway.errors import ErrorKind, UpstreamUnavailable
from gateway.providers import model_process
from gateway.providers.local import LocalModel, LocalOptions
from gateway.providers.model_process import ModelProcess

SAFETY_S = 30
ROOT = Path(__file__).parents[3]

# A server like the real one, without a model. {health} is the status of each /health in turn.
SERVER = """
import json, os, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
with open({starts!r}, "a") as starts:
    starts.write("x")
health = {health!r}
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        status = health.pop(0) if self.path == "/health" and health else 200
        body = json.dumps({{"default_generation_settings": {{"n_ctx": 777}}}}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
server = HTTPServer(("127.0.0.1", 0), Handler)
print("some log", file=sys.stderr, flush=True)
print(json.dumps({{"address": "http://127.0.0.1:%d" % server.server_port}}), flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
"""
DIES = "import sys; print('no such tensor'); sys.exit(3)"
HANGS = "import sys; sys.stdin.read()"
STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + SERVER + "signal.pause()"
)


class Bench:
    """Makes models out of stand-in programs and closes them afterwards."""

    def __init__(self, folder: Path) -> None:
        self.starts = folder / "starts"
        self.clock = ManualClock(1000.0)
        self.models: list[LocalModel] = []

    def model(
        self, program: str = SERVER, *, health: tuple[int, ...] = (), **options: Any
    ) -> LocalModel:
        text = program
        if SERVER in program:
            text = program.format(starts=str(self.starts), health=list(health))
        command = [sys.executable, "-c", text]
        made = LocalModel(
            LocalOptions(path="/weights/Tiny.gguf", **options), program=command, clock=self.clock
        )
        self.models.append(made)
        return made

    def count(self) -> int:
        return len(self.starts.read_text())


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    before = set(ModelProcess._running)
    async with asyncio.timeout(SAFETY_S):
        yield bench
        for model in bench.models:
            await model.aclose()
    assert ModelProcess._running <= before


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_concurrent_first_users_share_one_start(bench: Bench) -> None:
    model = bench.model(health=(503, 503))
    endpoints = await asyncio.gather(*(model.endpoint() for _ in range(20)))
    assert len(set(endpoints)) == 1
    assert bench.count() == 1
    assert await model.endpoint() is endpoints[0]
    assert endpoints[0].context_window == 777
    assert _exists(endpoints[0].pid)


async def test_loops_in_other_threads_share_the_process(bench: Bench) -> None:
    model = bench.model()

    def elsewhere(new_loop: Callable[[], Any]) -> Any:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(model.endpoint())

    first = await asyncio.to_thread(elsewhere, asyncio.new_event_loop)
    second = await asyncio.to_thread(elsewhere, uvloop.new_event_loop)
    assert first == second == await model.endpoint()
    assert bench.count() == 1


async def test_equal_options_share_a_process_and_the_last_user_stops_it(bench: Bench) -> None:
    options = LocalOptions(path="/weights/Tiny.gguf")
    one, two = LocalModel.share(options), LocalModel.share(LocalOptions(path="/weights/Tiny.gguf"))
    other = LocalModel.share(LocalOptions(path="/weights/Tiny.gguf", instance="other"))
    assert one is two
    assert one is not other
    one._command = bench.model()._command
    pid = (await one.endpoint()).pid
    await one.aclose()
    assert (await two.endpoint()).pid == pid
    await two.aclose()
    await other.aclose()
    assert not _exists(pid)
    assert options not in LocalModel._shared
    with pytest.raises(UpstreamUnavailable, match="closed"):
        await two.endpoint()


async def test_a_dead_process_is_started_again_by_the_next_use(bench: Bench) -> None:
    model = bench.model()
    first = await model.endpoint()
    os.kill(first.pid, signal.SIGKILL)
    assert await model.dies(first)
    second = await model.endpoint()
    assert second.pid != first.pid
    assert await model.dies(first)
    assert bench.count() == 2


async def test_a_living_process_does_not_die(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_process, "_DYING_S", 0.01)
    model = bench.model()
    assert not await model.dies(await model.endpoint())


async def test_a_crash_loop_fails_fast_and_is_tried_again_later(bench: Bench) -> None:
    model = bench.model(DIES)
    for _ in range(2):  # really tried
        with pytest.raises(UpstreamUnavailable) as caught:
            await model.endpoint()
        assert caught.value.kind is ErrorKind.CONNECT
        assert caught.value.target == "local/tiny"
        assert "exited with status 3: no such tensor" in str(caught.value)
    for wait in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
        with pytest.raises(UpstreamUnavailable, match="times in a row") as caught:
            await model.endpoint()
        assert caught.value.kind is ErrorKind.CONNECT
        assert caught.value.retry_after == wait
        bench.clock.advance(wait)
        with pytest.raises(UpstreamUnavailable, match="status 3"):
            await model.endpoint()


async def test_long_service_clears_the_count_of_deaths(bench: Bench) -> None:
    model = bench.model()
    for _ in range(4):
        endpoint = await model.endpoint()
        bench.clock.advance(10.0)
        os.kill(endpoint.pid, signal.SIGKILL)
        assert await model.dies(endpoint)
    endpoint = await model.endpoint()
    os.kill(endpoint.pid, signal.SIGKILL)  # young: this one counts
    assert await model.dies(endpoint)
    with pytest.raises(UpstreamUnavailable, match="2 times in a row"):
        await model.endpoint()


async def test_a_start_that_takes_too_long_is_given_up(bench: Bench) -> None:
    model = bench.model(HANGS, start_timeout_s=0.05)
    with pytest.raises(UpstreamUnavailable, match=r"not ready after 0\.05 s") as caught:
        await model.endpoint()
    assert caught.value.kind is ErrorKind.LOADING


async def test_a_program_that_cannot_be_run_says_so(bench: Bench) -> None:
    model = bench.model()
    model._command = ["/nowhere/python"]
    with pytest.raises(UpstreamUnavailable, match=r"could not be run: .*No such file") as caught:
        await model.endpoint()
    assert caught.value.kind is ErrorKind.CONNECT


async def test_a_cancelled_first_user_leaves_the_start_to_the_next(bench: Bench) -> None:
    model = bench.model(health=(503, 503))
    first, second = (asyncio.create_task(model.endpoint()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert _exists((await second).pid)
    assert bench.count() == 1


@pytest.mark.parametrize("program", [SERVER, HANGS])
async def test_closing_while_it_starts_leaves_no_process(bench: Bench, program: str) -> None:
    model = bench.model(program)
    waiting = asyncio.create_task(model.endpoint())
    await asyncio.sleep(0)
    process = model._process
    assert process is not None
    await model.aclose()
    with pytest.raises(UpstreamUnavailable, match="stopped"):
        await waiting
    assert not process.alive
    assert not process._thread.is_alive()
    bench.models.remove(model)


async def test_a_process_deaf_to_sigterm_is_killed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_process, "_STOP_S", 0.01)
    model = bench.model(STUBBORN)
    pid = (await model.endpoint()).pid
    bench.models.remove(model)
    await model.aclose()
    assert not _exists(pid)


async def test_a_forked_copy_of_the_parent_does_not_end_the_process(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bench.model()
    pid = (await model.endpoint()).pid
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: -1)
        ModelProcess.stop_all()
    assert _exists(pid)


def test_the_interpreter_takes_it_along_when_it_exits(tmp_path: Path) -> None:
    server = SERVER.format(starts=str(tmp_path / "starts"), health=[])
    program = f"""
        import asyncio, sys
        from gateway.providers.local import _PROGRAM, LocalModel, LocalOptions
        model = LocalModel(LocalOptions(path="/tiny"), program=[sys.executable, "-c", {server!r}])
        print(asyncio.run(model.endpoint()).pid)
    """
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SAFETY_S,
        check=True,
    )
    assert done.stderr == ""
    assert not _exists(int(done.stdout))
