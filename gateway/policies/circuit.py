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
from contextlib import suppress

from gateway.clock import Clock
from gateway.detectors.failures import Outcome
from gateway.policies.breaker import Breaker, State
from gateway.policies.phases import CircuitOptions, Permit, Phase, Transition
from gateway.policies.sampling import Sampling
from gateway.primitives.scheduling import Schedule

# The cause of a transition that nothing here made: somebody drives `circuit.breaker` directly.
_BY_HAND = "by hand"
# A hold that ends at exactly 300 s must not be missed by a float's last digit, and 31 s of a ramp
# to 60 are 31 and not 32.
_EPSILON = 1e-9


class Circuit:
    """One mode's circuit.

    Args:
        name: the mode.
        options: see `CircuitOptions`.
        clock: monotonic seconds.
        limit: how many requests the mode takes at once when healthy; what the ramp grows to.
        on_change: told of each transition, after it is complete. If it raises, nothing changes.

    Attributes:
        breaker: the aiobreaker `CircuitBreaker` that holds the state.
        in_flight: permits not yet settled.
        tried: when the panic rule last had a trial, on the clock.
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
        self.tried = -math.inf
        self._clock = clock
        self._limit = limit
        self._on_change = on_change
        self._breaker = Breaker(name, clock, self._turned)
        self._states = self._breaker.states
        self.breaker = self._breaker.aiobreaker
        self._forced: Phase | None = None
        self._cause = _BY_HAND
        self._probe: Permit | None = None
        self._waiting: dict[Permit, None] = {}
        self._last_token = self._in_vain_until = -math.inf
        self._in_vain_s = 0.0
        self._relapses = 0
        self._ramp_from = -math.inf
        self._ramp_floor = 0.0
        self._recent = Sampling(options.sampling_duration_s)
        self.options = options

    @property
    def options(self) -> CircuitOptions:
        """The options in force; assigning new ones keeps the state."""
        return self._options

    @options.setter
    def options(self, options: CircuitOptions) -> None:
        self._ramp = Schedule.named(options.ramp, 0.0, 1.0)
        self._options = options
        if options.sampling_duration_s != self._recent.duration_s:
            self._recent = Sampling(options.sampling_duration_s)
        self._breaker.configure(
            options.failure_threshold, options.failure_window_s, options.break_duration_s
        )

    # -- looking: pure functions of (state, now) ------------------------------------------------

    @property
    def epoch(self) -> int:
        """How many transitions there have been."""
        return self._states.epoch

    def phase(self) -> Phase:
        """Where the circuit stands now."""
        if self._forced is not None:
            return self._forced
        now, state = self._clock(), self._states.state
        if state is State.CLOSED:
            return Phase.RECOVERING if self._ramping(now) else Phase.CLOSED
        if state is State.HALF_OPEN and not self._lease_over(now):
            return Phase.PROBING if self._probe else Phase.PROBE_DUE
        return Phase.PROBE_DUE if now + _EPSILON >= self._probe_at() else Phase.OPEN

    @property
    def opened(self) -> float | None:
        """When it opened, on the clock; None unless it is open or probing."""
        if self._states.state is State.CLOSED:
            return None
        if self._probe is not None and self._lease_over(self._clock()):
            return self._probe.lease_until
        return self._states.opened

    def hold_s(self) -> float:
        """How long this opening holds, relapses counted in."""
        return self._options.hold_s(self._relapses + self._lease_over(self._clock()))

    def until(self) -> float | None:
        """Seconds until the mode may be tried again; None if it is closed or forced."""
        phase, now = self.phase(), self._clock()
        if phase is Phase.PROBING and self._probe is not None:
            return max(0.0, self._probe.lease_until - now)
        if phase is Phase.OPEN:
            return max(0.0, self._probe_at() - now)
        return 0.0 if phase is Phase.PROBE_DUE else None

    def cap(self) -> int:
        """How many may be in flight now: grows from 1 to the limit while recovering (B6)."""
        limit, now = self._limit(), self._clock()
        if not self._ramping(now):
            return limit
        share = self._ramp((now - self._ramp_from) / self._options.ramp_s)
        grown = self._ramp_floor + (limit - self._ramp_floor) * share
        return max(1, math.ceil(grown - _EPSILON))

    def at_cap(self) -> bool:
        """Whether the recovery ramp lets no more in just now."""
        return self._ramping(self._clock()) and self.in_flight >= self.cap()

    # -- passing: admit, then settle exactly once -----------------------------------------------

    def admit(self, slow_s: float | None = None, lease_s: float | None = None) -> Permit | None:
        """Let one request in, or not. Never waits.

        Args:
            slow_s: overdue threshold for this visit; None takes `options.slow_s`, 0 turns it off.
            lease_s: how long a probe may take; None takes `options.probe_lease_s`.
        """
        now = self._clock()
        slow_s = self._options.slow_s if slow_s is None else slow_s
        if self._probe is not None:
            self._expire_lease(now)
        if self._forced is Phase.FORCED_OPEN:
            return None
        state = self._states.state
        if state is State.CLOSED or self._forced is Phase.FORCED_CLOSED:
            if self._ramping(now) and self.at_cap():
                return None
            return self._issue(Permit(self._states.epoch, now, slow_s))
        if state is State.OPEN and now + _EPSILON < self._probe_at():
            return None
        return self._issue_probe(now, slow_s, lease_s)

    def admit_trial(
        self, slow_s: float | None = None, lease_s: float | None = None
    ) -> Permit | None:
        """Let one leased probe in although the hold is not over: the panic rule (B9)."""
        now = self._clock()
        self._expire_lease(now)
        if self._forced is not None or self._states.state is State.CLOSED:
            return None
        slow_s = self._options.slow_s if slow_s is None else slow_s
        permit = self._issue_probe(now, slow_s, lease_s)
        if permit is not None:
            self.tried = now
        return permit

    def first_token(self, permit: Permit) -> None:
        """A first content token came: the mode is alive, the permit no longer overdue."""
        if self._waiting.pop(permit, permit) is None and permit.epoch == self._states.epoch:
            self._last_token = self._clock()
            self._in_vain_s = 0.0

    def asked_in_vain_s(self, since: float) -> float:
        """An attempt that began at `since` ends now without a token: how long has the mode been
        asked in all and said nothing? Time that several waited together counts once.
        """
        now = self._clock()
        self._in_vain_s += now - max(since, self._in_vain_until)
        self._in_vain_until = now
        return self._in_vain_s

    def alive_since(self, at: float) -> bool:
        """Whether a first token came after `at`, in this epoch."""
        return self._last_token > at

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
        if permit.epoch != self._states.epoch:
            self.late += 1
        elif self._forced is None and outcome is not Outcome.IGNORED:
            self._record(outcome, cause)

    def sweep(self) -> bool:
        """Open if enough attempts are overdue (B4); end a probe whose lease is over.

        Returns:
            Whether the circuit is open to nobody now, so that overdue attempts should give up.
        """
        now = self._clock()
        self._expire_lease(now)
        if self._forced is None and self._states.state is State.CLOSED:
            overdue = sum(
                permit.overdue(now)
                and permit.epoch == self.epoch
                and permit.started >= self._last_token
                for permit in self._waiting
            )
            if overdue >= self._options.failure_threshold:
                self._cause = "overdue"
                self._breaker.open()
        return self.phase().downshifted

    def force(self, how: str) -> None:
        """Operators' switch: "open", "closed" or "auto". Auto comes back closed, ramping up."""
        forced = {"open": Phase.FORCED_OPEN, "closed": Phase.FORCED_CLOSED, "auto": None}[how]
        if forced is self._forced:
            return
        old = self.phase()
        self._forced, self._probe, self._cause = forced, None, "operator"
        self._forget()
        if forced is None:
            self._breaker.reset()
            self._ramp_from, self._ramp_floor = self._clock(), 0.0
        else:
            self._breaker.new_epoch()
        self._tell(old, self.phase())

    # -- inside ---------------------------------------------------------------------------------

    def _lease_over(self, now: float) -> bool:
        """Whether a probe overstayed. It reopened the circuit then, noticed or not (B12)."""
        return self._probe is not None and now + _EPSILON >= self._probe.lease_until

    def _probe_at(self) -> float:
        hold, early = self.hold_s(), self._options.early_probe_s
        return (self.opened or 0.0) + (min(hold, early) if early > 0 else hold)

    def _ramping(self, now: float) -> bool:
        return self._forced is None and now < self._ramp_from + self._options.ramp_s

    def _issue(self, permit: Permit) -> Permit:
        self.in_flight += 1
        self._waiting[permit] = None
        return permit

    def _issue_probe(self, now: float, slow_s: float, lease_s: float | None) -> Permit | None:
        if self._probe is not None:
            return None
        opens = self._states.state is State.OPEN
        lease_s = self._options.probe_lease_s if lease_s is None else lease_s
        probe = Permit(self.epoch + opens, now, slow_s, now + lease_s)
        self._probe = probe  # first, so that who hears of the transition sees it probing
        if opens:
            self._cause = "probe"
            self._breaker.half_open()
        return self._issue(probe)

    def _expire_lease(self, now: float) -> None:
        if self._probe is not None and self._lease_over(now):
            at, self._probe, self._cause = self._probe.lease_until, None, "lease over"
            self._breaker.failure(at)  # when it failed, not when someone noticed

    def _record(self, outcome: Outcome, cause: str) -> None:
        """Count one outcome and replay it into the breaker."""
        now, failed = self._clock(), outcome is Outcome.FAILURE
        self._cause = cause
        self._recent.add(now, failed)
        if failed:
            self._halve_ramp(now)
            self._breaker.failure()
            if self._states.state is State.CLOSED and self._share_failed(now):
                self._cause = "failure ratio"
                self._breaker.open()
        else:
            self._breaker.success()
        self._cause = _BY_HAND

    def _share_failed(self, now: float) -> bool:
        calls, failures = self._recent.totals(now)
        ratio = self._options.failure_ratio
        return ratio > 0 and calls >= self._options.minimum_throughput and failures >= ratio * calls

    def _halve_ramp(self, now: float) -> None:
        """A failure while recovering: go back to half the cap and climb from there (B6)."""
        if self._ramping(now):
            self._ramp_floor = self.cap() / 2
            self._ramp_from = now

    def _turned(self, old: State, new: State) -> None:
        """The breaker changed state: a new epoch began."""
        now = self._clock()
        self._forget()
        if new is State.OPEN:
            relapse = old is State.HALF_OPEN or self._ramping(now)
            self._relapses = self._relapses + 1 if relapse else 0
            self._probe = None
        elif new is State.CLOSED:
            self._probe = None
            self._ramp_from, self._ramp_floor = now, 0.0
        self._tell(_PHASES[old], Phase.PROBING if new is State.HALF_OPEN else self.phase())

    def _forget(self) -> None:
        """What came in an earlier epoch says nothing about this one."""
        self._recent.clear()
        self._last_token = -math.inf
        self._in_vain_s = 0.0

    def _tell(self, old: Phase, new: Phase) -> None:
        transition = Transition(old, new, self._cause, self.epoch)
        self._cause = _BY_HAND
        if self._on_change is not None:
            with suppress(Exception):
                self._on_change(transition)


_PHASES = {State.CLOSED: Phase.CLOSED, State.OPEN: Phase.OPEN, State.HALF_OPEN: Phase.PROBING}
