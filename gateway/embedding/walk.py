"""One request on its way along the targets of its model: gate -> attempt -> classify -> settle."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from gateway.clock import Clock
from gateway.detectors.failures import Outcome, Then, judge
from gateway.embedding.places import MODE, Place
from gateway.embedding.vectors import Embedding
from gateway.errors import (
    AllModesFailed,
    CircuitOpen,
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    UpstreamError,
    UpstreamTimeout,
)
from gateway.events import AttemptFinished, EventBus, TargetResting
from gateway.policies.phases import Permit
from gateway.policies.second_attempts import DOUBT_S, QUICK_S, SAME_PLACE_ABOVE, worth_waiting
from gateway.providers.embeddings import Vectors

# Who said nothing for this long has failed, however much of a hurry the caller was in.
_PATIENT_S = 10.0


class Walk:
    """One request.

    Args:
        places: targets of the model.
        body: `input` and the caller's other fields.
        request_id: for upstream, logs and the answer.
        deadline_s: seconds until there must be an answer or an error.
        clock: monotonic seconds.
        events: told of each attempt.

    Attributes:
        started: when it began, on the clock.
        attempts: how many there were.
        upstream_s: seconds they took.
    """

    def __init__(
        self,
        places: list[Place],
        body: Mapping[str, Any],
        *,
        request_id: str,
        deadline_s: float,
        clock: Clock,
        events: EventBus,
    ) -> None:
        self.id = request_id
        self.started = clock()
        self.attempts = 0
        self.upstream_s = 0.0
        self._deadline = self.started + deadline_s
        self._places = places
        self._body = body
        self._clock = clock
        self._events = events
        self._left = dict.fromkeys(places, 1)  # attempts each may still be given
        self._may_retry = self._may_wait = True
        self._domains: set[str] = set()
        self._errors: dict[str, GatewayError] = {}

    async def run(self) -> Embedding:
        """Ask one target after the other until one answers.

        Raises:
            UpstreamError: the only target failed, or the mistake is the caller's.
            CircuitOpen: no target may be asked now.
            AllModesFailed: all of several failed.
            DeadlineExceeded: time ran out.
        """
        while True:
            found = self._next()
            if found is None:
                raise self._error()
            place, permit = found
            self._left[place] -= 1
            began = self._clock()
            try:
                vectors = await self._ask(place, permit)
            except UpstreamError as error:
                await self._learn(place, error, self._clock() - began)
            else:
                return Embedding(
                    id=self.id,
                    model=vectors.model,
                    target=place.embedder.name,
                    attempts=self.attempts,
                    usage=vectors.usage,
                    fields=vectors.fields,
                    duration_s=self._clock() - self.started,
                    upstream_s=self.upstream_s,
                )

    def _next(self) -> tuple[Place, Permit] | None:
        """The least loaded target that may be asked now, with its permit; doubtful ones last."""
        now = self._clock()
        if now >= self._deadline:
            return None
        ready = [p for p in self._places if self._left[p] > 0 and p.resting_until <= now]
        ready.sort(key=lambda p: (p.doubted_until > now, (p.in_flight + 1) / p.weight))
        for place in ready:
            again = place.embedder.domain in self._domains
            permit = None if again and not place.budget.allows_retry() else place.circuit.admit()
            if permit is not None:
                self._domains.add(place.embedder.domain)
                return place, permit
        return None

    async def _ask(self, place: Place, permit: Permit) -> Vectors:
        """One attempt; everything it holds is free when it ends, however it ends."""
        began = self._clock()
        embedder = place.embedder
        others = sum(self._left[p] > 0 for p in self._places if p is not place)
        # A silent target leaves the others their share of the time (B1).
        limit = min(embedder.headers_s, (self._deadline - began) / (1 + others))
        self.attempts += 1
        place.in_flight += 1
        outcome, cause = Outcome.IGNORED, "cancelled"
        try:
            try:
                async with asyncio.timeout(limit):
                    vectors = await embedder.embed(self._body, self.id)
            except UpstreamError:
                raise
            except TimeoutError:
                message = f"{embedder.name}: no answer after {limit:.3g} s"
                raise UpstreamTimeout(message, phase="total", target=embedder.name) from None
        except UpstreamError as error:
            outcome, cause = judge(error).outcome, error.kind
            hurried = limit < min(embedder.headers_s, _PATIENT_S)
            if isinstance(error, UpstreamTimeout) and error.phase == "total" and hurried:
                outcome = Outcome.IGNORED  # a moment's silence shows nothing
            raise
        except (TypeError, ValueError, RecursionError, OverflowError) as error:
            raise InvalidRequest(f"the request cannot be sent as JSON: {error}") from error
        else:
            outcome, cause = Outcome.SUCCESS, ""
            return vectors
        finally:
            self._close(place, permit, outcome, cause, began)

    def _close(
        self, place: Place, permit: Permit, outcome: Outcome, cause: str, began: float
    ) -> None:
        now = self._clock()
        took = now - began
        self.upstream_s += took
        place.in_flight -= 1
        place.circuit.settle(permit, outcome, cause)
        if outcome is Outcome.FAILURE:
            place.budget.failed()
            place.doubted_until = now + DOUBT_S
        elif outcome is Outcome.SUCCESS:
            place.budget.succeeded()
            place.doubted_until = 0.0
        self._events.emit(
            AttemptFinished(
                at=now,
                request_id=self.id,
                mode=MODE,
                target=place.embedder.name,
                outcome=outcome,
                kind=cause,
                duration_s=took,
                probe=permit.probe,
            )
        )

    async def _learn(self, place: Place, error: UpstreamError, took: float) -> None:
        """Remember what a failure says, and whether this target may be asked once more."""
        judgement = judge(error)
        self._errors[place.embedder.name] = error
        if judgement.then in (Then.RAISE, Then.LARGER):
            raise error  # another target of the same model would say the same
        if judgement.cool_s > 0:
            self._rest(place, error, judgement.cool_s, alarm=judgement.out)
        quick = took <= QUICK_S and place.budget.allows_retry(SAME_PLACE_ABOVE)
        if judgement.then is Then.RETRY and self._may_retry and quick:
            self._may_retry = False
            self._left[place] += 1
        elif judgement.then is Then.WAIT and self._may_wait and self._short(error):
            self._may_wait = False
            self._left[place] += 1
            if not any(p.resting_until <= self._clock() for p in self._places if self._left[p] > 0):
                await asyncio.sleep(error.retry_after or 0.0)
                place.resting_until = self._clock()

    def _rest(self, place: Place, error: UpstreamError, for_s: float, *, alarm: bool) -> None:
        now = self._clock()
        place.resting_until = max(place.resting_until, now + for_s)
        self._events.emit(
            TargetResting(
                at=now,
                mode=MODE,
                target=place.embedder.name,
                kind=error.kind,
                for_s=for_s,
                alarm=alarm,
            )
        )

    def _short(self, error: UpstreamError) -> bool:
        """Whether the Retry-After is short enough to wait for (B7)."""
        return worth_waiting(error.retry_after, self._deadline - self._clock())

    def _error(self) -> GatewayError:
        """What the caller hears when no target answered."""
        now = self._clock()
        if now >= self._deadline:
            return DeadlineExceeded(f"no vectors in {now - self.started:.3g} s")
        wait = min(place.wait_s(now) for place in self._places)
        for place in self._places:
            name = place.embedder.name
            if name not in self._errors:
                message = f"{name} is not available now"
                self._errors[name] = CircuitOpen(message, mode=MODE, retry_after=wait or None)
        if len(self._errors) == 1:
            return next(iter(self._errors.values()))
        said = "; ".join(str(error) for error in self._errors.values())
        return AllModesFailed(
            f"no target could embed ({said})", self._errors, retry_after=wait or None
        )
