"""Circuit: one per mode. The breaker holds the states; this gate holds time, permits and probes.

The gate decides who may pass (`admit`) and replays each settled outcome into the breaker
synchronously (`settle`); the breaker never wraps a request (B11).

    CLOSED --3 failures in 60 s, or >= 50 % of >= 10 in 30 s, or 3 overdue--> OPEN
    OPEN --hold over, first demand--> HALF_OPEN, one leased probe
    HALF_OPEN --probe ok--> CLOSED, in-flight cap ramps up      --probe failed, lease over--> OPEN

Every transition starts a new *epoch*; an outcome counts only in the epoch of its permit (B10).
Where workers share a circuit, each acts in its turn; a request to a healthy mode needs none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from gateway.clock import Clock
from gateway.detectors.failures import Outcome
from gateway.policies.agreement import Agreement, Turns
from gateway.policies.machine import StateMachine
from gateway.policies.phases import CircuitOptions, Permit, Phase, Transition
from gateway.policies.standing import EPSILON, Standing

T = TypeVar("T")
_SUCCESS, _IGNORED = Outcome.SUCCESS, Outcome.IGNORED  # to look one up costs 0.2 µs each time

# Who only asks how things stand hears of other workers' doings this much later at most, seconds.
_GLANCE_S = 0.05
# A worker that is served says so this often, seconds: who judges silence and shares must know (B4).
_TELL_S = 1.0


class Circuit:
    """One mode's circuit.

    Args:
        name: the mode.
        options: see `CircuitOptions`.
        clock: monotonic seconds.
        limit: how many requests the mode takes at once when healthy; what the ramp grows to.
        on_change: told of each transition, after it is complete. If it raises, nothing changes.
        agreement: where workers keep one standing together; None is one worker.

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
        agreement: Agreement | None = None,
    ) -> None:
        self.name = name
        self.in_flight = 0
        self.late = 0
        self._clock = clock
        self._on_change = on_change
        self._untold: list[Transition] = []
        self._turns: Turns | None = None
        self._machine = StateMachine(name, options, clock, limit, self._tell)
        self.breaker = self._machine.breaker.aiobreaker
        self._probe: Permit | None = None
        self._waiting: dict[Permit, None] = {}
        self._in_vain_until = -math.inf
        self._in_vain_s, self._in_vain_in = 0.0, 0
        self._glance_at = self._tell_at = math.inf
        self._worker = "" if agreement is None else agreement.worker
        if agreement is not None:
            self._turns = Turns(agreement, self._adopt, self._present)
            self._turns.look()
            self._untold.clear()  # how it stood before us is no transition
            self._glance_at = clock() + _GLANCE_S

    @property
    def options(self) -> CircuitOptions:
        """The options in force; assigning new ones keeps the state."""
        return self._machine.options

    @options.setter
    def options(self, options: CircuitOptions) -> None:
        self._machine.configure(options)

    # -- looking: pure functions of (standing, now) ---------------------------------------------

    def look(self) -> None:
        """See now what other workers have done. Acting does; asking how it stands, each 50 ms."""
        turns = self._turns
        if turns is not None and not turns.within and turns.look():
            self._tell_all()

    @property
    def epoch(self) -> int:
        """How many transitions there have been."""
        return self._machine.standing.epoch

    @property
    def tried(self) -> float:
        """When the panic rule last had a trial, on the clock."""
        return self._machine.standing.tried

    def phase(self) -> Phase:
        """Where the circuit stands now."""
        now, machine = self._glance(), self._machine
        calm = now >= machine.calm_from
        return Phase.CLOSED if calm else machine.standing.phase(now, machine.options)

    def calm(self, now: float) -> bool:
        """Whether it is simply closed at `now`, which tells nearly every request all it asks."""
        return now >= self._machine.calm_from and (now < self._glance_at or not self.downshifted)

    @property
    def downshifted(self) -> bool:
        """Whether requests for this mode are answered by a lower one."""
        return self._glance() < self._machine.calm_from and self.phase().downshifted

    @property
    def opened(self) -> float | None:
        """When it opened, on the clock; None unless it is open or probing."""
        return self._machine.standing.opened_at(self._clock())

    def hold_s(self) -> float:
        """How long this opening holds, relapses counted in."""
        return self._machine.standing.hold_s(self._clock(), self.options)

    def until(self) -> float | None:
        """Seconds until the mode may be tried again; None if it is closed or forced."""
        return self._machine.standing.until(self._clock(), self.options)

    def cap(self) -> int:
        """How many may be in flight now: grows from 1 to the limit while recovering (B6)."""
        return self._machine.cap(self._clock())

    def at_cap(self) -> bool:
        """Whether the recovery ramp lets no more in just now."""
        now, machine = self._clock(), self._machine
        if now >= machine.calm_from or not machine.standing.ramping(now, machine.options):
            return False
        return self.in_flight >= machine.cap(now)

    # -- passing: admit, then settle exactly once -----------------------------------------------

    def admit(self, slow_s: float | None = None, lease_s: float | None = None) -> Permit | None:
        """Let one request in, or not. Never waits.

        Args:
            slow_s: overdue threshold for this visit; None takes `options.slow_s`, 0 turns it off.
            lease_s: how long a probe may take; None takes `options.probe_lease_s`.
        """
        if self._turns is not None:
            self.look()
        now, machine = self._clock(), self._machine
        standing, options = machine.standing, machine.options
        slow_s = options.slow_s if slow_s is None else slow_s
        if now >= machine.calm_from:
            return self._issue(Permit(standing.epoch, now, slow_s))
        probe_s = options.probe_lease_s if lease_s is None else lease_s
        due = standing.phase(now, options) is Phase.PROBE_DUE
        if due or standing.lease_over(now):
            return self._in_turn(partial(self._admit, slow_s, probe_s))
        return self._admit(slow_s, probe_s)

    def admit_trial(
        self, slow_s: float | None = None, lease_s: float | None = None
    ) -> Permit | None:
        """Let one leased probe in although the hold is not over: the panic rule (B9)."""
        slow_s = self.options.slow_s if slow_s is None else slow_s
        probe_s = self.options.probe_lease_s if lease_s is None else lease_s
        before = self.tried
        return self._in_turn(lambda: self._admit_trial(slow_s, probe_s, before))

    def first_token(self, permit: Permit) -> None:
        """A first content token came: the mode is alive, the permit no longer overdue."""
        standing = self._machine.standing
        if self._waiting.pop(permit, permit) is None and permit.epoch == standing.epoch:
            now = standing.last_token = self._clock()
            self._in_vain_s = 0.0
            if standing.overdue or now >= self._tell_at:
                self._in_turn(_nothing)

    def asked_in_vain_s(self, since: float) -> float:
        """An attempt that began at `since` ends now without a token: how long has the mode been
        asked in all and said nothing? Time that several waited together counts once.
        """
        now = self._clock()
        if self._in_vain_in != self.epoch:
            self._in_vain_s, self._in_vain_in = 0.0, self.epoch
        self._in_vain_s += now - max(since, self._in_vain_until)
        self._in_vain_until = now
        return self._in_vain_s

    def alive_since(self, at: float) -> bool:
        """Whether a first token came after `at`, in this epoch."""
        return self._machine.standing.last_token > at

    def settle(self, permit: Permit, outcome: Outcome, cause: str = "") -> None:
        """Record how a visit ended: SUCCESS and FAILURE count, IGNORED only frees the permit.

        Idempotent, synchronous, never raises. `cause` is for the event log.
        """
        if permit.settled:
            return
        permit.settled = True
        self.in_flight -= 1
        self._waiting.pop(permit, None)
        if self._turns is not None:
            self.look()
        standing = self._machine.standing
        if permit is not self._probe and not standing.overdue:
            if permit.epoch != standing.epoch:
                self.late += 1
                return
            if outcome is _IGNORED or standing.forced is not None:
                return
            if outcome is _SUCCESS and not standing.failures:
                self._machine.counted(shared=self._turns is not None)
                return
        self._in_turn(partial(self._settle, permit, outcome, cause))  # a lambda makes all slower

    def sweep(self) -> bool:
        """Open if enough attempts are overdue (B4); end a probe whose lease is over. Returns
        whether it is open to nobody now, so that overdue attempts should give up.
        """
        self.look()
        if self._machine.standing.lease_over(self._clock()):
            self._in_turn(self._expire_lease)
        if self._overdue() != self._machine.standing.overdue.get(self._worker, []):
            self._in_turn(self._judge_silence)
        return self.downshifted

    def force(self, how: str) -> None:
        """Operators' switch: "open", "closed" or "auto". Auto comes back closed, ramping up."""
        forced = {"open": Phase.FORCED_OPEN, "closed": Phase.FORCED_CLOSED, "auto": None}[how]
        self._in_turn(lambda: self._machine.force(forced))

    # -- in a worker's turn ---------------------------------------------------------------------

    def _admit(self, slow_s: float, lease_s: float) -> Permit | None:
        self._expire_lease()
        now, standing = self._clock(), self._machine.standing
        if standing.forced is Phase.FORCED_OPEN:
            return None
        if standing.state is Phase.CLOSED or standing.forced is Phase.FORCED_CLOSED:
            return None if self.at_cap() else self._issue(Permit(standing.epoch, now, slow_s))
        if standing.state is Phase.OPEN and now + EPSILON < standing.probe_at(now, self.options):
            return None
        return self._issue_probe(slow_s, lease_s)

    def _admit_trial(self, slow_s: float, lease_s: float, before: float) -> Permit | None:
        self._expire_lease()
        standing = self._machine.standing
        if standing.forced is not None or standing.state is Phase.CLOSED:
            return None
        if standing.tried != before:
            return None  # another worker had the trial meanwhile
        permit = self._issue_probe(slow_s, lease_s)
        if permit is not None:
            standing.tried = self._clock()
        return permit

    def _issue(self, permit: Permit) -> Permit:
        self.in_flight += 1
        self._waiting[permit] = None
        return permit

    def _issue_probe(self, slow_s: float, lease_s: float) -> Permit | None:
        now, standing = self._clock(), self._machine.standing
        if standing.lease_until < math.inf:
            return None
        opens = standing.state is Phase.OPEN
        probe = Permit(standing.epoch + opens, now, slow_s, now + lease_s)
        self._machine.lease(probe.lease_until, self._worker)
        self._probe = probe
        return self._issue(probe)

    def _expire_lease(self) -> None:
        standing, turns = self._machine.standing, self._turns
        if not standing.lease_over(self._clock()):
            return
        self._probe = None
        if turns is not None and not turns.agreement.alive(standing.holder):
            self._machine.end_lease()  # the worker died, which says nothing about the mode
        else:
            self._machine.overstayed()

    def _settle(self, permit: Permit, outcome: Outcome, cause: str) -> None:
        if permit is self._probe:
            self._expire_lease()
            self._probe = None
            self._machine.end_lease()
        standing = self._machine.standing
        if permit.epoch != standing.epoch:
            self.late += 1
        elif standing.forced is None and outcome is not _IGNORED:
            machine = self._machine
            (machine.failed if outcome is Outcome.FAILURE else machine.succeeded)(cause)

    def _overdue(self) -> list[float]:
        """When those of our attempts began that are overdue, and no token came since."""
        now, standing = self._clock(), self._machine.standing
        if standing.forced is not None or standing.state is not Phase.CLOSED:
            return []
        return [
            permit.started
            for permit in self._waiting
            if permit.overdue(now)
            and permit.epoch == standing.epoch
            and permit.started >= standing.last_token
        ]

    def _judge_silence(self) -> None:
        ours, others = len(self._overdue()), self._machine.standing.silent(but=self._worker)
        if ours and ours + others >= self.options.failure_threshold:
            self._machine.open("overdue")

    # -- with other workers ---------------------------------------------------------------------

    def _glance(self) -> float:
        """The time; and see what others have done, if that was long ago."""
        now = self._clock()
        if now >= self._glance_at:
            self._glance_at = now + _GLANCE_S
            self.look()
        return now

    def _in_turn(self, step: Callable[[], T]) -> T:
        if self._turns is None or self._turns.within:
            return step()
        result = self._turns.take(step)
        self._tell_all()
        return result

    def _adopt(self, theirs: Standing, alone: bool) -> bool:
        """Go on from what others have made of it. Returns whether they should hear more of us."""
        if alone and self.epoch > theirs.epoch:
            self._machine.breaker.new_epoch()
            return True  # two histories meet: the one in which more has happened goes on
        if alone:
            theirs.epoch += 1  # and what began in either is late
        if theirs.holder != self._worker:
            self._probe = None
        return self._machine.adopt(theirs)

    def _present(self) -> Standing:
        """Our standing, with what others could not know of it."""
        self._machine.standing.report(self._worker, self._overdue())
        self._machine.unshared.clear()
        self._tell_at = self._clock() + _TELL_S
        return self._machine.standing

    def _tell(self, moved: Transition) -> None:
        self._untold.append(moved)
        if self._turns is None:
            self._tell_all()
        elif not self._turns.within:
            self._turns.take(_nothing, by_hand=True)
            self._tell_all()

    def _tell_all(self) -> None:
        """Tell what happened: not within a turn, for a slow listener would hold up all workers."""
        untold, self._untold = self._untold, []
        for moved in untold:
            if self._on_change is not None:
                with suppress(Exception):
                    self._on_change(moved)


def _nothing() -> None:
    """Nothing to do but to hear and to tell."""
