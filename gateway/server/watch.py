"""Cancels what is done for a client that goes away, where only a coroutine knows that it has.

uvicorn's connections know it themselves (`connection.py`); granian and ASGI are asked here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

# Most answers are there sooner; for them nobody need watch whether the client is still there.
_AFTER_S: Final = 0.2


class Watch:
    """Watches one client from a moment after its request came, until `stop`.

    Args:
        left: returns once the client has gone.
        task: what is cancelled then.

    Attributes:
        gone: whether that happened.
    """

    def __init__(self, left: Callable[[], Awaitable[object]], task: asyncio.Task[Any]) -> None:
        self.gone = False
        self._left = left
        self._task = task
        self._watching: asyncio.Task[None] | None = None
        self._timer = task.get_loop().call_later(_AFTER_S, self._start)

    def stop(self) -> None:
        """Stop watching."""
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()

    def _start(self) -> None:
        self._watching = self._task.get_loop().create_task(self._wait())

    async def _wait(self) -> None:
        await self._left()
        self.gone = True
        self._task.cancel()
