"""Faults as data: windows are exact, effects add up, plans come from files and from seeds."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ConfigError
from gateway.primitives.scheduling import Schedule
from gateway.simulator.faults import (
    AnyFault,
    Brownout,
    ColdCapacity,
    CutStream,
    Effects,
    FaultPlan,
    Flapping,
    Latency,
    Outage,
    Stall,
    Throttled,
    random_plan,
    read_plan,
)


def at(now: float, *faults: AnyFault, seed: int = 0) -> Effects:
    return FaultPlan(faults).at(now, random.Random(seed))


def test_without_faults_nothing_applies() -> None:
    assert at(0.0) == Effects()
    assert FaultPlan().heals_at == 0.0


def test_a_window_includes_its_start_and_excludes_its_end() -> None:
    fault = Outage(30, 90, "silent")
    assert at(29.999, fault).fails is None
    assert at(30.0, fault).fails == "silent"
    assert at(89.999, fault).fails == "silent"
    assert at(90.0, fault).fails is None


def test_flapping_is_down_first_then_up() -> None:
    fault = Flapping(100, 200, up_s=10, down_s=5, how="refuse")
    states = [at(now, fault).fails for now in (99, 100, 104.9, 105, 114.9, 115, 119.9, 120)]
    assert states == [None, "refuse", "refuse", None, None, "refuse", "refuse", None]


def share_of(fault: AnyFault, field: str) -> float:
    plan, rng = FaultPlan((fault,)), random.Random(1)
    hits = sum(getattr(plan.at(1.0, rng), field) not in (None, False) for _ in range(4000))
    return hits / 4000


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        (Brownout(0, 10, share=0.6), "fails"),
        (Throttled(0, 10, share=0.6), "throttled"),
        (CutStream(0, 10, share=0.6), "cut_after"),
        (Stall(0, 10, share=0.6, after_chunks=2), "stall_after"),
    ],
)
def test_shares_are_what_they_say(fault: AnyFault, field: str) -> None:
    assert share_of(fault, field) == pytest.approx(0.6, abs=0.03)


def test_cold_capacity_follows_its_ramp_and_is_over_at_its_end() -> None:
    plan = FaultPlan((ColdCapacity(600, 660),))
    shares = [plan.capacity(now) for now in (599.9, 600.0, 630.0, 660.0)]
    assert shares == pytest.approx([1.0, 0.1, 0.55, 1.0])
    assert plan.at(600.0, random.Random(0)) == Effects()
    steep = FaultPlan((ColdCapacity(0, 10, Schedule.exponential(0.01, 1.0)), ColdCapacity(5, 9)))
    assert steep.capacity(5.0) == pytest.approx(0.1 * 0.1)


def test_effects_add_up() -> None:
    both = at(5, Latency(0, 10, 3), Latency(0, 10, 2), Throttled(0, 10, retry_after=7))
    assert (both.latency, both.throttled, both.retry_after) == (6, True, 7)
    assert at(5, Outage(0, 10, "silent"), Outage(0, 10, "reset")).fails == "reset"


def test_an_outage_is_known_without_chance_and_a_brownout_is_none() -> None:
    plan = FaultPlan((Brownout(0, 50, 1.0), Flapping(10, 20, 5, 5, "reset"), Outage(30, 40)))
    told = [plan.outage(now) for now in (5, 12, 17, 25, 35, 45)]
    assert told == [None, "reset", None, None, "refuse", None]
    assert plan.heals_at == 50


def test_a_plan_comes_from_a_configuration() -> None:
    plan = read_plan(
        [
            {"kind": "outage", "start": 30, "end": 90, "how": "silent"},
            {"kind": "cold_capacity", "start": 90, "end": 150},
            {"kind": "cut_stream", "start": 0, "end": math.inf, "share": 0.1},
            {
                "kind": "cold_capacity",
                "start": 1,
                "end": 2,
                "ramp": {"points": [[0, 0.5], [1, 1]], "curve": "cosine"},
            },
        ]
    )
    assert plan == FaultPlan(
        (
            Outage(30, 90, "silent"),
            ColdCapacity(90, 150),
            CutStream(0, math.inf, 0.1),
            ColdCapacity(1, 2, Schedule.cosine(0.5, 1.0)),
        )
    )


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"kind": "earthquake", "start": 0, "end": 1}, "kinds of fault: outage, flapping"),
        ({"kind": "outage", "start": 0, "end": 1, "hwo": "reset"}, "hwo"),
        ({"kind": "outage", "start": 0, "end": 1, "how": "loudly"}, "loudly"),
        ({"kind": "outage", "start": "noon", "end": 1}, "start"),
        ({"kind": "outage", "start": 5, "end": 1}, "start < end"),
        ({"kind": "outage", "start": 5}, "end"),
        ({"kind": "brownout", "start": 0, "end": 1, "share": 1.5}, "share"),
        ({"kind": "flapping", "start": 0, "end": 1, "up_s": 0}, "up_s"),
        ({"kind": "stall", "start": 0, "end": 1, "after_chunks": -1}, "after_chunks"),
    ],
)
def test_a_wrong_configuration_names_what_is_wrong(table: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_plan([table])


@given(seed=st.integers(0, 2**32), horizon=st.floats(1, 1e5))
@settings(max_examples=50, deadline=None)
def test_random_plans_are_reproducible_and_heal_in_time(seed: int, horizon: float) -> None:
    plan = random_plan(random.Random(seed), horizon)
    assert plan == random_plan(random.Random(seed), horizon)
    assert 1 <= len(plan.faults) <= 4
    assert plan.heals_at <= horizon * 0.75
    assert plan.at(plan.heals_at, random.Random(seed)) == Effects()


def test_random_plans_cover_every_kind_of_fault() -> None:
    rng = random.Random(7)
    seen = {type(fault) for _ in range(100) for fault in random_plan(rng, 100).faults}
    assert seen == set(AnyFault.__args__)
