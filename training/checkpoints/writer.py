"""One thread that writes, one piece of work at a time: training need not wait for a disk."""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections.abc import Callable

Work = tuple[Callable[[], None], Callable[[BaseException], None]]
_live: weakref.WeakSet[Writer] = weakref.WeakSet()


def flush_all() -> None:
    """Wait for every writer of this process."""
    for writer in list(_live):
        writer.flush()


class Writer:
    """Runs work in order. One is under way and one may wait; a third `put` waits for the first.

    The thread is a daemon, so that a hung disk cannot keep the process from ending; what is staged
    is still written at a normal exit.
    """

    def __init__(self) -> None:
        self._queue: queue.Queue[Work | None] = queue.Queue(maxsize=1)
        self._idle = threading.Condition()
        self._pending = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="checkpoint-writer", daemon=True)
        self._thread.start()
        atexit.register(self.close)
        _live.add(self)

    def put(self, work: Callable[[], None], failed: Callable[[BaseException], None]) -> None:
        """Run `work` soon; `failed` hears what it raises."""
        if self._closed:
            raise RuntimeError("this writer is closed")
        with self._idle:
            self._pending += 1
        self._queue.put((work, failed))

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is pending; False if `timeout_s` came first."""
        with self._idle:
            return self._idle.wait_for(lambda: self._pending == 0, timeout_s)

    def close(self) -> None:
        """Flush and end the thread. Idempotent."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            work, failed = item
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - a failed save must not end the writer
                failed(error)
            finally:
                with self._idle:
                    self._pending -= 1
                    self._idle.notify_all()
