"""Play a scenario: the real gateway against simulated upstreams, on virtual time.

    report = run_scenario("outage", seed=1)
    assert report.requests.failed == 0

Twenty minutes cost about a second; the same seed gives the same report.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from itertools import chain

import msgspec

from gateway.errors import GatewayError, InvalidRequest
from gateway.events import AttemptFinished, CircuitChanged, Event, RequestFinished, TargetResting
from gateway.gateway import Gateway
from gateway.generation import Generation
from gateway.report import Look, Recording, Report, Standing, measure
from gateway.scenarios import Scenario, scenario
from gateway.simulator import clock, traffic

_LOOK_EVERY_S = 1.0
_MAX_MINUTES = 24 * 60
_MAX_REQUESTS = 2_000_000


def run_scenario(
    played: str | Scenario,
    seed: int = 0,
    *,
    minutes: float | None = None,
    requests_per_s: float | None = None,
) -> Report:
    """Play one scenario to its end.

    Args:
        played: a name of `SCENARIOS`, or a scenario of your own.
        seed: decides traffic, chance upstream and the interleaving of tasks.
        minutes: how long to play; None is the scenario's own, usually 20.
        requests_per_s: how many ask; None is the scenario's own.

    Raises:
        InvalidRequest: no such scenario, or a number out of range.
        ConfigError: the scenario's own tables are wrong.
    """
    played = scenario(played) if isinstance(played, str) else played
    played = msgspec.structs.replace(
        played,
        minutes=played.minutes if minutes is None else minutes,
        requests_per_s=played.requests_per_s if requests_per_s is None else requests_per_s,
    )
    _check(played)
    recording = clock.run(lambda: _play(played, seed), seed=seed)
    return measure(played, seed, recording)


def _check(played: Scenario) -> None:
    if not 0 < played.minutes <= _MAX_MINUTES:
        raise InvalidRequest(
            f"minutes must be above 0 and at most {_MAX_MINUTES}, got {played.minutes:g}",
            param="minutes",
        )
    if not 0 < played.requests_per_s * played.minutes * 60 <= _MAX_REQUESTS:
        raise InvalidRequest(
            f"requests per second must be above 0, and make at most {_MAX_REQUESTS:,} requests in "
            f"{played.minutes:g} minutes; got {played.requests_per_s:g}",
            param="rps",
        )


async def _play(played: Scenario, seed: int) -> Recording:
    loop = asyncio.get_running_loop()
    rng = random.Random(seed)  # noqa: S311 - chance, not secrecy
    end = played.minutes * 60
    modes = list(played.ladder)
    questions = _questions(played, rng)
    async with Gateway(played.config(seed), clock=loop.time) as gateway:
        recorder = _Recorder(gateway)

        async def ask(number: int) -> Generation | None:
            # A simulated target's clock starts at its first call: everyone is called once at 0.
            mode, prompt = (modes[number], "hello") if number < len(modes) else next(questions)
            try:
                return await gateway.generate(prompt, mode)
            except GatewayError:
                return None  # the recorder has heard of it

        watcher = loop.create_task(recorder.watch(end))
        arrivals = traffic.poisson(played.requests_per_s, rng, end=end)
        await traffic.play(chain([0.0] * len(modes), arrivals), ask)
        await watcher
    return recorder.recording


def _questions(played: Scenario, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Who asks for which mode, and what."""
    modes, shares = list(played.demand), list(played.demand.values())
    number = 0
    while True:
        number += 1
        mode = rng.choices(modes, shares)[0]
        if rng.random() < played.popular:
            yield mode, f"popular question {rng.randrange(played.popular_prompts)}"
        else:
            yield mode, f"question {number}"


class _Recorder:
    """Hears every event and looks at the gateway after each change, and each second besides:
    some phases pass with time alone.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.recording = Recording()
        self._gateway = gateway
        self._clock = asyncio.get_running_loop().time
        gateway.listen(self._hear)
        self._look()

    async def watch(self, end: float) -> None:
        """Look each second until `end`."""
        while self._clock() + _LOOK_EVERY_S <= end:
            await asyncio.sleep(_LOOK_EVERY_S)
            self._look()

    def _hear(self, event: Event) -> None:
        recording = self.recording
        if isinstance(event, RequestFinished):
            recording.requests.append(event)
        elif isinstance(event, AttemptFinished):
            recording.attempts.append(event)
        elif isinstance(event, CircuitChanged):
            recording.changes.append(event)
            self._look()
        elif isinstance(event, TargetResting):
            self._look()

    def _look(self) -> None:
        modes = self._gateway.status()["modes"]
        standings = {mode: _standing(status) for mode, status in modes.items()}
        looks = self.recording.looks
        if not looks or looks[-1].standings != standings:
            looks.append(Look(self._clock(), standings))


def _standing(status: dict[str, object]) -> Standing:
    phase = str(status["phase"])
    if status["downshifted"] and phase in ("closed", "recovering"):
        phase = "cooling"  # the circuit is well, its targets rest
    ttl_s = status["ttl_s"]
    assert isinstance(ttl_s, float)
    return Standing(phase, ttl_s)
