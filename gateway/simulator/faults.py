"""What can go wrong upstream, as data: each fault has a window of time and says what it does to a
call that falls into it.

    FaultPlan((Outage(30, 90, "silent"), ColdCapacity(90, 150)))

reads: silent for a minute, then a minute of warming up. Times are seconds on the plan's own clock,
which starts at 0. Nothing here waits or keeps state; chance comes from the generator passed in.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import msgspec

from gateway.errors import ConfigError
from gateway.primitives.scheduling import Schedule

How: TypeAlias = Literal["refuse", "reset", "error500", "silent"]
"""How a call goes unanswered: connection refused, connection reset, HTTP 500, or nothing at all."""


class Effects(msgspec.Struct):
    """What all faults together do to one call that starts now.

    Attributes:
        fails: how the call goes unanswered, None if it is answered.
        latency: factor on every waiting time.
        throttled: the call gets a 429.
        retry_after: what that 429 says, in seconds; None says nothing.
        cut_after: the stream ends, without a word, after this many chunks; None: it does not.
        stall_after: the stream falls silent for ever after this many chunks; None: it does not.
    """

    fails: How | None = None
    latency: float = 1.0
    throttled: bool = False
    retry_after: float | None = None
    cut_after: int | None = None
    stall_after: int | None = None


_RANGES: Final = {
    "share": (0.0, 1.0),
    "factor": (0.0, math.inf),
    "up_s": (0.001, math.inf),
    "down_s": (0.001, math.inf),
    "after_chunks": (0, math.inf),
}


class Fault(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag=lambda name: "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_"),
):
    """One fault from `start` (included) to `end` (excluded), seconds; `end` may be infinite."""

    start: float
    end: float

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"needs 0 <= start < end, got start={self.start}, end={self.end}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name, low)
            if not low <= value <= high:
                raise ValueError(f"needs {low} <= {name} <= {high}, got {value}")

    def outage(self, now: float) -> How | None:
        """How the whole target is gone at `now`, if it is; called inside the window only."""
        return None

    def capacity(self, now: float) -> float:
        """Share of the target's slots there are at `now`, 0..1; called inside the window only."""
        return 1.0

    def apply(self, effects: Effects, now: float, rng: random.Random) -> None:
        """Add this fault to the effects on a call at `now`; called inside the window only."""
        effects.fails = self.outage(now) or effects.fails


class Outage(Fault, frozen=True):
    """Every call goes unanswered, in the way `how` says; streams under way break as well, except
    with `error500`, where the server lives.
    """

    how: How = "refuse"

    def outage(self, now: float) -> How | None:
        return self.how


class Flapping(Fault, frozen=True):
    """An outage that comes and goes: down for `down_s` seconds first, then up for `up_s`, ..."""

    up_s: float = 10.0
    down_s: float = 10.0
    how: How = "error500"

    def outage(self, now: float) -> How | None:
        phase = (now - self.start) % (self.up_s + self.down_s)
        return self.how if phase < self.down_s else None


class Brownout(Fault, frozen=True):
    """The given share of calls goes unanswered, the others are well."""

    share: float = 0.6
    how: How = "error500"

    def apply(self, effects: Effects, now: float, rng: random.Random) -> None:
        if rng.random() < self.share:
            effects.fails = self.how


class Latency(Fault, frozen=True):
    """Everything takes `factor` times as long, and nothing fails. With a `ramp` from 0 to 1 it gets
    there little by little over the window.
    """

    factor: float = 10.0
    ramp: Schedule | None = None

    def apply(self, effects: Effects, now: float, rng: random.Random) -> None:
        factor = self.factor
        if self.ramp is not None:
            share = (now - self.start) / (self.end - self.start)
            factor = 1.0 + (factor - 1.0) * self.ramp(share)
        effects.latency *= factor


class ColdCapacity(Fault, frozen=True):
    """Slots are back only little by little: their share follows `ramp` over the window."""

    ramp: Schedule = Schedule.linear(0.1, 1.0)

    def capacity(self, now: float) -> float:
        return self.ramp((now - self.start) / (self.end - self.start))


class Throttled(Fault, frozen=True):
    """The given share of calls gets a 429 that asks to wait `retry_after` seconds, if it asks."""

    retry_after: float | None = None
    share: float = 1.0

    def apply(self, effects: Effects, now: float, rng: random.Random) -> None:
        if rng.random() < self.share:
            effects.throttled, effects.retry_after = True, self.retry_after


class CutStream(Fault, frozen=True):
    """The given share of answers ends after `after_chunks` chunks, without finish or [DONE]."""

    share: float = 1.0
    after_chunks: int = 3

    def apply(self, effects: Effects, now: float, rng: random.Random) -> None:
        if rng.random() < self.share:
            effects.cut_after = self.after_chunks


class Stall(Fault, frozen=True):
    """The given share of answers falls silent for ever after `after_chunks` chunks (0: headers,
    then silence).
    """

    share: float = 1.0
    after_chunks: int = 1

    def apply(self, effects: Effects, now: float, rng: random.Random) -> None:
        if rng.random() < self.share:
            effects.stall_after = self.after_chunks


AnyFault: TypeAlias = (
    Outage | Flapping | Brownout | Latency | ColdCapacity | Throttled | CutStream | Stall
)


class FaultPlan(msgspec.Struct, frozen=True):
    """Faults of one target; where several apply at once, a later one has the last word.

    `read_plan` makes one from a configuration, `random_plan` from a seed.
    """

    faults: tuple[AnyFault, ...] = ()

    def at(self, now: float, rng: random.Random) -> Effects:
        """What applies to a call that starts at `now`; `rng` decides what is left to chance."""
        effects = Effects()
        for fault in self.faults:
            if fault.start <= now < fault.end:
                fault.apply(effects, now, rng)
        return effects

    def outage(self, now: float) -> How | None:
        """How the whole target is gone at `now`, None if it is there."""
        for fault in self.faults:
            if fault.start <= now < fault.end and (how := fault.outage(now)):
                return how
        return None

    def capacity(self, now: float) -> float:
        """Share of the target's slots there are at `now`, 0..1."""
        share = 1.0
        for fault in self.faults:
            if fault.start <= now < fault.end:
                share *= fault.capacity(now)
        return share

    @property
    def heals_at(self) -> float:
        """When the last fault is over, in seconds; 0 if there is none."""
        return max((fault.end for fault in self.faults), default=0.0)


def read_plan(data: Sequence[Mapping[str, Any]]) -> FaultPlan:
    """The plan a configuration describes: tables such as `{kind = "outage", start = 30, end = 90}`.

    Raises:
        ConfigError: an unknown kind or key, or a value outside its range.
    """
    try:
        return FaultPlan(msgspec.convert(data, tuple[AnyFault, ...]))
    except msgspec.ValidationError as error:
        kinds = ", ".join(str(kind.__struct_config__.tag) for kind in AnyFault.__args__)
        raise ConfigError(f"{error}; kinds of fault: {kinds}", key="faults") from None


def random_plan(rng: random.Random, horizon_s: float) -> FaultPlan:
    """One to four random faults, all over by three quarters of the horizon so that healing shows.

    Args:
        rng: the same generator state gives the same plan.
        horizon_s: length of the simulation in seconds.
    """
    return FaultPlan(tuple(_random_fault(rng, horizon_s) for _ in range(rng.randint(1, 4))))


def _random_fault(rng: random.Random, horizon_s: float) -> AnyFault:
    start = rng.uniform(0.0, 0.5) * horizon_s
    end = start + rng.uniform(0.02, 0.25) * horizon_s
    how: How = rng.choice(("refuse", "reset", "error500", "silent"))
    share = rng.uniform(0.05, 0.9)
    after_chunks = rng.randint(0, 8)
    return rng.choice(
        (
            Outage(start, end, how),
            Flapping(start, end, rng.uniform(1, 20), rng.uniform(1, 20), how),
            Brownout(start, end, share, how),
            Latency(start, end, rng.uniform(2, 30)),
            ColdCapacity(start, end),
            Throttled(start, end, rng.choice((None, 0.0, 1.0, 5.0, 600.0)), share),
            CutStream(start, end, share, after_chunks),
            Stall(start, end, share, after_chunks),
        )
    )
