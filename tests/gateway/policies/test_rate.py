"""A bucket in one number: what it hands out, when it says to come back, what it owes."""

from __future__ import annotations

import pytest

from gateway.clock import ManualClock
from gateway.policies.rate import MemoryLedger, Rate


def bucket(start: float = 1000.0) -> tuple[Rate, ManualClock, MemoryLedger]:
    clock, ledger = ManualClock(start), MemoryLedger()
    return Rate(ledger, "r", clock), clock, ledger


@pytest.mark.parametrize("per_min", [1, 3, 7, 60, 600, 999_983])
def test_a_minutes_worth_at_once_and_then_at_its_pace(per_min: int) -> None:
    rate, clock, _ = bucket()
    assert rate.left(per_min) == per_min
    assert rate.take(per_min, per_min) == 0.0
    assert rate.left(per_min) == 0
    wait_s = rate.take(1, per_min)
    assert wait_s == pytest.approx(60 / per_min, abs=0.002)
    clock.advance(wait_s / 2)
    if wait_s > 0.01:
        assert rate.take(1, per_min) > 0
    clock.advance(wait_s / 2)
    assert rate.take(1, per_min) == 0.0


def test_one_by_one_is_as_much_as_at_once() -> None:
    rate, _, _ = bucket()
    for left in (6, 5, 4, 3, 2, 1, 0):
        assert rate.take(1, 7) == 0.0
        assert rate.left(7) == left
    assert rate.take(1, 7) > 0


def test_quiet_earns_no_more_than_a_minutes_worth() -> None:
    rate, clock, _ = bucket()
    clock.advance(3600)
    assert rate.full_in_s() == 0.0
    assert rate.take(10, 10) == 0.0
    assert rate.full_in_s() == pytest.approx(60)
    assert rate.take(1, 10) > 0


def test_what_was_not_used_is_there_again() -> None:
    rate, _, _ = bucket()
    rate.take(10, 10)
    rate.settle(10, 3, 10)
    assert rate.left(10) == 7
    rate.settle(3, 0, 10)
    rate.settle(5, 0, 10)  # more than was taken: full is full
    assert rate.left(10) == 10


def test_what_was_used_beyond_is_owed_and_paid_first() -> None:
    rate, clock, _ = bucket()
    rate.take(10, 10)
    rate.settle(10, 30, 10)
    assert rate.full_in_s() == pytest.approx(180)
    assert rate.take(1, 10) == pytest.approx(126, abs=0.002)
    clock.advance(120)
    assert rate.left(10) == 0
    assert rate.take(1, 10) == pytest.approx(6, abs=0.002)
    clock.advance(6.001)
    assert rate.take(1, 10) == 0.0
    assert rate.owed == 0


def test_workers_share_one_bucket() -> None:
    clock, ledger = ManualClock(5.0), MemoryLedger()
    one, other = Rate(ledger, "r", clock), Rate(ledger, "r", clock)
    assert one.take(6, 10) == 0.0
    assert other.take(5, 10) > 0
    assert other.take(4, 10) == 0.0
    assert one.left(10) == other.left(10) == 0


def test_two_that_spill_at_once_do_not_spill_twice() -> None:
    rate, clock, ledger = bucket()
    late = int(clock() * 1e9)
    seen = ledger.total("r")

    class Racing(MemoryLedger):
        def total(self, name: str) -> int:
            return seen  # what it was before the other worker spilled

        def add(self, name: str, amount: int, limit: int | None = None) -> int | None:
            return ledger.add(name, amount, limit)

    assert rate.take(0, 10) == 0.0
    assert ledger.total("r") == late
    Rate(Racing(), "r", clock).take(0, 10)
    assert ledger.total("r") == late


def test_a_number_from_before_a_reboot_keeps_nobody_out_for_long() -> None:
    rate, clock, ledger = bucket(3.0)
    ledger.add("r", 10**18)
    assert rate.full_in_s() == 60.0
    assert rate.take(1, 60) == pytest.approx(1, abs=0.002)
    clock.advance(1.001)
    assert rate.take(1, 60) == 0.0
