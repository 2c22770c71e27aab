"""A blocking client as an asynchronous iterator: one daemon thread per call."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

_AHEAD = 64
"""Items a thread may be ahead of its reader before it waits."""


class Pump:
    """Run a blocking function in a thread and hand on its result, or what its result yields.

    A thread of its own, not the loop's pool: that one is small and shared with name lookups, and a
    client that hangs would starve both. A daemon, because nothing can end a blocking call from
    outside: after `close` its result is dropped and the thread ends when the call does.

    Args:
        function: called in the thread, in a copy of the caller's context.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[tuple[Any, BaseException | None]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self._room = threading.Semaphore(_AHEAD)
        context = contextvars.copy_context()
        thread = threading.Thread(
            target=context.run, args=(self._run, function), name="gateway-client", daemon=True
        )
        thread.start()

    def __aiter__(self) -> Pump:
        return self

    async def __anext__(self) -> Any:
        """The next item.

        Raises:
            StopAsyncIteration: the function, or its iterator, is done.
            BaseException: what the function raised.
        """
        while not self._items:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        item, error = self._items.popleft()
        self._room.release()
        if error is not None:
            self._items.append((None, error))  # whoever asks again hears the same
            raise error
        return item

    def close(self) -> None:
        """Drop whatever still comes. Idempotent."""
        self._closed = True
        self._room.release()

    # In the thread.

    def _run(self, function: Callable[[], Any]) -> None:
        iterator: Any = None
        error: BaseException = StopAsyncIteration()
        try:
            result = function()
            if isinstance(result, Iterator):
                iterator = result
                self._post(STREAM)
                for item in iterator:
                    if not self._post(item):
                        break
            else:
                self._post(result)
        except Exception as raised:  # noqa: BLE001  (told to the reader, whatever it is)
            error = raised
        except BaseException as raised:  # noqa: BLE001  (must not end the reader's loop)
            error = RuntimeError(f"the client raised {type(raised).__name__}")
        finally:
            close = getattr(iterator, "close", None)
            if close is not None and self._closed:
                with contextlib.suppress(Exception):  # nobody is left to be told
                    close()
        self._post(None, error)

    def _post(self, item: Any, error: BaseException | None = None) -> bool:
        """Hand one item to the loop; False if nobody wants it any more."""
        self._room.acquire()
        if self._closed:
            self._room.release()
            return False
        try:
            self._loop.call_soon_threadsafe(self._arrive, item, error)
        except RuntimeError:  # the loop is closed
            self._closed = True
        return not self._closed

    # On the loop.

    def _arrive(self, item: Any, error: BaseException | None) -> None:
        self._items.append((item, error))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


STREAM = object()
"""The first item if the function returned an iterator: what follows is what it yields."""
