"""Accounts: each limit refuses by its name, and what is reserved is settled once."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.clock import ManualClock
from gateway.errors import AdmissionRejected
from gateway.middleware.quota import open_usage
from gateway.policies.keys import KeyOptions, key_hash
from gateway.policies.quota import Accounts, QuotaExhausted, duration
from gateway.policies.rate import Ledger, MemoryLedger
from gateway.stores.shared import SharedStore

NOVEMBER = datetime(2026, 11, 30, 23, 59, tzinfo=UTC).timestamp()


def key(name: str = "alice", **limits: Any) -> KeyOptions:
    return KeyOptions(name=name, hash=key_hash(name), **limits)


class World:
    """Accounts of one worker, and time."""

    def __init__(self, *keys: KeyOptions, months: Ledger | None = None) -> None:
        self.clock, self.wall = ManualClock(100.0), ManualClock(NOVEMBER)
        self.months = months or MemoryLedger()
        self.accounts = Accounts(self.clock, open_months=lambda _: self.months, now=self.wall)
        self.accounts.configure(keys)

    def refused(self, tokens: int = 10, **more: Any) -> AdmissionRejected:
        with pytest.raises(AdmissionRejected) as caught:
            self.accounts.reserve("alice", tokens, **more)
        assert caught.value.http_status == 429
        assert "alice" in str(caught.value)
        return caught.value


def test_a_key_without_limits_may_use_what_it_likes() -> None:
    world = World(key())
    held = [world.accounts.reserve("alice", 10**30) for _ in range(1000)]
    held += [world.accounts.reserve("nobody", 5)]
    for reservation in held:
        reservation.settle(7)
    assert world.accounts.headers("alice") == world.accounts.headers("nobody") == []
    assert world.accounts.status() == {"alice": {"in_flight": 0}}


def test_requests_a_minute() -> None:
    world = World(key(requests_per_min=2))
    for _ in range(2):
        world.accounts.reserve("alice", 10).settle(10)
    error = world.refused()
    assert error.code == "rate_limit_exceeded"
    assert "2 requests a minute" in str(error)
    assert error.retry_after == pytest.approx(30, abs=0.002)
    world.clock.advance(error.retry_after or 0)
    world.accounts.reserve("alice", 10)


def test_tokens_a_minute_are_reserved_and_what_was_not_used_comes_back() -> None:
    world = World(key(tokens_per_min=100))
    held = world.accounts.reserve("alice", 80)
    error = world.refused(40)
    assert "leaves 20 of the 40" in str(error)
    assert error.retry_after == pytest.approx(12, abs=0.002)
    held.settle(30)
    world.accounts.reserve("alice", 70)
    assert world.refused(1).retry_after == pytest.approx(0.6, abs=0.002)


def test_more_than_a_minutes_tokens_can_never_be_had() -> None:
    world = World(key(tokens_per_min=100))
    error = world.refused(101)
    assert error.retry_after is None
    assert "max_tokens" in str(error)
    assert world.refused(5000, at_least=101).retry_after is None


def test_a_guess_gives_way_to_the_limit_and_is_made_up_for() -> None:
    world = World(key(tokens_per_min=100))
    held = world.accounts.reserve("alice", 5000, at_least=20)
    assert world.refused(1)
    held.settle(300)  # it was a long answer: 200 are owed
    assert world.refused(1).retry_after == pytest.approx(120.6, abs=0.002)


def test_the_longer_wait_is_the_true_one() -> None:
    world = World(key(requests_per_min=1, tokens_per_min=100))
    world.accounts.reserve("alice", 10).settle(10)
    assert world.refused(20).retry_after == pytest.approx(60, abs=0.002)
    world.clock.advance(60.0)
    world.accounts.reserve("alice", 100)
    error = world.refused(50)
    assert "requests a minute" in str(error)
    world.clock.advance(30.0)
    world.accounts.configure([key(requests_per_min=60, tokens_per_min=100)])
    error = world.refused(90)
    assert "tokens a minute" in str(error)
    assert error.retry_after == pytest.approx(24, abs=0.002)
    world.accounts.configure([key(requests_per_min=4, tokens_per_min=100)])
    for _ in range(2):  # half of a minute's has come back
        world.accounts.reserve("alice", 0)
    error = world.refused(100)  # both: a request in 15 s, the tokens in 30 s
    assert error.retry_after == pytest.approx(30, abs=0.002)


def test_what_is_refused_costs_nothing() -> None:
    world = World(key(requests_per_min=10, tokens_per_min=100, monthly_tokens=1000))
    held = world.accounts.reserve("alice", 100)
    before = dict(world.accounts.headers("alice")), world.accounts.status()
    for _ in range(5):
        world.refused(50)
    assert (dict(world.accounts.headers("alice")), world.accounts.status()) == before
    held.settle(0)
    assert dict(world.accounts.headers("alice"))["x-ratelimit-remaining-requests"] == "9"


def test_requests_at_once() -> None:
    world = World(key(concurrency=2))
    first, _ = (world.accounts.reserve("alice", 10) for _ in range(2))
    error = world.refused()
    assert "2 requests are under way" in str(error)
    assert error.retry_after == 1.0
    first.settle(3)
    first.settle(3)  # once is enough
    world.accounts.reserve("alice", 10)
    assert world.refused()


def test_requests_at_once_are_shared_out_among_workers() -> None:
    world = World()
    world.accounts.configure([key(concurrency=9)], workers=4)
    for _ in range(2):
        world.accounts.reserve("alice", 10)
    assert world.refused()
    world.accounts.configure([key("bob", concurrency=2)], workers=4)
    world.accounts.reserve("bob", 10)  # one at least


def test_a_month_is_never_overshot_and_trying_again_does_not_help() -> None:
    world = World(key(monthly_tokens=1000))
    one = world.accounts.reserve("alice", 600)
    error = world.refused(401)
    assert isinstance(error, QuotaExhausted)
    assert (error.code, error.type, error.retry_after) == (
        "insufficient_quota", "insufficient_quota", None,
    )  # fmt: skip
    assert "400 are left" in str(error)
    assert "2026-12-01" in str(error)
    one.settle(100)
    world.accounts.reserve("alice", 900)
    assert "0 are left" in str(world.refused(1))
    world.wall.advance(60)
    world.accounts.reserve("alice", 1000)  # December


def test_december_is_followed_by_january() -> None:
    world = World(key(monthly_tokens=1))
    world.wall.advance(60 + 5 * 86400)
    assert "2027-01-01" in str(world.refused(2))


def test_a_request_is_settled_in_the_month_it_came_in() -> None:
    world = World(key(monthly_tokens=1000))
    held = world.accounts.reserve("alice", 1000)
    world.wall.advance(60)
    held.settle(400)
    assert world.months.total("month/2026-11/alice") == 400
    assert world.accounts.status()["alice"]["monthly_tokens"] == {"limit": 1000, "used": 0}


def test_a_restart_forgets_nothing_of_a_month(tmp_path: Path) -> None:
    def started() -> World:
        return World(key(monthly_tokens=1000), months=open_usage(str(tmp_path / "usage.sqlite")))

    world = started()
    world.accounts.reserve("alice", 600).settle(500)
    killed = world.accounts.reserve("alice", 100)  # never settled: taken for used
    world.accounts.close()
    again = started()
    assert "400 are left" in str(again.refused(401))
    again.accounts.reserve("alice", 400)
    again.accounts.close()
    del killed


def test_two_workers_share_a_month(tmp_path: Path) -> None:
    path = str(tmp_path / "usage.sqlite")
    one, other = (World(key(monthly_tokens=100), months=open_usage(path)) for _ in range(2))
    held = one.accounts.reserve("alice", 60)
    assert other.refused(41)
    held.settle(10)
    other.accounts.reserve("alice", 90)
    assert one.refused(1)
    one.accounts.close()
    other.accounts.close()


def test_two_workers_share_the_rates(tmp_path: Path) -> None:
    clock = ManualClock(100.0)
    stores = [SharedStore(tmp_path / "shared.sqlite", clock=clock) for _ in range(2)]
    one, other = (Accounts(clock, rates=store) for store in stores)
    for accounts in (one, other):
        accounts.configure([key(requests_per_min=3, tokens_per_min=100)], workers=2)
    held = one.reserve("alice", 60)
    with pytest.raises(AdmissionRejected, match="leaves 40 of the 41"):
        other.reserve("alice", 41)
    held.settle(0)
    other.reserve("alice", 41)
    other.reserve("alice", 1)
    with pytest.raises(AdmissionRejected, match="3 requests a minute") as caught:
        one.reserve("alice", 1)
    clock.advance(caught.value.retry_after or 0)
    one.reserve("alice", 1)
    assert one.headers("alice") == other.headers("alice")
    for store in stores:
        store.close()


def test_no_file_is_made_for_keys_without_a_month() -> None:
    def never(path: str) -> Ledger:
        raise AssertionError(path)

    accounts = Accounts(ManualClock(), open_months=never)
    accounts.configure([key(requests_per_min=1)], path="usage.sqlite")
    accounts.reserve("alice", 10).settle(10)
    accounts.close()


def test_a_reload_changes_limits_and_forgets_nothing() -> None:
    world = World(key(requests_per_min=2, tokens_per_min=100), key("bob"))
    held = world.accounts.reserve("alice", 50)
    world.accounts.configure([key(requests_per_min=4, tokens_per_min=200)])
    headers = dict(world.accounts.headers("alice"))
    assert headers["x-ratelimit-remaining-requests"] == "2"  # as full as it was, in proportion
    assert headers["x-ratelimit-remaining-tokens"] == "100"
    assert "bob" not in world.accounts.status()
    held.settle(0)
    assert dict(world.accounts.headers("alice"))["x-ratelimit-remaining-tokens"] == "200"
    world.accounts.configure([])
    assert world.accounts.headers("alice") == []
    world.accounts.reserve("alice", 10**9)


def test_headers_in_the_words_of_openai() -> None:
    world = World(key(requests_per_min=60, tokens_per_min=6000))
    world.accounts.reserve("alice", 1000)
    assert world.accounts.headers("alice") == [
        ("x-ratelimit-limit-requests", "60"),
        ("x-ratelimit-remaining-requests", "59"),
        ("x-ratelimit-reset-requests", "1s"),
        ("x-ratelimit-limit-tokens", "6000"),
        ("x-ratelimit-remaining-tokens", "5000"),
        ("x-ratelimit-reset-tokens", "10s"),
    ]
    assert world.accounts.status()["alice"] == {
        "in_flight": 1,
        "requests_per_min": {"limit": 60, "left": 59},
        "tokens_per_min": {"limit": 6000, "left": 5000},
    }


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0ms"), (0.12, "120ms"), (0.0001, "1ms"), (1, "1s"), (8.64, "8.64s"), (59.9, "59.9s"),
        (60, "1m0s"), (360, "6m0s"), (61.2, "1m2s"), (3605, "1h0m5s"), (3599.5, "1h0m0s"),
    ],
)  # fmt: skip
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
