from __future__ import annotations

import json
import math
import random
import statistics
from fractions import Fraction

import pytest

from gateway.primitives.normalization import Normalizer, Window


def filled(size: int, values: list[float]) -> Window:
    window = Window(size)
    for x in values:
        window.push(x)
    return window


def test_only_the_last_size_values_count() -> None:
    window = filled(3, [100.0, 1.0, 2.0, 6.0])
    assert (window.count, window.values, window.mean) == (3, [1.0, 2.0, 6.0], 3.0)
    assert window.variance == pytest.approx(statistics.pvariance([1, 2, 6]))
    assert window.std == pytest.approx(statistics.pstdev([1, 2, 6]))
    assert window.sample_std == pytest.approx(statistics.stdev([1, 2, 6]))


def test_an_empty_window_and_a_single_value() -> None:
    empty = Window(5)
    assert [empty.count, empty.mean, empty.std, empty.sample_std] == [0, 0.0, 0.0, 0.0]
    assert [empty.median(), empty.mad(), empty.percentile(95)] == [0.0, 0.0, 0.0]
    one = filled(5, [7.0])
    assert [one.mean, one.std, one.sample_std] == [7.0, 0.0, 0.0]
    assert [one.median(), one.mad(), one.percentile(95)] == [7.0, 0.0, 7.0]


def test_one_outlier_of_1e12_leaves_no_trace() -> None:
    rng = random.Random(0)
    values = [rng.gauss(0.0, 1.0) for _ in range(2000)]
    window = filled(1000, values[:500])
    window.push(1e12)
    for x in values[500:1500]:
        window.push(x)
    assert max(window.values) < 10
    assert window.variance == pytest.approx(statistics.pvariance(window.values), rel=1e-9)
    assert window.mean == pytest.approx(statistics.fmean(window.values), abs=1e-12)


def test_a_level_that_moves_far_away_keeps_its_small_spread() -> None:
    rng = random.Random(1)
    window = filled(100, [rng.random() for _ in range(150)])
    for _ in range(120):
        window.push(1e9 + rng.random())
    assert window.variance == pytest.approx(statistics.pvariance(window.values), rel=1e-6)


@pytest.mark.parametrize(("size", "value"), [(3, 0.1), (6, 0.7), (9, 0.9), (50, 0.1)])
def test_equal_values_have_exactly_no_spread_even_after_others(size: int, value: float) -> None:
    rng = random.Random(2)
    window = filled(size, [rng.gauss(0, 1e6) for _ in range(size)])
    for _ in range(size):
        window.push(value)
    assert (window.mean, window.std) == (value, 0.0)


def test_rounding_does_not_pile_up_over_many_wraps() -> None:
    rng = random.Random(0)
    window, exact_moments = Window(50), 0
    for n in range(20_000):
        window.push(rng.uniform(-1, 1) * (1 if n // 50 % 2 else 60))  # no digits lost at once
        if n >= 19_900 and window.state_dict()["since"] == 0:
            exact_moments += 1
            exact = statistics.pvariance(map(Fraction, window.values))
            assert window.variance == pytest.approx(float(exact), rel=1e-14)
    assert exact_moments == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e150, -1e200])
def test_what_is_not_a_usable_number_is_refused_without_a_trace(bad: float) -> None:
    window = filled(3, [1.0, 2.0])
    window.median()
    before = window.state_dict()
    with pytest.raises(ValueError, match="finite"):
        window.push(bad)
    normalizer = Normalizer(window)
    for update in (True, False):
        with pytest.raises(ValueError, match="finite"):
            normalizer.normalize(bad, update=update)
    assert window.state_dict() == before
    window.push(3.0)
    assert window.median() == 2.0


def test_percentiles_lie_between_ranks() -> None:
    window = filled(5, [50.0, 10.0, 40.0, 20.0, 30.0])
    assert [window.percentile(p) for p in (0, 25, 50, 90, 100)] == [10, 20, 30, 46, 50]
    with pytest.raises(ValueError, match=r"0\.\.100"):
        window.percentile(101)


def test_median_and_mad_do_not_move_for_one_outlier() -> None:
    window = filled(5, [1.0, 2.0, 3.0, 4.0, 1e9])
    assert (window.median(), window.mad()) == (3.0, 1.0)


def test_a_window_needs_room() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Window(0)


def test_a_loaded_window_continues_bit_for_bit() -> None:
    rng = random.Random(3)
    original = filled(70, [rng.gauss(5, 2) for _ in range(103)])
    copy = Window(70)
    copy.load_state_dict(json.loads(json.dumps(original.state_dict())))
    for _ in range(200):
        x = rng.gauss(5, 2)
        original.push(x)
        copy.push(x)
        assert (copy.mean, copy.std) == (original.mean, original.std)
    assert copy.mad() == original.mad()


def test_a_state_of_another_size_keeps_the_newest_values() -> None:
    state = filled(10, [float(n) for n in range(10)]).state_dict()
    smaller, larger = Window(3), Window(20)
    smaller.load_state_dict(state)
    larger.load_state_dict(state)
    assert smaller.values == [7.0, 8.0, 9.0]
    assert smaller.mean == 8.0
    assert larger.count == 10


@pytest.mark.parametrize(
    "damage",
    [{"values": [1.0, math.nan]}, {"sums": [1.0]}, {"sums": [0.0, 0.0, 0.0, -1.0, 0.0]}],
)
def test_a_broken_state_changes_nothing(damage: dict[str, list[float]]) -> None:
    window = filled(3, [1.0, 2.0, 4.0])
    before = window.state_dict()
    with pytest.raises(ValueError, match=r"."):
        window.load_state_dict({**before, **damage})
    with pytest.raises(KeyError):
        window.load_state_dict({})
    assert window.state_dict() == before


def test_z_scores_against_the_window() -> None:
    normalizer = Normalizer(3)
    assert normalizer.normalize(5.0) == 0.0
    normalizer.normalize(7.0)
    assert normalizer.normalize(9.0) == pytest.approx(2.0 / statistics.pstdev([5, 7, 9]))
    assert normalizer.get_stats() == {
        "mean": 7.0, "std": pytest.approx(statistics.pstdev([5, 7, 9])), "count": 3,
    }  # fmt: skip
    before = normalizer.state_dict()
    assert normalizer.normalize(7.0, update=False) == 0.0
    assert normalizer.state_dict() == before


def test_without_a_spread_the_floor_divides() -> None:
    normalizer = Normalizer(10, std_floor=0.5)
    assert normalizer.normalize(3.0, update=False) == 0.0
    for _ in range(5):
        normalizer.normalize(3.0)
    assert normalizer.normalize(4.0, update=False) == 2.0
    with pytest.raises(ValueError, match="std_floor"):
        Normalizer(10, std_floor=0.0)


def test_outliers_are_judged_by_median_and_mad() -> None:
    normalizer = Normalizer(100, min_count=5)
    for x in (1.0, 2.0, 3.0, 4.0):
        normalizer.normalize(x)
    assert not normalizer.is_outlier(1e6, 5.0)  # too few to say
    normalizer.normalize(5.0)
    edge = 3.0 + 5.0 * 1.4826  # the MAD of 1..5 is 1
    assert not normalizer.is_outlier(edge - 1e-9, 5.0)
    assert normalizer.is_outlier(edge + 1e-9, 5.0)
    assert normalizer.is_outlier(-edge, 5.0)
    assert normalizer.is_outlier(math.nan, 5.0)


def test_a_normalizer_loads_what_another_saved() -> None:
    first, second = Normalizer(4), Normalizer(4)
    for x in (1.0, 4.0, 9.0):
        first.normalize(x)
    second.load_state_dict(first.state_dict())
    assert second.normalize(2.0) == first.normalize(2.0)
