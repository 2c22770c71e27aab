"""What the worker processes of one machine share: one small SQLite file, which may fail.

Calls are synchronous, because a decision and what it is founded on must be one step. Each takes
some 30 µs, waits at most 0.1 s for another process and never raises because of the file: without
it the worker goes on alone, in its own memory, and each second tries to come back.

Times are `time.monotonic`, which on Linux is one clock for all processes from boot to boot
(CLOCK_MONOTONIC, clock_gettime(2)); what an earlier boot left with a time on it is thrown away.
"""

from __future__ import annotations

import math
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

import msgspec

from gateway.clock import Clock
from gateway.stores.shared_file import (
    UNSETTLED,
    WAIT_S,
    Connection,
    Error,
    Place,
    damaged,
    discard,
    in_file,
    in_memory,
    patiently,
    roll_back,
    transact,
)

T = TypeVar("T")

_RETRY_S: Final = 1.0
_FORGOTTEN_S: Final = 3600.0
_ALONE: Final = b"alone"

_ADD: Final = "INSERT OR REPLACE INTO counter VALUES (?, ?)"
_POST: Final = "INSERT OR REPLACE INTO post VALUES (?, ?, ?, ?)"
_KEEP: Final = "INSERT OR REPLACE INTO cell VALUES (?, ?)"


class Posted(msgspec.Struct, frozen=True):
    """What one worker has put up. `age_s` is in seconds."""

    value: bytes
    age_s: float


class SharedStore:
    """Counters, a blackboard and agreed states, shared by the processes that name the same file.

    Opened by the first call. May be used from any thread; after a fork the child opens it anew.

    Args:
        path: the file, made if missing (its folder is not), on a local disk. Next to it stand
            SQLite's `-wal` and `-shm`, and our `-news`: 8 bytes that change with each agreed state.
        lasting: True for what must outlive a power cut: commits then reach the disk in order, and
            a damaged file is left for a person to look at. False, the default, never waits for
            the disk, and replaces a damaged file of ours by an empty one.
        clock: monotonic seconds, the same in all the processes.
        on_change: told (shared, why) once when the file is lost, and once when it is back.

    Attributes:
        worker: this process's name among the others, new with each store.
        life: grows whenever what stands behind the store changes: file, memory, another file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        lasting: bool = False,
        clock: Clock = time.monotonic,
        on_change: Callable[[bool, str], None] | None = None,
    ) -> None:
        self.path = str(path)
        self.worker = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.on_change = on_change
        self.life = 0
        self.clock = clock
        self._lasting = lasting
        self._lock = threading.RLock()
        self._place: Place | None = None
        self._look_at = -math.inf
        self._told = True
        self._totals: dict[str, int] = {}  # as last seen
        self._seeds: dict[str, int] = {}  # what of them the memory began with

    @property
    def shared(self) -> bool:
        """Whether the file is in use just now: False while alone, and before the first call."""
        return self._place is not None and self._place.news >= 0

    # -- counters -------------------------------------------------------------------------------

    def add(self, name: str, amount: int, limit: int | None = None) -> int | None:
        """Add `amount`, which may be negative, unless the total would then exceed `limit`.

        Totals survive restarts, and reboots if the file does. Alone, a worker counts on from the
        last total it saw; what it counted is added to the file when it comes back.

        Returns:
            The new total; None if it would exceed the limit, and nothing was added.
        """

        def work(db: Connection) -> int | None:
            total = _total(db, name) + amount
            if limit is not None and amount > 0 and total > limit:
                return None
            db.execute(_ADD, (name, total))
            return total

        with self._lock:
            total = self._write(work)
            if total is not None:
                self._totals[name] = total
        return total

    def total(self, name: str) -> int:
        """What `add` has come to; 0 if it was never called."""
        return self._read(lambda db: _total(db, name))

    def bump(self, name: str) -> int:
        """Make a new version of `name` for all workers to see; returns its number, from 1."""
        return self.add(f"version/{name}", 1) or 0

    def version(self, name: str) -> int:
        """The version of `name`, 0 before the first `bump`."""
        return self.total(f"version/{name}")

    # -- blackboard -----------------------------------------------------------------------------

    def put(self, worker: str, name: str, value: bytes) -> None:
        """Put up `value` under `name` in place of what `worker` had there.

        Whatever has not been renewed for an hour is taken down.
        """
        now = self.clock()

        def work(db: Connection) -> None:
            db.execute(_POST, (name, worker, value, now))
            db.execute("DELETE FROM post WHERE at < ?", (now - _FORGOTTEN_S,))

        self._write(work)

    def all(self, name: str) -> dict[str, Posted]:
        """What each worker has put up under `name`; by its age you know whether it still lives."""
        now = self.clock()
        query = "SELECT worker, value, at FROM post WHERE name = ? ORDER BY worker"
        rows = self._read(lambda db: db.execute(query, (name,)).fetchall())
        return {worker: Posted(bytes(value), max(0.0, now - at)) for worker, value, at in rows}

    # -- agreed states --------------------------------------------------------------------------

    def mark(self, now: float) -> bytes:
        """Differs from what it was if any agreed state has changed. Costs 1 µs.

        Args:
            now: what the clock says.
        """
        place = self._place
        if place is None or now >= self._look_at:
            with self._lock:
                place = self._where()
        if place.news < 0:
            return _ALONE
        try:
            return os.pread(place.news, 8, 0)
        except OSError:  # closed by another thread, or the disk fails: whoever reads on will see
            return UNSETTLED

    def state(self, name: str) -> bytes | None:
        """The state called `name`; None if there is none, or no file."""
        with self._lock:
            found = self._read(lambda db: _state(db, name))
            return found if self.shared else None

    def change(self, name: str, step: Callable[[bytes | None], bytes | None]) -> bool:
        """Run `step` on the state called `name`, alone among all workers, and exactly once.

        Args:
            step: takes what is there and returns what shall be; None leaves it as it is. Where
                there is no file it runs all the same, on None.

        Returns:
            Whether it is in the file.
        """
        with self._lock:
            place, found = self._begin(name)
            try:
                kept = step(found)
            except BaseException:
                if place is not None:
                    roll_back(place.db)
                raise
            if place is None:
                return False
            try:
                self._end(place, name, kept)
            except (Error, OSError) as error:
                roll_back(place.db)
                self._go_alone(error)
            return self.shared

    def alive(self, worker: str) -> bool:
        """Whether the process that called itself `worker` still is; True in doubt."""
        try:
            os.kill(int(worker.partition("-")[0]), 0)
        except ProcessLookupError:
            return False
        except (ValueError, OSError):
            pass  # not one of our names, or another user's process
        return True

    def close(self) -> None:
        """Let go of the file; the next call opens it again. Idempotent."""
        with self._lock:
            if self._place is not None:
                self._place.close()
                self._place = None

    # -- inside ---------------------------------------------------------------------------------

    def _begin(self, name: str) -> tuple[Place | None, bytes | None]:
        """Begin to change a state: where, and what it is; nowhere and None without a file."""
        place = self._where()
        if place.news < 0 or place.db.in_transaction:  # a change within a change stays here
            return None, None
        try:
            patiently(lambda: place.db.execute("BEGIN IMMEDIATE"), WAIT_S)
            return place, _state(place.db, name)
        except Error as error:
            roll_back(place.db)
            self._go_alone(error)
            return None, None

    def _end(self, place: Place, name: str, kept: bytes | None) -> None:
        if kept is not None:
            place.tell(UNSETTLED)  # who is killed after the commit leaves this behind
            place.db.execute(_KEEP, (name, kept))
        place.db.execute("COMMIT")
        if kept is not None:
            place.tell()

    def _read(self, work: Callable[[Connection], T]) -> T:
        """Do `work`, one SELECT: in the file, or in memory if the file fails."""
        with self._lock:
            db = self._where().db
            try:
                return patiently(lambda: work(db), WAIT_S)
            except Error as error:
                return work(self._go_alone(error).db)

    def _write(self, work: Callable[[Connection], T]) -> T:
        """Do `work` as one transaction: in the file, or in memory if the file fails."""
        with self._lock:
            try:
                return transact(self._where().db, work)
            except Error as error:
                return transact(self._go_alone(error).db, work)

    def _where(self) -> Place:
        """The file, or while there is none the memory of this process."""
        place = self._place
        if place is not None and place.pid != os.getpid():
            # A child must neither use nor close what its parent opened: the locks are the
            # parent's (https://sqlite.org/howtocorrupt.html, 2.6).
            self._inherited, self._place = place, None
            place = None
        now = self.clock()
        if place is not None and now < self._look_at:
            return place
        self._look_at = now + _RETRY_S
        alone = place if place is not None and place.news < 0 else None
        if place is not None and not alone and place.stands(self.path):
            return place
        try:
            # Who is alone has found the file locked before, and does not wait for it again.
            wait_s = 0.0 if alone else WAIT_S
            found = patiently(lambda: in_file(self.path, lasting=self._lasting), wait_s)
        except (Error, OSError) as error:
            return self._go_alone(error)
        if alone:
            try:
                self._bring(alone.db, found.db)
            except Error as error:
                found.close()
                return self._go_alone(error)
        return self._use(found, "")

    def _go_alone(self, error: Exception) -> Place:
        if self._place is not None and not self.shared:
            return self._place
        if not self._lasting and damaged(error):
            discard(self.path)
        self._seeds = self._totals.copy()
        memory = in_memory()
        memory.db.executemany(_ADD, self._seeds.items())
        return self._use(memory, f"{self.path}: {error}")

    def _bring(self, memory: Connection, file: Connection) -> None:
        """Add to the file what was counted while alone."""

        def work(file: Connection) -> None:
            for name, total in memory.execute("SELECT name, total FROM counter").fetchall():
                self._totals[name] = _total(file, name) + total - self._seeds.get(name, 0)
                file.execute(_ADD, (name, self._totals[name]))

        transact(file, work)

    def _use(self, place: Place, why: str) -> Place:
        if self._place is not None:
            self._place.close()
        self._place = place
        self.life += 1
        if self.shared is not self._told:
            self._told = self.shared
            if self.on_change is not None:
                with suppress(Exception):  # a listener's fault
                    self.on_change(self.shared, why)
        return place


def _total(db: Connection, name: str) -> int:
    row = db.execute("SELECT total FROM counter WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else 0


def _state(db: Connection, name: str) -> bytes | None:
    row = db.execute("SELECT value FROM cell WHERE name = ?", (name,)).fetchone()
    return bytes(row[0]) if row else None
