from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.policies.budget import BudgetOptions, RetryBudget


def test_five_failures_in_a_row_end_second_attempts() -> None:
    budget = RetryBudget(BudgetOptions())
    allowed = []
    for _ in range(6):
        allowed.append(budget.allows_retry())
        budget.failed()
    assert allowed == [True] * 5 + [False]


def test_at_exactly_half_there_is_none_and_a_success_brings_it_back() -> None:
    budget = RetryBudget(BudgetOptions())
    for _ in range(5):
        budget.failed()
    assert budget.tokens == 5.0
    assert not budget.allows_retry()
    budget.succeeded()
    assert budget.allows_retry()


@given(st.lists(st.booleans(), max_size=300))
@settings(max_examples=100, derandomize=True, database=None)
def test_the_purse_is_never_below_nothing_nor_above_full(outcomes: list[bool]) -> None:
    budget = RetryBudget(BudgetOptions())
    for ok in outcomes:
        budget.succeeded() if ok else budget.failed()
        assert 0.0 <= budget.tokens <= 10.0


def attempts_per_request(failure_share: float, requests: int, seed: int) -> int:
    """Attempts made when every failed first attempt is followed by a second, if allowed."""
    rng, budget, attempts = random.Random(seed), RetryBudget(BudgetOptions()), 0
    for _ in range(requests):
        for attempt in range(2):
            if attempt and not budget.allows_retry():
                break
            attempts += 1
            if rng.random() >= failure_share:
                budget.succeeded()
                break
            budget.failed()
    return attempts


def test_in_a_full_outage_second_attempts_stop_after_a_small_burst() -> None:
    assert attempts_per_request(1.0, 1000, seed=1) <= 1000 * 1.1 + 5
    assert attempts_per_request(1.0, 1000, seed=1) - 1000 <= 5


@pytest.mark.parametrize("seed", range(5))
def test_steady_one_percent_of_errors_costs_at_most_two_percent(seed: int) -> None:
    assert attempts_per_request(0.01, 5000, seed) <= 5000 * 1.02


def test_a_purse_of_nothing_never_allows_a_second_attempt() -> None:
    budget = RetryBudget(BudgetOptions(tokens=0.0))
    budget.succeeded()
    assert not budget.allows_retry()
