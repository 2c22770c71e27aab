"""The primitives against independent, slower models."""

from __future__ import annotations

import math
import statistics
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.primitives.normalization import Normalizer, Window
from gateway.primitives.rollback import Snapshots
from gateway.primitives.scheduling import Schedule, growth

values = st.floats(-1e6, 1e6)
positive = st.floats(1e-6, 1e6)
times = st.floats(0.0, 1.0)
numbers = st.one_of(
    st.floats(-10, 10),
    st.floats(-1e15, 1e15),
    st.sampled_from([0.0, 1.0, 0.1, 1e12, -1e12, 1e100, 1e-100]),
)


@given(st.sampled_from(["linear", "cosine", "exponential"]), positive, positive, times, times)
def test_a_named_schedule_starts_ends_and_stays_between(
    name: str, start: float, end: float, a: float, b: float
) -> None:
    schedule = Schedule.named(name, start, end)
    assert (schedule(0.0), schedule(1.0)) == (start, end)
    first, second = schedule(min(a, b)), schedule(max(a, b))
    low, high = sorted((start, end))
    assert low <= first <= high
    slack = 1e-12 * high  # monotone but for rounding
    assert first <= second + slack if start <= end else first >= second - slack
    assert schedule.reversed()(1.0 - a) == pytest.approx(schedule(a), rel=1e-6, abs=slack)


@given(st.lists(st.tuples(times, values), min_size=1, max_size=6, unique_by=lambda p: p[0]), times)
def test_piecewise_meets_its_points_and_stays_between_neighbours(
    points: list[tuple[float, float]], t: float
) -> None:
    points.sort()
    schedule = Schedule.piecewise(points)
    assert [schedule(at) for at, _ in points] == [value for _, value in points]
    around = [v for at, v in points if at <= t][-1:] + [v for at, v in points if at >= t][:1]
    assert min(around) <= schedule(t) <= max(around)


@given(values, times)
def test_a_constant_is_constant(value: float, t: float) -> None:
    assert Schedule.constant(value)(t) == value
    assert Schedule.cosine(value, value)(t) == value


@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(1, 10), st.floats(1, 1000))
def test_growth_never_falls_and_never_passes_its_cap(
    attempt: int, base: float, factor: float, times_base: float
) -> None:
    cap = base * times_base
    now = growth(attempt, base=base, factor=factor, cap=cap)
    assert base <= now <= growth(attempt + 1, base=base, factor=factor, cap=cap) <= cap


def exact_variance(xs: list[float]) -> float:
    exact = [Fraction(x) for x in xs]
    mean = sum(exact) / len(exact)
    return float(sum((x - mean) ** 2 for x in exact) / len(exact))


@settings(max_examples=150)
@given(st.integers(1, 12), st.lists(numbers, min_size=1, max_size=60))
@example(5, [1.0, 2.0, 1e100, 3.0, 4.0, 5.0, 6.0, 7.0])
@example(4, [1e12, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
@example(4, [1.0188813912064688e-300] * 3)
def test_a_window_agrees_with_exact_arithmetic(size: int, xs: list[float]) -> None:
    window = Window(size)
    for n, x in enumerate(xs, 1):
        window.push(x)
        kept = xs[max(0, n - size) : n]
        exact = exact_variance(kept)
        largest = max(map(abs, kept))
        assert window.values == kept
        assert window.variance >= 0.0
        # Beside its promise: no difference is known better than to the values' last place.
        assert window.variance == pytest.approx(exact, rel=1e-9, abs=(1e-15 * largest) ** 2)
        slack = max(1e-12 * largest, 1e-150)
        assert window.mean == pytest.approx(statistics.fmean(kept), abs=slack)
        if len(set(kept)) == 1:
            assert window.std == 0.0
            # Where squares vanish, so does the last place of the mean: see `Window`.
            assert window.mean == kept[0] or 0 < largest < 1e-140


@settings(max_examples=100)
@given(st.integers(1, 9), st.lists(st.one_of(numbers, st.integers(0, 3)), min_size=1, max_size=40))
def test_order_statistics_agree_with_sorting(size: int, xs: list[float]) -> None:
    window = Window(size)
    for n, x in enumerate(xs, 1):
        window.push(x)
        kept = xs[max(0, n - size) : n]
        middle = statistics.median(kept)
        assert window.median() == middle
        assert window.mad() == statistics.median([abs(x - middle) for x in kept])
        assert window.percentile(0) == min(kept)
        assert window.percentile(100) == max(kept)


@settings(max_examples=50)
@given(st.integers(1, 20), st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=60))
def test_no_z_score_with_update_passes_the_root_of_the_count(size: int, xs: list[float]) -> None:
    normalizer = Normalizer(size)
    for x in xs:
        score = normalizer.normalize(x)
        assert abs(score) <= math.sqrt(max(0, normalizer.window.count - 1)) * (1 + 1e-6)


class SnapshotsMachine(RuleBasedStateMachine):
    """Any order of commits, tags, pins and suspicions keeps what must be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[int] = []
        self.snapshots = Snapshots[int](3, on_evict=lambda snapshot: self.left.append(snapshot.id))
        self.committed = 0
        self.good: int | None = None

    def some(self, n: int) -> int:
        kept = [snapshot.id for snapshot in self.snapshots]
        return kept[n % len(kept)]

    @rule()
    def commit(self) -> None:
        self.committed += 1
        assert self.snapshots.commit(self.committed) == self.committed
        assert self.snapshots[self.committed].state == self.committed

    @precondition(lambda self: self.committed)
    @rule(n=st.integers(0, 9))
    def tag(self, n: int) -> None:
        self.snapshots.tag_healthy(self.some(n))

    @precondition(lambda self: self.committed)
    @rule(n=st.integers(0, 9))
    def suspect(self, n: int) -> None:
        self.snapshots.suspect(self.some(n))

    @precondition(lambda self: self.committed)
    @rule(n=st.integers(0, 9))
    def pin(self, n: int) -> None:
        self.snapshots.pin(self.some(n))

    @precondition(lambda self: self.committed)
    @rule(n=st.integers(0, 9))
    def unpin(self, n: int) -> None:
        self.snapshots.unpin(self.some(n))

    @invariant()
    def nothing_is_lost_and_the_bound_holds(self) -> None:
        kept = [snapshot.id for snapshot in self.snapshots]
        assert sorted(kept + self.left) == list(range(1, self.committed + 1))
        assert kept == sorted(kept)
        assert len(kept) <= max(3, sum(s.pinned for s in self.snapshots) + 2)
        assert not kept or kept[-1] == self.committed

    @invariant()
    def the_last_healthy_is_still_there(self) -> None:
        latest = self.snapshots.latest()
        trusted = [s.id for s in self.snapshots if s.healthy and not s.suspect]
        assert (latest.id if latest else None) == (trusted[-1] if trusted else None)
        if self.good is not None and self.good in self.left:
            assert latest is not None and latest.id > self.good
        self.good = latest.id if latest else None


TestSnapshots = SnapshotsMachine.TestCase
TestSnapshots.settings = settings(max_examples=50, stateful_step_count=25)
