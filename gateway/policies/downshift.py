"""The ladder: which mode may answer now, and if not, why not and until when.

Everything here is synchronous: looking at a rung and taking its permit is one step that nothing
can come between. The layer that walks the ladder is `gateway.middleware.circuit_breaker`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import msgspec

from gateway.clock import Clock
from gateway.detectors.failures import Outcome
from gateway.detectors.latency import LatencyDetector
from gateway.modes import ModeOptions
from gateway.policies.budget import RetryBudget
from gateway.policies.circuit import Circuit
from gateway.policies.limit import Limit
from gateway.policies.phases import Permit, Phase
from gateway.providers.base import Provider

_PANIC_EVERY_S = 5.0
# Bound here because looking a member up in its enumeration costs 0.2 µs.
_SUCCESS, _IGNORED = Outcome.SUCCESS, Outcome.IGNORED


class Target:
    """One provider of a mode and how it stands.

    Args:
        provider: who is called.
        budget: the purse of its failure domain, shared by all targets of that domain.
        weight: relative share, > 0.

    Attributes:
        resting_until: left alone until this clock time (429, overload, dead key).
        doubted_until: picked last until this clock time, for it failed a moment ago.
        in_flight: attempts under way.
    """

    __slots__ = ("budget", "doubted_until", "in_flight", "provider", "resting_until", "weight")

    def __init__(self, provider: Provider, budget: RetryBudget, weight: float = 1.0) -> None:
        self.provider = provider
        self.budget = budget
        self.weight = weight
        self.resting_until = self.doubted_until = float("-inf")
        self.in_flight = 0


class Refusal(msgspec.Struct, frozen=True):
    """Why a mode may not answer now.

    Attributes:
        reason: circuit_open, forced, recovering, cooling, saturated, context, budget.
        retry_after: seconds until it may, None if unknown.
    """

    reason: str
    retry_after: float | None = None


class Visit(msgspec.Struct, eq=False, gc=False):
    """A mode let a request in: the permit and the slot it holds until it leaves.

    Attributes:
        native: whether the request asked for this very mode.
        target: the best one when it was let in.
        outcome: what the visit counts as when it leaves; IGNORED until something says else.
        cause: why, for the event log.
    """

    rung: Rung
    permit: Permit
    native: bool
    target: Target | None = None
    outcome: Outcome = _IGNORED
    cause: str = ""
    _left: bool = False

    def leave(self) -> None:
        """Settle the permit and give the slot back. Idempotent, synchronous."""
        if self._left:
            return
        self._left = True
        rung = self.rung
        rung.circuit.settle(self.permit, self.outcome, self.cause)
        rung.limit.leave(native=self.native)
        if self.outcome is _SUCCESS:
            rung.limit.went_well()
        rung.on_leave()


class Rung:
    """One mode on the ladder.

    Args:
        index: 0 is the best mode.
        mode: its options.
        circuit, limit: its own.
        targets: its endpoints.
        latency: what first-token times are normal, all modes.
        clock: monotonic seconds.
        identity: what distinguishes its answers from every other mode's, for cache keys.
    """

    def __init__(
        self,
        index: int,
        mode: ModeOptions,
        circuit: Circuit,
        limit: Limit,
        targets: Sequence[Target],
        latency: LatencyDetector,
        clock: Clock,
        identity: bytes,
    ) -> None:
        self.index = index
        self.mode = mode
        self.name = mode.name
        self.circuit = circuit
        self.limit = limit
        self.targets = list(targets)
        self.latency = latency
        self.identity = identity
        self.on_leave: Callable[[], None] = lambda: None
        self._clock = clock

    def now(self) -> float:
        """The clock the rung lives by."""
        return self._clock()

    @property
    def downshifted(self) -> bool:
        """Whether requests for this mode are answered by a lower one, by circuit or by rest."""
        return not self.well(self._clock())

    def well(self, now: float) -> bool:
        """The opposite, at `now`: asked several times a request, most of them on a calm circuit."""
        if not self.circuit.calm(now) and self.circuit.downshifted:
            return False
        for target in self.targets:  # noqa: SIM110 - `any` would make a generator each time
            if target.resting_until <= now:
                return True
        return False

    def resting_s(self) -> float:
        """Seconds until the first target has rested, 0 if one is ready."""
        now, least = self._clock(), math.inf
        for target in self.targets:
            if target.resting_until <= now:
                return 0.0
            least = min(least, target.resting_until - now)
        return least

    def until(self) -> float | None:
        """Seconds until the mode may be back, None if it is there or nobody knows."""
        if self.circuit.phase() in _FORCED:
            return None
        wait = max(self.circuit.until() or 0.0, self.resting_s())
        return wait or None

    def too_slow(self, elapsed_s: float) -> bool:
        """Whether that long without a first token is not normal for this mode."""
        # A whole answer takes as long as it takes: see `_overdue_s`.
        streams = all(target.provider.streams for target in self.targets)
        slow_s = self.circuit.options.slow_s if streams else 0.0
        normal = self.latency.slow_s(self.name)
        return 0 < slow_s <= elapsed_s or elapsed_s >= max(1.0, 3.0 * normal)

    def _patience_s(self) -> tuple[float, float]:
        """For a visit without a stream: when it is overdue, and how long a probe may take.

        The first token is the whole answer then: a fixed threshold says nothing about that, but
        what is normal for this mode does, once it is known. A stream proves itself with its first
        tokens; a whole answer of a minute could never do so within a lease made for those, and
        its mode would stay open for ever.
        """
        options, normal = self.circuit.options, self.latency.slow_s(self.name)
        overdue_s = max(options.slow_s, normal) if normal < math.inf else 0.0
        return overdue_s, max(options.probe_lease_s, self.mode.deadline_s)

    def room(self, *, native: bool) -> bool:
        """Whether one more may start now, by limit and by recovery ramp."""
        return self.limit.room(native=native) and not self.circuit.at_cap()

    def pick(
        self, *, window: int = 0, tried: frozenset[Target] | set[Target] = frozenset()
    ) -> Target | None:
        """The least loaded target that is not resting and whose window is above `window` tokens.

        Targets in `tried` come last: a retry goes elsewhere if there is an elsewhere. So do those
        that failed lately: one sick endpoint of several must not open the mode.
        """
        now = self._clock()
        if len(self.targets) == 1 and not window:  # nothing to weigh
            only = self.targets[0]
            return None if only.resting_until > now else only
        best: Target | None = None
        best_load = (True, True, 0.0)
        for target in self.targets:
            if target.resting_until > now:
                continue
            if window and (target.provider.context_window or window + 1) <= window:
                continue
            doubted = target.doubted_until > now
            load = (target in tried, doubted, (target.in_flight + 1) / target.weight)
            if best is None or load < best_load:
                best, best_load = target, load
        return best

    def enter(self, *, native: bool, window: int = 0, trial: bool = False) -> Visit | Refusal:
        """Take a permit and a slot, or say why not. Never waits.

        Args:
            native: whether the request asked for this very mode.
            window: only targets with more context than this many tokens will do.
            trial: ask for the panic rule's leased trial although the circuit is open.
        """
        target = self.pick(window=window)
        if target is None:
            resting = self.resting_s()
            return Refusal("cooling", resting) if resting else Refusal("context")
        if not self.limit.room(native=native):
            return Refusal("saturated", 1.0)
        # Without a stream, thresholds are those of a whole answer; None is the circuit's own.
        slow_s = lease_s = None
        if not target.provider.streams:
            slow_s, lease_s = self._patience_s()
        admit = self.circuit.admit_trial if trial else self.circuit.admit
        permit = admit(slow_s, lease_s)
        if permit is None:
            return self._refusal()
        self.limit.enter(native=native)
        return Visit(self, permit, native, target)

    def _refusal(self) -> Refusal:
        phase = self.circuit.phase()
        if phase is Phase.FORCED_OPEN:
            return Refusal("forced")
        if phase is Phase.RECOVERING:
            return Refusal("recovering", 1.0)
        return Refusal("circuit_open", self.circuit.until())


_FORCED = frozenset({Phase.FORCED_OPEN, Phase.FORCED_CLOSED})
_WAITING = frozenset({Phase.OPEN, Phase.PROBE_DUE})


class Ladder:
    """The rungs, best first.

    Args:
        rungs: best first, never empty.
        clock: monotonic seconds.

    Attributes:
        rungs: see above.
        by_name: the same by the name of their mode.
    """

    def __init__(self, rungs: Sequence[Rung], clock: Clock) -> None:
        self.rungs = list(rungs)
        self.by_name = {rung.name: rung for rung in self.rungs}
        self._clock = clock

    def __iter__(self) -> Iterator[Rung]:
        return iter(self.rungs)

    def __len__(self) -> int:
        return len(self.rungs)

    def index(self, mode: str) -> int:
        """The rung of a mode, 0 is the best; the caller has checked that it exists."""
        return self.by_name[mode].index

    def below(self, start: int, *, allow_degrade: bool) -> list[Rung]:
        """The rungs a request for rung `start` may use, best first; never one above it."""
        return self.rungs[start:] if allow_degrade else self.rungs[start : start + 1]

    def saturated(self, start: int, *, allow_degrade: bool) -> bool:
        """Whether a slot is all that is missing: some allowed mode is well, but none has room.

        Only then does waiting help; a mode that is open is no reason to queue.
        """
        now, well = self._clock(), False
        for rung in self.below(start, allow_degrade=allow_degrade):
            if rung.well(now):
                if rung.room(native=rung.index == start):
                    return False
                well = True
        return well

    def panic(self, start: int) -> Rung | None:
        """If every mode is open: the one open longest that can be entered, a trial each 5 s (B9).

        Total-outage recovery must not wait for a 300 s hold.
        """
        for rung in self.rungs:
            rung.circuit.look()  # another worker may have had the trial
        last = max(rung.circuit.tried for rung in self.rungs)
        if self._clock() - last < _PANIC_EVERY_S:
            return None
        if not all(rung.circuit.downshifted for rung in self.rungs):
            return None
        candidates = [
            (rung.circuit.opened or 0.0, rung.index)
            for rung in self.rungs[start:]
            if rung.circuit.phase() in _WAITING
            and rung.pick() is not None
            and rung.limit.room(native=rung.index == start)
        ]
        return self.rungs[min(candidates)[1]] if candidates else None
