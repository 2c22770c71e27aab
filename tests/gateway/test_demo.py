"""The demonstration keeps what it promises, and says so when it could not."""

from __future__ import annotations

import time

import pytest
from stub_upstream import TEXT, Stub

from gateway import demo as show
from gateway.config import Config
from gateway.errors import ConfigError
from gateway.simulator.cable import Cable


@pytest.fixture(autouse=True)
def short_hold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "model" not in request.keywords:
        monkeypatch.setattr(show, "HOLD_S", 0.5)


def two_modes(stub: Stub) -> Config:
    target = {"kind": "llama_cpp", "base_url": stub.base_url, "model": "qwen"}
    modes = {mode: {"targets": [target]} for mode in ("slow", "quick")}
    return Config.from_dict({"modes": modes})


async def test_it_cuts_off_the_first_mode_and_sees_it_heal() -> None:
    lines: list[str] = []
    async with Stub() as stub:
        answers = await show.demo(lines.append, config=two_modes(stub))
    served = [(a.requested_mode, a.mode, a.degraded, a.reason) for a in answers]
    assert served == [
        ("slow", "slow", False, None),
        ("quick", "quick", False, None),
        *[("slow", "quick", True, "failed")] * 3,
        ("slow", "quick", True, "circuit_open"),
        ("slow", "slow", False, None),
    ]
    told = "\n".join(lines)
    assert TEXT in told
    assert "its cache TTL is 300 s instead of 3600 s" in told
    assert "hold shortened to 0.5 s" in told
    assert lines[-1].startswith("Everything happened as promised")


async def test_a_promise_that_is_not_kept_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slips(cable: Cable) -> None: ...

    monkeypatch.setattr(Cable, "unplug", slips)  # so creative is never cut off
    monkeypatch.setattr(Cable, "__aexit__", _take_down)
    async with Stub() as stub:
        with pytest.raises(show.BrokenPromiseError, match="a lower mode says so"):
            await show.demo(lambda line: None, config=two_modes(stub))


_unplug = Cable.unplug


async def _take_down(cable: Cable, *_: object) -> None:
    await _unplug(cable)


async def test_what_is_reached_by_tls_cannot_be_cut_off() -> None:
    modes = {
        "creative": {"targets": [{"kind": "openai", "model": "gpt"}]},
        "fast": {"targets": [{"kind": "simulated"}]},
    }
    with pytest.raises(ConfigError, match=r"modes\.creative\.targets\[0\].*not https"):
        await show.demo(lambda line: None, config=Config.from_dict({"modes": modes}))


async def test_one_mode_alone_cannot_go_on() -> None:
    config = Config.from_dict({"modes": {"fast": {"targets": [{"kind": "simulated"}]}}})
    with pytest.raises(ConfigError, match="two modes"):
        await show.demo(lambda line: None, config=config)


@pytest.mark.model
async def test_on_the_embedded_real_model() -> None:
    lines: list[str] = []
    began = time.monotonic()
    answers = await show.demo(lines.append)
    assert time.monotonic() - began < 60
    assert [answer.mode for answer in answers[:3]] == ["creative", "balanced", "fast"]
    assert [answer.mode for answer in answers[3:]] == ["balanced"] * 4 + ["creative"]
    assert all(answer.text for answer in answers)
    assert answers[3].served.ttl_s in (0.0, 300.0)  # 0 if the model ran into its token limit
    assert "hold shortened to 5 s" in "\n".join(lines)
