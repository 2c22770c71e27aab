"""One request on its way down the ladder: gate -> budget -> attempt -> classify -> settle."""

from __future__ import annotations

import asyncio

import msgspec

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
from gateway.providers.base import Call, Provider

# How full the purse of a failure domain must be to walk down into it once more (B8).
_WALK_ABOVE = 0.5
_NONE: frozenset[Target] = frozenset()
# Bound here because looking a member up in its enumeration costs 0.2 µs.
_SUCCESS, _FAILURE, _IGNORED = Outcome.SUCCESS, Outcome.FAILURE, Outcome.IGNORED


class Walk(msgspec.Struct, eq=False):
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

    request: GenerationRequest
    _ladder: Ladder
    _watch: OverdueWatch
    clock: Clock
    _events: EventBus
    assembly: Assembly = msgspec.field(default_factory=Assembly)
    visit: Visit | None = None
    attempt: Attempt | None = None
    probing: bool = False
    _target: Target | None = None
    _passed: int = 0
    _causes_met: Causes | None = None
    _domains: tuple[str, ...] = ()
    _window: int = 0
    _attempts: int = 0
    _upstream_s: float = 0.0
    _told: Served | None = None

    async def descend(self, prefix: str = "") -> None:
        """Go down from where the walk stands until a mode answers.

        Each is tried with at most one quick retry and one short wait, and left if it fails.

        Args:
            prefix: text of an interrupted answer the next mode is to continue.
        """
        while True:
            visit, tried = self._enter(), _NONE
            may_retry = may_wait = True
            try:
                while (target := self._pick(visit, tried, prefix)) is not None:
                    before_s = self._upstream_s
                    try:
                        return await self._try(visit, target, prefix)
                    except UpstreamError as error:
                        tried |= {target}
                        judgement = judge(error)
                        self._learn(visit.rung, target, error, judgement)
                        if judgement.then is Then.RAISE:
                            raise
                        quick = self._upstream_s - before_s <= QUICK_S
                        if judgement.then is Then.RETRY and may_retry and quick:
                            may_retry = False
                        elif (
                            judgement.then is Then.WAIT
                            and may_wait
                            and self._may_wait(target, error)
                        ):
                            may_wait = False
                            await self._rest(target, error.retry_after or 0.0)
                        else:
                            break
            finally:
                if self.visit is None:
                    visit.leave()

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
        if told.mode != request.mode:
            told.degraded = True
            told.reason = self._causes.reason or "failed"
            told.until = self._wanted().until()
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

    def _enter(self) -> Visit:
        """Enter the next mode that lets it in, at last by the panic rule.

        Raises:
            GatewayError: none does, or time is up.
        """
        request, wanted = self.request, self._wanted()
        rungs = self._ladder.below(wanted.index, allow_degrade=request.allow_degrade)
        for rung in rungs[self._passed :]:
            if self.clock() >= request.deadline:
                raise self._error()
            self._passed += 1
            entry = rung.enter(native=rung is wanted, window=self._window)
            if isinstance(entry, Visit):
                return entry
            self._causes.refused(rung.name, entry)
        trial = self._trial() if self._passed == len(rungs) else None
        self._passed += 1
        if trial is None:
            raise self._error()
        return trial

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
        rung, request, permit = visit.rung, self.request, visit.permit
        probing = self.probing = permit.probe
        if prefix:
            self.assembly.model = ""  # who goes on says its own name
        elif self._attempts:
            self.assembly = Assembly()  # a new attempt starts clean
        mode, provider, now = rung.mode, target.provider, self.clock()
        fields = {**mode.sampling, **request.params}
        call = Call(request.messages, fields, request.id, mode.thinking, prefix, request.raw)
        limits = self._limits(visit, provider, now)
        attempt = Attempt(provider, call, request, self.assembly, self.clock, now, *limits)
        self._attempts += 1
        target.in_flight += 1
        failure: UpstreamError | None = None
        visit.outcome, visit.cause = _IGNORED, "cancelled"
        try:
            self._watch.start(rung, permit, attempt)
            try:
                await attempt.open()
            finally:
                self._watch.stop(rung, attempt)
            rung.circuit.first_token(permit)
            if request.buffered:
                while await attempt.read():
                    attempt.chunks.clear()
                    if probing:
                        prove(visit, attempt, self.clock())
            self.visit, self.attempt, self._target = visit, attempt, target
        except UpstreamError as error:
            failure = error
            if isinstance(error, StreamInterrupted):
                error.mode, error.partial = rung.name, self.assembly.text()
            visit.outcome, visit.cause = verdict(error, attempt, rung), error.kind
            raise
        except asyncio.CancelledError:
            if too_slow(attempt, rung):
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
        took_s = now - attempt.started
        self._upstream_s += took_s
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
        first_token_s = None if first is None else first - attempt.started
        if first_token_s is not None and error is None:
            visit.rung.latency.hear(visit.rung.name, first_token_s)
        if self._events.heard:
            self._events.emit(
                AttemptFinished(
                    at=now,
                    request_id=self.request.id,
                    mode=visit.rung.name,
                    target=target.provider.name,
                    outcome=visit.outcome,
                    kind="" if visit.outcome is _SUCCESS else visit.cause,
                    duration_s=took_s,
                    first_token_s=first_token_s,
                    probe=visit.permit.probe,
                )
            )

    # -- small decisions ------------------------------------------------------------------------

    def _trial(self) -> Visit | None:
        """The panic rule: with every mode open and nothing tried, one leased trial (B9)."""
        wanted = self._wanted()
        rung = None if self._attempts else self._ladder.panic(wanted.index)
        if rung is None or (rung is not wanted and not self.request.allow_degrade):
            return None
        entry = rung.enter(native=rung is wanted, trial=True)
        return entry if isinstance(entry, Visit) else None

    def _wanted(self) -> Rung:
        return self._ladder.by_name[self.request.mode]

    def _limits(self, visit: Visit, provider: Provider, now: float) -> tuple[float, float]:
        """How long this attempt may be silent before its first token, and between tokens.

        No longer than an equal share of the time left between this mode and the lower ones that
        could still answer: the rest is their reserve (B1). A stream that has begun has none below.
        """
        mode, permit, request = visit.rung.mode, visit.permit, self.request
        first_token_s = mode.first_token_s if provider.streams else mode.deadline_s
        if self.probing:
            slow_s = permit.slow_s or first_token_s
            first_token_s = min(first_token_s, slow_s, permit.lease_until - now)
        stall_s, left = mode.stall_s, request.deadline - now
        below = self._ladder.rungs[visit.rung.index + 1 :] if request.allow_degrade else ()
        if left < max(stall_s, first_token_s) * (1 + len(below)):  # not enough for everyone
            sharing = 1
            for lower in below:
                sharing += lower.well(now)
            left /= sharing
        if request.buffered and left < stall_s:
            stall_s = left
        return (left if left < first_token_s else first_token_s), stall_s

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
