"""A schedule: everything that happens in one simulated world, as data that follows from a seed.

Who asks what and when, what goes wrong upstream, when somebody reloads the configuration. Every
policy under comparison meets the same schedule and upstreams of the same make.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from gateway.primitives.scheduling import Schedule as Ramp
from gateway.simulator.faults import (
    AnyFault,
    Brownout,
    ColdCapacity,
    CutStream,
    FaultPlan,
    Flapping,
    How,
    Latency,
    Outage,
    Stall,
    Throttled,
)
from gateway.simulator.service import Service
from gateway.simulator.traffic import bursts, merge, poisson
from gateway.simulator.upstream import SimulatedProvider

MODES = ("creative", "balanced", "fast")

TOKENS = 3
"""Tokens of an answer: what a simulation costs is its tokens, and three have a middle to cut."""

_QUIET_BEFORE_S = 30.0
# Long enough for a hold of 300 s to end, and for its probe to be answered, under traffic.
_QUIET_AFTER_S = 360.0
_DEMAND = (0.6, 0.25, 0.15)
_POPULAR, _QUESTIONS = 0.08, 12


class Ask(msgspec.Struct, frozen=True):
    """One request.

    Attributes:
        at: when it comes, seconds.
        mode: what it asks for.
        prompt: its question.
        once: nobody else asks it, so no cache can answer it.
        stream: it wants the answer piece by piece.
        deadline_s: seconds until there must be an end; None is the mode's own.
        patience_s: the caller leaves after so many seconds; None stays.
        allow_degrade: whether a lower mode will do.
    """

    at: float
    mode: str
    prompt: str
    once: bool
    stream: bool
    deadline_s: float | None
    patience_s: float | None
    allow_degrade: bool


class Schedule(msgspec.Struct, frozen=True):
    """One world.

    Attributes:
        seed: what it follows from.
        horizon_s: when the last request has come.
        shared: all modes are one failure domain, as far as anybody knows.
        services: how each mode's upstream serves while nothing is wrong.
        faults: what goes wrong, by mode.
        asks: the requests, in order.
        reloads: when an operator reloads the gateway's configuration.
    """

    seed: int
    horizon_s: float
    shared: bool
    services: Mapping[str, Service]
    faults: Mapping[str, tuple[AnyFault, ...]]
    asks: list[Ask]
    reloads: list[float]

    @property
    def interleaving(self) -> int | None:
        """Seed of the order in which tasks run that are ready at once; None is asyncio's own."""
        return self.seed if self.seed % 3 else None

    def plan(self, mode: str) -> FaultPlan:
        """What goes wrong with one mode's upstream."""
        return FaultPlan(self.faults[mode])

    def upstream(self, mode: str) -> SimulatedProvider:
        """A mode's upstream, new."""
        return SimulatedProvider(
            mode,
            service=self.services[mode],
            plan=self.plan(mode),
            model=f"simulated-{mode}",
            domain="shared" if self.shared else mode,
        )


def schedule(seed: int, requests: int = 1040) -> Schedule:
    """The schedule of a seed.

    Args:
        seed: the same seed gives the same schedule.
        requests: how many there are, about.
    """
    rng = random.Random(seed)
    horizon_s = rng.uniform(900.0, 2100.0)
    services = {mode: _service(rng, seed, index) for index, mode in enumerate(MODES)}
    faults: dict[str, list[AnyFault]] = {mode: [] for mode in MODES}
    for _ in range(rng.choice((1, 2, 2, 3))):
        for mode, fault in _incident(rng, horizon_s):
            faults[mode].append(fault)
    return Schedule(
        seed,
        horizon_s,
        rng.random() < 0.4,
        services,
        {mode: tuple(ordered) for mode, ordered in faults.items()},
        list(_asks(rng, horizon_s, requests, _storm(rng, faults, horizon_s))),
        sorted(rng.uniform(0, horizon_s) for _ in range(rng.choice((0, 0, 1, 2)))),
    )


def _service(rng: random.Random, seed: int, index: int) -> Service:
    return Service(
        slots=rng.choice((12, 24, 64)),
        queue=rng.choice((8, 256)),
        first_token_s=rng.choice((0.8, 0.5, 0.25)) * (1.0 - 0.25 * index),
        spread=0.3,
        tokens=TOKENS,
        tokens_per_s=rng.choice((1.0, 3.0, 10.0)),
        seed=seed * len(MODES) + index,
    )


def _incident(rng: random.Random, horizon_s: float) -> Iterator[tuple[str, AnyFault]]:
    """One thing that goes wrong: with one mode, with two at once, or with all of them."""
    length_s = rng.choice((rng.uniform(3, 30), rng.uniform(30, 120), rng.uniform(120, 420)))
    start = rng.uniform(_QUIET_BEFORE_S, horizon_s - _QUIET_AFTER_S - length_s)
    end = start + length_s
    how: How = rng.choice(("refuse", "reset", "error500", "silent"))
    many = rng.choices((1, 2, 3), (0.7, 0.18, 0.12))[0]
    first = rng.choices(range(len(MODES)), (0.6, 0.25, 0.15))[0]
    others = [index for index in range(len(MODES)) if index != first]
    struck = sorted([first, *rng.sample(others, many - 1)])
    what = rng.choices(_WHAT, (5, 2, 3, 3, 3, 2, 2, 2))[0]
    for index in struck:
        for fault in what(rng, start, end, how):
            yield MODES[index], fault


def _outage(rng: random.Random, start: float, end: float, how: How) -> list[AnyFault]:
    return [Outage(start, end, how)]


def _cold(rng: random.Random, start: float, end: float, how: How) -> list[AnyFault]:
    """An outage whose end brings back a tenth of the capacity first."""
    middle = start + (end - start) / 2
    return [Outage(start, middle, how), ColdCapacity(middle, end, Ramp.linear(0.1, 1.0))]


def _brownout(rng: random.Random, start: float, end: float, how: How) -> list[AnyFault]:
    return [Brownout(start, end, rng.uniform(0.05, 0.9), how)]


def _flapping(rng: random.Random, start: float, end: float, how: How) -> list[AnyFault]:
    return [Flapping(start, end, rng.uniform(2, 30), rng.uniform(2, 30), how)]


def _slow(rng: random.Random, start: float, end: float, how: How) -> list[AnyFault]:
    return [Latency(start, end, rng.uniform(3, 40), Ramp.linear(0.0, 1.0))]


def _throttled(rng: random.Random, start: float, end: float, how: How) -> list[AnyFault]:
    retry_after = rng.choice((None, 0.0, 1.0, 5.0, 20.0, 600.0))
    return [Throttled(start, end, retry_after, rng.uniform(0.2, 1.0))]


def _cut(rng: random.Random, start: float, end: float, how: How) -> list[AnyFault]:
    return [CutStream(start, end, rng.uniform(0.1, 0.9), rng.randint(0, TOKENS - 1))]


def _stalled(rng: random.Random, start: float, end: float, how: How) -> list[AnyFault]:
    return [Stall(start, end, rng.uniform(0.1, 0.9), rng.randint(0, TOKENS - 1))]


_WHAT = (_outage, _cold, _brownout, _flapping, _slow, _throttled, _cut, _stalled)


def _storm(
    rng: random.Random, faults: Mapping[str, list[AnyFault]], horizon_s: float
) -> list[float]:
    """A crowd that comes just when the hold of an opened circuit ends: cold, and all at once."""
    ends = [fault.start + 300.0 for ordered in faults.values() for fault in ordered]
    at = min((end for end in ends if end < horizon_s - 30.0), default=None)
    if at is None or rng.random() < 0.5:
        return []
    at += rng.uniform(0.0, 15.0)
    return sorted(at + rng.uniform(0.0, 3.0) for _ in range(rng.randint(20, 60)))


def _asks(rng: random.Random, horizon_s: float, requests: int, storm: list[float]) -> Iterator[Ask]:
    """Independent callers, and now and then a crowd at the same moment."""
    crowd, every_s = rng.choice((5, 15, 40)), rng.uniform(200.0, 500.0)
    steady = max(requests / 2, requests - crowd * horizon_s / every_s - len(storm))
    times = merge(
        poisson(steady / horizon_s, rng, end=horizon_s),
        bursts(crowd, every_s=every_s, start=rng.uniform(20.0, 200.0), end=horizon_s),
        storm,
    )
    for number, at in enumerate(times):
        popular = rng.random() < _POPULAR
        hurried, leaves = rng.random() < 0.25, rng.random() < 0.08
        yield Ask(
            at,
            rng.choices(MODES, _DEMAND)[0],
            f"popular {rng.randrange(_QUESTIONS)}" if popular else f"question {number}",
            not popular,
            rng.random() < 0.5,
            rng.uniform(4.0, 30.0) if hurried else None,
            rng.uniform(0.0, 8.0) if leaves else None,
            rng.random() < 0.97,
        )


def tables(world: Schedule, shipped: Mapping[str, Any]) -> dict[str, Any]:
    """A gateway's configuration for this world: as shipped, with simulated targets."""
    modes = {
        mode: {
            **table,
            "targets": [
                {
                    "kind": "simulated",
                    "model": f"simulated-{mode}",
                    "base_url": "shared" if world.shared else "",
                    "options": {
                        **msgspec.to_builtins(world.services[mode]),
                        "faults": msgspec.to_builtins(world.faults[mode]),
                    },
                }
            ],
        }
        for mode, table in shipped["modes"].items()
    }
    return {**shipped, "modes": modes}
