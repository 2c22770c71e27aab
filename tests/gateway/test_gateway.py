"""The face of it all: what `Gateway` promises beyond what its parts are tested for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway import Gateway
from gateway.config import Config
from gateway.errors import ConfigError, GatewayError, InvalidRequest
from gateway.events import CircuitChanged, Event, RequestFinished
from gateway.generation import CacheControl
from gateway.simulator.clock import run

MODES = ("creative", "balanced", "fast")


def config(**tables: Any) -> Config:
    targets = {
        mode: {"targets": [{"kind": "simulated", "model": mode, "options": {"tokens": 3}}]}
        for mode in MODES
    }
    return Config.from_dict({"modes": targets, **tables})


def on_virtual_time(scenario: Any, **tables: Any) -> Any:
    async def main() -> Any:
        async with Gateway(config(**tables), clock=asyncio.get_running_loop().time) as gateway:
            return await scenario(gateway)

    return run(main)


def test_the_best_mode_answers_unless_another_is_named() -> None:
    async def scenario(gateway: Gateway) -> None:
        assert gateway.modes == list(MODES)
        assert (await gateway.generate("hello")).mode == "creative"
        answer = await gateway.generate([{"role": "user", "content": "hello"}], mode="fast")
        assert (answer.mode, answer.requested_mode, answer.degraded) == ("fast", "fast", False)
        assert answer.model == "fast"
        assert answer.usage.total_tokens == 1 + 3
        assert answer.finish_reason == "stop"
        assert answer.duration_s > 0
        assert str(answer) == answer.text

    on_virtual_time(scenario)


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "poetic"},
        {"mode": 3},
        {"mode": []},
        {"mode": ""},
        {"prompt": ""},
        {"prompt": {"role": "user"}},
        {"deadline": -1},
        {"deadline": "soon"},
        {"cache": "no"},
        {"temperature": object()},
        {"stop": {1, object()}},
        {"logit_bias": {1: 2, "a": 3}},
        {"seed": 2**80},
        {"prompt": "\ud800 lone"},
        {"model": "qwen-max"},
        {"extra_body": "x"},
        {"tenant": b"x"},
        {"priority": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True], ids=["", "stream"])
def test_a_callers_mistake_is_an_invalid_request_and_nothing_is_sent(
    arguments: dict[str, Any], stream: bool
) -> None:
    async def scenario(gateway: Gateway) -> None:
        with pytest.raises(InvalidRequest) as refused:
            if stream:
                async with gateway.stream(**{"prompt": "hello", **arguments}):
                    raise AssertionError("must not get here")
            await gateway.generate(**{"prompt": "hello", **arguments})
        assert len(refused.value.message) < 300
        status = gateway.status()
        assert status["in_flight"] == 0
        assert status["cache"]["misses"] == 0

    on_virtual_time(scenario)


def test_an_unknown_mode_lists_those_there_are() -> None:
    async def scenario(gateway: Gateway) -> None:
        with pytest.raises(InvalidRequest, match="'creative', 'balanced', 'fast'"):
            await gateway.generate("hello", mode="poetic")
        with pytest.raises(InvalidRequest, match="unknown mode"):
            gateway.force("poetic", "open")
        with pytest.raises(InvalidRequest, match="unknown mode"):
            gateway.transport("poetic")

    on_virtual_time(scenario)


def test_status_is_plain_data() -> None:
    async def scenario(gateway: Gateway) -> None:
        await gateway.generate("hello")
        gateway.force("balanced", "open")
        status = gateway.status()
        assert _plain(status)
        creative, balanced = status["modes"]["creative"], status["modes"]["balanced"]
        assert (creative["phase"], creative["ttl_s"], creative["until_s"]) == (
            "closed",
            3600.0,
            None,
        )
        assert (balanced["phase"], balanced["ttl_s"]) == ("forced_open", 300.0)
        assert creative["in_flight"] == {"native": 0, "downshifted": 0}
        assert creative["first_token"]["count"] == 1
        assert creative["targets"][0]["budget_tokens"] == 10.0
        assert status["cache"]["entries"] == 1
        assert status["config"]["on_trial"] is False

    on_virtual_time(scenario)


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and _plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(_plain(item) for item in value)
    return value is None or type(value) in (str, int, float, bool)


def test_listeners_come_and_go() -> None:
    async def scenario(gateway: Gateway) -> None:
        heard: list[Event] = []
        stop = gateway.listen(heard.append)
        await gateway.generate("hello")
        gateway.force("fast", "open")
        stop()
        stop()
        await gateway.generate("hello again")
        assert [type(event) for event in heard if not isinstance(event, RequestFinished)][-1:] == [
            CircuitChanged
        ]
        assert len([event for event in heard if isinstance(event, RequestFinished)]) == 1

    on_virtual_time(scenario)


def test_sampling_of_the_mode_applies_only_where_the_caller_left_it_unset() -> None:
    async def scenario(gateway: Gateway) -> None:
        assert (await gateway.generate("hello")).usage.completion_tokens == 2
        assert (await gateway.generate("hello", max_tokens=1)).usage.completion_tokens == 1

    async def main() -> None:
        one = {"kind": "simulated", "options": {"tokens": 3}}
        built = Config.from_dict({"modes": {"only": {"max_tokens": 2, "targets": [one]}}})
        async with Gateway(built, clock=asyncio.get_running_loop().time) as gateway:
            await scenario(gateway)

    run(main)


def test_a_closed_gateway_says_so() -> None:
    async def scenario(gateway: Gateway) -> None:
        await gateway.aclose()
        await gateway.aclose()
        with pytest.raises(GatewayError, match="closed"):
            await gateway.generate("hello")
        with pytest.raises(GatewayError, match="closed"):
            async with gateway.stream("hello"):
                pass

    on_virtual_time(scenario)


def test_a_gateway_belongs_to_one_loop() -> None:
    gateway = Gateway(config())

    async def ask() -> None:
        await gateway.generate("hello")

    async def again() -> None:
        with pytest.raises(GatewayError, match="another event loop"):
            await gateway.generate("hello", cache=CacheControl())

    asyncio.run(ask())
    asyncio.run(again())


def test_nothing_is_asked_before_a_stream_is_entered() -> None:
    async def scenario(gateway: Gateway) -> None:
        stream = gateway.stream("hello")
        await asyncio.sleep(1.0)
        assert gateway.status()["in_flight"] == 0
        assert stream.id.startswith("gen-")
        with pytest.raises(GatewayError, match="async with"):
            await stream.finish()

    on_virtual_time(scenario)


@pytest.fixture
def feedback(tmp_path: Path) -> dict[str, Any]:
    return {"feedback": {"path": str(tmp_path / "feedback.sqlite")}}


async def test_ratings_are_kept_and_shown(feedback: dict[str, Any]) -> None:
    async with Gateway(config(**feedback)) as gateway:
        answer = await gateway.generate("hello", mode="fast")
        await gateway.feedback(answer.id, 5, user_id="user_123")
        rating = gateway.status()["modes"]["fast"]["rating"]
        assert rating["count"] == 1
        assert rating["mean"] == 5.0
        for wrong in ({"rating": 6}, {"rating": 0}, {"rating": "good"}, {"rating": float("nan")}):
            with pytest.raises(InvalidRequest):
                await gateway.feedback(answer.id, **wrong)
        with pytest.raises(InvalidRequest, match="generation id"):
            await gateway.feedback("42", 3)


async def test_a_rating_that_is_not_kept_says_nothing_of_the_mode(feedback: dict[str, Any]) -> None:
    async with Gateway(config(**feedback)) as gateway:
        answer = await gateway.generate("hello", mode="fast", tenant="a")
        await gateway.feedback(answer.id, 5, tenant="a")
        await gateway.feedback(answer.id, 1, tenant="b")  # ids can be guessed
        assert gateway.status()["modes"]["fast"]["rating"]["mean"] == 5.0


# -- scripts without a loop ------------------------------------------------------------------------


@pytest.fixture
def script() -> Iterator[Gateway]:
    gateway = Gateway(config())
    yield gateway
    gateway.close()
    assert not [t for t in threading.enumerate() if t.name == "gateway-loop"]


def test_generate_sync(script: Gateway) -> None:
    began = time.monotonic()
    answer = script.generate_sync("hello", "fast", deadline=5)
    assert answer.mode == "fast"
    assert script.generate_sync("hello", "fast").cached
    with pytest.raises(InvalidRequest):
        script.generate_sync("")
    assert time.monotonic() - began < 5


def test_a_script_may_reload_and_force_too(script: Gateway) -> None:
    script.generate_sync("hello")
    script.force("creative", "open")
    assert script.generate_sync("hello again").mode == "balanced"
    script.reload(config(cache={"ttl_s": 60}))
    assert script.status()["config"]["last_reload"] == "applied"
    assert script.generate_sync("and again").mode == "balanced"


def test_from_toml_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
        Gateway.from_toml(tmp_path / "nowhere.toml")
