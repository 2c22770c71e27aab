from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.clock import ManualClock
from gateway.policies.limit import Limit


def fill(limit: Limit, *, native: bool) -> int:
    """Let in as many as there is room for."""
    entered = 0
    while limit.room(native=native):
        limit.enter(native=native)
        entered += 1
    return entered


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_native_traffic_may_take_all_of_it(clock: ManualClock) -> None:
    limit = Limit(10, clock)
    assert fill(limit, native=True) == 10
    assert not limit.room(native=False)


def test_downshifted_traffic_may_take_all_of_it_while_nobody_else_wants_it(
    clock: ManualClock,
) -> None:
    assert fill(Limit(10, clock), native=False) == 10


@pytest.mark.parametrize(("maximum", "half"), [(10, 5), (11, 5), (2, 1), (512, 256)])
def test_downshifted_traffic_takes_at_most_half_while_native_traffic_wants_it(
    maximum: int, half: int, clock: ManualClock
) -> None:
    flying, queued = Limit(maximum, clock), Limit(maximum, clock)
    flying.enter(native=True)
    queued.native_waiting = 1
    assert fill(flying, native=False) == half
    assert fill(queued, native=False) == half
    assert fill(queued, native=True) == maximum - half


def test_downshifted_traffic_that_came_first_gives_way_as_it_leaves(clock: ManualClock) -> None:
    limit = Limit(10, clock)
    assert fill(limit, native=False) == 10
    limit.native_waiting = 1
    for _ in range(5):
        limit.leave(native=False)
        assert limit.room(native=True)
        assert not limit.room(native=False)
        limit.enter(native=True)
    assert (limit.native, limit.downshifted) == (5, 5)


def test_it_shrinks_at_most_once_a_second(clock: ManualClock) -> None:
    limit = Limit(100, clock)
    fill(limit, native=True)
    limit.overloaded()
    assert limit.current == 70
    for _ in range(50):
        limit.overloaded()
    clock.advance(0.999)
    limit.overloaded()
    assert limit.current == 70
    clock.advance(0.001)
    limit.overloaded()
    assert limit.current == 49


def test_a_limit_far_above_what_is_in_use_shrinks_from_what_is_in_use(clock: ManualClock) -> None:
    limit = Limit(512, clock)
    for _ in range(20):
        limit.enter(native=True)
    limit.overloaded()
    assert limit.current == 28


def test_it_grows_by_one_each_round_of_successes_only_while_in_use(clock: ManualClock) -> None:
    limit = Limit(100, clock)
    limit.overloaded()
    low = limit.current
    for _ in range(100):
        limit.went_well()
    assert limit.current == low  # idle: successes prove nothing about a higher limit
    for _ in range(low):
        limit.enter(native=True)
    for _ in range(low + 1):
        limit.went_well()
    assert limit.current == low + 1


@pytest.mark.parametrize("maximum", [1, 2, 3, 512])
def test_it_stays_between_its_floor_and_its_maximum(maximum: int, clock: ManualClock) -> None:
    limit = Limit(maximum, clock)
    for _ in range(100):
        clock.advance(1.0)
        limit.overloaded()
    assert limit.current == min(2, maximum)
    for _ in range(10 * maximum):
        if limit.room(native=True):
            limit.enter(native=True)
        limit.went_well()
        assert 1 <= limit.current <= maximum


def test_a_reload_keeps_what_was_learned_and_who_is_in_flight(clock: ManualClock) -> None:
    limit = Limit(100, clock)
    fill(limit, native=True)
    limit.overloaded()
    limit.resize(100)
    assert (limit.current, limit.in_flight) == (70, 100)
    limit.resize(50)
    assert (limit.current, limit.in_flight) == (35, 100)
    assert not limit.room(native=True)
    limit.resize(1)
    assert limit.current == 1


def test_a_reload_of_an_untroubled_limit_is_the_new_maximum(clock: ManualClock) -> None:
    limit = Limit(512, clock)
    for maximum in (3, 1000, 7, 512):
        limit.resize(maximum)
        assert limit.current == maximum


@given(
    st.lists(
        st.sampled_from(["native", "downshifted", "leave", "well", "overloaded", "second"]),
        max_size=200,
    ),
    st.integers(1, 20),
)
@settings(max_examples=150, derandomize=True, database=None)
def test_it_is_never_entered_beyond_its_limit(steps: list[str], maximum: int) -> None:
    clock = ManualClock()
    limit = Limit(maximum, clock)
    inside: list[bool] = []
    for step in steps:
        if step in ("native", "downshifted"):
            native = step == "native"
            if limit.room(native=native):
                assert len(inside) < limit.current
                limit.enter(native=native)
                inside.append(native)
        elif step == "leave" and inside:
            limit.leave(native=inside.pop())
        elif step == "well":
            limit.went_well()
        elif step == "overloaded":
            limit.overloaded()
        elif step == "second":
            clock.advance(1.0)
        assert limit.in_flight == len(inside)
        assert 1 <= limit.current <= maximum
