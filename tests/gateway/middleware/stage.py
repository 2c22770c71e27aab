"""A small stage for the layers: providers that play a script, and real rungs over them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from gateway.clock import Clock
from gateway.detectors.latency import LatencyDetector
from gateway.events import Event, EventBus
from gateway.generation import Choice, Chunk, Delta, GenerationRequest
from gateway.middleware.circuit_breaker import CircuitBreaker
from gateway.modes import ModeOptions
from gateway.policies.budget import BudgetOptions, RetryBudget
from gateway.policies.circuit import Circuit
from gateway.policies.downshift import Ladder, Rung, Target
from gateway.policies.limit import Limit
from gateway.policies.phases import CircuitOptions
from gateway.providers.base import Call
from gateway.simulator.clock import VirtualLoop, run

T = TypeVar("T")

Step = float | str | Chunk | list[Chunk] | BaseException
"""What comes next: a pause in seconds, a text, chunks, or an error. After the last: the end."""


def text(words: str) -> Chunk:
    return Chunk([Choice(Delta(content=words))], model="scripted")


def role() -> Chunk:
    return Chunk([Choice(Delta(role="assistant", content=""))], model="scripted")


def finish(reason: str = "stop", **usage: int) -> Chunk:
    return Chunk([Choice(Delta(), finish_reason=reason)], model="scripted", usage=usage or None)


WELL: tuple[Step, ...] = ("fine", finish())


class ScriptedReply:
    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = list(steps)
        self.closed = 0

    async def read(self) -> list[Chunk]:
        while self._steps:
            step = self._steps.pop(0)
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, str):
                return [text(step)]
            if isinstance(step, list):
                return step
            if isinstance(step, Chunk):
                return [step]
            await asyncio.sleep(step)
        return []

    def close(self) -> None:
        self.closed += 1


class ScriptedProvider:
    """Plays one script a call, the last one again and again.

    Attributes:
        calls: what was asked.
        replies: what was opened.
    """

    def __init__(self, *scripts: Sequence[Step], name: str = "scripted", **more: Any) -> None:
        self.name = self.model = name
        self.domain: str = more.pop("domain", name)
        self.identity: str = more.pop("identity", name)
        self.context_window: int | None = more.pop("context_window", None)
        self.streams: bool = more.pop("streams", True)
        self.continues: bool = more.pop("continues", True)
        self.opening: Sequence[Step] = more.pop("opening", ())
        assert not more
        self._scripts = [list(script) for script in scripts] or [list(WELL)]
        self.calls: list[Call] = []
        self.replies: list[ScriptedReply] = []

    async def open(self, call: Call) -> ScriptedReply:
        self.calls.append(call)
        for step in self.opening:
            if isinstance(step, BaseException):
                raise step
            assert isinstance(step, float)
            await asyncio.sleep(step)
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        if script and isinstance(script[0], BaseException):
            raise script[0]  # an error first is an error of the status line
        reply = ScriptedReply(script)
        self.replies.append(reply)
        return reply

    async def aclose(self) -> None:
        """Nothing is held."""


class Stage:
    """A real ladder over scripted providers, and the gearbox on top of it.

    Args:
        modes: name -> its targets, best mode first.
        options: of every circuit.
        mode_options: name -> further options of the mode.
    """

    def __init__(
        self,
        modes: Mapping[str, ScriptedProvider | list[ScriptedProvider]],
        *,
        options: CircuitOptions | None = None,
        mode_options: dict[str, dict[str, Any]] | None = None,
        clock: Clock | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.clock = clock or loop.time
        self.bus = EventBus()
        self.events: list[Event] = []
        self.bus.listen(self.events.append)
        self.latency = LatencyDetector()
        budgets: dict[str, RetryBudget] = {}
        rungs = []
        for index, (name, given) in enumerate(modes.items()):
            mode = ModeOptions(name=name, **(mode_options or {}).get(name, {}))
            limit = Limit(mode.max_in_flight, self.clock)
            circuit = _circuit(name, options or CircuitOptions(), limit, self.clock)
            targets = [
                Target(p, budgets.setdefault(p.domain, RetryBudget(BudgetOptions())))
                for p in (given if isinstance(given, list) else [given])
            ]
            identity = name.encode()
            rungs.append(
                Rung(index, mode, circuit, limit, targets, self.latency, self.clock, identity)
            )
        self.ladder = Ladder(rungs, self.clock)
        self.gearbox = CircuitBreaker(self.ladder, self.clock, self.bus)

    def rung(self, mode: str) -> Rung:
        return self.ladder.rungs[self.ladder.index(mode)]

    def request(self, mode: str = "creative", **more: Any) -> GenerationRequest:
        more = {"id": "gen-1", "deadline": self.clock() + 180.0, "started": self.clock(), **more}
        return GenerationRequest(mode=mode, messages=[{"role": "user", "content": "hello"}], **more)

    def at_rest(self) -> None:
        for rung in self.ladder:
            assert rung.circuit.in_flight == rung.limit.in_flight == 0
            assert all(target.in_flight == 0 for target in rung.targets)


def _circuit(name: str, options: CircuitOptions, limit: Limit, clock: Clock) -> Circuit:
    return Circuit(name, options, clock, limit=lambda: limit.current)


def play(scenario: Callable[[], Awaitable[T]], **options: Any) -> T:
    """Run an async scenario on virtual time; tasks left behind are an error."""

    async def main() -> T:
        return await scenario()

    return run(main, **options)


def loop() -> VirtualLoop:
    running = asyncio.get_running_loop()
    assert isinstance(running, VirtualLoop)
    return running


def timers() -> int:
    """How many timers are set and not cancelled."""
    return sum(not entry[2].cancelled() for entry in loop()._timers)
