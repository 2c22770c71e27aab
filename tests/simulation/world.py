"""The real gateway in a simulated world, under the eyes of every invariant.

    played = play(schedule(7))
    assert not played.broken

The configuration is the one that ships, `config.toml`, with simulated upstreams for targets.
"""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.config import Config
from gateway.errors import GatewayError
from gateway.gateway import Gateway
from gateway.generation import Served
from gateway.providers.base import Call
from gateway.simulator.clock import LeakedTasksError, VirtualLoop, run
from gateway.simulator.service import UpstreamStats
from gateway.simulator.traffic import play as traffic
from tests.simulation import invariants as rules
from tests.simulation import moments
from tests.simulation.outcomes import CANCELLED, Outcome
from tests.simulation.schedule import MODES, Ask, Schedule, tables
from tests.simulation.watch import Broken, Watch

_SHIPPED = tomllib.loads((Path(__file__).parents[2] / "config.toml").read_text())
# Hold, lease and first token, and one more of each for a probe that meets the fault's last moment.
_HEALS_WITHIN_S = 300.0 + 30.0 + 15.0 + 5.0


class Played(msgspec.Struct):
    """What came of one world.

    Attributes:
        outcomes: how each ask ended.
        stats: what each mode's upstream saw.
        broken: the invariants that did not hold.
        digest: of every event and every outcome.
        checks: how many questions the invariants were asked.
    """

    outcomes: list[Outcome]
    stats: dict[str, UpstreamStats]
    broken: list[Broken]
    digest: str
    checks: int


def play(schedule: Schedule, changes: Mapping[str, Mapping[str, Any]] | None = None) -> Played:
    """Play one world to its end.

    Args:
        schedule: the world.
        changes: tables over those that ship, such as `{"circuit": {"early_probe_s": 10}}`.
    """
    built = tables(schedule, _SHIPPED)
    for table, keys in (changes or {}).items():
        built[table] = {**built.get(table, {}), **keys}
    world = World(schedule, Config.from_dict(built))
    try:
        run(world.play, seed=schedule.interleaving)
    except LeakedTasksError as error:
        world.watch.breaks("no task and no timer is left", "B17 P1", str(error))
    watch = world.watch
    return Played(
        world.outcomes,
        {upstream.name.rpartition("-")[2]: upstream.stats for upstream in watch.upstreams},
        list(watch.broken.values()),
        watch.digest,
        watch.checks,
    )


class World:
    """One gateway, and everybody who asks it.

    Args:
        schedule: what happens.
        config: what the gateway is built from.

    Attributes:
        outcomes: how each ask ended, in the order they ended.
        watch: who looks on.
    """

    watch: Watch

    def __init__(self, schedule: Schedule, config: Config) -> None:
        self.schedule = schedule
        self.config = config
        self.outcomes: list[Outcome] = []

    async def play(self) -> None:
        """From the first request to the last, and on until every mode is back."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.now = loop.time
        schedule = self.schedule
        async with Gateway(self.config, clock=loop.time) as self.gateway:
            self.watch = Watch(self.gateway, schedule)
            reloads = [loop.call_at(at, self._reload) for at in schedule.reloads]
            ends = await traffic((ask.at for ask in schedule.asks), self._ask)
            failures = [end for end in ends if isinstance(end, BaseException)]
            if failures:
                raise failures[0]  # not an end that a caller is promised
            for reload in reloads:
                reload.cancel()
            await self._heals()
            await asyncio.sleep(0.001)  # what closes behind a request, or a reload, may finish
            self.watch.check([*rules.ALWAYS, *rules.AT_REST], self.watch)
        timers = [handle for _, _, handle in loop._timers if not handle.cancelled()]
        if timers:
            self.watch.breaks("no task and no timer is left", "B17 P1", f"{timers[0]}")

    def _reload(self) -> None:
        self.gateway.reload(self.config)
        self.watch.look_again()

    # -- one request ----------------------------------------------------------------------------

    async def _ask(self, number: int) -> None:
        ask, began = self.schedule.asks[number], self.now()
        self.watch.asked += 1
        leaves = None
        if ask.patience_s is not None:
            task = asyncio.current_task()
            assert task is not None
            leaves = asyncio.get_running_loop().call_later(ask.patience_s, task.cancel)
        try:
            outcome = await self._answer(number, ask, began)
        except asyncio.CancelledError:
            outcome = Outcome(number, "", self.now() - began, CANCELLED)
        finally:
            if leaves is not None:
                leaves.cancel()
        self.outcomes.append(outcome)
        self.watch.note(outcome)

    async def _answer(self, number: int, ask: Ask, began: float) -> Outcome:
        # One rule for both: heard is what a caller had of a stream before it broke.
        heard: list[str] = []
        options: dict[str, Any] = {
            "deadline": ask.deadline_s,
            "allow_degrade": ask.allow_degrade,
            "generation_id": f"{self.schedule.seed}-{number}",
        }
        finish_reason = None
        try:
            if ask.stream:
                async with self.gateway.stream(ask.prompt, ask.mode, **options) as stream:
                    async for chunk in stream:
                        heard.append(chunk.text)  # noqa: PERF401 - what came before an error counts
                    served = stream.served
            else:
                answer = await self.gateway.generate(ask.prompt, ask.mode, **options)
                heard, served = [answer.text], answer.served
                finish_reason = answer.finish_reason
        except GatewayError as error:
            return self._failed(number, ask, began, error, "".join(heard))
        return self._answered(number, ask, began, served, "".join(heard), finish_reason)

    def _deadline_s(self, ask: Ask) -> float:
        if ask.deadline_s is not None:
            return ask.deadline_s
        return self.watch.pipeline.modes[MODES.index(ask.mode)].deadline_s

    def _answered(
        self,
        number: int,
        ask: Ask,
        began: float,
        served: Served,
        text: str,
        finish_reason: str | None,
    ) -> Outcome:
        watch, cache, now = self.watch, self.config.cache, self.now()
        model = watch.upstreams[MODES.index(served.mode)]
        wanted = MODES.index(ask.mode)
        downshifted = watch.rungs[wanted].downshifted or watch.models[ask.mode].since == now
        moment = moments.Answered(
            now,
            ask,
            self._deadline_s(ask),
            now - began,
            served,
            text,
            "".join(model.tokens(Call([{"role": "user", "content": ask.prompt}], {}))),
            model.model,
            finish_reason,
            downshifted,
            MODES,
            cache.ttl_s,
            cache.degraded_ttl_s,
            cache.stale_if_error_s,
        )
        watch.check(rules.AT_ANSWER, moment)
        return Outcome(number, served.mode, now - began, cached=served.cached)

    def _failed(
        self, number: int, ask: Ask, began: float, error: GatewayError, heard: str
    ) -> Outcome:
        now = self.now()
        moment = moments.Failed(now, ask, self._deadline_s(ask), now - began, error, heard)
        self.watch.check(rules.AT_ERROR, moment)
        return Outcome(number, "", now - began, error.code)

    # -- and in the end -------------------------------------------------------------------------

    async def _heals(self) -> None:
        """Every fault is over: each mode answers for itself within hold, lease and first token."""
        over = max(self.schedule.plan(mode).heals_at for mode in MODES)
        while True:
            now, answered = self.now(), [await self._answers(mode) for mode in MODES]
            if answered == list(MODES):
                return
            if now > over + _HEALS_WITHIN_S:
                self.watch.breaks("what is healed comes back", "B5 P18", f"{answered}")
                return
            await asyncio.sleep(1.0)

    async def _answers(self, mode: str) -> str:
        self.watch.asked += 1
        try:
            number = f"{self.schedule.seed}-healed-{self.watch.asked}"
            return (await self.gateway.generate(number, mode, generation_id=number)).mode
        except GatewayError as error:
            return error.code
