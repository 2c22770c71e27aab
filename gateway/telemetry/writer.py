"""Writes lines from a thread of its own.

A log that is piped into a slow reader blocks whoever writes to it, and an event loop must not
block. So lines wait in a bounded queue, and a thread takes them out. It is woken by the first and
gathers what comes in the next moment: to wake it for each line costs the loop more than all else
about the line (35 us of a lock and a fight for the interpreter). When the queue is full, lines are
dropped and counted, and the next ones that are written say so.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

_AT_ONCE = 256
_GATHER_S = 0.05
_AGAIN_S = 0.01
_GOODBYE_S = 1.0


class LineWriter:
    """A bounded queue with a thread behind it.

    Args:
        file: where to write. Lines that it fails on are lost, and serving goes on.
        notice: the line that says how many were dropped in all.
        most: lines that may wait. Default 8192.

    Attributes:
        dropped: lines lost, because the queue was full or the file failed.
    """

    def __init__(self, file: TextIO, notice: Callable[[int], bytes], *, most: int = 8192) -> None:
        self._file = file
        self._notice = notice
        self._most = most
        self._lines: deque[bytes] = deque()
        self._thread: threading.Thread | None = None
        self._news, self._closing = threading.Event(), threading.Event()
        self._woken = self._closed = False
        self._told = 0
        self.dropped = 0

    def msg(self, line: str) -> None:
        """`put` for a line of text; so structlog's own loggers call it."""
        self.put(line.encode("utf-8", "replace"))

    def put(self, line: bytes) -> None:
        """Have a line written. Never waits, never raises."""
        lines = self._lines
        if self._closed or len(lines) >= self._most:
            self.dropped += 1
            return
        lines.append(line)
        if not self._woken:
            self._woken = True
            if self._thread is None:
                self._start()
            self._news.set()

    def close(self) -> None:
        """Write what is waiting, for at most a second. Idempotent; later lines are dropped."""
        if self._closed:
            return
        self._closed = True
        self._closing.set()
        self._news.set()
        if self._thread is not None:
            atexit.unregister(self.close)
            self._thread.join(_GOODBYE_S)

    def _start(self) -> None:
        """With the first line, so that whoever forks before it takes no dead thread along."""
        to = _writer(self._file)
        self._thread = threading.Thread(target=self._run, args=to, name="log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _run(self, write: Callable[[bytes], object], close: Callable[[], object]) -> None:
        last = False
        while not last:
            self._news.wait()
            last = self._closing.wait(_GATHER_S)
            self._news.clear()
            self._woken = False  # before the look: what comes from now on wakes us again
            while self._lines:
                lines = [self._lines.popleft() for _ in range(min(_AT_ONCE, len(self._lines)))]
                self._hand_over(lines, write)
        close()

    def _hand_over(self, lines: list[bytes], write: Callable[[bytes], object]) -> None:
        if self.dropped > self._told:
            self._told = self.dropped
            lines.append(self._notice(self._told))
        try:
            write(b"\n".join((*lines, b"")))
        except (OSError, ValueError):  # a reader that went away, a closed file
            self.dropped += len(lines)


def _writer(file: TextIO) -> tuple[Callable[[bytes], object], Callable[[], object]]:
    """How to write to a file and how to let go of it.

    Past its buffer if it is a real one: a thread that hangs in a buffered write holds a lock that
    the interpreter needs to exit. By a descriptor of our own: the number of one that is closed
    elsewhere may soon be somebody's socket.
    """
    try:
        own = os.dup(file.fileno())
    except (OSError, ValueError):
        return lambda text: file.write(text.decode()), file.flush

    def write(text: bytes) -> None:
        data = memoryview(text)
        while data:
            try:
                data = data[os.write(own, data) :]
            except BlockingIOError:  # whoever shares the terminal or pipe made it so
                time.sleep(_AGAIN_S)

    return write, lambda: os.close(own)
