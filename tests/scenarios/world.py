"""A world to try the real pipeline in: three simulated upstreams, a gateway, and watchful eyes.

Everything runs on virtual time. `World.check` holds whenever nobody is between two steps, and
`World.check_at_rest` once every request has ended: nothing may be left anywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from gateway.config import Config
from gateway.errors import GatewayError
from gateway.events import AttemptFinished, CircuitChanged, Event, RequestFinished
from gateway.gateway import Gateway
from gateway.generation import Generation
from gateway.pipeline import Pipeline
from gateway.policies.circuit import Circuit
from gateway.policies.downshift import Rung
from gateway.policies.phases import Phase
from gateway.policies.ttl import CacheOptions
from gateway.providers.base import Call
from gateway.simulator.clock import VirtualLoop, run
from gateway.simulator.faults import AnyFault, FaultPlan, Outage
from gateway.simulator.upstream import SimulatedProvider, SimulatedReply

T = TypeVar("T")

MODES = ("creative", "balanced", "fast")
FOREVER = float("inf")

# Quick to serve and the same every time: 0.1 s to the first token, then 3 more in 0.06 s.
SERVICE: Mapping[str, Any] = {
    "first_token_s": 0.1,
    "spread": 0.0,
    "tokens": 4,
    "tokens_per_s": 50.0,
    "slots": 10_000,
}


def ladder(
    *,
    modes: Mapping[str, Mapping[str, Any]] | None = None,
    service: Mapping[str, Any] | None = None,
    shared_domain: bool = False,
    **tables: Mapping[str, Any],
) -> Config:
    """A configuration of simulated modes.

    Args:
        modes: names, best first, each with the options of its table; `service` among them says
            how its upstream serves, `target` the rest of its target. None: the three usual ones.
        service: how every upstream serves, over `SERVICE`.
        shared_domain: all targets fail together, as far as the gateway knows.
        tables: the other tables, such as `circuit`.
    """
    built = {}
    for number, (name, given) in enumerate((modes or {mode: {} for mode in MODES}).items()):
        table = dict(given)
        target = {
            "kind": "simulated",
            "model": name,
            "base_url": "shared" if shared_domain else "",
            "options": {**SERVICE, "seed": number, **(service or {}), **table.pop("service", {})},
            **table.pop("target", {}),
        }
        built[name] = {**table, "targets": [target]}
    return Config.from_dict({"modes": built, **tables})


class World:
    """A gateway on virtual time and everything a test may want to see of it.

    Attributes:
        gateway: the real one.
        events: everything it told, in order.
        wrong: what must never happen and did; `check` raises if there is any.
    """

    def __init__(self, config: Config) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.events: list[Event] = []
        self.wrong: list[str] = []
        self.gateway = Gateway(config, clock=loop.time, listeners=[self.events.append])
        self._asked = 0
        self._opened: dict[tuple[str, int], float] = {}
        self._watched: set[int] = set()
        self.watch_upstreams()

    # -- what there is --------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.loop.time()

    @property
    def pipeline(self) -> Pipeline:
        return self.gateway._in_force.pipeline

    def config_of_cache(self) -> CacheOptions:
        return self.pipeline.config.cache

    def rung(self, mode: str) -> Rung:
        return self.pipeline.ladder.rungs[self.pipeline.modes.index(mode)]

    def circuit(self, mode: str) -> Circuit:
        return self.rung(mode).circuit

    def phase(self, mode: str) -> Phase:
        return self.circuit(mode).phase()

    def upstream(self, mode: str) -> SimulatedProvider:
        provider = self.rung(mode).targets[0].provider
        assert isinstance(provider, SimulatedProvider)
        return provider

    @property
    def upstreams(self) -> list[SimulatedProvider]:
        providers = {id(p): p for _, p in self.pipeline.providers}.values()
        return [p for p in providers if isinstance(p, SimulatedProvider)]

    def plan(self, mode: str, *faults: AnyFault) -> None:
        """What goes wrong with a mode's upstream and when; times as the loop's clock has them."""
        self.upstream(mode).plan = FaultPlan(faults)

    def calls(self, mode: str) -> int:
        """How many calls a mode's upstream has seen."""
        return self.upstream(mode).stats.started

    def transitions(self, mode: str = "creative") -> list[tuple[str, str]]:
        changes = [e for e in self.events if isinstance(e, CircuitChanged) and e.mode == mode]
        return [(change.old, change.new) for change in changes]

    def attempts(self, mode: str = "creative") -> list[AttemptFinished]:
        return [e for e in self.events if isinstance(e, AttemptFinished) and e.mode == mode]

    def finished(self) -> list[RequestFinished]:
        return [e for e in self.events if isinstance(e, RequestFinished)]

    # -- what one does with it ------------------------------------------------------------------

    def prompt(self) -> str:
        """A question nobody asked before."""
        self._asked += 1
        return f"question {self._asked}"

    async def ask(
        self, mode: str = "creative", prompt: str | None = None, **options: Any
    ) -> Generation:
        """Ask and check what every answer must be: from this mode or a lower one, and whole."""
        prompt = prompt or self.prompt()
        answer = await self.gateway.generate(prompt, mode, **options)
        self.check_answer(answer, mode, prompt)
        return answer

    async def outcome(
        self, mode: str = "creative", prompt: str | None = None, **options: Any
    ) -> Generation | GatewayError:
        """`ask`, but a typed error is an outcome too."""
        try:
            return await self.ask(mode, prompt, **options)
        except GatewayError as error:
            return error

    async def many(
        self, count: int, mode: str = "creative", **options: Any
    ) -> list[Generation | GatewayError]:
        """`count` different questions at the same moment."""
        asked = (self.outcome(mode, **options) for _ in range(count))
        return await asyncio.gather(*asked)

    def said_by(self, mode: str, prompt: str) -> str:
        """What the mode's model answers to a prompt."""
        call = Call([{"role": "user", "content": prompt}], {})
        return "".join(self.upstream(mode).tokens(call))

    async def until(self, at: float) -> None:
        """Sleep until the clock reads exactly `at`."""
        over = self.loop.create_future()
        self.loop.call_at(at, over.set_result, None)
        await over

    async def open_circuit(self, mode: str = "creative") -> float:
        """Let three calls to a mode fail; return when its circuit opened. Faults end after it."""
        before = self.upstream(mode).plan
        self.upstream(mode).plan = FaultPlan((Outage(0.0, FOREVER, "error500"),))
        await self.many(3, mode)
        self.upstream(mode).plan = before
        opened = self.circuit(mode).opened
        assert opened is not None
        return opened

    # -- what must hold -------------------------------------------------------------------------

    def check_answer(self, answer: Generation, mode: str, prompt: str) -> None:
        modes = self.pipeline.modes
        assert answer.requested_mode == mode
        assert modes.index(answer.mode) >= modes.index(mode), "served above what was asked"
        assert answer.degraded == (answer.mode != mode)
        assert (answer.reason is not None) == (answer.degraded or answer.served.stale)
        assert answer.text == self.said_by(answer.mode, prompt)

    def check(self) -> None:
        """Holds at any moment."""
        assert not self.wrong, self.wrong[:5]
        for rung in self.pipeline.ladder:
            circuit, limit = rung.circuit, rung.limit
            # A probe that streams well is settled before it gives its slot back.
            assert 0 <= circuit.in_flight <= limit.in_flight, rung.name
            assert min(limit.native, limit.downshifted, limit.native_waiting) >= 0
            assert all(target.in_flight >= 0 for target in rung.targets)
            if circuit.opened is not None and not circuit._machine.standing.lease_over(self.now):
                epoch = (rung.name, circuit.epoch)
                assert self._opened.setdefault(epoch, circuit.opened) == circuit.opened
        for upstream in self.upstreams:
            stats = upstream.stats
            ended = stats.completed + stats.cancelled + stats.failed
            assert stats.started == ended + stats.in_flight

    def check_at_rest(self) -> None:
        """Holds when every request has ended: nothing is left anywhere."""
        self.check()
        pipeline = self.pipeline
        for rung in pipeline.ladder:
            assert rung.circuit.in_flight == rung.limit.in_flight == 0, rung.name
            assert rung.limit.native_waiting == 0
            assert not rung.circuit._waiting
            assert all(target.in_flight == 0 for target in rung.targets)
        assert pipeline.in_flight == 0
        assert pipeline.admission.queued == 0
        assert not pipeline.cache._flights
        assert not any(pipeline.gearbox._watch._waiting.values())
        for upstream in self.upstreams:
            assert upstream.stats.in_flight == 0
            assert upstream.slots._busy == upstream.slots.queued == 0
        assert self.gateway.status()["listener_faults"] == 0
        alone = asyncio.all_tasks(self.loop) <= {asyncio.current_task()}
        assert alone, asyncio.all_tasks(self.loop)

    def watch_upstreams(self) -> None:
        """Watch every call as it reaches an upstream; again after a reload."""
        for rung in self.pipeline.ladder:
            for target in rung.targets:
                provider = target.provider
                assert isinstance(provider, SimulatedProvider)
                if id(provider) not in self._watched:
                    self._watched.add(id(provider))
                    provider._origin = 0.0
                    self._watch(rung.name, provider)

    def _watch(self, mode: str, provider: SimulatedProvider) -> None:
        reach = provider.open

        async def watched(call: Call) -> SimulatedReply:
            circuit = self.circuit(mode)
            phase = circuit.phase()
            if phase in (Phase.OPEN, Phase.PROBE_DUE, Phase.FORCED_OPEN):
                self.wrong.append(f"{self.now:.3f} s: a call to {mode}, which is {phase}")
            # Let in before this probe and not done yet, a probe that outstayed its lease included.
            stragglers = self.rung(mode).limit.in_flight - 1
            if phase is Phase.PROBING and provider.stats.in_flight > stragglers:
                self.wrong.append(f"{self.now:.3f} s: a second live probe in {mode}")
            return await reach(call)

        provider.open = watched  # type: ignore[method-assign]


def play(
    scenario: Callable[[World], Awaitable[T]],
    config: Config | None = None,
    *,
    seed: int | None = None,
    at_rest: bool = True,
) -> T:
    """Run a scenario in a world of its own; at the end nothing may be left in it.

    Args:
        scenario: gets the world.
        config: what the gateway is built from; None is the usual ladder.
        seed: shuffles what is ready at the same time, see `VirtualLoop`.
        at_rest: False does not look whether anything is left.
    """

    async def main() -> T:
        world = World(config or ladder())
        async with world.gateway:
            result = await scenario(world)
            await asyncio.sleep(0.001)  # what closes behind a request, or a reload, may finish
            if at_rest:
                world.check_at_rest()
        return result

    return run(main, seed=seed)
