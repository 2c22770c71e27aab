"""How much each key may use: requests and tokens a minute, requests at once, tokens a month.

A request reserves what it may use when it comes in, and settles what it did use when it ends,
whichever way. So limits hold however many requests come at once: what is reserved is gone for
everyone else until it is given back.

Rates and months are sums in a ledger, which workers may share; then they hold for all workers
together. Requests at once are shared out instead: a worker that is killed could never give its
places in a common sum back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final

from gateway.clock import Clock
from gateway.errors import AdmissionRejected
from gateway.policies.keys import KeyOptions
from gateway.policies.rate import Ledger, MemoryLedger, Rate

_MOST: Final = 10**12
_FORGETFUL: Final = MemoryLedger()  # for keys without a month to remember


class QuotaRefused(AdmissionRejected):
    """A limit of the caller's own key is reached; says nothing about how well the gateway is."""


class QuotaExhausted(QuotaRefused):
    """Nothing is left this month. Trying again will not help."""

    type = "insufficient_quota"
    code = "insufficient_quota"


class Reservation:
    """What one request may use, until it is known what it did."""

    __slots__ = ("_account", "_month", "_per_min", "_taken", "tokens")

    def __init__(
        self,
        account: Account | None,
        tokens: int,
        taken: int = 0,
        per_min: int = 0,
        month: str = "",
    ) -> None:
        self.tokens = tokens
        self._account = account
        self._taken = taken
        self._per_min = per_min
        self._month = month

    def settle(self, used: int) -> None:
        """The request has ended and used so many tokens. Only the first call counts."""
        account, self._account = self._account, None
        if account is None:
            return
        used = max(0, min(used, _MOST))
        account.in_flight -= 1
        if self._per_min:
            account.tokens.settle(self._taken, used, self._per_min)
        if self._month and used != self.tokens:
            account.months.add(self._month, used - self.tokens)


class Account:
    """What one key may use and has used.

    Args:
        options: its limits; a reload replaces them, and what was used stays used.
        rates: ledger of the rates.
        months: ledger of the months, which outlives a restart.
        clock: monotonic seconds.
        now: Unix seconds: a month is a thing of the calendar.

    Attributes:
        workers: among how many workers its requests at once are shared out.
        in_flight: its requests under way in this worker.
    """

    def __init__(
        self, options: KeyOptions, rates: Ledger, months: Ledger, clock: Clock, now: Clock
    ) -> None:
        self.options = options
        self.months = months
        self.workers = 1
        self.in_flight = 0
        self.requests = Rate(rates, f"rate/requests/{options.name}", clock)
        self.tokens = Rate(rates, f"rate/tokens/{options.name}", clock)
        self._now = now

    def reserve(self, tokens: int, *, at_least: int | None = None) -> Reservation:
        """Let one request in.

        Args:
            tokens: the most it may use.
            at_least: what of it was asked for, where the rest is a guess of ours. A guess larger
                than a minute's tokens takes a whole minute's; so much asked for is refused.

        Raises:
            QuotaExhausted: the month does not have so many tokens left.
            QuotaRefused: another limit is reached; names it, and when to come back.
        """
        options = self.options
        tokens = min(tokens, _MOST)
        per_min = options.tokens_per_min
        if per_min and (tokens if at_least is None else at_least) > per_min:
            raise self._refused(
                f"the request may use {tokens} tokens, more than its limit of {per_min} tokens a "
                "minute; shorten it, or ask for a shorter answer with max_tokens"
            )
        if options.concurrency and self.in_flight >= self.at_once:
            raise self._refused(
                f"{self.in_flight} requests are under way, as many as its concurrency allows", 1.0
            )
        month = self._take_month(tokens) if options.monthly_tokens else ""
        taken = min(tokens, per_min)
        try:
            self._take_rates(taken)
        except QuotaRefused:
            if month:
                self.months.add(month, -tokens)
            raise
        self.in_flight += 1
        return Reservation(self, tokens, taken, per_min, month)

    @property
    def at_once(self) -> int:
        """Requests at once in this worker; one at least, or some keys could never be served."""
        return max(1, self.options.concurrency // self.workers)

    def used_this_month(self) -> int:
        """Tokens used and reserved this month."""
        return self.months.total(self._month())

    def _take_rates(self, tokens: int) -> None:
        requests_per_min, per_min = self.options.requests_per_min, self.options.tokens_per_min
        for_request = self.requests.take(1, requests_per_min) if requests_per_min else 0.0
        for_tokens = self.tokens.take(tokens, per_min) if per_min else 0.0
        if not for_request and not for_tokens:
            return
        if requests_per_min and not for_request:
            self.requests.settle(1, 0, requests_per_min)
        if per_min and not for_tokens:
            self.tokens.settle(tokens, 0, per_min)
        # Both must be had at once, so the longer wait is the true one.
        wait_s = max(for_request, for_tokens)
        if for_request >= for_tokens:
            what = f"limit of {requests_per_min} requests a minute is reached"
        else:
            left = self.tokens.left(per_min)
            what = f"limit of {per_min} tokens a minute leaves {left} of the {tokens} it may use"
        raise self._refused(f"its {what}; try again in {duration(wait_s)}", wait_s)

    def _take_month(self, tokens: int) -> str:
        month, limit = self._month(), self.options.monthly_tokens
        if self.months.add(month, tokens, limit) is None:
            left = max(0, limit - self.months.total(month))
            year, number = divmod(self._date().year * 12 + self._date().month, 12)
            raise QuotaExhausted(
                f"the API key {self.options.name} exceeded its quota: of {limit} tokens a month "
                f"{left} are left, and the request may use {tokens}; ask for a shorter answer "
                f"with max_tokens, or come back on {year}-{number + 1:02}-01 (UTC)"
            )
        return month

    def _month(self) -> str:
        date = self._date()
        return f"month/{date.year}-{date.month:02}/{self.options.name}"

    def _date(self) -> datetime:
        return datetime.fromtimestamp(self._now(), UTC)

    def _refused(self, what: str, wait_s: float | None = None) -> QuotaRefused:
        # "Rate limit" is what people and agents look for in the message.
        return QuotaRefused(
            f"rate limit of the API key {self.options.name}: {what}", retry_after=wait_s
        )


class Accounts:
    """Every key's account. Outlives reloads, as what was used stays used.

    Args:
        clock: monotonic seconds, the same in all workers.
        rates: ledger of the rates; of this process alone by default.
        open_months: opens the ledger of the months at `[server] usage_path`; called once, for the
            first key with `monthly_tokens`. By default it forgets at exit.
        now: Unix seconds.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        rates: Ledger | None = None,
        open_months: Callable[[str], Ledger] = lambda path: MemoryLedger(),
        now: Clock = time.time,
    ) -> None:
        self._clock = clock
        self._rates: Ledger = rates or MemoryLedger()
        self._open_months = open_months
        self._months: Ledger | None = None
        self._now = now
        self._accounts: dict[str, Account] = {}

    def configure(self, keys: Iterable[KeyOptions], *, path: str = "", workers: int = 1) -> None:
        """Take on the keys of a configuration, and its `usage_path`.

        Args:
            keys: those with accounts from now on.
            path: where the months are remembered; the first one stays.
            workers: processes that share the ledgers.
        """
        keys = list(keys)
        if self._months is None and any(key.monthly_tokens for key in keys):
            self._months = self._open_months(path)
        months = self._months or _FORGETFUL
        accounts = {}
        for key in keys:
            account = self._accounts.get(key.name)
            if account is None:
                account = Account(key, self._rates, months, self._clock, self._now)
            account.options, account.months, account.workers = key, months, workers
            accounts[key.name] = account
        self._accounts = accounts

    def find(self, key: str) -> Account | None:
        """The account of the key of that name; None if nothing limits it."""
        return self._accounts.get(key)

    def reserve(self, key: str, tokens: int, *, at_least: int | None = None) -> Reservation:
        """See `Account.reserve`; a key without an account may use what it likes."""
        account = self._accounts.get(key)
        return account.reserve(tokens, at_least=at_least) if account else Reservation(None, tokens)

    def headers(self, key: str) -> list[tuple[str, str]]:
        """How a key stands, as OpenAI's `x-ratelimit-*` headers say it."""
        account = self._accounts.get(key)
        if account is None:
            return []
        headers = []
        for what, rate, per_min in (
            ("requests", account.requests, account.options.requests_per_min),
            ("tokens", account.tokens, account.options.tokens_per_min),
        ):
            if per_min:
                headers += [
                    (f"x-ratelimit-limit-{what}", str(per_min)),
                    (f"x-ratelimit-remaining-{what}", str(rate.left(per_min))),
                    (f"x-ratelimit-reset-{what}", duration(rate.full_in_s())),
                ]
        return headers

    def status(self) -> dict[str, dict[str, Any]]:
        """How every key stands, as plain data; in this worker where it says `in_flight`."""
        return {name: _status(account) for name, account in self._accounts.items()}

    def close(self) -> None:
        """Close the ledger of the months. Idempotent; what is asked later opens it again."""
        close: Callable[[], None] | None = getattr(self._months, "close", None)
        if close is not None:
            close()


def _status(account: Account) -> dict[str, Any]:
    options = account.options
    status: dict[str, Any] = {"in_flight": account.in_flight}
    if options.concurrency:
        status["concurrency"] = account.at_once
    for what, rate, per_min in (
        ("requests_per_min", account.requests, options.requests_per_min),
        ("tokens_per_min", account.tokens, options.tokens_per_min),
    ):
        if per_min:
            status[what] = {"limit": per_min, "left": rate.left(per_min)}
    if options.monthly_tokens:
        used = account.used_this_month()
        status["monthly_tokens"] = {"limit": options.monthly_tokens, "used": used}
    return status


def duration(seconds: float) -> str:
    """As OpenAI's reset headers say it: `120ms`, `8.64s`, `6m0s`, `1h0m5s`. Rounded up."""
    ms = math.ceil(seconds * 1000 - 1e-6)
    if ms < 1000:
        return f"{ms}ms"
    if ms < 60_000:
        return f"{ms / 1000:g}s"
    minutes, rest = divmod(-(-ms // 1000), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"
