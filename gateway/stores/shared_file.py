"""One file that several processes have open at once, and what to do when it is not fit for use."""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from sqlite3 import Connection, Error
from typing import Final, TypeVar

from gateway.stores.private import make_private

__all__ = ["Connection", "Error", "Place"]

T = TypeVar("T")

WAIT_S: Final = 0.1
"""How long to wait for another process; what they do takes microseconds."""
UNSETTLED: Final = bytes(8)
"""The mark of a change under way, or of one whose maker was killed before it could tell."""

_MARK: Final = 0x64736773
"""`application_id` of our files: only such a file is ever replaced when it is damaged."""
_LAYOUT: Final = 1
_TABLES: Final = (
    "cell (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    "counter (name TEXT PRIMARY KEY, total INTEGER NOT NULL) WITHOUT ROWID",
    "post (name TEXT, worker TEXT, value BLOB NOT NULL, at REAL NOT NULL,"
    " PRIMARY KEY (name, worker)) WITHOUT ROWID",
    "boot (id TEXT NOT NULL)",
)


class Place:
    """Where things are kept: a file and its `-news`, or this process's memory.

    Attributes:
        db: the open database.
        pid: of the process that opened it.
        news: descriptor of `-news`, the 8 bytes that change with each agreed state; -1 in memory.
    """

    def __init__(self, db: Connection, path: str = "") -> None:
        self.db = db
        self.pid = os.getpid()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self.news = os.open(f"{path}-news", flags, 0o600) if path else -1
        self._inodes = _inodes(path) if path else (0, 0)
        self._marks = count(secrets.randbits(62))

    def stands(self, path: str) -> bool:
        """Whether newcomers would open the same files."""
        with suppress(OSError):
            return _inodes(path) == self._inodes
        return False

    def tell(self, mark: bytes | None = None) -> None:
        """Let the others know that something is new; the default is a mark never used before."""
        os.pwrite(self.news, mark or next(self._marks).to_bytes(8, "little"), 0)

    def close(self) -> None:
        """Let go of it."""
        with suppress(Error):
            self.db.close()
        if self.news >= 0:
            os.close(self.news)


def _inodes(path: str) -> tuple[int, int]:
    return Path(path).stat().st_ino, Path(f"{path}-news").stat().st_ino


def _connect(path: str) -> Connection:
    make_private(path)
    return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)


def in_memory() -> Place:
    """A place of this process alone."""
    place = Place(_connect(":memory:"))
    _lay_out(place.db)
    return place


def in_file(path: str, *, lasting: bool) -> Place:
    """Open the file, or make it.

    Raises:
        Error, OSError: it is not fit for use, or another process is in the way just now.
    """
    db = _connect(path)
    try:
        used = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        mark, layout = (
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version")
        )
        if used and (mark, layout) != (_MARK, _LAYOUT):
            raise sqlite3.DatabaseError("holds something else: name another file")
        if not used:  # before WAL, so that the mark stands in the file itself
            db.execute(f"PRAGMA application_id = {_MARK}")
            db.execute(f"PRAGMA user_version = {_LAYOUT}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'NORMAL' if lasting else 'OFF'}")
        transact(db, _lay_out)
        return Place(db, path)
    except BaseException:
        db.close()
        raise


def _lay_out(db: Connection) -> None:
    for table in _TABLES:
        db.execute(f"CREATE TABLE IF NOT EXISTS {table}")
    boot = _boot_id()
    if db.execute("SELECT id FROM boot").fetchone() != (boot,):
        for forget in ("DELETE FROM cell", "DELETE FROM post", "DELETE FROM boot"):
            db.execute(forget)
        db.execute("INSERT INTO boot VALUES (?)", (boot,))


def _boot_id() -> str:
    """This boot of this machine; "" where the system does not say (random(4))."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def transact(db: Connection, work: Callable[[Connection], T]) -> T:
    """Do `work` as one transaction."""
    if db.in_transaction:  # a listener of what is being changed wants something too
        return work(db)
    patiently(lambda: db.execute("BEGIN IMMEDIATE"), WAIT_S)
    try:
        result = work(db)
        db.execute("COMMIT")
    except BaseException:
        roll_back(db)
        raise
    return result


def roll_back(db: Connection) -> None:
    """Undo what has not been committed, if anything."""
    with suppress(Error):  # most errors have rolled back by themselves
        db.execute("ROLLBACK")


def patiently(step: Callable[[], T], wait_s: float) -> T:
    """Try `step` until no other process is in the way.

    SQLite's own way of waiting sleeps whole milliseconds; others hold the file for microseconds.
    """
    until = time.monotonic() + wait_s
    while True:
        try:
            return step()
        except sqlite3.OperationalError as error:
            busy = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if _code(error) not in busy or time.monotonic() >= until:
                raise
        time.sleep(2e-4)


def damaged(error: Exception) -> bool:
    """Whether an error says that the file is not what it should be, and will not mend itself."""
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # the low byte of an extended code


def discard(path: str) -> None:
    """Remove a damaged file, if its header says that it is ours (sqlite.org/fileformat2, 1.3)."""
    with suppress(OSError), Path(path).open("rb") as file:
        header = file.read(72)
        if header.startswith(b"SQLite format 3\0") and header[68:] == _MARK.to_bytes(4, "big"):
            for suffix in ("", "-wal", "-shm"):
                Path(path + suffix).unlink(missing_ok=True)
