"""An event loop in a thread of its own, for scripts that have none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from gateway.errors import GatewayError

_T = TypeVar("_T")

BEGINNING: Final = threading.Lock()
"""Held while a thread's first call makes a `LoopThread`: another's first call shall find it."""

_LET_GO_S: Final = 5.0


class LoopThread:
    """Runs coroutines from threads that have no event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._handing_in = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="gateway-loop", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run `work` to its end and return its result; an interrupt cancels it.

        Raises:
            GatewayError: nobody would ever run it: the loop is stopped, or was left behind by a
                fork, or would wait for itself.
        """
        why = self._unfit()
        if why:
            work.close()
            raise GatewayError(why)
        with self._handing_in:
            if self._stopped:
                work.close()
                raise GatewayError("this gateway is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop and its thread; calls of other threads that are under way are cancelled."""
        with self._handing_in:
            self._stopped = True
            last = asyncio.run_coroutine_threadsafe(_let_go(), self._loop)
        last.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _unfit(self) -> str:
        if threading.current_thread() is self._thread:
            return "generate_sync was called on the gateway's own loop; await generate there"
        if not self._thread.is_alive() and not self._stopped:
            return "this gateway's thread was left behind by a fork; make a gateway per process"
        return ""


async def _let_go() -> None:
    """Cancel what is still under way: whoever waits for it in another thread would wait forever."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=_LET_GO_S)
