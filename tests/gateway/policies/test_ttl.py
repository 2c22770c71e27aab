from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.policies.ttl import CacheOptions

OPTIONS = CacheOptions()
below = math.nextafter


def test_native_is_fresh_for_3600_seconds_and_a_stand_in_for_300() -> None:
    for native, ttl in ((True, 3600.0), (False, 300.0)):
        assert OPTIONS.fresh(0.0, native=native)
        assert OPTIONS.fresh(below(ttl, 0.0), native=native)
        assert not OPTIONS.fresh(ttl, native=native)


def test_the_lifetime_in_force_is_short_while_downshifted() -> None:
    assert OPTIONS.ttl(downshifted=False) == 3600.0
    assert OPTIONS.ttl(downshifted=True) == 300.0


def test_the_callers_own_bound_only_shortens() -> None:
    assert not OPTIONS.fresh(60.0, native=True, max_age_s=60.0)
    assert OPTIONS.fresh(59.0, native=True, max_age_s=60.0)
    assert not OPTIONS.fresh(0.0, native=True, max_age_s=0.0)
    assert not OPTIONS.fresh(300.0, native=False, max_age_s=9999.0)
    assert not OPTIONS.fresh(3600.0, native=True, max_age_s=9999.0)


def test_stale_if_error_ends_an_hour_after_freshness_and_an_entry_is_kept_that_long() -> None:
    assert OPTIONS.usable_stale(below(7200.0, 0.0))
    assert not OPTIONS.usable_stale(7200.0)
    assert OPTIONS.lifetime_s == 7200.0


@given(
    ttl_s=st.floats(0.0, 1e5),
    degraded_ttl_s=st.floats(0.0, 1e5),
    stale_if_error_s=st.floats(0.0, 1e5),
    age_s=st.floats(0.0, 3e5),
    native=st.booleans(),
)
@settings(max_examples=200, derandomize=True, database=None)
def test_whatever_may_be_served_is_still_kept(
    ttl_s: float, degraded_ttl_s: float, stale_if_error_s: float, age_s: float, native: bool
) -> None:
    options = CacheOptions(
        ttl_s=ttl_s, degraded_ttl_s=degraded_ttl_s, stale_if_error_s=stale_if_error_s
    )
    if options.fresh(age_s, native=native) or options.usable_stale(age_s):
        assert age_s < options.lifetime_s


@pytest.mark.parametrize("native", [True, False])
def test_a_lifetime_of_nothing_serves_nothing(native: bool) -> None:
    assert not CacheOptions(ttl_s=0.0, degraded_ttl_s=0.0).fresh(0.0, native=native)
