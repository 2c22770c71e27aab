"""The folder of a service's workers: made for one run, gone after it, even if the run was killed.

Who is killed cleans nothing up, so the next start does. That a folder's owners are gone is told by
a lock the kernel holds for them: the supervisor and its workers share one open file, and
its lock ends with the last of them. A process id would not do: it may belong to another by now.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

_PREFIX: Final = "gateway-"
_OWNER: Final = "downshift-gateway.lock"


class RunFolder(NamedTuple):
    """Where it is, and the open file to hand down to those who use it."""

    path: Path
    lock: int


@contextmanager
def run_folder() -> Iterator[RunFolder]:
    """A folder for this run that only this user may enter; earlier runs' that were left are
    removed.
    """
    remove_left()
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        path = Path(name)
        lock = _lock(path / f"{_OWNER}.new")
        assert lock is not None
        try:
            # From here on it may be found, and is found locked.
            (path / f"{_OWNER}.new").rename(path / _OWNER)
            yield RunFolder(path, lock)
        finally:
            os.close(lock)


def remove_left() -> None:
    """Remove the folders of this user's runs that nobody lives in any more."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another start was faster, or it is no folder of ours
            # Temporary folders are open to all: what another user, or a link, puts there under
            # our name is not for us to touch.
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            lock = _lock(path / _OWNER, made=True)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _lock(path: Path, *, made: bool = False) -> int | None:
    """The file, open and locked; None if somebody else holds it."""
    import fcntl  # noqa: PLC0415 - several workers are for systems that have it

    flags = os.O_RDWR | os.O_NOFOLLOW | (0 if made else os.O_CREAT | os.O_EXCL)
    lock = os.open(path, flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
