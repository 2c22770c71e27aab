"""The words of a circuit: its options, its phases, the permits it gives."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import msgspec

from gateway.primitives.scheduling import growth


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitOptions:
    """When a circuit opens, how long it holds, how it comes back: `[circuit]`.

    Attributes:
        failure_threshold: consecutive failures that open it, >= 1. Default 3.
        failure_window_s: those failures must lie within this many seconds. Default 60.
        failure_ratio: or this share of calls failed, 0..1; 0 turns the rule off. Default 0.5.
        minimum_throughput: the share counts from this many calls. Default 10.
        sampling_duration_s: the share is taken over this many seconds. Default 30.
        slow_s: an attempt without a first token after this many seconds is overdue; as many of
            them as `failure_threshold` open the circuit without waiting. 0 = off. Default 10.
        break_duration_s: how long it stays open, seconds. Default 300.
        break_growth: each relapse multiplies the hold by this, >= 1. Default 1.
        break_max_s: the hold never grows past this. Default 1200.
        early_probe_s: a leased probe each so many seconds may end the hold early. 0 = off.
        probe_lease_s: a probe that has not settled by then has failed. Default 30.
        ramp_s: after closing, the in-flight cap grows to the full limit over this. Default 60.
        ramp: shape of that growth: linear or cosine. Default linear.
        bottom_break_s: hold of the lowest mode, with nothing below it to wait on (B9). Default 5.
        bottom_break_max_s: it doubles with each relapse up to this. Default 30.
    """

    failure_threshold: int = 3
    failure_window_s: float = 60.0
    failure_ratio: float = 0.5
    minimum_throughput: int = 10
    sampling_duration_s: float = 30.0
    slow_s: float = 10.0
    break_duration_s: float = 300.0
    break_growth: float = 1.0
    break_max_s: float = 1200.0
    early_probe_s: float = 0.0
    probe_lease_s: float = 30.0
    ramp_s: float = 60.0
    ramp: str = "linear"
    bottom_break_s: float = 5.0
    bottom_break_max_s: float = 30.0

    def hold_s(self, relapses: int) -> float:
        """How long an opening holds, in seconds, the `relapses` before it counted in."""
        base = self.break_duration_s
        if base <= 0:
            return 0.0
        longest = max(base, self.break_max_s)
        return growth(relapses, base=base, factor=self.break_growth, cap=longest)

    def for_bottom(self) -> CircuitOptions:
        """The options of the lowest mode: short holds that double (B9)."""
        return replace(
            self,
            break_duration_s=min(self.bottom_break_s, self.break_duration_s),
            break_growth=2.0,
            break_max_s=self.bottom_break_max_s,
        )


class Phase(StrEnum):
    """Where a circuit stands: a pure function of its state and the time (B12)."""

    CLOSED = "closed"
    RECOVERING = "recovering"
    OPEN = "open"
    PROBE_DUE = "probe_due"
    PROBING = "probing"
    FORCED_OPEN = "forced_open"
    FORCED_CLOSED = "forced_closed"

    @property
    def downshifted(self) -> bool:
        """Whether requests for this mode are answered by a lower one."""
        return self in _DOWNSHIFTED


_DOWNSHIFTED = frozenset({Phase.OPEN, Phase.PROBE_DUE, Phase.PROBING, Phase.FORCED_OPEN})


class Permit(msgspec.Struct, eq=False, gc=False):
    """Leave to visit a mode once. Settled exactly once; only counts in its own epoch.

    Attributes:
        epoch: the circuit's, when it was given.
        started: when it was given, on the clock.
        slow_s: without a first token for this long it is overdue, seconds; 0 = never.
        lease_until: a probe must be settled by then, on the clock.
        settled: whether it has been.
    """

    epoch: int
    started: float
    slow_s: float
    lease_until: float = math.inf
    settled: bool = False

    @property
    def probe(self) -> bool:
        """Whether it is a leased probe."""
        return self.lease_until < math.inf

    def overdue(self, now: float) -> bool:
        """Whether it has waited past its slow threshold."""
        return 0 < self.slow_s <= now - self.started


@dataclass(frozen=True, slots=True)
class Transition:
    """A circuit moved. `cause` says why, in a word or two."""

    old: Phase
    new: Phase
    cause: str
    epoch: int
