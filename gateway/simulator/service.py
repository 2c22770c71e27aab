"""What a pretended upstream is made of: how it serves, its slots and queue, what it counts."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable

import msgspec

from gateway.errors import ErrorKind, UpstreamError


class Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a simulated upstream serves while nothing is wrong.

    Attributes:
        slots: answers it works on at once; more wait in its queue.
        queue: answers that may wait; above it calls get a 503.
        round_trip_s: from the call being sent to response headers, seconds.
        first_token_s: median time from a slot to the first token, seconds.
        spread: sigma of that time's lognormal distribution; 0 is always the median.
        tokens_per_s: tokens a second of one answer.
        tokens: tokens of an answer, unless the caller's `max_tokens` is lower.
        seed: for chance and for the words of its answers.
    """

    slots: int = 64
    queue: int = 256
    round_trip_s: float = 0.001
    first_token_s: float = 0.3
    spread: float = 0.3
    tokens_per_s: float = 50.0
    tokens: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.slots, self.tokens) < 1 or min(self.queue, self.round_trip_s, self.spread) < 0:
            raise ValueError("needs slots, tokens >= 1 and queue, round_trip_s, spread >= 0")
        if min(self.first_token_s, self.tokens_per_s) <= 0:
            raise ValueError("needs first_token_s, tokens_per_s > 0")


class UpstreamStats(msgspec.Struct):
    """What a simulated upstream saw. `started` is always the sum of the four ends and `in_flight`.

    Attributes:
        started: calls that arrived, answered or not.
        in_flight: calls not yet ended; those the caller forgot to close stay here.
        max_in_flight: the most of them at once.
        completed: answers read to their end.
        cancelled: calls and answers the caller gave up.
        failures: calls and answers that failed, by kind.
        in_outage: calls that arrived while the whole target was down.
        times: when calls arrived, seconds on the plan's clock; the latest 65,536.
    """

    started: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    completed: int = 0
    cancelled: int = 0
    failures: Counter[ErrorKind] = msgspec.field(default_factory=Counter)
    in_outage: int = 0
    times: deque[float] = msgspec.field(default_factory=lambda: deque(maxlen=65_536))

    @property
    def failed(self) -> int:
        """Calls and answers that failed."""
        return self.failures.total()

    def arrive(self, now: float, *, down: bool) -> None:
        """Count a call."""
        self.started += 1
        self.in_outage += down
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        self.times.append(now)

    def leave(self, end: UpstreamError | str) -> None:
        """Count its end: `"completed"`, `"cancelled"` or the error it failed with."""
        self.in_flight -= 1
        if isinstance(end, UpstreamError):
            self.failures[end.kind] += 1
        elif end == "completed":
            self.completed += 1
        else:
            self.cancelled += 1


class Slots:
    """Places to work at and a fair queue for them.

    Args:
        capacity: how many places there are now; it may change with time and is asked each time
            somebody comes or goes. One place there always is.
    """

    def __init__(self, capacity: Callable[[], int]) -> None:
        self._capacity = capacity
        self._busy = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def queued(self) -> int:
        """How many wait for a place."""
        return len(self._queue)

    def free(self) -> bool:
        """Whether there is a place now."""
        return self._busy < max(1, self._capacity())

    def enter(self) -> asyncio.Future[None]:
        """Queue up. The future is done when the place is there; await it shielded, then `leave`."""
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self._admit()
        return turn

    def leave(self, turn: asyncio.Future[None]) -> None:
        """Give up the place, or the wait for it."""
        if turn.done():
            self._busy -= 1
        else:
            self._queue.remove(turn)
        self._admit()

    def _admit(self) -> None:
        while self._queue and self.free():
            self._busy += 1
            self._queue.popleft().set_result(None)
