"""A folder that one manager writes into: made, locked, and let go of."""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from pathlib import Path

from training.errors import FolderBusy, SaveFailed

_LOCK = ".lock"
_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderLock:
    """Makes the folder and holds its lock until `close` or the end of the process.

    The kernel holds it, so a killed run leaves none behind. A fork's copy lets go of its handle at
    once: a data loader's worker that outlives a killed run must not keep the next one out.

    Raises:
        FolderBusy: another manager writes here.
        SaveFailed: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / _LOCK).open("a+b")
        except OSError as error:
            told = error.strerror or str(error)
            raise SaveFailed(
                f"cannot write here: {told}; mend its rights or give checkpoint_dir another folder",
                path=str(folder),
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise FolderBusy(
                f"{folder}: another manager writes here; give each run its own folder"
            ) from None
        self._pid = os.getpid()
        _held.add(self)

    @property
    def mine(self) -> bool:
        """Whether this process holds it, and not one it was forked from."""
        return self._pid == os.getpid() and not self._file.closed

    def close(self) -> None:
        """Let go. Idempotent."""
        if not self._file.closed and self._pid == os.getpid():
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()


def same_folder(one: Path, other: Path) -> bool:
    """Whether two paths lead to one folder."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def _forked() -> None:
    for lock in list(_held):
        lock.close()  # without unlocking: that is the parent's


os.register_at_fork(after_in_child=_forked)
