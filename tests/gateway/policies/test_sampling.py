from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.policies.sampling import Sampling


def test_it_counts_calls_and_failures() -> None:
    sampling = Sampling(30.0)
    for at in range(10):
        sampling.add(float(at), failed=at % 2 == 0)
    assert sampling.totals(9.0) == (10, 5)
    sampling.clear()
    assert sampling.totals(9.0) == (0, 0)


def test_what_is_older_than_the_duration_is_gone() -> None:
    sampling = Sampling(30.0)
    sampling.add(0.999, failed=True)
    assert sampling.totals(29.999) == (1, 1)
    assert sampling.totals(30.0) == (0, 0)


def test_it_holds_no_more_than_thirty_buckets() -> None:
    sampling = Sampling(3.0)
    for tick in range(10_000):
        sampling.add(tick * 0.05, failed=False)
    assert len(sampling.buckets) <= 30


@given(
    calls=st.lists(st.tuples(st.integers(0, 4000), st.booleans()), max_size=60),
    duration_s=st.sampled_from([0.5, 30.0, 300.0]),
    later=st.integers(0, 1000),
)
@settings(max_examples=150, derandomize=True, database=None)
def test_never_older_and_never_less_than_a_bucket_younger(
    calls: list[tuple[int, bool]], duration_s: float, later: int
) -> None:
    sampling = Sampling(duration_s)
    calls = sorted((tick, failed) for tick, failed in calls)
    unit = duration_s / 960
    for tick, failed in calls:
        sampling.add(tick * unit, failed)
    last = calls[-1][0] if calls else 0
    now = last + later
    total, failures = sampling.totals(now * unit)

    def within(ticks: int) -> tuple[int, int]:
        young = [failed for tick, failed in calls if now - tick < ticks]
        return len(young), sum(young)

    at_most, at_least = within(960 + 1), within(960 - 32 - 1)
    assert at_least[0] <= total <= at_most[0]
    assert at_least[1] <= failures <= at_most[1]
