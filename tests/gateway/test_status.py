"""How things stand, as plain data: looking moves nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway import Gateway
from gateway.config import Config
from gateway.simulator.clock import run
from gateway.simulator.faults import FaultPlan, Outage


def test_status_tells_the_time_without_traffic() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        modes = {
            mode: {"max_in_flight": 7, "targets": [{"kind": "simulated", "model": mode}]}
            for mode in ("creative", "fast")
        }
        async with Gateway(Config.from_dict({"modes": modes}), clock=loop.time) as gateway:
            rung = gateway._in_force.pipeline.ladder.rungs[0]
            rung.targets[0].provider.plan = FaultPlan((Outage(0.0, 1e9),))  # type: ignore[attr-defined]
            for _ in range(3):
                await gateway.generate("hello", cache=False)

            def creative() -> dict[str, Any]:
                seen: dict[str, Any] = gateway.status()["modes"]["creative"]
                return seen

            opened = loop.time()
            now = creative()
            assert (now["phase"], now["downshifted"], now["epoch"]) == ("open", True, 1)
            assert (now["ttl_s"], now["limit"], now["cap"]) == (300.0, 7, 7)
            assert 299.0 < now["until_s"] <= 300.0
            assert now["targets"][0]["budget_tokens"] < 10.0
            await asyncio.sleep(200.0)
            assert creative()["until_s"] < 100.0
            await asyncio.sleep(200.0)
            assert creative()["phase"] == "probe_due"
            assert [creative() for _ in range(3)] == [creative()] * 3
            assert loop.time() == opened + 400.0

            asking = asyncio.ensure_future(gateway.generate("slow", "fast"))
            await asyncio.sleep(0.01)
            status = gateway.status()
            assert status["in_flight"] == 1
            assert status["modes"]["fast"]["in_flight"] == {"native": 1, "downshifted": 0}
            assert status["modes"]["fast"]["targets"][0]["in_flight"] == 1
            await asking
            assert gateway.status()["in_flight"] == 0

    run(main)


def test_a_resting_target_shows_for_how_long() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        target = {"kind": "simulated"}
        config = Config.from_dict({"modes": {"solo": {"targets": [target]}}})
        async with Gateway(config, clock=loop.time) as gateway:
            rung = gateway._in_force.pipeline.ladder.rungs[0]
            rung.targets[0].resting_until = 30.0
            await asyncio.sleep(10.0)
            solo = gateway.status()["modes"]["solo"]
            assert solo["targets"][0]["resting_s"] == 20.0
            assert (solo["downshifted"], solo["phase"], solo["until_s"]) == (True, "closed", 20.0)
            assert solo["ttl_s"] == 300.0

    run(main)
