"""4 Sheds before it queues, queues before it refuses (B23).

A request waits only if a slot is all that is missing: some mode it may use is well, but full.
The queue is bounded, knows each waiter's deadline, and serves the highest priority first. A
request that could not be served in time is refused at once, with a truthful Retry-After.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.clock import Clock
from gateway.errors import AdmissionRejected
from gateway.generation import GenerationRequest
from gateway.middleware.base import Answer, Handler
from gateway.policies.sampling import Sampling

if TYPE_CHECKING:  # config.py needs the options only, and importing a circuit is dear
    from gateway.policies.downshift import Ladder
    from gateway.policies.limit import Limit


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


class Admission:
    """Holds requests back while every mode they may use is full.

    Args:
        ladder: knows who has room.
        options: see `AdmissionOptions`.
        clock: monotonic seconds.
    """

    def __init__(self, ladder: Ladder, options: AdmissionOptions, clock: Clock) -> None:
        self._ladder = ladder
        self._options = options
        self._clock = clock
        self._queue: list[tuple[int, int, GenerationRequest, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._served = Sampling(10.0)
        for rung in ladder:
            rung.on_leave = self._left

    @property
    def queued(self) -> int:
        """Requests waiting now."""
        return len(self._queue)

    async def __call__(self, request: GenerationRequest, call_next: Handler) -> Answer:
        """Pass the request on once there is room for it.

        Raises:
            AdmissionRejected: the queue is full, or the wait would be too long for the deadline.
        """
        limit = self._ladder.rungs[self._ladder.index(request.mode)].limit
        if limit.native_waiting or self._full(request):
            await self._wait(request, limit)
        return await call_next(request)

    def _full(self, request: GenerationRequest) -> bool:
        start = self._ladder.index(request.mode)
        return self._ladder.saturated(start, allow_degrade=request.allow_degrade)

    async def _wait(self, request: GenerationRequest, limit: Limit) -> None:
        left = request.deadline - self._clock()
        patience = min(self._options.max_wait_s, left / 2)
        expected = self._expected_wait()
        if self.queued >= self._options.max_queue or expected > patience:
            raise self._refusal(expected)
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        entry = (request.priority, next(self._numbers), request, waiter)
        self._queue.append(entry)
        timer = loop.call_later(patience, _expire, waiter, self._refusal(expected))
        limit.native_waiting += 1
        try:
            self._wake()
            await waiter
        finally:
            timer.cancel()
            limit.native_waiting -= 1
            self._queue.remove(entry)

    def _expected_wait(self) -> float:
        """Seconds until a newcomer's turn, at the pace of the last ten seconds."""
        served, _ = self._served.totals(self._clock())
        return (self.queued + 1) * 10.0 / served if served else 0.0

    def _refusal(self, expected_s: float) -> AdmissionRejected:
        return AdmissionRejected(
            "every allowed mode is at its limit; try again shortly",
            retry_after=min(60.0, max(1.0, expected_s)),
        )

    def _left(self) -> None:
        self._served.add(self._clock(), failed=False)
        if self._queue:
            self._wake()

    def _wake(self) -> None:
        """Let in the first in line that fits. One at a time: it takes its slot when it runs."""
        for entry in sorted(self._queue):
            _, _, request, waiter = entry
            if not waiter.done() and not self._full(request):
                waiter.set_result(None)
                return


def _expire(waiter: asyncio.Future[None], refusal: AdmissionRejected) -> None:
    if not waiter.done():
        waiter.set_exception(refusal)
