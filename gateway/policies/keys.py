"""Who may call, and how much: `[keys.NAME]`.

A key is a long random string and only its SHA-256 is kept. A slow hash (bcrypt, scrypt) makes
guessing dear, which matters where people choose passwords; nobody guesses 256 random bits, and a
slow hash would cost every request milliseconds and let anyone with wrong keys keep a core busy.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from gateway.errors import ConfigError

SHORTEST_KEY = 24
"""Characters; shorter strings are passwords, which a fast hash does not protect."""
ADMIN = "admin"
"""What logs and metrics call the holder of the admin key; no `[keys.NAME]` may be called so."""

_HASH = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOptions:
    """One API key: `[keys.NAME]`. Zero means without limit.

    Attributes:
        name: the table's name; logs and metrics say it, never the key.
        hash: what `gateway keys hash` prints for the key; the key itself is kept nowhere.
        tenant: answers are never shared between tenants; "" is the key's name.
        modes: modes it may ask for; none named means all.
        requests_per_min: requests a minute.
        tokens_per_min: prompt and answer tokens a minute.
        concurrency: requests at once.
        monthly_tokens: tokens a calendar month (UTC).
        priority: 0 goes first when a queue forms.
        expires: an ISO date, the last day (UTC) it is good for, or a time; "" is never.
    """

    name: str
    hash: str = field(repr=False)
    tenant: str = ""
    modes: tuple[str, ...] = ()
    requests_per_min: int = 0
    tokens_per_min: int = 0
    concurrency: int = 0
    monthly_tokens: int = 0
    priority: int = 1
    expires: str = ""

    def __post_init__(self) -> None:
        if self.name == ADMIN:
            raise self._error("this name stands for the holder of the admin key", None)
        for check, key in ((digest_of, "hash"), (expiry, "expires")):
            try:
                check(getattr(self, key))
            except ValueError as error:
                raise self._error(str(error), key) from None

    def _error(self, told: str, key: str | None) -> ConfigError:
        return ConfigError(told, table=f"keys.{self.name}", key=key)


def new_key() -> str:
    """A key nobody has: 256 random bits, with a prefix that secret scanners can look for."""
    return f"sk-dsg-{secrets.token_urlsafe(32)}"


def key_hash(key: str) -> str:
    """What is kept of a key."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def digest_of(kept: str) -> bytes:
    """The bare digest of what `key_hash` gave.

    Raises:
        ValueError: it is something else. The message does not quote it: it may be a key.
    """
    if not _HASH.fullmatch(kept):
        raise ValueError("expected what `gateway keys hash` prints: sha256: and 64 hex digits")
    return bytes.fromhex(kept.removeprefix("sha256:"))


def expiry(expires: str) -> float:
    """When a key ends, in Unix seconds; a time without a zone is UTC, "" is never.

    Raises:
        ValueError: neither a date nor a time.
    """
    if not expires:
        return float("inf")
    try:
        if len(expires) == len("2027-01-31"):
            end = date.fromisoformat(expires) + timedelta(days=1)
            return datetime(end.year, end.month, end.day, tzinfo=UTC).timestamp()
        at = datetime.fromisoformat(expires)
    except (ValueError, OverflowError):
        raise ValueError(
            f'expected a date or a time such as "2027-01-31", got {expires[:40]!r}'
        ) from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
