"""A configuration swapped under load: nothing lost or forgotten, and a worse one taken back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from world import FOREVER, MODES, World, ladder, play

from gateway.config import Config
from gateway.errors import ConfigError, GatewayError
from gateway.events import ConfigReloaded
from gateway.generation import Generation
from gateway.policies.phases import Phase
from gateway.simulator.faults import Outage, Stall, Throttled
from gateway.simulator.traffic import play as traffic
from gateway.simulator.traffic import steady


def reloads(world: World) -> list[str]:
    return [e.result for e in world.events if isinstance(e, ConfigReloaded)]


def broken() -> Config:
    """Its last target cannot be built; everything before it differs from the usual ladder."""
    config = ladder(
        modes={
            "creative": {"max_in_flight": 3, "temperature": 0.1},
            "balanced": {},
            "fast": {"target": {"options": {"slots": 0}}},
        },
        circuit={"failure_threshold": 1, "break_duration_s": 7.0},
        budget={"tokens": 2.0},
    )
    assert config.modes[2].targets[0].options == {"slots": 0}
    return config


def test_requests_under_way_keep_the_old_one_and_nobody_is_lost() -> None:
    async def scenario(world: World) -> None:
        async def reload() -> None:
            for number in range(12):
                await asyncio.sleep(0.9)
                world.gateway.reload(ladder(modes={m: {"temperature": number / 20} for m in MODES}))
                world.watch_upstreams()

        reloading = asyncio.ensure_future(reload())
        ends = await traffic(steady(30, end=12), lambda _: world.outcome())
        await reloading
        assert all(isinstance(end, Generation) and end.mode == "creative" for end in ends)
        assert reloads(world) == ["applied"] * 12

    play(scenario)


def test_circuits_limits_budgets_rests_and_answers_outlive_it() -> None:
    async def scenario(world: World) -> None:
        await world.ask(prompt="kept")
        opened = await world.open_circuit()
        world.plan("balanced", Throttled(0.0, FOREVER, 40.0))
        await world.ask()
        circuit, epoch = world.circuit("creative"), world.circuit("creative").epoch
        tokens = world.rung("creative").targets[0].budget.tokens
        resting = world.rung("balanced").targets[0].resting_until
        assert resting > world.now + 30

        world.gateway.reload(ladder(circuit={"break_duration_s": 100.0}))
        world.watch_upstreams()
        assert world.circuit("creative") is circuit
        assert (circuit.epoch, circuit.opened) == (epoch, opened)
        assert world.gateway.status()["modes"]["creative"]["until_s"] == pytest.approx(
            opened + 100.0 - world.now
        )
        assert world.rung("creative").targets[0].budget.tokens == tokens
        assert world.rung("balanced").targets[0].resting_until == resting
        assert (await world.ask()).mode == "fast"
        assert (await world.ask(prompt="kept")).cached

    play(scenario)


def test_a_new_budget_is_in_force_at_once() -> None:
    async def scenario(world: World) -> None:
        world.gateway.reload(ladder(budget={"tokens": 0.0}))
        world.watch_upstreams()
        world.plan("creative", Outage(0.0, FOREVER))
        assert (await world.ask()).served.attempts == 2  # no second try without a purse

    play(scenario)


def test_modes_may_come_and_go() -> None:
    async def scenario(world: World) -> None:
        world.gateway.reload(ladder(modes={"poetic": {}, "balanced": {}}))
        world.watch_upstreams()
        assert world.gateway.modes == ["poetic", "balanced"]
        assert (await world.ask("poetic")).mode == "poetic"
        with pytest.raises(GatewayError, match="unknown mode"):
            await world.ask("creative")
        world.gateway.reload(ladder())
        world.watch_upstreams()
        assert (await world.ask()).mode == "creative"

    play(scenario)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_configuration_that_cannot_be_built_changes_nothing(busy: bool) -> None:
    async def scenario(world: World) -> None:
        task = asyncio.ensure_future(world.outcome()) if busy else None
        await asyncio.sleep(0.01)
        pipeline, circuit = world.pipeline, world.circuit("creative")
        before = (circuit.options, world.rung("creative").limit.current, pipeline.config)
        with pytest.raises(ConfigError) as refused:
            world.gateway.reload(broken())
        assert refused.value.table == "modes.fast.targets[0]"
        assert world.pipeline is pipeline
        after = (circuit.options, world.rung("creative").limit.current, pipeline.config)
        assert after == before
        budget = world.rung("creative").targets[0].budget
        assert budget.tokens == 10.0
        assert reloads(world) == ["refused"]
        assert world.gateway.status()["config"]["last_reload"] == "none"
        assert (await world.ask()).mode == "creative"
        if task is not None:
            assert isinstance(await task, Generation)

    play(scenario)


def test_a_broken_file_is_reported_and_the_old_one_kept(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    good = '[modes.solo]\nmax_in_flight = 4\n[[modes.solo.targets]]\nkind = "simulated"\n'
    file.write_text(good, encoding="utf-8")

    async def scenario(world: World) -> None:
        for wrong, said in (
            ("[modes", "not valid TOML"),
            (good + "[cache]\nttl = 5\n", "unknown key"),
            (good.replace("simulated", "simulatde"), "did you mean 'simulated'"),
            (good.replace("4", "'four'"), "whole number"),
            (good + "[server]\nhost = '${NO_SUCH_VARIABLE_HERE}'\n", "NO_SUCH_VARIABLE_HERE"),
        ):
            file.write_text(wrong, encoding="utf-8")
            with pytest.raises(ConfigError, match=said):
                world.gateway.reload()
        file.unlink()
        with pytest.raises(ConfigError, match="no such file"):
            world.gateway.reload()
        assert reloads(world) == ["refused"] * 6
        assert all(e.detail for e in world.events if isinstance(e, ConfigReloaded))
        assert world.gateway.modes == ["solo"]
        file.write_text(good.replace("4", "5"), encoding="utf-8")
        world.gateway.reload()
        assert world.rung("solo").limit.current == 5
        assert world.gateway.status()["config"] == {
            "source": str(file),
            "last_reload": "applied",
            "on_trial": True,
        }

    play(scenario, Config.from_toml(file))


def test_a_gateway_built_in_code_says_what_to_reload() -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(ConfigError, match="not built from a file"):
            world.gateway.reload()

    play(scenario)


# -- the trial -------------------------------------------------------------------------------------


def worse() -> Config:
    """Valid, and every answer of creative now takes longer than it may."""
    slow = {"service": {"first_token_s": 5.0}, "first_token_s": 1.0}
    return ladder(modes={"creative": slow, "balanced": {}, "fast": {}})


def test_a_configuration_that_makes_things_worse_is_taken_back() -> None:
    async def scenario(world: World) -> None:
        await traffic(steady(5, end=20), lambda _: world.outcome())
        world.gateway.reload(worse())
        world.watch_upstreams()
        ends = await traffic(steady(5, start=20, end=60), lambda _: world.outcome())
        assert all(isinstance(end, Generation) for end in ends)
        assert reloads(world) == ["applied", "rolled_back"]
        assert world.gateway.status()["config"]["last_reload"] == "rolled_back"
        assert world.pipeline.config.modes[0].first_token_s == 12.0
        world.watch_upstreams()
        # Its circuit was opened by the bad one, and heals as any other.
        world.gateway.force("creative", "closed")
        assert (await world.ask()).mode == "creative"

    play(scenario)


def test_a_configuration_that_does_no_harm_is_kept() -> None:
    async def scenario(world: World) -> None:
        await traffic(steady(5, end=20), lambda _: world.outcome())
        world.gateway.reload(ladder(cache={"ttl_s": 60.0}))
        world.watch_upstreams()
        assert world.gateway.status()["config"]["on_trial"]
        await traffic(steady(5, start=20, end=150), lambda _: world.outcome())
        assert reloads(world) == ["applied"]
        assert not world.gateway.status()["config"]["on_trial"]

    play(scenario)


def test_an_outage_that_was_there_before_is_not_blamed_on_the_new_one() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Outage(0.0, FOREVER))
        await traffic(steady(5, end=20), lambda _: world.outcome())
        world.gateway.reload(ladder(cache={"ttl_s": 60.0}))
        world.watch_upstreams()
        await traffic(steady(5, start=20, end=150), lambda _: world.outcome())
        assert reloads(world) == ["applied"]

    play(scenario)


def test_requests_that_began_before_say_nothing_about_the_new_one() -> None:
    """Fifty calls hang when the new configuration comes, and all of them fail after it came."""

    async def scenario(world: World) -> None:
        await traffic(steady(5, end=20), lambda _: world.outcome())
        world.plan("creative", Outage(0.0, FOREVER, "silent"))
        hanging = asyncio.ensure_future(world.many(50))
        await asyncio.sleep(1.0)
        world.plan("creative")
        world.gateway.reload(ladder(cache={"ttl_s": 60.0}))
        world.watch_upstreams()
        await hanging
        assert reloads(world) == ["applied"]

    play(scenario)


def test_looking_at_the_status_moves_nothing() -> None:
    async def scenario(world: World) -> None:
        await traffic(steady(5, end=20), lambda _: world.outcome())
        world.gateway.reload(worse())
        world.watch_upstreams()
        await world.ask("fast")
        for _ in range(6):
            await world.ask()
        await asyncio.sleep(200.0)  # the trial is over, and six of seven were worse
        pipeline = world.pipeline
        for _ in range(3):
            assert not world.gateway.status()["config"]["on_trial"]
        assert world.pipeline is pipeline
        assert reloads(world) == ["applied"]
        await world.outcome("fast")  # the next request brings the verdict
        assert reloads(world) == ["applied", "rolled_back"]

    play(scenario)


def test_a_rollback_that_cannot_be_built_hurts_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await traffic(steady(5, end=20), lambda _: world.outcome())
        world.gateway.reload(worse())
        world.watch_upstreams()

        def fail(*_: Any) -> Any:
            raise ConfigError("the key file is gone")

        monkeypatch.setattr(world.gateway._in_force, "_build", fail)
        ends = await traffic(steady(5, start=20, end=40), lambda _: world.outcome())
        assert all(isinstance(end, Generation) for end in ends)
        assert reloads(world) == ["applied", "not_rolled_back"]

    play(scenario)


# -- closing what is no longer used ----------------------------------------------------------------


class Closes:
    """Notes when a provider is closed, and whether it was still in use."""

    def __init__(self, world: World) -> None:
        self.closed: list[str] = []
        self.too_early: list[str] = []
        self._world = world
        self.watch()

    def watch(self) -> None:
        for provider in self._world.upstreams:

            async def aclose(provider: Any = provider) -> None:
                self.closed.append(provider.name)
                if provider.stats.in_flight:
                    self.too_early.append(provider.name)

            provider.aclose = aclose  # type: ignore[method-assign]


def test_providers_nobody_uses_any_more_are_closed_when_the_last_request_ends() -> None:
    async def scenario(world: World) -> None:
        closes = Closes(world)
        slow = asyncio.ensure_future(world.gateway.generate("slow"))
        await asyncio.sleep(0.01)
        world.gateway.reload(ladder(modes={"creative": {}, "balanced": {"target": OTHER}}))
        await asyncio.sleep(0.01)
        assert closes.closed == []  # the old pipeline still answers
        await slow
        await asyncio.sleep(0.01)
        assert sorted(closes.closed) == ["simulated/balanced", "simulated/fast"]

    play(scenario, at_rest=False)


OTHER = {"model": "another"}


def test_two_reloads_during_one_answer_do_not_close_what_answers() -> None:
    async def scenario(world: World) -> None:
        closes = Closes(world)
        slow = asyncio.ensure_future(world.gateway.generate("slow"))
        await asyncio.sleep(0.01)
        world.gateway.reload(ladder(cache={"ttl_s": 60.0}))  # takes the provider over
        other = ladder(modes={"creative": {"target": OTHER}})
        world.gateway.reload(other)  # drops it, and nobody uses the one in between
        await asyncio.sleep(0.05)
        answer = await slow
        assert answer.text
        await asyncio.sleep(0.01)
        assert "simulated/creative" in closes.closed
        assert closes.too_early == []

    play(scenario, at_rest=False)


def test_closing_the_gateway_ends_requests_of_an_earlier_configuration_too() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Stall(0.0, FOREVER, after_chunks=0))
        old = world.upstreams
        hanging = [asyncio.ensure_future(world.outcome()) for _ in range(5)]
        await asyncio.sleep(0.1)
        world.gateway.reload(ladder(modes={m: {"target": {"model": "new"}} for m in MODES}))
        await asyncio.sleep(0.1)
        await world.gateway.aclose()
        ends = await asyncio.gather(*hanging)
        assert all(isinstance(end, GatewayError) for end in ends)
        assert world.now == pytest.approx(0.2)
        assert sum(upstream.stats.in_flight for upstream in old) == 0

    play(scenario)


def test_a_stream_under_way_survives_a_reload() -> None:
    async def scenario(world: World) -> None:
        said = world.said_by("creative", "hello")
        async with world.gateway.stream("hello") as answer:
            texts = []
            async for chunk in answer:
                texts.append(chunk.text)
                if len(texts) == 2:
                    world.gateway.reload(ladder(modes={"fast": {}}))
        assert "".join(texts) == said
        assert world.phase("fast") is Phase.CLOSED

    play(scenario)


def test_a_reload_from_outside_a_loop_is_possible() -> None:
    async def scenario(world: World) -> None:
        gateway = world.gateway
        await asyncio.sleep(0.0)
        asyncio._set_running_loop(None)
        try:
            gateway.reload(ladder(modes={"creative": {"target": OTHER}, "fast": {}}))
        finally:
            asyncio._set_running_loop(world.loop)
        assert gateway.modes == ["creative", "fast"]

    play(scenario)
