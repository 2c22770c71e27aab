"""The real embedded model: its process killed in mid-answer, its cable pulled, its modes shared."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from lab import OffsetClock

from gateway import Gateway
from gateway.config import Config
from gateway.errors import ErrorKind, StreamInterrupted
from gateway.events import AttemptFinished, Event
from gateway.generation import Generation
from gateway.providers.local import LocalProvider
from gateway.simulator.cable import Cable

pytestmark = pytest.mark.model

ROOT = Path(__file__).parents[2]
SAFETY_S = 60.0
PROMPT = "Name three woody perfume notes."
SHORT: dict[str, Any] = {"max_tokens": 16, "temperature": 0, "cache": False}
LONG: dict[str, Any] = {"max_tokens": 600, "temperature": 0, "ignore_eos": True, "cache": False}


def config(**targets: dict[str, Any]) -> Config:
    """One mode a target."""
    modes = {
        name: {"deadline_s": SAFETY_S, "targets": [target]} for name, target in targets.items()
    }
    return Config.from_dict({"modes": modes, "feedback": {"path": ":memory:"}})


def local(instance: str) -> dict[str, Any]:
    return {"kind": "local", "instance": instance}


def provider(gateway: Gateway, mode: str) -> LocalProvider:
    pipeline = gateway._in_force.pipeline
    found = pipeline.ladder.rungs[pipeline.modes.index(mode)].targets[0].provider
    assert isinstance(found, LocalProvider)
    return found


async def pid_of(gateway: Gateway, mode: str) -> int:
    return (await provider(gateway, mode).process.endpoint()).pid


def check(answer: Generation, mode: str, requested: str = "creative") -> None:
    assert (answer.mode, answer.requested_mode) == (mode, requested)
    assert answer.degraded == (mode != requested)
    assert len(answer.text) > 20
    assert answer.usage.completion_tokens > 0


@pytest.fixture(autouse=True)
async def _safety() -> AsyncIterator[None]:
    async with asyncio.timeout(SAFETY_S):
        yield


async def test_its_process_killed_in_mid_answer() -> None:
    """Whoever streams hears it; whoever wants one piece gets a whole one from a second process."""
    events: list[Event] = []
    ladder = config(creative=local("first"), balanced=local("second"))
    async with Gateway(ladder, listeners=[events.append]) as gateway:
        check(await gateway.generate(PROMPT, **SHORT), "creative")
        check(await gateway.generate(PROMPT, "balanced", **SHORT), "balanced", "balanced")
        killed = await pid_of(gateway, "creative")
        assert killed != await pid_of(gateway, "balanced")

        whole = asyncio.create_task(gateway.generate(PROMPT, **{**LONG, "max_tokens": 40}))
        heard: list[str] = []
        with pytest.raises(StreamInterrupted) as caught:
            async with gateway.stream(PROMPT, **LONG) as stream:
                async for chunk in stream:
                    heard.append(chunk.text)
                    assert chunk.finish_reason is None
                    if len(heard) == 8:
                        os.kill(killed, signal.SIGKILL)
        assert caught.value.kind is ErrorKind.INTERRUPTED
        assert caught.value.partial == "".join(heard) != ""

        answer = await whole
        check(answer, "balanced")
        assert (answer.reason, answer.usage.completion_tokens) == ("failed", 40)
        ends = [event for event in events if isinstance(event, AttemptFinished)]
        assert [end.outcome for end in ends if end.mode == "creative"].count("failure") == 2

        check(await gateway.generate(PROMPT, **SHORT), "creative")
        assert await pid_of(gateway, "creative") != killed
        assert gateway.status()["in_flight"] == 0


async def test_its_cable_pulled_and_plugged_in_again() -> None:
    clock = OffsetClock()
    async with Gateway(config(only=local("far"))) as far:
        check(await far.generate(PROMPT, **SHORT), "only", "only")
        address = urlsplit((await provider(far, "only").process.endpoint()).address)
        assert address.hostname is not None and address.port is not None
        async with Cable(address.hostname, address.port) as cable:
            behind = {"kind": "llama_cpp", "base_url": f"{cable.address}/v1"}
            ladder = config(creative=behind, balanced=local("near"))
            async with Gateway(ladder, clock=clock) as gateway:
                await pull_and_plug(gateway, cable, clock)


async def pull_and_plug(gateway: Gateway, cable: Cable, clock: OffsetClock) -> None:
    def phase() -> str:
        return str(gateway.status()["modes"]["creative"]["phase"])

    first = await gateway.generate(PROMPT, **SHORT)
    check(first, "creative")
    with pytest.raises(StreamInterrupted) as caught:
        async with gateway.stream(PROMPT, **LONG) as stream:
            async for _ in stream:
                await cable.unplug()
    assert caught.value.partial
    for _ in range(2):
        answer = await gateway.generate(PROMPT, **SHORT)
        check(answer, "balanced")
        assert answer.reason == "failed"
    assert phase() == "open"
    answer = await gateway.generate(PROMPT, **SHORT)
    check(answer, "balanced")
    assert (answer.reason, answer.served.attempts) == ("circuit_open", 1)

    await cable.plug()
    check(await gateway.generate(PROMPT, **SHORT), "balanced")
    clock.skip(300.0)
    assert phase() == "probe_due"
    again = await gateway.generate(PROMPT, **SHORT)
    check(again, "creative")
    assert again.text == first.text
    assert phase() == "recovering"


async def test_its_silence_in_mid_answer_is_noticed() -> None:
    async with Gateway(config(only=local("far"))) as far:
        check(await far.generate(PROMPT, **SHORT), "only", "only")
        address = urlsplit((await provider(far, "only").process.endpoint()).address)
        assert address.hostname is not None and address.port is not None
        async with Cable(address.hostname, address.port) as cable:
            behind = {"kind": "llama_cpp", "base_url": f"{cable.address}/v1"}
            modes = {"creative": {"stall_s": 0.5, "targets": [behind]}}
            async with Gateway(Config.from_dict({"modes": modes})) as gateway:
                heard = ""
                with pytest.raises(StreamInterrupted) as caught:
                    async with gateway.stream(PROMPT, **LONG) as stream:
                        async for chunk in stream:
                            heard += chunk.text
                            cable.freeze()
                assert caught.value.kind is ErrorKind.TIMEOUT
                assert caught.value.partial == heard != ""


async def test_the_configuration_as_it_comes_serves_three_modes_on_one_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("QWEN_BASE_URL", "DASHSCOPE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    async with Gateway.from_toml(ROOT / "config.toml") as gateway:
        modes = ("creative", "balanced", "fast")
        asked = (gateway.generate(PROMPT, mode, max_tokens=24) for mode in modes)
        for answer, mode in zip(await asyncio.gather(*asked), modes, strict=True):
            check(answer, mode, mode)
            assert answer.model == "smollm2-135m"
        async with gateway.stream(PROMPT, "fast", max_tokens=24) as stream:
            pieces = [chunk.text async for chunk in stream]
        assert len([piece for piece in pieces if piece]) >= 1
        pids = {await pid_of(gateway, mode) for mode in modes}
        assert len(pids) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(pids.pop(), 0)
    assert not list(tmp_path.iterdir()), "nothing is written unasked"
