"""Cancels what is done for a client that goes away, where only a coroutine knows that it has.

uvicorn's connections know it themselves (`connection.py`); granian and ASGI are asked here.
"""

from __future__ import annotations

import asyncio
from collections import deque
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
        self.gone = self.stopped = False
        self._left = left
        self._task = task
        self._watching: asyncio.Task[None] | None = None
        _due_later(self, task.get_loop())

    def stop(self) -> None:
        """Stop watching."""
        self.stopped = True
        if self._watching is not None:
            self._watching.cancel()

    def start(self) -> None:
        """Look from now on."""
        self._watching = self._task.get_loop().create_task(self._wait())

    async def _wait(self) -> None:
        await self._left()
        self.gone = True
        self._task.cancel()


# All wait equally long, so they are due in the order in which they came, and one timer serves them
# all. Each loop has its own line: tests have several.
_lines: dict[asyncio.AbstractEventLoop, deque[tuple[float, Watch]]] = {}


def _due_later(watch: Watch, loop: asyncio.AbstractEventLoop) -> None:
    line = _lines.get(loop)
    if line is None:
        line = _lines[loop] = deque()
        loop.call_later(_AFTER_S, _look, loop)
    line.append((loop.time() + _AFTER_S, watch))


def _look(loop: asyncio.AbstractEventLoop) -> None:
    line, now = _lines[loop], loop.time()
    while line and (line[0][1].stopped or line[0][0] <= now):
        watch = line.popleft()[1]
        if not watch.stopped:
            watch.start()
    if line:
        loop.call_at(line[0][0], _look, loop)
    else:
        del _lines[loop]
