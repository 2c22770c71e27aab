"""Circuit: one per mode. The breaker holds the states; this gate holds time, permits and probes.

The gate decides who may pass (`admit`) and replays each settled outcome into the breaker
synchronously (`settle`); the breaker never wraps a request (B11).

    CLOSED --3 failures in 60 s, or >= 50 % of >= 10 in 30 s, or 3 overdue--> OPEN
    OPEN --hold over, first demand--> HALF_OPEN, one leased probe
    HALF_OPEN --probe ok--> CLOSED, in-flight cap ramps up      --probe failed, lease over--> OPEN

Every transition starts a new *epoch*; an outcome counts only in the epoch of its permit (B10).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gateway.clock import Clock
from gateway.detectors.failures import Outcome
from gateway.policies.breaker import Breaker, State
from gateway.policies.phases import CircuitOptions, Permit, Phase, Transition
from gateway.policies.sampling import Sampling
from gateway.primitives.scheduling import Schedule

# A hold that ends at exactly 300 s must not be missed by a float's last digit.
_EPSILON = 1e-9


class Circuit:
    """One mode's circuit.

    Args:
        name: the mode.
        options: see `CircuitOptions`.
        clock: monotonic seconds.
        limit: how many requests the mode takes at once when healthy; what the ramp grows to.
        on_change: told of each transition, after it is complete. Must not raise.

    Attributes:
        breaker: the aiobreaker `CircuitBreaker` that holds the state.
        in_flight: permits not yet settled.
        late: outcomes that came after their epoch and changed nothing.
    """

    def __init__(
        self,
        name: str,
        options: CircuitOptions,
        clock: Clock,
        *,
        limit: Callable[[], int] = lambda: 512,
        on_change: Callable[[Transition], None] | None = None,
    ) -> None:
        self.name = name
        self.in_flight = 0
        self.late = 0
        self._clock = clock
        self._limit = limit
        self._on_change = on_change
        self._breaker = Breaker(name, clock, self._turned)
        self.breaker = self._breaker.aiobreaker
        self._forced: Phase | None = None
        self._cause = ""
        self._probe: Permit | None = None
        self._waiting: dict[Permit, None] = {}
        self._last_token = -math.inf
        self._relapses = 0
        self._ramp_from = -math.inf
        self._ramp_floor = 0.0
        self.options = options

    @property
    def options(self) -> CircuitOptions:
        """The options in force; assigning new ones keeps the state."""
        return self._options

    @options.setter
    def options(self, options: CircuitOptions) -> None:
        self._options = options
        self._ramp = Schedule.named(options.ramp, 0.0, 1.0)
        self._recent = Sampling(options.sampling_duration_s)
        self._breaker.configure(
            options.failure_threshold, options.failure_window_s, options.break_duration_s
        )

    # -- looking: pure functions of (state, now) ------------------------------------------------

    @property
    def epoch(self) -> int:
        """How many transitions there have been."""
        return self._breaker.epoch

    def phase(self) -> Phase:
        """Where the circuit stands now."""
        if self._forced is not None:
            return self._forced
        now = self._clock()
        state = self._breaker.state
        if state is State.CLOSED:
            recovering = now < self._ramp_from + self._options.ramp_s
            return Phase.RECOVERING if recovering else Phase.CLOSED
        if state is State.HALF_OPEN:
            if self._probe is None:
                return Phase.PROBE_DUE
            return Phase.OPEN if self._lease_over(now) else Phase.PROBING
        return Phase.PROBE_DUE if now + _EPSILON >= self._probe_at() else Phase.OPEN

    @property
    def opened(self) -> float | None:
        """When it opened, on the clock; None unless it is open or probing."""
        return None if self._breaker.state is State.CLOSED else self._breaker.opened

    def hold_s(self) -> float:
        """How long this opening holds, relapses counted in."""
        grown = self._options.break_duration_s * self._options.break_growth**self._relapses
        return min(grown, max(self._options.break_max_s, self._options.break_duration_s))

    def until(self) -> float | None:
        """Seconds until the mode may be tried again; None if it is closed or forced."""
        if self._forced is not None or self._breaker.state is State.CLOSED:
            return None
        now = self._clock()
        if self._probe is None or self._probe.lease_until is None:
            return max(0.0, self._probe_at() - now)
        ends = self._probe.lease_until
        return max(0.0, ends + self.hold_s() - now if self._lease_over(now) else ends - now)

    def cap(self) -> int:
        """How many may be in flight now: grows from 1 to the limit while recovering (B6)."""
        limit = self._limit()
        since = self._clock() - self._ramp_from
        if since >= self._options.ramp_s:
            return limit
        share = self._ramp(since / self._options.ramp_s)
        return max(1, math.ceil(self._ramp_floor + (limit - self._ramp_floor) * share))

    def at_cap(self) -> bool:
        """Whether the recovery ramp lets no more in just now."""
        recovering = self._clock() < self._ramp_from + self._options.ramp_s
        return recovering and self.in_flight >= self.cap()

    # -- passing: admit, then settle exactly once -----------------------------------------------

    def admit(self, slow_s: float | None = None) -> Permit | None:
        """Let one request in, or not. Never waits.

        Args:
            slow_s: overdue threshold for this visit; None takes `options.slow_s`, 0 turns it off.
        """
        now = self._clock()
        slow_s = self._options.slow_s if slow_s is None else slow_s
        self._expire_lease(now)
        if self._forced is Phase.FORCED_OPEN:
            return None
        state = self._breaker.state
        if state is State.CLOSED or self._forced is Phase.FORCED_CLOSED:
            if self.at_cap():
                return None
            return self._issue(Permit(self.epoch, now, slow_s, None))
        if state is State.OPEN and now + _EPSILON < self._probe_at():
            return None
        return self._issue_probe(now, slow_s)

    def admit_trial(self, slow_s: float | None = None) -> Permit | None:
        """Let one leased probe in although the hold is not over: the panic rule (B9)."""
        now = self._clock()
        self._expire_lease(now)
        if self._forced is not None or self._breaker.state is State.CLOSED:
            return None
        return self._issue_probe(now, self._options.slow_s if slow_s is None else slow_s)

    def first_token(self, permit: Permit) -> None:
        """A first content token came: the mode is alive, the permit no longer overdue."""
        if self._waiting.pop(permit, permit) is None:
            self._last_token = self._clock()

    def settle(self, permit: Permit, outcome: Outcome, cause: str = "") -> None:
        """Record how a visit ended. Idempotent, synchronous, never raises.

        Args:
            permit: what `admit` gave.
            outcome: SUCCESS and FAILURE count; IGNORED only frees the permit.
            cause: why, for the event log.
        """
        if permit.settled:
            return
        permit.settled = True
        self.in_flight -= 1
        self._waiting.pop(permit, None)
        if permit is self._probe:
            self._expire_lease(self._clock())
            self._probe = None
        if permit.epoch != self.epoch:
            self.late += 1
        elif self._forced is None and not permit.counted and outcome is not Outcome.IGNORED:
            self._record(outcome, cause)

    def sweep(self) -> bool:
        """Open if enough attempts are overdue (B4); end a probe whose lease is over.

        Returns:
            Whether the circuit is open to nobody now, so that overdue attempts should give up.
        """
        now = self._clock()
        self._expire_lease(now)
        if self._forced is None and self._breaker.state is State.CLOSED:
            overdue = [
                permit
                for permit in self._waiting
                if permit.overdue(now)
                and permit.epoch == self.epoch
                and permit.started > self._last_token
            ]
            if len(overdue) >= self._options.failure_threshold:
                for permit in overdue:
                    permit.counted = True
                for _ in range(self._options.failure_threshold):
                    self._record(Outcome.FAILURE, "overdue")
        return self.phase().downshifted

    def force(self, how: str) -> None:
        """Operators' switch: "open", "closed" or "auto". Auto comes back closed, ramping up."""
        forced = {"open": Phase.FORCED_OPEN, "closed": Phase.FORCED_CLOSED, "auto": None}[how]
        if forced is None and self._forced is None:
            return
        old = self.phase()
        self._forced = forced
        self._probe = None
        self._cause = "operator"
        if forced is None:
            self._breaker.reset()
            self._ramp_from, self._ramp_floor = self._clock(), 0.0
        else:
            self._breaker.new_epoch()
        self._tell(old, self.phase())

    # -- inside ---------------------------------------------------------------------------------

    def _probe_at(self) -> float:
        hold = self.hold_s()
        early = self._options.early_probe_s
        return self._breaker.opened + (min(hold, early) if early > 0 else hold)

    def _lease_over(self, now: float) -> bool:
        probe = self._probe
        return (
            probe is not None
            and probe.lease_until is not None
            and now + _EPSILON >= probe.lease_until
        )

    def _issue(self, permit: Permit) -> Permit:
        self.in_flight += 1
        self._waiting[permit] = None
        return permit

    def _issue_probe(self, now: float, slow_s: float) -> Permit | None:
        if self._probe is not None:
            return None
        if self._breaker.state is State.OPEN:
            self._cause = "probe"
            self._breaker.half_open()
        self._probe = Permit(self.epoch, now, slow_s, now + self._options.probe_lease_s)
        return self._issue(self._probe)

    def _expire_lease(self, now: float) -> None:
        probe = self._probe
        if probe is None or probe.lease_until is None or not self._lease_over(now):
            return
        self._probe = None
        self._record(Outcome.FAILURE, "lease over")
        self._breaker.opened = probe.lease_until  # when it failed, not when someone noticed

    def _record(self, outcome: Outcome, cause: str) -> None:
        """Count one outcome and replay it into the breaker."""
        if self._breaker.state is State.OPEN:
            return
        self._cause = cause
        self._recent.add(self._clock(), outcome is Outcome.FAILURE)
        if outcome is Outcome.SUCCESS:
            self._breaker.success()
            return
        if self._breaker.state is State.CLOSED:
            self._halve_ramp()
        self._breaker.failure()
        if self._breaker.state is State.CLOSED and self._rate_trips():
            self._cause = "failure ratio"
            self._breaker.open()

    def _rate_trips(self) -> bool:
        calls, failures = self._recent.totals(self._clock())
        ratio = self._options.failure_ratio
        return ratio > 0 and calls >= self._options.minimum_throughput and failures >= ratio * calls

    def _halve_ramp(self) -> None:
        """A failure while recovering: go back to half the cap and climb from there (B6)."""
        now = self._clock()
        if now < self._ramp_from + self._options.ramp_s:
            self._ramp_floor = self.cap() / 2
            self._ramp_from = now

    def _turned(self, old: State, new: State) -> None:
        """The breaker changed state: a new epoch began."""
        now = self._clock()
        self._recent.clear()
        self._last_token = -math.inf
        if new is State.OPEN:
            relapse = old is State.HALF_OPEN or now < self._ramp_from + self._options.ramp_s
            self._relapses = self._relapses + 1 if relapse else 0
            self._probe = None
        elif new is State.CLOSED:
            self._probe = None
            self._ramp_from, self._ramp_floor = now, 0.0
        self._tell(_PHASES[old], Phase.PROBING if new is State.HALF_OPEN else self.phase())

    def _tell(self, old: Phase, new: Phase) -> None:
        if self._on_change is not None:
            self._on_change(Transition(old, new, self._cause, self.epoch))


_PHASES = {State.CLOSED: Phase.CLOSED, State.OPEN: Phase.OPEN, State.HALF_OPEN: Phase.PROBING}
