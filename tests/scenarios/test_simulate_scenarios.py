"""Each scenario of `gateway simulate`, under several seeds: what the gateway promises holds.

Numbers in the names are rules of behaviour: outages lose nothing (B7), open modes are left alone
(B5), retries stay within their budget (B8), a total outage ends by itself (B9), TTLs follow the
phase (B19).
"""

from __future__ import annotations

import functools

import pytest

from gateway.report import CACHE, FAILED, Report
from gateway.scenarios import SCENARIOS
from gateway.simulate import run_scenario

LADDER = ["creative", "balanced", "fast"]
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
every_seed = pytest.mark.parametrize("seed", SEEDS)
every_scenario = pytest.mark.parametrize("name", SCENARIOS)


@functools.cache
def play(name: str, seed: int) -> Report:
    return run_scenario(name, seed)


@every_seed
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "total"])
def test_no_request_is_lost_while_one_mode_is_well(name: str, seed: int) -> None:
    requests = play(name, seed).requests
    assert requests.asked > 1000
    assert requests.failed == 0, requests.errors


@every_seed
@every_scenario
def test_every_request_is_accounted_for_once(name: str, seed: int) -> None:
    report = play(name, seed)
    requests = report.requests
    assert sum(requests.answered_by.values()) == requests.served
    assert requests.served + requests.failed == requests.asked
    assert sum(map(sum, report.buckets.answered.values())) == requests.asked
    rows = [sum(sum(who.values()) for who in row.answered.values()) for row in report.timeline]
    assert sum(rows) == requests.asked


@every_seed
@every_scenario
def test_nobody_is_served_by_a_higher_mode_than_asked_for(name: str, seed: int) -> None:
    for row in play(name, seed).timeline:
        for mode, who in row.answered.items():
            assert set(who) <= {*LADDER[LADDER.index(mode) :], CACHE, FAILED}


@every_seed
@every_scenario
def test_retries_stay_small(name: str, seed: int) -> None:
    assert play(name, seed).amplification <= 1.1


@every_seed
@every_scenario
def test_the_ttl_is_short_exactly_while_a_mode_is_downshifted(name: str, seed: int) -> None:
    for row in play(name, seed).timeline:
        for standing in row.standings.values():
            short = standing.phase in ("open", "probe_due", "probing", "cooling")
            assert standing.ttl_s == (300 if short else 3600), standing


@every_seed
@every_scenario
def test_everything_is_closed_again_at_the_end(name: str, seed: int) -> None:
    assert {one.phase for one in play(name, seed).timeline[-1].standings.values()} == {"closed"}


@every_seed
@pytest.mark.parametrize("name", ["outage", "cold-recovery"])
def test_an_outage_is_seen_at_once_and_then_left_alone(name: str, seed: int) -> None:
    incident = play(name, seed).incidents[0]
    assert incident.opened_after_s is not None
    assert incident.opened_after_s <= 30  # silence takes three attempts and their patience
    # Those that open it, twice each at most, those under way meanwhile, and a probe each 300 s.
    assert incident.attempts <= 12
    assert incident.asked > 8 * incident.attempts
    # At most a whole hold, the wait for somebody to ask, and the probe's own answer.
    assert incident.back_after_s is not None
    assert incident.back_after_s <= 300 + 30 + 10


@every_seed
def test_while_creative_is_open_balanced_answers(seed: int) -> None:
    shares = play("outage", seed).shares["creative"]["open"]
    assert shares["balanced"] + shares[CACHE] == pytest.approx(1.0, abs=0.002)
    assert "creative" not in shares


@every_seed
def test_a_cold_upstream_gets_its_load_back_gently(seed: int) -> None:
    report = play("cold-recovery", seed)
    recovering = report.shares["creative"]["recovering"]
    assert recovering["balanced"] > 0.1  # the ramp sends what is too much for it down the ladder
    outage = report.incidents[0]
    reopened = [
        note
        for row in report.timeline
        for note in row.notes
        if "circuit opens" in note.what and note.at_s > outage.end_s
    ]
    assert not reopened


@every_seed
def test_a_total_outage_ends_by_itself(seed: int) -> None:
    report = play("total", seed)
    assert report.requests.failed > 0
    assert set(report.requests.errors) == {"all_modes_failed"}
    back = [incident.back_after_s or 1e9 for incident in report.incidents]
    # A trial each five seconds (B9), somebody to ask for it, and its own answer.
    assert min(back) <= 5 + 5 + 10
    assert back[-1] <= 30 + 15  # the lowest mode: its longest hold
    # While all is gone only trials go out: one each five seconds, and one each bottom hold.
    attempts = sum(incident.attempts_while_down for incident in report.incidents)
    assert attempts <= 180 / 5 + 180 / 5 + 20
    lost = [row for row in report.timeline if row.at_s > 300 + 60]
    assert not any(FAILED in who for row in lost for who in row.answered.values())


def test_the_store_answers_what_it_can_in_a_total_outage() -> None:
    open_shares = play("total", 0).shares["creative"]["open"]
    assert open_shares[CACHE] > 0
