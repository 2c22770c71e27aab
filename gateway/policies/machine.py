"""How a circuit's standing changes: by outcomes, leases, operators, and by other workers.

aiobreaker holds the three states (`breaker.py`); here is what else comes with a transition: a new
epoch forgets what was, an opening counts relapses, a closing begins the ramp.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gateway.clock import Clock
from gateway.policies.breaker import Breaker, State
from gateway.policies.phases import CircuitOptions, Phase, Transition
from gateway.policies.sampling import Sampling
from gateway.policies.standing import EPSILON, Standing
from gateway.primitives.scheduling import Schedule

# The cause of a transition that nothing here made: somebody drives aiobreaker directly.
_BY_HAND = "by hand"


class StateMachine:
    """A standing and all that may happen to it.

    Args:
        name: the mode.
        options: see `CircuitOptions`.
        clock: monotonic seconds.
        limit: how many requests the mode takes at once when healthy.
        tell: told of each transition, when it is complete.

    Attributes:
        standing: how it stands; another object after `adopt`.
        calm_from: from when on it is simply closed, on the clock, unless something happens.
        breaker: the door to aiobreaker.
        recent: calls and failures lately, of all workers as far as we know.
        unshared: those of them that other workers do not know of.
    """

    def __init__(
        self,
        name: str,
        options: CircuitOptions,
        clock: Clock,
        limit: Callable[[], int],
        tell: Callable[[Transition], None],
    ) -> None:
        self.breaker = Breaker(name, clock, self._turned)
        self.standing = self.breaker.standing
        self._clock = clock
        self._limit = limit
        self._tell = tell
        self._cause = _BY_HAND
        self._sample(options)
        self.configure(options)

    def configure(self, options: CircuitOptions) -> None:
        """Put new options in force; the standing is kept."""
        self._ramp = Schedule.named(options.ramp, 0.0, 1.0)
        self.options = options
        if options.sampling_duration_s != self.recent.duration_s:
            self._sample(options)
        self.breaker.configure(
            options.failure_threshold, options.failure_window_s, options.break_duration_s
        )
        self.calm_from = self.standing.calm_from(options)

    def cap(self, now: float) -> int:
        """How many may be in flight: grows from 1 to the limit while recovering (B6)."""
        limit, standing = self._limit(), self.standing
        if not standing.ramping(now, self.options):
            return limit
        # Shares of the limit, which may have shrunk since the last failure.
        share = self._ramp((now - standing.ramp_from) / self.options.ramp_s)
        share = standing.ramp_floor + (1.0 - standing.ramp_floor) * share
        return max(1, math.ceil(limit * share - EPSILON))

    # -- outcomes -------------------------------------------------------------------------------

    def failed(self, cause: str) -> None:
        """A visit failed: count it, and open if that is one too many (B4)."""
        now, standing = self._clock(), self.standing
        self._cause = cause
        self.recent.add(now, failed=True)
        if standing.ramping(now, self.options):  # back to half, and climb from there (B6)
            standing.ramp_floor, standing.ramp_from = self.cap(now) / self._limit() / 2, now
            self.calm_from = standing.calm_from(self.options)
        self.breaker.failure()
        if standing.state is Phase.CLOSED and self._share_failed(now):
            self.open("failure ratio")
        self._cause = _BY_HAND

    def succeeded(self, cause: str) -> None:
        """A visit went well: it ends a row of failures, and closes what was half open."""
        self._cause = cause
        self.recent.add(self._clock(), failed=False)
        self.breaker.success()
        self._cause = _BY_HAND

    def counted(self, *, shared: bool) -> None:
        """A visit went well that was one of many: it changes nothing but how many there were."""
        now = self._clock()
        self.recent.add(now, failed=False)
        if shared:
            self.unshared.add(now, failed=False)

    def open(self, cause: str) -> None:
        """Open, whatever the count."""
        self._cause = cause
        self.breaker.open()

    def _share_failed(self, now: float) -> bool:
        calls, failures = self.recent.totals(now)
        ratio = self.options.failure_ratio
        return ratio > 0 and calls >= self.options.minimum_throughput and failures >= ratio * calls

    # -- probes ---------------------------------------------------------------------------------

    def lease(self, until: float, holder: str) -> None:
        """`holder` may probe until then; half open from now on."""
        standing = self.standing
        # The lease first, so that who hears of the transition sees it probing.
        standing.lease_until, standing.holder = until, holder
        if standing.state is Phase.OPEN:
            self._cause = "probe"
            self.breaker.half_open()

    def end_lease(self) -> None:
        """Nobody probes any more."""
        self.standing.lease_until, self.standing.holder = math.inf, ""

    def overstayed(self) -> None:
        """The probe did not settle in its time: it failed when its lease ended, noticed or not."""
        at = self.standing.lease_until
        self.end_lease()
        self._cause = "lease over"
        self.breaker.failure(at)

    # -- others ---------------------------------------------------------------------------------

    def force(self, forced: Phase | None) -> None:
        """An operator's word; None gives it back, closed and ramping up."""
        standing, now = self.standing, self._clock()
        if forced is standing.forced:
            return
        old = standing.phase(now, self.options)
        standing.forced, self._cause = forced, "operator"
        self.end_lease()
        self._forget()
        if forced is None:
            self.breaker.reset()
            standing.ramp_from, standing.ramp_floor = now, 0.0
        else:
            self.breaker.new_epoch()
        self._moved(old, standing.phase(now, self.options))

    def adopt(self, theirs: Standing) -> bool:
        """Go on from how another worker says it stands. Returns whether it should hear more."""
        ours, old, more = self.standing, self.standing.shown(), False
        if theirs.epoch != ours.epoch:
            self.unshared.clear()
        elif ours.last_token > theirs.last_token:
            more = bool(theirs.overdue)  # it counts the silent, and knows less of tokens
            theirs.last_token = ours.last_token
        self.standing = theirs
        self.breaker.adopt(theirs)
        if theirs.sample_s == self.recent.duration_s:
            self.recent.buckets = theirs.sample
            self.recent.merge(self.unshared)
        else:
            self._keep_sample()
        new = theirs.shown()
        if new is Phase.CLOSED:
            new = theirs.phase(self._clock(), self.options)
        self._cause = theirs.cause
        if theirs.epoch != ours.epoch and new is not old:
            self._moved(old, new)
        else:
            self.calm_from = theirs.calm_from(self.options)
        self._cause = _BY_HAND
        return more

    def _turned(self, old: State, new: State) -> None:
        """The breaker changed state: a new epoch began."""
        now, standing = self._clock(), self.standing
        self._forget()
        if new is State.OPEN:
            relapse = old is State.HALF_OPEN or standing.ramping(now, self.options)
            standing.relapses = standing.relapses + 1 if relapse else 0
        elif new is State.CLOSED:
            standing.ramp_from, standing.ramp_floor = now, 0.0
        if new is not State.HALF_OPEN:
            self.end_lease()
        probing = new is State.HALF_OPEN
        self._moved(_PHASES[old], Phase.PROBING if probing else standing.phase(now, self.options))

    def _forget(self) -> None:
        """What came in an earlier epoch says nothing about this one."""
        self.recent.clear()
        self.unshared.clear()
        self.standing.last_token = -math.inf
        self.standing.overdue = {}

    def _moved(self, old: Phase, new: Phase) -> None:
        standing = self.standing
        standing.cause = self._cause
        self.calm_from = standing.calm_from(self.options)
        self._cause = _BY_HAND
        self._tell(Transition(old, new, standing.cause, standing.epoch))

    def _sample(self, options: CircuitOptions) -> None:
        self.recent = Sampling(options.sampling_duration_s)
        self.unshared = Sampling(options.sampling_duration_s)
        self._keep_sample()

    def _keep_sample(self) -> None:
        self.standing.sample, self.standing.sample_s = self.recent.buckets, self.recent.duration_s


_PHASES = {State.CLOSED: Phase.CLOSED, State.OPEN: Phase.OPEN, State.HALF_OPEN: Phase.PROBING}
