"""One stream of server-sent events for many viewers: made once, sent to all, only while they look.

A viewer is a short queue. Who reads too slowly to keep up is let go and may come again; nobody
waits for anybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Final

Frame = Callable[[bool], bytes]
"""Makes the next frame: whole for a viewer who just came (True), or what is new (False)."""

_BEHIND: Final = 8
"""Frames a viewer may be behind before it is let go: some eight seconds."""

# What happens at once is told at once, in one frame.
_GATHER_S: Final = 0.1


class Broadcast:
    """Tells viewers how things stand, every `every_s` seconds and when `wake` is called.

    Args:
        frame: makes the frames; called once for all viewers, and once more for those that come.
        every_s: seconds between frames.
        most: viewers at once; more are refused.
    """

    def __init__(self, frame: Frame, *, every_s: float = 1.0, most: int = 200) -> None:
        self._frame = frame
        self._every_s = every_s
        self._most = most
        self._viewers: set[asyncio.Queue[bytes | None]] = set()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def __len__(self) -> int:
        """How many look."""
        return len(self._viewers)

    @property
    def full(self) -> bool:
        """Whether no more viewers are taken."""
        return self._closed or len(self._viewers) >= self._most

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """What one viewer sees, until it leaves, falls behind or the service stops."""
        if self.full:
            return
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(_BEHIND)
        queue.put_nowait(self._frame(True))
        self._viewers.add(queue)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            while (frame := await queue.get()) is not None:
                yield frame
        finally:
            self._viewers.discard(queue)

    def wake(self) -> None:
        """Something happened that viewers want to see at once."""
        if self._viewers:
            self._news.set()

    def close(self) -> None:
        """End every stream now, and take no more viewers. Idempotent."""
        self._closed = True
        for queue in self._viewers.copy():
            self._let_go(queue)
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            while self._viewers:
                await self._pause()
                frame = self._frame(False)
                for queue in self._viewers.copy():
                    if queue.full():
                        self._let_go(queue)
                    else:
                        queue.put_nowait(frame)
        finally:  # whatever stopped it: an open stream that says nothing would be a lie
            self._task = None
            for queue in self._viewers.copy():
                self._let_go(queue)

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._every_s):
                await self._news.wait()
                await asyncio.sleep(_GATHER_S)
        self._news.clear()

    def _let_go(self, queue: asyncio.Queue[bytes | None]) -> None:
        self._viewers.discard(queue)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)
