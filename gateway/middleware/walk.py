"""One request on its way down the ladder: gate -> budget -> attempt -> classify -> settle."""

from __future__ import annotations

import asyncio

from gateway.assembly import Assembly
from gateway.clock import Clock
from gateway.detectors.failures import Judgement, Outcome, Then, judge
from gateway.errors import GatewayError, StreamInterrupted, UpstreamError, UpstreamTimeout
from gateway.events import AttemptFinished, EventBus, TargetResting
from gateway.generation import GenerationRequest, Served
from gateway.middleware.attempt import Attempt
from gateway.middleware.causes import Causes
from gateway.middleware.verdict import LAST_DIGIT_S, prove, too_slow, verdict
from gateway.middleware.watch import OverdueWatch
from gateway.policies.downshift import Ladder, Refusal, Rung, Target, Visit
from gateway.policies.second_attempts import DOUBT_S, QUICK_S, SAME_PLACE_ABOVE, worth_waiting
from gateway.providers.base import Call

# How full the purse of a failure domain must be to walk down into it once more (B8).
_WALK_ABOVE = 0.5
_NONE: frozenset[Target] = frozenset()
# Bound here because looking a member up in its enumeration costs 0.2 µs.
_SUCCESS, _FAILURE, _IGNORED = Outcome.SUCCESS, Outcome.FAILURE, Outcome.IGNORED


class Walk:
    """One request on its way down the ladder.

    Args:
        request: what is asked.
        ladder: the modes.
        watch: keeps an eye on attempts that wait for a first token.
        clock: monotonic seconds.
        events: told of each attempt.

    Attributes:
        visit, attempt: the mode and the attempt that answer, after `descend`; None once settled.
        probing: whether that mode is on probation.
        assembly: everything that has arrived of the answer.
    """

    def __init__(
        self,
        request: GenerationRequest,
        ladder: Ladder,
        watch: OverdueWatch,
        clock: Clock,
        events: EventBus,
    ) -> None:
        self.request = request
        self.clock = clock
        self.assembly = Assembly()
        self.visit: Visit | None = None
        self.attempt: Attempt | None = None
        self.probing = False
        self._ladder = ladder
        self._watch = watch
        self._events = events
        self._target: Target | None = None
        self._start = self._next = ladder.by_name[request.mode].index
        self._causes_met: Causes | None = None
        self._domains: tuple[str, ...] = ()
        self._window = 0
        self._attempts = 0
        self._upstream_s = 0.0
        self._told: Served | None = None

    async def descend(self, prefix: str = "") -> None:
        """Go down from where the walk stands until a mode answers.

        Args:
            prefix: text of an interrupted answer the next mode is to continue.
        """
        request = self.request
        for rung in self._ladder.below(self._start, allow_degrade=request.allow_degrade):
            if rung.index < self._next:
                continue
            if self.clock() >= request.deadline:
                raise self._error()
            self._next = rung.index + 1
            entry = rung.enter(native=rung.index == self._start, window=self._window)
            if isinstance(entry, Refusal):
                self._causes.refused(rung.name, entry)
            elif await self._answers(entry, prefix):
                return
        trial = self._trial()
        if trial is None or not await self._answers(trial, prefix):
            raise self._error()

    @property
    def _causes(self) -> Causes:
        """Why modes did not answer; nearly every request has no use for it."""
        if self._causes_met is None:
            self._causes_met = Causes()
        return self._causes_met

    def served(self) -> Served:
        """Who answers, honestly (B13)."""
        visit, attempt, target, request = self.visit, self.attempt, self._target, self.request
        assert visit is not None and attempt is not None and target is not None
        provider, first = target.provider, attempt.first_token_at
        told = self._told = Served(
            requested_mode=request.mode,
            mode=visit.rung.name,
            model=self.assembly.model or provider.model,
            target=provider.name,
            attempts=self._attempts,
            first_token_s=None if first is None else first - request.started,
            queued_s=request.queued_s,
            upstream_s=self._upstream_s + self.clock() - attempt.started,
        )
        if visit.rung.index != self._start:
            told.degraded = True
            told.reason = self._causes.reason or "failed"
            told.until = self._ladder.rungs[self._start].until()
        return told

    def settle(self, outcome: Outcome, error: UpstreamError | None = None, cause: str = "") -> None:
        """Close the attempt and leave the mode: permit, slot and budget, all exactly once."""
        visit, attempt, target = self.visit, self.attempt, self._target
        if visit is None or attempt is None or target is None:
            return
        self.visit = self.attempt = self._target = None
        visit.outcome, visit.cause = outcome, error.kind if error else cause
        self._close(visit, attempt, target, error)
        visit.leave()

    def broken(self, error: UpstreamError) -> None:
        """Settle an answer that broke after it was committed."""
        if self.visit is not None and self.attempt is not None:
            self.settle(verdict(error, self.attempt, self.visit.rung), error)

    def abandoned(self) -> None:
        """Settle an answer that nobody wants any more: no verdict on its mode while it flows."""
        if self.visit is not None and self.attempt is not None:
            slow = too_slow(self.attempt, self.visit.rung)
            self.settle(_FAILURE if slow else _IGNORED, cause="abandoned")

    def prove(self) -> None:
        """A probe need not stream to its end to show that the mode is back."""
        visit, attempt = self.visit, self.attempt
        if visit is not None and attempt is not None:
            prove(visit, attempt, self.clock())

    # -- one mode -------------------------------------------------------------------------------

    async def _answers(self, visit: Visit, prefix: str) -> bool:
        """Try one mode, with at most one quick retry and one short wait. Leaves it if it fails."""
        rung = visit.rung
        tried: frozenset[Target] = _NONE
        may_retry = may_wait = True
        try:
            while True:
                target = self._pick(visit, tried, prefix)
                if target is None:
                    return False
                began = self.clock()
                try:
                    await self._try(visit, target, prefix)
                except UpstreamError as error:
                    tried |= {target}
                    judgement = judge(error)
                    self._learn(rung, target, error, judgement)
                    if judgement.then is Then.RAISE:
                        raise
                    quick = self.clock() - began <= QUICK_S
                    if judgement.then is Then.RETRY and may_retry and quick:
                        may_retry = False
                    elif judgement.then is Then.WAIT and may_wait and self._may_wait(target, error):
                        may_wait = False
                        await self._rest(target, error.retry_after or 0.0)
                    else:
                        return False
                else:
                    return True
        finally:
            if self.visit is None:
                visit.leave()

    def _pick(self, visit: Visit, tried: frozenset[Target], prefix: str) -> Target | None:
        """The target to try next; a second attempt into one domain must be in the budget (B8)."""
        rung = visit.rung
        if visit.permit.epoch != rung.circuit.epoch:  # it opened while we waited to try again
            self._causes.refused(rung.name, Refusal("circuit_open", rung.circuit.until()))
            return None
        # Nothing has happened since `enter` picked the first one.
        target = rung.pick(window=self._window, tried=tried) if tried else visit.target
        if target is None or (prefix and not target.provider.continues):
            self._causes.refused(rung.name, Refusal("cooling", rung.resting_s() or None))
            return None
        # Trying the same mode again leaves enough in the purse to walk down, which may help more.
        domain = target.provider.domain
        if domain in self._domains:
            above = SAME_PLACE_ABOVE if tried else _WALK_ABOVE
            if not target.budget.allows_retry(above):
                self._causes.refused(rung.name, Refusal("budget", 1.0))
                return None
        self._domains += (domain,)
        return target

    async def _try(self, visit: Visit, target: Target, prefix: str) -> None:
        """One attempt, to its commit point; or it raises, with everything freed."""
        rung, request = visit.rung, self.request
        mode = rung.mode
        first_token_s, stall_s = self._limits(visit, target)
        if prefix:
            self.assembly.model = ""  # who goes on says its own name
        elif self._attempts:
            self.assembly = Assembly()  # a new attempt starts clean
        fields = {**mode.sampling, **request.params}
        call = Call(request.messages, fields, request.id, mode.thinking, prefix, request.raw)
        provider, limits = target.provider, (first_token_s, stall_s)
        attempt = Attempt(provider, call, self.assembly, self.clock, self._deadline, *limits)
        self._attempts += 1
        target.in_flight += 1
        failure: UpstreamError | None = None
        visit.outcome, visit.cause = _IGNORED, "cancelled"
        try:
            self._watch.start(rung, visit.permit, attempt)
            try:
                await attempt.open()
            finally:
                self._watch.stop(rung, attempt)
            rung.circuit.first_token(visit.permit)
            if request.buffered:
                while await attempt.read():
                    attempt.chunks.clear()
                    if visit.permit.probe:
                        prove(visit, attempt, self.clock())
            self.visit, self.attempt, self._target = visit, attempt, target
            self.probing = visit.permit.probe
        except UpstreamError as error:
            failure = error
            if isinstance(error, StreamInterrupted):
                error.mode, error.partial = visit.rung.name, self.assembly.text()
            visit.outcome, visit.cause = verdict(error, attempt, visit.rung), error.kind
            raise
        except asyncio.CancelledError:
            if too_slow(attempt, visit.rung):
                visit.outcome = _FAILURE  # nobody waits for it any more, and no wonder
            raise
        finally:
            if self.attempt is not attempt:
                self._shrink(visit, attempt, failure)
                self._close(visit, attempt, target, failure)

    def _shrink(self, visit: Visit, attempt: Attempt, error: UpstreamError | None) -> None:
        """Time ran out in the queue of a mode that gives others their tokens: it has too much.

        Where that is a failure the circuit hears of it, and that is enough.
        """
        late = isinstance(error, UpstreamTimeout) or self.clock() >= self.request.deadline
        waited = late and attempt.first_token_at is None and visit.outcome is _IGNORED
        if waited and visit.rung.circuit.alive_since(attempt.started):
            visit.rung.limit.overloaded(refused=False)

    def _close(
        self, visit: Visit, attempt: Attempt, target: Target, error: UpstreamError | None
    ) -> None:
        """Account for one attempt that is over."""
        attempt.close()
        now = self.clock()
        self._upstream_s += now - attempt.started
        # For those who have no answer to say it, too: an error knows no `Served`.
        self.request.upstream_s = self._upstream_s
        self.request.attempts += 1
        if self._told is not None:
            self._told.upstream_s = self._upstream_s
        target.in_flight -= 1
        if visit.outcome is _SUCCESS:
            target.budget.succeeded()
            target.doubted_until = 0.0
        elif visit.outcome is _FAILURE:
            target.budget.failed(late=attempt.late)
            target.doubted_until = now + DOUBT_S
        first = attempt.first_token_at
        took = None if first is None else first - attempt.started
        if took is not None and error is None:
            visit.rung.latency.hear(visit.rung.name, took)
        if self._events.heard:
            self._events.emit(
                AttemptFinished(
                    at=now,
                    request_id=self.request.id,
                    mode=visit.rung.name,
                    target=target.provider.name,
                    outcome=visit.outcome,
                    kind="" if visit.outcome is _SUCCESS else visit.cause,
                    duration_s=now - attempt.started,
                    first_token_s=took,
                    probe=visit.permit.probe,
                )
            )

    # -- small decisions ------------------------------------------------------------------------

    def _trial(self) -> Visit | None:
        """The panic rule: with every mode open and nothing tried, one leased trial (B9)."""
        rung = None if self._attempts else self._ladder.panic(self._start)
        if rung is None or (rung.index != self._start and not self.request.allow_degrade):
            return None
        entry = rung.enter(native=rung.index == self._start, trial=True)
        return entry if isinstance(entry, Visit) else None

    def _deadline(self) -> float:
        return self.request.deadline

    def _limits(self, visit: Visit, target: Target) -> tuple[float, float]:
        """How long this attempt may be silent before its first token, and between tokens.

        No longer than an equal share of the time left between this mode and the lower ones that
        could still answer: the rest is their reserve (B1). A stream that has begun has none below.
        """
        rung, permit, request = visit.rung, visit.permit, self.request
        mode, now = rung.mode, self.clock()
        first_token_s = mode.first_token_s if target.provider.streams else mode.deadline_s
        if permit.probe:
            slow_s = permit.slow_s or first_token_s
            first_token_s = min(first_token_s, slow_s, permit.lease_until - now)
        stall_s, left = mode.stall_s, request.deadline - now
        rungs, sharing = self._ladder.rungs, 1
        longest = stall_s if stall_s > first_token_s else first_token_s
        below = len(rungs) - 1 - rung.index if request.allow_degrade else 0
        if left >= longest * (1 + below):
            return first_token_s, stall_s  # enough for everyone: no need to ask how they stand
        for lower in range(rung.index + 1, rung.index + 1 + below):
            if rungs[lower].well(now):
                sharing += 1
        share = left / sharing
        if request.buffered and share < stall_s:
            stall_s = share
        return (share if share < first_token_s else first_token_s), stall_s

    async def _rest(self, target: Target, seconds: float) -> None:
        """Wait as long as the target asked, then try it again unless others were told more."""
        until = target.resting_until
        await asyncio.sleep(seconds)
        if target.resting_until == until:
            target.resting_until = self.clock()

    def _learn(
        self, rung: Rung, target: Target, error: UpstreamError, judgement: Judgement
    ) -> None:
        """Remember what the failure says beyond this request."""
        self._causes.failed(rung.name, error, judgement.then)
        if judgement.then is Then.LARGER:
            self._window = max(self._window, target.provider.context_window or 0)
        if judgement.cool_s <= 0:
            return
        target.resting_until = max(target.resting_until, self.clock() + judgement.cool_s)
        rung.limit.overloaded()
        self._events.emit(
            TargetResting(
                at=self.clock(),
                mode=rung.name,
                target=target.provider.name,
                kind=error.kind,
                for_s=judgement.cool_s,
                alarm=judgement.out,
            )
        )

    def _may_wait(self, target: Target, error: UpstreamError) -> bool:
        """Whether the Retry-After is short enough (B7), and the purse full enough for a retry."""
        left = self.request.deadline - self.clock()
        short = worth_waiting(error.retry_after, left)
        return short and target.budget.allows_retry(SAME_PLACE_ABOVE)

    def _error(self) -> GatewayError:
        """What the caller hears when no mode answered."""
        request, now = self.request, self.clock()
        if now + LAST_DIGIT_S >= request.deadline:  # timers may ring a little early
            return self._causes.late(now - request.started, self.assembly.text())
        return self._causes.error(lone=len(self._ladder) == 1 or not request.allow_degrade)
