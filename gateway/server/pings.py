"""Comments in a stream that has said nothing for a while, so that nobody on the way hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

PING: Final = b": ping\n\n"
"""A comment; clients skip it (https://html.spec.whatwg.org/#event-stream-interpretation)."""


class Pings:
    """Sends a comment after each `every_s` of silence, never while something else is being sent.

    Args:
        send: sends it.
        every_s: silence allowed, seconds; 0 is never to send one.

    Attributes:
        paused: something else is being sent.
        quiet_since: when the last of it was, on the loop's clock. Whoever sends says so.
    """

    def __init__(self, send: Callable[[bytes], Awaitable[None]], every_s: float) -> None:
        self._send = send
        self._every_s = every_s
        self._loop = asyncio.get_running_loop()
        self.quiet_since = self._loop.time()
        self.paused = False
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if every_s > 0:
            self._timer = self._loop.call_later(every_s, self._look)

    def stop(self) -> None:
        """No more comments."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        # The event loop's timers may fire a clock tick early.
        if not self.paused and now >= self.quiet_since + self._every_s - 0.001:
            self.quiet_since = now
            if self._task is None or self._task.done():
                self._task = self._loop.create_task(self._ping())
        again = self.quiet_since + self._every_s
        self._timer = self._loop.call_at(again if again > now else now + self._every_s, self._look)

    async def _ping(self) -> None:
        await self._send(PING)
