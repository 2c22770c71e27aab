"""What people thought of the answers: ratings in one SQLite file, written by one thread."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from gateway.errors import ConfigError, GatewayError, InvalidRequest
from gateway.stores.private import make_private

T = TypeVar("T")

MAX_FIELDS_BYTES: Final = 65_536
"""Largest `Feedback.fields`, as JSON."""

_MARK: Final = (0x64736762, 1)
"""`application_id` and `user_version` of our files: whose it is, and of which layout."""

_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS feedback (
    generation_id TEXT PRIMARY KEY,
    rating REAL NOT NULL,
    mode TEXT NOT NULL,
    model TEXT NOT NULL,
    tenant TEXT NOT NULL,
    fields TEXT NOT NULL,
    at REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS feedback_at ON feedback (at);
PRAGMA application_id = {_MARK[0]};
PRAGMA user_version = {_MARK[1]};
COMMIT;
"""
_UPSERT: Final = """
INSERT INTO feedback (generation_id, rating, mode, model, tenant, fields, at)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (generation_id) DO UPDATE SET
    rating = excluded.rating, mode = excluded.mode, model = excluded.model,
    fields = excluded.fields, at = excluded.at
WHERE tenant = excluded.tenant
"""
_RECENT: Final = """
SELECT generation_id, rating, mode, model, tenant, fields, at
FROM feedback ORDER BY at DESC, rowid DESC LIMIT ?
"""
_STATS: Final = """
SELECT mode, count(*), avg(rating), avg(rating * rating) FROM feedback GROUP BY mode ORDER BY mode
"""

_REMEDIES: Final[dict[int, tuple[type[GatewayError], str]]] = {
    sqlite3.SQLITE_CANTOPEN: (ConfigError, "cannot be opened: create its folder, or allow access"),
    sqlite3.SQLITE_PERM: (ConfigError, "cannot be opened: allow this user to read and write it"),
    sqlite3.SQLITE_READONLY: (ConfigError, "is read-only: allow writing to it and its folder"),
    sqlite3.SQLITE_NOTADB: (ConfigError, "is not an SQLite database: name another file"),
    sqlite3.SQLITE_CORRUPT: (ConfigError, "is damaged: restore it, or move it away to start anew"),
    sqlite3.SQLITE_FULL: (GatewayError, "cannot grow, the disk is full: free some space"),
    sqlite3.SQLITE_IOERR: (GatewayError, "cannot be read or written: check disk and quota"),
    sqlite3.SQLITE_BUSY: (GatewayError, "is locked by another process: stop that, or wait"),
}


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """One person's view of one answer.

    Attributes:
        generation_id: of the answer, `Generation.id`.
        rating: 1 (bad) to 5 (good).
        mode, model, tenant: of the answer.
        fields: whatever else came with it, a JSON object of at most 64 KiB.
        at: Unix seconds.

    Raises:
        InvalidRequest: no generation_id, or a rating that is not a number from 1 to 5, or no time.
    """

    generation_id: str
    rating: float
    mode: str = ""
    model: str = ""
    tenant: str = ""
    fields: dict[str, Any] = {}
    at: float = msgspec.field(default_factory=time.time)

    def __post_init__(self) -> None:
        if not isinstance(self.generation_id, str) or not self.generation_id:
            raise InvalidRequest(
                "generation_id must be the id of a generation", param="generation_id"
            )
        if not _is_number(self.rating) or not 1.0 <= self.rating <= 5.0:
            raise InvalidRequest(
                f"rating must be a number from 1 to 5, got {self.rating!r:.50}", param="rating"
            )
        if not _is_number(self.at) or not math.isfinite(self.at):
            raise InvalidRequest("at must be a time in Unix seconds", param="at")


class FeedbackStore:
    """Ratings in SQLite, one for each generation: a later one replaces the earlier, if it is of the
    same tenant; another's changes nothing, for ids can be guessed.

    The file is opened at the first call, by the one thread that does all reading and writing; the
    event loop never waits for the disk. When `add` returns, the rating is on disk: it survives a
    killed process, and, as far as the disk keeps what it has confirmed, a power cut (WAL mode with
    `synchronous=FULL`, one fsync for each rating). A cancelled `add` may or may not be kept.

    After an error the file is closed and the next call opens it again, so a remedy needs no
    restart.

    Args:
        path: the file, made if missing (its folder is not); `:memory:` keeps nothing.

    Raises (all methods but aclose):
        ConfigError: the file cannot be used as it is; names the path and the remedy.
        GatewayError: the disk is full or failing, the file is locked, or the store is closed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._connection: sqlite3.Connection | None = None  # used by the thread alone
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feedback")
        self._closed = False

    async def open(self) -> None:
        """Open the file now, to learn early whether it can be used."""
        await self._run(lambda connection: None)

    async def add(self, feedback: Feedback) -> bool:
        """Keep `feedback`; durable on return.

        Returns:
            Whether it was kept: another tenant's rating of the same generation stays.

        Raises:
            InvalidRequest: its fields are not JSON or too large, or a text is not valid Unicode.
        """
        row = _row(feedback)
        return await self._run(lambda connection: connection.execute(_UPSERT, row).rowcount > 0)

    async def count(self) -> int:
        """How many generations have been rated."""
        rows = await self._fetch("SELECT count(*) FROM feedback")
        return int(rows[0][0])

    async def recent(self, limit: int = 100) -> list[Feedback]:
        """The latest by `at`, newest first, at most `limit`."""
        return [
            Feedback(
                generation_id=row[0],
                rating=row[1],
                mode=row[2],
                model=row[3],
                tenant=row[4],
                fields=msgspec.json.decode(row[5]),
                at=row[6],
            )
            for row in await self._fetch(_RECENT, max(0, limit))
        ]

    async def stats(self) -> dict[str, dict[str, float]]:
        """For each mode rated: `count`, `mean` and `std` (population) of all its ratings."""
        return {
            mode: {
                "count": count,
                "mean": mean,
                "std": math.sqrt(max(0.0, mean_square - mean * mean)),
            }
            for mode, count, mean, mean_square in await self._fetch(_STATS)
        }

    async def aclose(self) -> None:
        """Finish what has been handed in, close the file and end the thread. Idempotent."""
        if self._closed:
            return
        self._closed = True
        # One thread takes its work in order: this comes after every add, and even if we are
        # cancelled while waiting for it.
        closing = self._thread.submit(self._close)
        self._thread.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closing))

    async def _fetch(self, query: str, *parameters: object) -> list[Any]:
        return await self._run(lambda c: c.execute(query, parameters).fetchall())

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise GatewayError("the feedback store is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._work, work)

    def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._connection is None:
                self._connection = self._open()
            return work(self._connection)
        except sqlite3.Error as error:
            self._close()
            raise self._explain(error) from error

    def _open(self) -> sqlite3.Connection:
        make_private(self.path)
        connection = sqlite3.connect(self.path, timeout=5.0, isolation_level=None)
        try:
            mark = tuple(
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("application_id", "user_version")
            )
            used = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if mark != (_MARK if used else (0, 0)):
                raise ConfigError(
                    "holds something other than this version's feedback: name another file",
                    file=self.path,
                )
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_SCHEMA)
        except BaseException:
            connection.close()
            raise
        return connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _explain(self, error: sqlite3.Error) -> GatewayError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte of an extended code
        kind, remedy = _REMEDIES.get(code, (GatewayError, f"cannot be used: {error}"))
        if kind is ConfigError:
            return ConfigError(remedy, file=self.path)
        return GatewayError(f"{self.path}: {remedy}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _row(feedback: Feedback) -> tuple[object, ...]:
    texts = (feedback.generation_id, feedback.mode, feedback.model, feedback.tenant)
    try:
        fields = msgspec.json.encode(feedback.fields)
        "".join(texts).encode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"feedback must be JSON: {error}", param="fields") from None
    if len(fields) > MAX_FIELDS_BYTES:
        raise InvalidRequest(
            f"feedback fields take {len(fields)} bytes, at most {MAX_FIELDS_BYTES} are kept",
            param="fields",
        )
    generation_id, mode, model, tenant = texts
    return (generation_id, feedback.rating, mode, model, tenant, fields.decode(), feedback.at)
