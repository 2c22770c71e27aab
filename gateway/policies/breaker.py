"""The one door to aiobreaker: an unmodified breaker that counts and holds the states.

aiobreaker 1.2 used directly lets everyone through while half-open, lets a late failure reopen it,
counts excluded errors as success and reads the wall clock. So it never sees a request here: it is
given our storage, which stamps the monotonic clock and forgets old failures, and outcomes are
replayed into it synchronously, one at a time, only where they can change something.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import aiobreaker
from aiobreaker.state import CircuitBreakerState as State
from aiobreaker.storage.base import CircuitBreakerStorage

from gateway.clock import Clock
from gateway.policies.phases import Phase
from gateway.policies.standing import Standing

__all__ = ["Breaker", "State"]

_STATES = {Phase.CLOSED: State.CLOSED, Phase.OPEN: State.OPEN, Phase.PROBING: State.HALF_OPEN}
_PHASES = {state: phase for phase, state in _STATES.items()}


# A century: what datetimes bear. aiobreaker only shows it, holds are counted elsewhere.
_LONGEST_S = 3.2e9


class Breaker:
    """States and counts, on our clock.

    Args:
        name: shown by aiobreaker's listeners.
        clock: monotonic seconds.
        turned: told (old, new) inside each transition, whoever makes it.

    Attributes:
        aiobreaker: the `aiobreaker.CircuitBreaker` itself; its listeners may be used.
        states: what it says: `state`, `epoch`, `opened`. They change by outcomes and by the
            methods here, never by themselves.
    """

    def __init__(self, name: str, clock: Clock, turned: Callable[[State, State], None]) -> None:
        self.states = MonotonicStates(clock, turned)
        self.aiobreaker = aiobreaker.CircuitBreaker(name=name, state_storage=self.states)

    def configure(self, fail_max: int, window_s: float, hold_s: float) -> None:
        """Set how many failures within `window_s` open it; state and counts are kept."""
        self.aiobreaker.fail_max = fail_max
        self.aiobreaker.timeout_duration = timedelta(seconds=min(hold_s, _LONGEST_S))
        self.states.window_s = window_s

    def success(self) -> None:
        """Replay a success: it closes a half-open breaker and resets the count."""
        if not self.standing.failures and self.standing.state is Phase.CLOSED:
            return  # it could change nothing, and the replay costs 2 µs
        self._replay(_succeed)
        self._ensure(State.CLOSED)
        self.states.reset_counter()

    def failure(self, at: float | None = None) -> None:
        """Replay a failure: it opens a half-open breaker, or a closed one at the threshold.

        Args:
            at: when it happened, on the clock; None is now.
        """
        states = self.states
        closed, failures = states.state is State.CLOSED, self.standing.failures.copy()
        states.at = at
        self._replay(_fail)
        if closed and states.state is State.CLOSED:
            self.standing.failures = failures  # a raising listener can lose a count, or all of them
            states.increment_counter()
        if not closed or states.counter >= self.aiobreaker.fail_max:
            self._ensure(State.OPEN)
        states.at = None

    def half_open(self) -> None:
        """Let a probe through."""
        self._ensure_by(self.aiobreaker.half_open, State.HALF_OPEN)

    def open(self) -> None:
        """Open, whatever the count."""
        self._ensure_by(self.aiobreaker.open, State.OPEN)

    def reset(self) -> None:
        """Back to closed in a new epoch, without a transition being told."""
        self.states.reset()

    def new_epoch(self) -> None:
        """Make every outcome under way a late one."""
        self.standing.epoch += 1

    @property
    def standing(self) -> Standing:
        """Where all that is counted here is kept."""
        return self.states.standing

    def adopt(self, standing: Standing) -> None:
        """Go on from another worker's state; no transition of ours. aiobreaker's listeners hear."""
        failures = standing.failures.copy()
        self.states.standing = standing
        with suppress(Exception):  # a listener's fault
            _ = self.aiobreaker.state  # it notices that its storage says something else
        standing.failures = failures  # of which it forgets the count where that is closed

    def _replay(self, outcome: Callable[[], None]) -> None:
        with suppress(Exception):  # our own replayed failure, or a listener's fault
            self.aiobreaker.call(outcome)

    def _ensure_by(self, turn: Callable[[], None], state: State) -> None:
        with suppress(Exception):  # a listener's fault
            turn()
        self._ensure(state)

    def _ensure(self, state: State) -> None:
        """Complete a transition that a raising listener of aiobreaker cut short."""
        if self.states.state is not state:
            self.states.state = state


def _succeed() -> None:
    """A success, replayed."""


def _fail() -> None:
    """A failure, replayed."""
    raise ConnectionError("replayed outcome")


class MonotonicStates(CircuitBreakerStorage):  # type: ignore[misc]
    """aiobreaker's storage on our clock: stamps are monotonic, old failures are forgotten.

    A write of the state *is* a transition, whoever makes it: it starts a new epoch.

    Attributes:
        standing: where state, epoch and failures are kept.
        window_s: failures older than this are forgotten.
        at: when what is being replayed happened, on the clock; None is now.
    """

    def __init__(self, clock: Clock, turned: Callable[[State, State], None]) -> None:
        super().__init__("monotonic")
        self.standing = Standing()
        self.window_s = 60.0
        self.at: float | None = None
        self._clock = clock
        self._turned = turned

    @property
    def state(self) -> State:
        return _STATES[self.standing.state]

    @state.setter
    def state(self, state: State) -> None:
        old = self.state
        if state is old:
            return
        standing = self.standing
        standing.state = _PHASES[state]
        standing.epoch += 1
        standing.failures.clear()
        if state is State.OPEN or old is State.CLOSED:
            standing.opened = self._clock() if self.at is None else self.at
        self._turned(old, state)

    @property
    def epoch(self) -> int:
        """How many transitions there have been."""
        return self.standing.epoch

    @property
    def opened(self) -> float:
        """When it last left closed or opened again, on the clock."""
        return self.standing.opened

    def reset(self) -> None:
        """Back to closed in a new epoch, without a transition being told."""
        self.standing.state = Phase.CLOSED
        self.standing.failures.clear()
        self.standing.epoch += 1

    def increment_counter(self) -> None:
        self.standing.failures.append(self._clock())

    def reset_counter(self) -> None:
        self.standing.failures.clear()

    @property
    def counter(self) -> int:
        """Consecutive failures within the window."""
        failures = self.standing.failures
        if failures:
            oldest = self._clock() - self.window_s
            while failures and failures[0] < oldest:
                del failures[0]
        return len(failures)

    @property
    def opened_at(self) -> datetime:
        """What aiobreaker's own arithmetic wants: naive UTC, derived from the monotonic stamp."""
        now = datetime.now(UTC).replace(tzinfo=None)
        return now - timedelta(seconds=self._clock() - self.standing.opened)

    @opened_at.setter
    def opened_at(self, date_time: datetime) -> None:
        """Ignored: the state's own write stamps the clock."""
