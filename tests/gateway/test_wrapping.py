"""A client that already exists, put under the ladder."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway import Gateway
from gateway.errors import AllModesFailed, ConfigError
from gateway.providers.qwen import profile
from gateway.wrapping import wrapped_config


async def qwen(prompt: str) -> str:
    return f"async {prompt}"


def qwen_sync(prompt: str) -> str:
    return f"sync {prompt}"


def test_one_client_serves_three_modes_each_in_its_own_way() -> None:
    config = wrapped_config(qwen, "", {})
    assert [mode.name for mode in config.modes] == ["creative", "balanced", "fast"]
    for mode in config.modes:
        natural = profile(mode.name) or {}
        assert mode.sampling == natural.get("sampling", {})
        assert mode.targets[0].options["client"] is qwen


def test_a_dict_of_clients_is_the_ladder_best_first() -> None:
    config = wrapped_config({"deep": qwen, "quick": qwen_sync}, "", {"cache": {"ttl_s": 60.0}})
    assert [mode.name for mode in config.modes] == ["deep", "quick"]
    assert config.cache.ttl_s == 60.0


def test_models_may_be_named_for_all_or_for_each() -> None:
    assert {m.targets[0].model for m in wrapped_config(qwen, "qwen-max", {}).modes} == {"qwen-max"}
    each = wrapped_config(qwen, {"creative": "qwen-max", "fast": "qwen-turbo"}, {})
    assert [(m.name, m.targets[0].model) for m in each.modes] == [
        ("creative", "qwen-max"),
        ("fast", "qwen-turbo"),
    ]


@pytest.mark.parametrize(
    ("client", "model", "tables", "said"),
    [
        ({}, "", {}, "no client"),
        (qwen, "", {"modes": {}}, "leave them out"),
        ({"fast": qwen}, {"creative": "x"}, {}, "no client for creative"),
        (qwen, "", {"cache": {"ttl": 5}}, "ttl"),
    ],
)
def test_what_cannot_be_wrapped(client: Any, model: Any, tables: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        wrapped_config(client, model, tables)


def test_something_that_cannot_be_called_is_named() -> None:
    with pytest.raises(ConfigError):
        Gateway.wrap(42)


@pytest.mark.parametrize(("client", "said"), [(qwen, "async hello"), (qwen_sync, "sync hello")])
async def test_a_wrapped_client_answers(client: Any, said: str) -> None:
    async with Gateway.wrap(client) as gateway:
        answer = await gateway.generate("hello", mode="fast")
        assert (answer.text, answer.mode) == (said, "fast")
        async with gateway.stream("hello", mode="balanced") as stream:
            assert "".join([chunk.text async for chunk in stream]) == said


async def test_a_failing_client_is_walked_past_and_its_circuit_opens() -> None:
    calls = 0

    async def broken(_: str) -> str:
        nonlocal calls
        calls += 1
        raise ConnectionError("refused")

    async with Gateway.wrap({"creative": broken, "fast": qwen}) as gateway:
        for number in range(10):
            answer = await gateway.generate(f"hello {number}", mode="creative")
            assert (answer.mode, answer.degraded) == ("fast", True)
        assert gateway.status()["modes"]["creative"]["phase"] == "open"
        assert calls <= 5


async def test_all_clients_failing_is_a_typed_error() -> None:
    async def broken(_: str) -> str:
        raise ConnectionError("refused")

    async with Gateway.wrap(broken) as gateway:
        with pytest.raises(AllModesFailed) as failed:
            await asyncio.wait_for(gateway.generate("hello"), 10.0)
        assert set(failed.value.causes) == {"creative", "balanced", "fast"}
