"""How many requests a mode takes at once: additive increase, multiplicative decrease.

The limit moves on explicit signals only (429, 503, timeouts), at most one step down per second:
gradients on total latency drift for LLMs, whose latency is mostly answer length
(Netflix concurrency-limits #134, #137). Half of it belongs to native traffic (B14).
"""

from __future__ import annotations

from gateway.clock import Clock

_DECREASE = 0.7
_DECREASE_EVERY_S = 1.0
_FLOOR = 2
_WARY_S = 30.0
_WARY_STEP = 0.05
_SMALLEST_START = 16.0


class Limit:
    """The in-flight limit of one mode.

    Args:
        maximum: upper bound and starting point, >= 1.
        clock: monotonic seconds.

    Attributes:
        native: requests in flight that asked for this very mode.
        downshifted: requests in flight that asked for a higher one.
        native_waiting: native requests queued for a slot.
    """

    def __init__(self, maximum: int, clock: Clock) -> None:
        self.native = 0
        self.downshifted = 0
        self.native_waiting = 0
        self._clock = clock
        self._maximum = maximum
        self._limit = float(maximum)
        self._decreased = float("-inf")
        self._refused = float("-inf")
        self._too_much = float("inf")

    @property
    def current(self) -> int:
        """The limit now, in requests."""
        return int(self._limit)

    @property
    def in_flight(self) -> int:
        """Requests in flight."""
        return self.native + self.downshifted

    def resize(self, maximum: int) -> None:
        """Take a new maximum from a reload; what was learned is kept, in proportion."""
        self._limit = max(float(min(_FLOOR, maximum)), self._limit * maximum / self._maximum)
        self._maximum = maximum

    def room(self, *, native: bool) -> bool:
        """Whether one more may start now (B14)."""
        if self.native + self.downshifted >= int(self._limit):
            return False
        if native or not (self.native or self.native_waiting):
            return True
        return self.downshifted < max(1, self.current // 2)

    def enter(self, *, native: bool) -> None:
        """Take a slot; `room` said yes just before."""
        if native:
            self.native += 1
        else:
            self.downshifted += 1

    def leave(self, *, native: bool) -> None:
        """Give the slot back."""
        if native:
            self.native -= 1
        else:
            self.downshifted -= 1

    def went_well(self) -> None:
        """A request succeeded: grow by one per round of successes, if the limit was in use.

        Where it was too much lately it grows slowly: each try costs the upstream's next refusal,
        and a second in which nobody is let in (CUBIC's plateau, RFC 9438, for the same reason).
        """
        if self._limit < self._maximum and self.in_flight * 2 >= self._limit:
            wary = self._limit >= self._too_much and self._clock() < self._refused + _WARY_S
            step = (_WARY_STEP if wary else 1.0) / self._limit
            self._limit = min(float(self._maximum), self._limit + step)

    def overloaded(self, *, refused: bool = True) -> None:
        """The upstream has too much: shrink, at most once a second.

        Args:
            refused: it said so itself (429, 503). False for time that ran out in its queue: that
                may also have been one slow answer, so there is no lasting wariness in it.
        """
        now = self._clock()
        if now - self._decreased >= _DECREASE_EVERY_S:
            self._decreased = now
            # A limit far above what is in use would take minutes to bite: start from twice that.
            in_use = min(self._limit, max(2.0 * self.in_flight, _SMALLEST_START))
            self._limit = max(float(min(_FLOOR, self._maximum)), in_use * _DECREASE)
            if refused:
                self._too_much = max(self._limit + 1.0, self.in_flight - 1.0)
                self._refused = now
