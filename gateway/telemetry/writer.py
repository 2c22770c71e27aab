"""Writes lines from a thread of its own.

A log that is piped into a slow reader blocks whoever writes to it, and an event loop must not
block. So lines go into a bounded queue, and a thread takes them out, as many at once as there are.
A line costs its caller about a microsecond; when the queue is full, lines are dropped and counted,
and the next ones that are written say so.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import TextIO

_CLOSE = None  # the last thing in the queue
_AT_ONCE = 256
_AGAIN_S = 0.01
_GOODBYE_S = 1.0


class LineWriter:
    """A bounded queue with a thread behind it; writes as structlog's own loggers do.

    Args:
        file: where to write. Lines that it fails on are lost, and serving goes on.
        notice: the line that says how many were dropped in all.
        most: lines that may wait. Default 8192.

    Attributes:
        dropped: lines lost, because the queue was full or the file failed.
    """

    def __init__(self, file: TextIO, notice: Callable[[int], str], *, most: int = 8192) -> None:
        self._file = file
        self._notice = notice
        self._most = most
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._told = 0
        self.dropped = 0

    def msg(self, line: str) -> None:
        """Have a line written. Never waits, never raises."""
        if self._closed or self._queue.qsize() >= self._most:
            self.dropped += 1
            return
        if self._thread is None:
            self._start()
        self._queue.put(line)

    def close(self) -> None:
        """Write what is waiting, for at most a second. Idempotent; later lines are dropped."""
        if self._closed:
            return
        self._closed = True
        if self._thread is not None:
            atexit.unregister(self.close)
            self._queue.put(_CLOSE)
            self._thread.join(_GOODBYE_S)

    def _start(self) -> None:
        """With the first line, so that whoever forks before it takes no dead thread along."""
        to = _writer(self._file)
        self._thread = threading.Thread(target=self._run, args=to, name="log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _run(self, write: Callable[[str], object], close: Callable[[], object]) -> None:
        queue, is_open = self._queue, True
        while is_open:
            lines = [queue.get()]
            while len(lines) < _AT_ONCE and not queue.empty():
                lines.append(queue.get())
            is_open = lines[-1] is not _CLOSE
            texts = [line for line in lines if line is not _CLOSE]
            if texts and self.dropped > self._told:
                self._told = self.dropped
                texts.append(self._notice(self._told))
            try:
                write("".join(f"{text}\n" for text in texts))
            except (OSError, ValueError):  # a reader that went away, a closed file
                self.dropped += len(texts)
        close()


def _writer(file: TextIO) -> tuple[Callable[[str], object], Callable[[], object]]:
    """How to write to a file and how to let go of it.

    Past its buffer if it is a real one: a thread that hangs in a buffered write holds a lock that
    the interpreter needs to exit. By a descriptor of our own: the number of one that is closed
    elsewhere may soon be somebody's socket.
    """
    try:
        own = os.dup(file.fileno())
    except (OSError, ValueError):
        return file.write, file.flush

    def write(text: str) -> None:
        data = memoryview(text.encode("utf-8", "replace"))
        while data:
            try:
                data = data[os.write(own, data) :]
            except BlockingIOError:  # whoever shares the terminal or pipe made it so
                time.sleep(_AGAIN_S)

    return write, lambda: os.close(own)
