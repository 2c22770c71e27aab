"""The embedded model for real: the weights, llama.cpp's server, and what is left when all end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
import textwrap
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ErrorKind, StreamInterrupted, UpstreamUnavailable
from gateway.modes import TargetOptions
from gateway.providers.base import Call, Provider, Reply
from gateway.providers.local import _PROGRAM, LocalOptions, LocalProvider
from gateway.transport.pool import HTTP1Client

pytestmark = pytest.mark.model

SAFETY_S = 60
ROOT = Path(__file__).parents[3]

ASK = [{"role": "user", "content": "Name three woody perfume notes."}]


@contextlib.asynccontextmanager
async def _provider(**target: Any) -> AsyncIterator[LocalProvider]:
    client = HTTP1Client()
    provider = LocalProvider(TargetOptions(kind="local", **target), client)
    try:
        async with asyncio.timeout(SAFETY_S):
            yield provider
    finally:
        await provider.aclose()
        await client.aclose()


async def _read(reply: Reply) -> tuple[str, str | None, int]:
    """The text, the finish reason and the number of content chunks."""
    text, finish, count = "", None, 0
    try:
        while chunks := await reply.read():
            for chunk in chunks:
                text += chunk.text
                count += chunk.carries()
                finish = chunk.finish_reason or finish
    finally:
        reply.close()
    return text, finish, count


def _call(**params: Any) -> Call:
    return Call(messages=ASK, params={"max_tokens": 12, "temperature": 0, **params})


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def _until_gone(pid: int) -> None:
    """Wait for the end of a process that need not be our child."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            assert await asyncio.to_thread(select.select, [pidfd], [], [], SAFETY_S) != ([], [], [])
        finally:
            os.close(pidfd)


async def test_real_answers_streamed_and_whole_on_one_process() -> None:
    async with _provider() as creative, _provider(stream_upstream=False) as fast:
        assert isinstance(creative, Provider)
        assert (creative.name, creative.domain) == ("local/smollm2-135m", "local/default")
        streamed, finish, pieces = await _read(await creative.open(_call()))
        assert len(streamed) > 20
        assert finish == "length"
        assert pieces > 3
        whole, finish, _ = await _read(await fast.open(_call()))
        assert (whole, finish) == (streamed, "length")
        assert (await creative.process.endpoint()).pid == (await fast.process.endpoint()).pid
        assert creative.context_window == 2048
        await creative.aclose()
        assert (await _read(await fast.open(_call(max_tokens=2))))[0]
        pid = (await fast.process.endpoint()).pid
    assert not _exists(pid)


async def test_real_process_killed_mid_answer_breaks_the_stream_and_comes_back() -> None:
    async with _provider() as provider:
        reply = await provider.open(_call(max_tokens=400, ignore_eos=True))
        first = await reply.read()
        assert first
        pid = (await provider.process.endpoint()).pid
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(StreamInterrupted) as caught:
            while await reply.read():
                pass
        assert caught.value.kind is ErrorKind.INTERRUPTED
        reply.close()
        # At once, perhaps before the kernel has buried the old process.
        text, _, _ = await _read(await provider.open(_call(max_tokens=4)))
        assert text
        assert (await provider.process.endpoint()).pid != pid


async def test_real_process_outlives_the_thread_that_first_asked_for_it() -> None:
    async with _provider() as provider:
        asked: list[int] = []
        thread = threading.Thread(
            target=lambda: asked.append(asyncio.run(provider.process.endpoint()).pid)
        )
        thread.start()
        await asyncio.to_thread(thread.join)
        assert (await _read(await provider.open(_call(max_tokens=2))))[0]
        assert (await provider.process.endpoint()).pid == asked[0]


async def test_real_weights_that_are_broken_fail_with_llama_cpps_own_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_text("these are no weights")
    async with _provider(options={"path": str(broken)}) as provider:
        with pytest.raises(UpstreamUnavailable, match="invalid magic") as caught:
            await provider.open(_call())
        assert caught.value.kind is ErrorKind.CONNECT


@pytest.mark.parametrize("loaded", [True, False], ids=["serving", "loading"])
async def test_real_process_dies_with_a_killed_parent(loaded: bool) -> None:
    parent_program = """
        import asyncio, json, sys
        from gateway.modes import TargetOptions
        from gateway.providers.local import _PROGRAM, LocalModel, LocalOptions
        async def main():
            model = LocalModel.share(LocalOptions.of(TargetOptions(kind="local")))
            waiting = asyncio.create_task(model.endpoint())
            while not (model._process and model._process._child):
                await asyncio.sleep(0.001)
            print(model._process._child.pid, flush=True)
            await waiting
            print("ready", flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
    """
    async with asyncio.timeout(SAFETY_S):
        parent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", textwrap.dedent(parent_program)),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        assert parent.stdout is not None
        pid = int(await parent.stdout.readline())
        if loaded:
            assert await parent.stdout.readline() == b"ready\n"
        assert _exists(pid)
        parent.kill()
        await parent.wait()
        await _until_gone(pid)


async def test_real_server_has_two_leashes_each_enough_alone() -> None:
    command = [*_PROGRAM, *LocalOptions.of(TargetOptions(kind="local")).arguments()]
    parent_program = f"""
        import subprocess, sys
        child = subprocess.Popen({command!r}, stdin=int(sys.argv[1]), stdout=subprocess.PIPE)
        while not child.stdout.readline().startswith(b'{{"address"'):
            pass
        print(child.pid, flush=True)
        child.wait()
    """
    async with asyncio.timeout(SAFETY_S):
        for leash in ("pipe", "parent"):
            reading, writing = os.pipe()
            parent = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", textwrap.dedent(parent_program), str(reading)),
                stdout=asyncio.subprocess.PIPE,
                pass_fds=[reading],
            )
            os.close(reading)
            assert parent.stdout is not None
            pid = int(await parent.stdout.readline())
            if leash == "pipe":
                os.close(writing)
                assert await parent.wait() == 0  # it had only to wait for its child
            else:
                parent.kill()
                await parent.wait()
                await _until_gone(pid)
                os.close(writing)
