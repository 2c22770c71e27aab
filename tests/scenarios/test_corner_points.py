"""Corners where the rules of several layers meet, in the whole gateway."""

from __future__ import annotations

import asyncio

import pytest
from world import World, play

from gateway.config import Config
from gateway.errors import GatewayError
from gateway.gateway import Gateway
from gateway.simulator.clock import run
from gateway.simulator.faults import Outage
from gateway.stores.base import Entry

ASK = "what everyone asks"


@pytest.mark.parametrize("stored_at", [1.0, 150.0, 299.0])
def test_18_a_fresh_stand_in_does_not_keep_a_mode_from_its_probe(stored_at: float) -> None:
    async def scenario(world: World) -> None:
        opened = await world.open_circuit()
        await world.until(opened + stored_at)
        await world.ask(prompt=ASK)
        await world.until(opened + 299.5)
        assert (await world.ask(prompt=ASK)).cached
        before = world.calls("creative")
        await world.until(opened + 300.0)
        answer = await world.ask(prompt=ASK)
        assert (answer.mode, answer.degraded, answer.cached) == ("creative", False, False)
        assert world.calls("creative") == before + 1

    play(scenario)


def test_b20_while_the_probe_is_under_way_and_after_it_failed_stand_ins_serve_again() -> None:
    async def scenario(world: World) -> None:
        opened = await world.open_circuit()
        await world.until(opened + 299.0)
        await world.ask(prompt=ASK)
        world.plan("creative", Outage(0.0, opened + 1000.0, "silent"))
        await world.until(opened + 300.0)
        probing = asyncio.ensure_future(world.ask())
        await asyncio.sleep(1.0)
        assert (await world.ask(prompt=ASK)).cached
        assert (await probing).mode == "balanced"
        assert (await world.ask(prompt=ASK)).cached

    play(scenario)


def test_a_request_that_was_looking_into_the_store_when_the_gateway_closed_hears_so() -> None:
    target = {"kind": "vllm", "model": "m", "base_url": "http://127.0.0.1:9/v1"}

    async def main() -> None:
        gateway = Gateway(Config.from_dict({"modes": {"solo": {"targets": [target]}}}))
        store = gateway._in_force.pipeline.store
        look = store.get

        async def slowly(key: bytes) -> Entry | None:
            await asyncio.sleep(0.05)
            return await look(key)

        store.get = slowly  # type: ignore[method-assign]
        asking = asyncio.ensure_future(gateway.generate(ASK))
        await asyncio.sleep(0.01)
        await gateway.aclose()
        with pytest.raises(GatewayError, match="closed"):
            await asking

    run(main)


def test_who_shares_a_flight_shares_no_word_of_who_served() -> None:
    async def scenario(world: World) -> None:
        first, second = await asyncio.gather(world.ask(prompt=ASK), world.ask(prompt=ASK))
        first.served.mode = "mine"
        first.extra["mine"] = 1
        assert second.mode == "creative"
        assert "mine" not in second.extra

    play(scenario)
