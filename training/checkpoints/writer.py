"""One thread that writes, one piece of work at a time: training need not wait for a disk."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable

Work = tuple[Callable[[], None], Callable[[BaseException], None]]
_AT_EXIT_S = 600.0  # a disk that hangs longer must not keep the process from ending
_live: weakref.WeakSet[Writer] = weakref.WeakSet()


def flush_all(timeout_s: float | None = None) -> bool:
    """Wait for every writer of this process; False if `timeout_s` came first for one of them."""
    done = [writer.flush(timeout_s) for writer in list(_live)]
    return all(done)


class Writer:
    """Runs work in order, in a daemon thread; what is staged is still written at a normal exit.

    How much may wait is the business of whoever puts it. A fork's copy has no thread: it neither
    writes nor waits.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._work: deque[Work] = deque()
        self._running = False
        self._closed = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="checkpoint-writer", daemon=True)
        self._thread.start()
        atexit.register(self.close, _AT_EXIT_S)
        _live.add(self)

    @property
    def busy(self) -> bool:
        """Whether anything is under way or waiting."""
        return self._running or bool(self._work)

    def put(self, work: Callable[[], None], failed: Callable[[BaseException], None]) -> None:
        """Run `work` soon; `failed` hears what it raises.

        Raises:
            RuntimeError: the writer is closed.
        """
        with self._changed:
            if self._closed or not self._mine():
                raise RuntimeError("this writer is closed")
            self._work.append((work, failed))
            self._changed.notify_all()

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is pending; False if `timeout_s` came first."""
        if not self._mine():
            return True
        with self._changed:
            return self._changed.wait_for(lambda: not self.busy, timeout_s)

    def close(self, timeout_s: float | None = None) -> None:
        """Finish what is pending and end the thread. Idempotent."""
        if not self._mine():
            return
        atexit.unregister(self.close)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _mine(self) -> bool:
        return self._pid == os.getpid()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._work or self._closed)
                if not self._work:
                    return
                work, failed = self._work.popleft()
                self._running = True
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - a failed save must not end the writer
                with contextlib.suppress(Exception):
                    failed(error)
            del work, failed
            with self._changed:
                self._running = False
                self._changed.notify_all()
