from __future__ import annotations

import math
import pickle
import random
from dataclasses import FrozenInstanceError

import pytest

from gateway.primitives.scheduling import Schedule, backoff, growth


def test_cosine_meets_the_entropy_table_exactly() -> None:
    entropy = Schedule.cosine(0.01, 0.001)
    assert [entropy(0), entropy(0.5), entropy(1)] == [0.01, 0.0055, 0.001]


def test_linear_and_exponential_halfway() -> None:
    assert Schedule.linear(10.0, 20.0)(0.25) == 12.5
    assert Schedule.exponential(1.0, 100.0)(0.5) == pytest.approx(10.0)
    assert Schedule.exponential(1e-300, 1e300)(0.5) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "exponential"])
def test_t_outside_0_to_1_is_clamped(name: str) -> None:
    schedule = Schedule.named(name, 3.0, 7.0)
    assert schedule(-5.0) == schedule(0.0) == schedule(-math.inf) == 3.0
    assert schedule(5.0) == schedule(1.0) == schedule(math.inf)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        Schedule.linear(0.0, 1.0)(math.nan)


def test_piecewise_joins_its_points_and_holds_beyond_them() -> None:
    fault = Schedule.piecewise([(0.25, 1.0), (0.5, 3.0), (0.75, 0.0)])
    assert [fault(t) for t in (0.0, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0)] == [
        1.0, 1.0, 2.0, 3.0, 1.5, 0.0, 0.0,
    ]  # fmt: skip


def test_two_points_at_one_t_make_a_step() -> None:
    outage = Schedule.piecewise([(0.0, 0.0), (0.5, 0.0), (0.5, 1.0)])
    assert outage(math.nextafter(0.5, 0.0)) == 0.0
    assert outage(0.5) == 1.0


def test_piecewise_takes_any_curve() -> None:
    hill = Schedule.piecewise([(0.0, 0.0), (0.5, 1.0), (1.0, 0.0)], "cosine")
    assert hill(0.25) == pytest.approx(0.5)
    assert hill(0.1) == pytest.approx(hill(0.9))


def test_immutable_comparable_picklable() -> None:
    schedule = Schedule.cosine(1, 0)
    assert schedule == Schedule.named("cosine", 1.0, 0.0)
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    with pytest.raises(FrozenInstanceError):
        schedule.curve = "linear"  # type: ignore[misc]


def test_an_unknown_name_lists_the_options() -> None:
    with pytest.raises(ValueError, match=r"'cosin'.*constant, linear, cosine, exponential"):
        Schedule.named("cosin", 1.0, 0.0)


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(0.5, 1.0), (0.2, 1.0)],
        [(-0.1, 1.0)],
        [(1.1, 1.0)],
        [(math.nan, 1.0)],
        [(0.0, math.inf)],
        [(0.0, math.nan)],
        [(0.0, -1e308), (1.0, 1e308)],
    ],
)
def test_bad_points_are_refused(points: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match=r"at least one point|must rise|must be finite"):
        Schedule.piecewise(points)


def test_bad_curves_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown curve"):
        Schedule.piecewise([(0.0, 1.0)], "spline")
    with pytest.raises(ValueError, match="above 0"):
        Schedule.exponential(0.0, 1.0)


def test_growth_doubles_up_to_its_cap_and_never_overflows() -> None:
    assert [growth(n, base=5, cap=30) for n in range(5)] == [5, 10, 20, 30, 30]
    assert growth(10**9, base=5, cap=30) == 30
    assert growth(10**9, base=300, factor=1.0, cap=300) == 300


@pytest.mark.parametrize(
    "bad", [{"attempt": -1}, {"base": 0}, {"base": 40}, {"factor": 0.5}, {"cap": math.nan}]
)
def test_growth_refuses_what_makes_no_sense(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="growth needs"):
        growth(**{"attempt": 0, "base": 5, "cap": 30, **bad})  # type: ignore[arg-type]


def test_backoff_is_full_jitter_and_repeatable() -> None:
    def draw(seed: int) -> list[float]:
        rng = random.Random(seed)
        return [backoff(3, base=1.0, cap=60.0, rng=rng) for _ in range(2000)]

    waits = draw(7)
    assert waits == draw(7)
    assert 0.0 <= min(waits) < 0.1
    assert 7.9 < max(waits) <= 8.0
    assert sum(waits) / len(waits) == pytest.approx(4.0, rel=0.05)
