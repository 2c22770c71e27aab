"""SIGTERM that ends a run in order: what is staged is written, the folder let go of."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def sigterm_exits() -> Iterator[None]:
    """Within, SIGTERM raises `SystemExit(143)` in the main thread, as Ctrl-C raises.

    By default SIGTERM ends Python on the spot, and a checkpoint still being written is lost (the
    older ones are not). Nothing installs this by itself: signals belong to the program. Other
    handlers (a launcher's, a cluster's) need only raise, or call `OperationsManager.flush`.

        with sigterm_exits(), OperationsManager("./checkpoints") as ops:
            ...

    Raises:
        ValueError: not in the main thread.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
