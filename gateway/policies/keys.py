"""Who may call, and how much: `[keys.NAME]`."""

from __future__ import annotations

from dataclasses import dataclass


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
        expires: an ISO date or time after which it is refused; "" is never.
    """

    name: str
    hash: str
    tenant: str = ""
    modes: tuple[str, ...] = ()
    requests_per_min: int = 0
    tokens_per_min: int = 0
    concurrency: int = 0
    monthly_tokens: int = 0
    priority: int = 1
    expires: str = ""
