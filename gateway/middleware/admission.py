"""5 Sheds before it queues, queues before it refuses (B23).

A request waits only if a slot is all that is missing: some mode it may use is well, but full.
The queue is bounded, knows each waiter's deadline, and serves the highest priority first. A
request that could not be served in time is refused at once, with a truthful Retry-After.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import insort
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.clock import Clock
from gateway.errors import AdmissionRejected
from gateway.generation import GenerationRequest
from gateway.middleware.base import Answer, Handler
from gateway.policies.sampling import Sampling

if TYPE_CHECKING:  # config.py needs the options only, and importing a circuit is dear
    from gateway.policies.downshift import Ladder


_PACE_OVER_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionOptions:
    """How long a line may form: `[admission]`.

    Attributes:
        max_queue: most requests waiting for a slot. Default 256.
        max_wait_s: longest wait for a slot, seconds; never more than half the time a request
            has left. Default 5.
    """

    max_queue: int = 256
    max_wait_s: float = 5.0


class _Place:
    """One request's place in the line.

    Attributes:
        asks: what it needs, hashable: places that ask the same fit or do not fit together.
        fits: whether there is room for it now.
        called: done once it may go and look again.
    """

    __slots__ = ("_order", "asks", "called", "fits")

    def __init__(self, order: tuple[int, int], asks: object, fits: Callable[[], bool]) -> None:
        self._order = order
        self.asks = asks
        self.fits = fits
        self.called = asyncio.get_running_loop().create_future()

    def __lt__(self, other: _Place) -> bool:
        return self._order < other._order


class Line:
    """Requests waiting for a slot, by priority and then in order of arrival.

    Whoever is called looks again and takes its slot itself; if somebody was quicker, it keeps its
    place. The line outlives a reload, as the slots do.

    Args:
        clock: monotonic seconds.

    Attributes:
        places: who waits, the next to be served first.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.places: list[_Place] = []
        self._numbers = itertools.count()
        self._served = Sampling(_PACE_OVER_S)

    def __len__(self) -> int:
        return len(self.places)

    def expected_wait_s(self) -> float:
        """Seconds until a newcomer's turn, at the pace of the last ten seconds."""
        served, _ = self._served.totals(self._clock())
        return (len(self) + 1) * _PACE_OVER_S / served if served else 0.0

    async def wait(
        self, priority: int, asks: object, fits: Callable[[], bool], patience_s: float
    ) -> bool:
        """Queue up until there is room. Returns False if that took longer than `patience_s`."""
        until = self._clock() + patience_s
        place = _Place((priority, next(self._numbers)), asks, fits)
        insort(self.places, place)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(patience_s, _call, place)
        try:
            self.wake()
            while True:
                await place.called
                if fits():
                    loop.call_soon(self.wake)  # once it has its slot: there may be one more
                    return True
                if self._clock() >= until:
                    return False
                place.called = loop.create_future()
        except asyncio.CancelledError:
            if not place.called.cancelled():  # it was called and will not come: call the next
                loop.call_soon(self.wake)
            raise
        finally:
            timer.cancel()
            self.places.remove(place)

    def left(self) -> None:
        """Somebody gave a slot back."""
        self._served.add(self._clock(), failed=False)
        if self.places:
            self.wake()

    def wake(self) -> None:
        """Call the first in line that fits. One at a time: it takes its slot when it runs."""
        full = set()
        for place in self.places:
            if place.asks not in full and not place.called.done():
                if place.fits():
                    _call(place)
                    return
                full.add(place.asks)


class Admission:
    """Holds requests back while every mode they may use is full.

    Args:
        ladder: knows who has room.
        options: see `AdmissionOptions`.
        clock: monotonic seconds.
        line: the line that has formed already, before a reload.
    """

    def __init__(
        self, ladder: Ladder, options: AdmissionOptions, clock: Clock, line: Line | None = None
    ) -> None:
        self.line: Line = Line(clock) if line is None else line
        self._ladder = ladder
        self._options = options
        self._clock = clock
        for rung in ladder:
            rung.on_leave = self.line.left

    @property
    def queued(self) -> int:
        """Requests waiting now."""
        return len(self.line)

    def __call__(self, request: GenerationRequest, call_next: Handler) -> Awaitable[Answer]:
        """Pass the request on once there is room for it.

        Raises:
            AdmissionRejected: the queue is full, or the wait would be too long for the deadline.
        """
        start, line = self._ladder.by_name[request.mode].index, self.line
        if line.places:
            line.wake()  # a mode may have healed, or rested, since somebody last left
        if self._ladder.saturated(start, allow_degrade=request.allow_degrade):
            return self._queue(request, start, call_next)
        return call_next(request)

    async def _queue(self, request: GenerationRequest, start: int, call_next: Handler) -> Answer:
        await self._wait(request, start)
        return await call_next(request)

    async def _wait(self, request: GenerationRequest, start: int) -> None:
        ladder, allow_degrade = self._ladder, request.allow_degrade

        def fits() -> bool:
            return not ladder.saturated(start, allow_degrade=allow_degrade)

        patience_s = min(self._options.max_wait_s, (request.deadline - self._clock()) / 2)
        if len(self.line) >= self._options.max_queue or self.line.expected_wait_s() > patience_s:
            raise self._refusal()
        limit = ladder.rungs[start].limit
        limit.native_waiting += 1
        began = self._clock()
        try:
            asks = (ladder, start, allow_degrade)
            if not await self.line.wait(request.priority, asks, fits, patience_s):
                raise self._refusal()
        finally:
            limit.native_waiting -= 1
            request.queued_s += self._clock() - began

    def _refusal(self) -> AdmissionRejected:
        return AdmissionRejected(
            "every allowed mode is at its limit; try again shortly",
            retry_after=min(60.0, max(1.0, self.line.expected_wait_s())),
        )


def _call(place: _Place) -> None:
    if not place.called.done():
        place.called.set_result(None)
