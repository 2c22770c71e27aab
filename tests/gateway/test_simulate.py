"""The scenario runner: reproducible, honest about its arguments, open to one's own stories."""

from __future__ import annotations

import json

import msgspec
import pytest

from gateway.errors import ConfigError, InvalidRequest
from gateway.report import Report
from gateway.scenarios import SCENARIOS, Scenario, scenario
from gateway.simulate import run_scenario
from gateway.simulator.faults import Latency, Outage
from gateway.simulator.service import Service


def short(*, seed: int = 0, requests_per_s: float = 1.0) -> Report:
    return run_scenario("outage", seed, minutes=3, requests_per_s=requests_per_s)


def test_the_same_seed_tells_the_same_story_to_the_byte() -> None:
    assert short(seed=3).json() == short(seed=3).json()


def test_another_seed_tells_another() -> None:
    assert short(seed=3).buckets != short(seed=4).buckets


def test_data_reads_back_as_the_report_it_was() -> None:
    report = short()
    assert msgspec.json.decode(report.json(), type=Report) == report
    assert list(json.loads(report.json())) == [
        "scenario",
        "story",
        "seed",
        "minutes",
        "requests_per_s",
        "requests",
        "attempts",
        "failed_attempts",
        "amplification",
        "incidents",
        "shares",
        "timeline",
        "buckets",
    ]


def test_traffic_is_as_much_as_was_asked_for() -> None:
    assert short(requests_per_s=2.0).requests.asked == pytest.approx(2 * 180, rel=0.15)


def test_a_run_without_trouble_is_a_timeline_of_one_row() -> None:
    report = run_scenario(Scenario(name="calm", story="nothing happens", faults={}), minutes=3)
    assert len(report.timeline) == 1
    assert report.requests.failed == report.requests.degraded == 0
    assert report.incidents == []
    assert report.amplification == 1.0


def test_a_story_of_ones_own_with_tables_of_ones_own() -> None:
    own = Scenario(
        name="two",
        story="two modes, and a probe that comes early",
        faults={"good": (Outage(30, 60, "refuse"),)},
        ladder={"good": Service(tokens=2), "plain": Service(tokens=2)},
        demand={"good": 1.0},
        popular=0.0,
        minutes=3,
        tables={"circuit": {"early_probe_s": 10}},
    )
    report = run_scenario(own)
    assert report.requests.failed == 0
    (incident,) = report.incidents
    # A probe each ten seconds, and the one that finds it well.
    assert incident.back_after_s is not None and incident.back_after_s < 15
    assert report.requests.answered_by["plain"] > 20


def test_slowness_that_fails_nothing_is_walked_around() -> None:
    slow = Scenario(
        name="slow",
        story="creative takes thirty times as long",
        faults={"creative": (Latency(60, 240, factor=30),)},
        minutes=5,
    )
    report = run_scenario(slow)
    assert report.requests.failed == 0
    assert report.incidents[0].opened_after_s is not None  # by the overdue rule
    assert report.incidents[0].attempts_while_down == 0


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), 1e6])
def test_minutes_out_of_range(minutes: float) -> None:
    with pytest.raises(InvalidRequest, match="minutes must be"):
        run_scenario("outage", minutes=minutes)


@pytest.mark.parametrize("rate", [0, -2, float("nan"), 1e9])
def test_rates_out_of_range(rate: float) -> None:
    with pytest.raises(InvalidRequest, match="requests per second"):
        run_scenario("outage", requests_per_s=rate)


def test_an_unknown_scenario_lists_those_there_are() -> None:
    with pytest.raises(InvalidRequest, match="outage, brownout, flapping, cold-recovery, total"):
        scenario("meltdown")


def test_an_unknown_key_in_ones_own_tables_is_named() -> None:
    odd = msgspec.structs.replace(SCENARIOS["outage"], tables={"circuit": {"patience": 3}})
    with pytest.raises(ConfigError, match="patience"):
        run_scenario(odd)
