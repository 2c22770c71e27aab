"""Answers shared by several gateways, in Valkey or Redis. An extra that may fail at any time.

Shared state fails open: when the server is slow, paused, gone or full, a read is a miss and a
write is dropped, after 50 ms at most, and after three such errors in a row it is not even asked
for five seconds. Nothing here raises into a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from gateway.clock import Clock
from gateway.errors import ConfigError
from gateway.stores.base import Entry

if TYPE_CHECKING:
    from redis.asyncio import Redis

T = TypeVar("T")

_FORMAT: Final = "1"
"""Part of every key, so that a gateway never reads what another version wrote differently."""

_SKIP_AFTER: Final = 3
_SKIP_S: Final = 5.0


class _Record(msgspec.Struct, array_like=True):
    """What is on the wire. Age is carried as such: monotonic clocks have no common origin."""

    entry: Entry
    age_s: float  # when it was put
    lifetime_ms: int  # as given to the server


class ValkeyStore:
    """A `Store` on a Valkey or Redis server, through redis-py (`downshift-gateway[valkey]`).

    An entry's age at a read is its age when it was put plus how much of its lifetime the server
    has counted down since, so neither our wall clock nor another gateway's has a say (B12). A put
    or delete that fails leaves the older entry where it is, under its own age.

    Args:
        url: `redis://[user:password@]host[:port][/db]`, `rediss://` for TLS, or `unix://path`.
        prefix: start of every key; gateways with the same prefix share their answers.
        timeout_s: for each operation as a whole, connecting and waiting for a connection included.
        max_connections: open at once.
        clock: monotonic seconds, the same that stamps `Entry.stored_at`.

    Raises:
        ConfigError: redis-py is not installed, or the URL or prefix is malformed.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "downshift",
        timeout_s: float = 0.05,
        max_connections: int = 64,
        clock: Clock = time.monotonic,
    ) -> None:
        if not re.fullmatch(r"[\w.:-]+", prefix, re.ASCII):
            raise ConfigError("expected letters, digits and . : _ - only", key="prefix")
        self._client = _connect(url, max_connections)
        self._prefix = f"{prefix}:{_FORMAT}:".encode()
        self._timeout_s = timeout_s
        self._clock = clock
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(_Record)
        self._in_a_row = 0
        self._skip_until = 0.0
        self._counts = dict.fromkeys(("hits", "misses", "puts", "dropped", "errors", "skipped"), 0)

    async def get(self, key: bytes) -> Entry | None:
        entry = await self._ask(partial(self._read, self._prefix + key))
        self._counts["misses" if entry is None else "hits"] += 1
        return entry

    async def _read(self, key: bytes) -> Entry | None:
        pipeline = self._client.pipeline(transaction=False)
        pipeline.get(key)
        pipeline.pttl(key)
        raw, left_ms = await pipeline.execute()
        if raw is None or left_ms < 0:  # gone in between; or made eternal by somebody: age unknown
            return None
        record = self._decoder.decode(raw)
        age_s = record.age_s + max(0, record.lifetime_ms - left_ms) / 1000
        return msgspec.structs.replace(record.entry, stored_at=self._clock() - age_s)

    async def put(self, key: bytes, entry: Entry, lifetime_s: float) -> None:
        self._counts["puts"] += 1
        try:
            lifetime_ms = int(lifetime_s * 1000)
            if lifetime_ms < 1:
                raise ValueError("no lifetime")
            age_s = max(0.0, self._clock() - entry.stored_at)
            raw = self._encoder.encode(_Record(entry, age_s, lifetime_ms))
        except (TypeError, ValueError, OverflowError, RecursionError):
            # Or a wrapped client put something into its answer that cannot be written down.
            self._counts["dropped"] += 1
            await self.delete(key)
            return
        if not await self._ask(partial(self._client.set, self._prefix + key, raw, px=lifetime_ms)):
            self._counts["dropped"] += 1

    async def delete(self, key: bytes) -> None:
        await self._ask(partial(self._client.unlink, self._prefix + key))

    async def clear(self) -> None:
        cursor = 0
        while True:
            scan = partial(self._client.scan, cursor, match=self._prefix + b"*", count=1000)
            page = await self._ask(scan)
            if page is None:
                return
            cursor, keys = page
            if keys:
                await self._ask(partial(self._client.unlink, *keys))
            if cursor == 0:
                return

    async def _ask(self, operation: Callable[[], Awaitable[T]]) -> T | None:
        """Do `operation` in time; None if it failed or the server is being skipped."""
        if self._in_a_row >= _SKIP_AFTER:
            now = self._clock()
            if now < self._skip_until:
                self._counts["skipped"] += 1
                return None
            self._skip_until = now + _SKIP_S  # this one tries; the others go on skipping
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await operation()
        except Exception:  # noqa: BLE001 - whatever it is, an optional store fails no request
            self._counts["errors"] += 1
            self._in_a_row += 1
            if self._in_a_row >= _SKIP_AFTER:
                self._skip_until = self._clock() + _SKIP_S
            return None
        self._in_a_row = 0
        return result

    def stats(self) -> dict[str, int]:
        """As in `Store`, and `errors` met and operations `skipped`."""
        return dict(self._counts)

    async def aclose(self) -> None:
        # Even while the server is skipped; only our own ends are closed, which takes no time.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(1.0):
                await self._client.aclose()


def _connect(url: str, max_connections: int) -> Redis:
    try:
        from redis import asyncio as aioredis  # noqa: PLC0415 - an extra
        from redis import backoff  # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            "the valkey store needs redis-py: pip install 'downshift-gateway[valkey]'"
        ) from None
    try:
        pool = aioredis.BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=None,  # ours bounds the whole operation
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=aioredis.retry.Retry(backoff.NoBackoff(), 0),  # its default waits for seconds
            protocol=2,
        )
    except ValueError:
        # Not the URL itself, nor the cause: it may hold a password.
        raise ConfigError(
            "expected redis://host[:port][/db], rediss://... or unix://path", key="url"
        ) from None
    return aioredis.Redis.from_pool(pool)
