"""Watches attempts that wait for a first token, one timer a mode (B4, the overdue rule)."""

from __future__ import annotations

import asyncio

from gateway.clock import Clock
from gateway.middleware.attempt import Attempt
from gateway.policies.downshift import Rung
from gateway.policies.phases import Permit

# A sweep this late after its time measures our own stall, not the upstream's silence.
_LATE_S = 1.0
_SOONEST_S = 1e-3


class OverdueWatch:
    """Opens circuits on silence before any timeout, and frees those who wait for nothing.

    When a mode is open, an attempt past its slow threshold gives up and walks on; younger ones
    may still be answered and are looked at when they reach theirs.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: dict[Rung, dict[Attempt, Permit]] = {}
        self._timers: dict[Rung, asyncio.TimerHandle] = {}

    def start(self, rung: Rung, permit: Permit, attempt: Attempt) -> None:
        """Watch `attempt`, which begins to wait for its first token; `stop` must follow."""
        waiting = self._waiting.get(rung)
        if waiting is None:
            waiting = self._waiting[rung] = {}
        if permit.slow_s > 0:
            waiting[attempt] = permit
            if rung not in self._timers:
                self._set_timer(rung, permit.slow_s)

    def stop(self, rung: Rung, attempt: Attempt) -> None:
        """It waits no longer."""
        self._waiting[rung].pop(attempt, None)

    def close(self) -> None:
        """Stop all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _set_timer(self, rung: Rung, delay: float) -> None:
        loop = asyncio.get_running_loop()
        # Whole answers may take longer than streams: who begins to wait later may be overdue first.
        shortest = rung.circuit.options.slow_s
        if 0 < shortest < delay:
            delay = max(shortest, _SOONEST_S)
        due = self._clock() + delay
        self._timers[rung] = loop.call_later(delay, self._sweep, rung, due)

    def _sweep(self, rung: Rung, due: float) -> None:
        self._timers.pop(rung, None)
        waiting = self._waiting.get(rung)
        if not waiting:
            return
        now = self._clock()
        if now - due > _LATE_S:
            self._set_timer(rung, _LATE_S / 10)  # let what has arrived be read first
            return
        circuit = rung.circuit
        epoch = circuit.epoch
        if circuit.sweep():
            # As many as opened it have failed; all others leave too late to tell anything (B10).
            told = circuit.options.failure_threshold if circuit.epoch != epoch else 0
            overdue = [a for a, p in waiting.items() if p.overdue(now) and not p.probe]
            for number, attempt in enumerate(overdue):
                attempt.give_up(late=number >= told)
        coming = [p.started + p.slow_s - now for p in waiting.values() if not p.overdue(now)]
        if coming:
            self._set_timer(rung, max(_SOONEST_S, min(coming)))
