"""The one door to aiobreaker: an unmodified breaker that counts and holds the states.

aiobreaker 1.2 used directly lets everyone through while half-open, lets a late failure reopen it,
counts excluded errors as success and reads the wall clock. So it never sees a request here: it is
given our storage, which stamps the monotonic clock and forgets old failures, and outcomes are
replayed into it synchronously, one at a time, only where they can change something.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import aiobreaker
from aiobreaker.state import CircuitBreakerState as State
from aiobreaker.storage.base import CircuitBreakerStorage

from gateway.clock import Clock

__all__ = ["Breaker", "State"]


class Breaker:
    """States and counts, on our clock.

    Args:
        name: shown by aiobreaker's listeners.
        clock: monotonic seconds.
        turned: told (old, new) inside each transition, whoever makes it.

    Attributes:
        aiobreaker: the `aiobreaker.CircuitBreaker` itself; its listeners may be used.
    """

    def __init__(self, name: str, clock: Clock, turned: Callable[[State, State], None]) -> None:
        self._states = _MonotonicStates(clock, turned)
        self.aiobreaker = aiobreaker.CircuitBreaker(name=name, state_storage=self._states)

    def configure(self, fail_max: int, window_s: float, hold_s: float) -> None:
        """Set how many failures within `window_s` open it; state and counts are kept."""
        self.aiobreaker.fail_max = fail_max
        self.aiobreaker.timeout_duration = timedelta(seconds=hold_s)
        self._states.window_s = window_s

    @property
    def state(self) -> State:
        """The state now. Changes only by outcomes and by `half_open`, never by itself."""
        return self._states.state

    @property
    def epoch(self) -> int:
        """How many transitions there have been."""
        return self._states.epoch

    @property
    def opened(self) -> float:
        """When it last opened, on the clock."""
        return self._states.opened

    @opened.setter
    def opened(self, at: float) -> None:
        self._states.opened = at

    @property
    def failures(self) -> int:
        """Consecutive failures within the window."""
        return self._states.counter

    def success(self) -> None:
        """Replay a success: it closes a half-open breaker and resets the count."""
        if self._states.state is State.CLOSED and not self._states.counter:
            return  # it could change nothing, and the replay costs 2 µs
        self._replay(_succeed)
        self._ensure(State.CLOSED)

    def failure(self) -> None:
        """Replay a failure: it opens a half-open breaker, or a closed one at the threshold."""
        closed = self._states.state is State.CLOSED
        self._replay(_fail)
        if not closed or self._states.counter >= self.aiobreaker.fail_max:
            self._ensure(State.OPEN)

    def half_open(self) -> None:
        """Let a probe through."""
        self._ensure_by(self.aiobreaker.half_open, State.HALF_OPEN)

    def open(self) -> None:
        """Open, whatever the count."""
        self._ensure_by(self.aiobreaker.open, State.OPEN)

    def reset(self) -> None:
        """Back to closed in a new epoch, without a transition being told."""
        self._states.reset()

    def new_epoch(self) -> None:
        """Make every outcome under way a late one."""
        self._states.epoch += 1

    def _replay(self, call: Callable[[], None]) -> None:
        try:
            self.aiobreaker.call(call)
        except Exception:  # noqa: BLE001, S110 - our own replayed failure, or a listener's fault
            pass

    def _ensure_by(self, turn: Callable[[], None], state: State) -> None:
        try:
            turn()
        except Exception:  # noqa: BLE001, S110 - a listener's fault
            pass
        self._ensure(state)

    def _ensure(self, state: State) -> None:
        """Complete a transition that a raising listener of aiobreaker cut short."""
        if self._states.state is not state:
            self._states.state = state


def _succeed() -> None:
    """A success, replayed."""


def _fail() -> None:
    """A failure, replayed."""
    raise ConnectionError("replayed outcome")


class _MonotonicStates(CircuitBreakerStorage):  # type: ignore[misc]
    """aiobreaker's storage on our clock: stamps are monotonic, old failures are forgotten.

    A write of the state *is* a transition, whoever makes it: it starts a new epoch.
    """

    def __init__(self, clock: Clock, turned: Callable[[State, State], None]) -> None:
        super().__init__("monotonic")
        self.epoch = 0
        self.opened = 0.0
        self.window_s = 60.0
        self._clock = clock
        self._turned = turned
        self._state = State.CLOSED
        self._failures: deque[float] = deque(maxlen=1000)

    @property
    def state(self) -> State:
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        if state is self._state:
            return
        old, self._state = self._state, state
        self.epoch += 1
        self._failures.clear()
        if state is State.OPEN:
            self.opened = self._clock()
        self._turned(old, state)

    def reset(self) -> None:
        """Back to closed in a new epoch, without a transition being told."""
        self._state = State.CLOSED
        self._failures.clear()
        self.epoch += 1

    def increment_counter(self) -> None:
        self._failures.append(self._clock())

    def reset_counter(self) -> None:
        self._failures.clear()

    @property
    def counter(self) -> int:
        """Consecutive failures within the window."""
        failures = self._failures
        if failures:
            oldest = self._clock() - self.window_s
            while failures and failures[0] <= oldest:
                failures.popleft()
        return len(failures)

    @property
    def opened_at(self) -> datetime:
        """What aiobreaker's own arithmetic wants: naive UTC, derived from the monotonic stamp."""
        now = datetime.now(UTC).replace(tzinfo=None)
        return now - timedelta(seconds=self._clock() - self.opened)

    @opened_at.setter
    def opened_at(self, date_time: datetime) -> None:
        """Ignored: the state's own write stamps the clock."""
