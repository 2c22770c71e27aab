"""The pure parts of the benchmarks: medians, ratios, verdicts, tables. No figure is asserted."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.benchmarks.cells import Cell, section
from tests.benchmarks.failure import Outcome, mostly_back
from tests.benchmarks.goals import Field, Goal, judge, number
from tests.benchmarks.measure import Series, percentile
from tests.benchmarks.report import Section, document, table

GOAL = Goal("a request", "≤ 45 µs", 45, ratio=2.5)


def test_a_ratio_is_the_median_of_the_rounds_not_the_ratio_of_medians() -> None:
    ours, base = Series([10, 40, 90]), Series([10, 20, 30])
    assert ours.times(base) == 2
    assert ours.above(base).values == [0, 20, 60]
    assert ours.scaled(0.5).values == [5, 20, 45]


def test_without_rounds_nothing_is_said() -> None:
    assert math.isnan(Series().median)
    assert Series([math.nan, 3, 1, 2]).median == 2
    assert math.isnan(Series([1]).times(Series()))
    assert math.isnan(percentile([], 0.5))


@pytest.mark.parametrize(("share", "expected"), [(0, 1), (0.5, 51), (0.99, 100), (1, 100)])
def test_percentiles_are_values_that_were_seen(share: float, expected: float) -> None:
    assert percentile(range(1, 101), share) == expected


@pytest.mark.parametrize(
    ("ours", "limit", "met"),
    [(45, 40, "yes"), (80, 40, "by ratio"), (101, 40, "**no**"), (80, None, "**no**")],
)
def test_a_goal_is_met_in_figures_or_beside_the_limit(
    ours: float, limit: float | None, met: str
) -> None:
    figures = {"ours": Series([ours])}
    if limit is not None:
        figures["bare"] = Series([limit])
    assert judge(GOAL, figures, Field("ours", "bare")).met == met


def test_more_can_be_better() -> None:
    goal = Goal("streams held", "≥ 512", 512, "streams", more=True)
    figures = {"ours": Series([128]), "a": Series([32]), "b": Series([512])}
    found = judge(goal, figures, Field("ours", peers=("a", "b")))
    assert (found.met, found.peer) == ("**no**", "b: 512")


def test_the_best_peer_is_the_cheapest_that_was_measured() -> None:
    figures = {"ours": Series([50]), "a": Series([320, 300]), "b": Series()}
    assert judge(GOAL, figures, Field("ours", peers=("a", "b"))).peer == "a: 310 µs"


def test_absent_peers_are_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tests.benchmarks.goals.PEERS", tmp_path / "none")
    found = judge(GOAL, {"ours": Series([50])}, Field("ours", peers=("a",)))
    assert found.peer == "not installed: make bench-peers"


def test_what_was_not_measured_meets_nothing() -> None:
    found = judge(GOAL, {"ours": Series()}, Field("ours", "bare"))
    assert (found.ours, found.met, found.peer, found.limit) == ("-", "not measured", "-", "-")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(12345.6, "12,346"), (45.67, "45.7"), (1.234, "1.23"), (0.0123, "0.012"), (0, "0.00")],
)
def test_figures_have_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_a_round_without_an_answer_says_so_and_is_no_figure() -> None:
    cell, base = Cell(), Cell()
    cell.add(0, 3.0, 1.53, 0, 0)
    base.add(100, 1.0, 0.01, 1, 2)
    told = section("64 at once", {"ours": base, "slow": cell}, "ours")
    assert told.rows[0][1:4] == ["100", "100-100", "100"]
    assert told.rows[1][1] == "no answer in 3 s"


def test_a_subject_without_cpu_time_of_its_own_has_a_rate_only() -> None:
    stub, ours = Cell(), Cell()
    stub.add(100, 1.0, 0.0, 1, 2)
    ours.add(100, 1.0, 0.02, 1, 2)
    told = section("64 at once", {"stub": stub, "ours": ours}, "ours")
    assert told.rows[0][1:4] == ["-", "-", "100"]
    assert told.rows[1][6] == "1.00"


def test_an_outage_is_told_by_the_questions_put_while_it_lasted() -> None:
    outcome = Outcome()
    asked = [
        (0.5, 0.020, ""),
        (1.5, 0.030, ""),
        (2.0, 0.040, ""),
        (2.5, 3.000, "504"),
        (3.0, 0.020, ""),
    ]
    outcome.add(asked, began=1.0, mended=3.0, hits=1)
    assert outcome.healthy_p50_ms.values == [20]
    assert outcome.p50_ms.values == [40]
    assert outcome.success.median == pytest.approx(66.7, abs=0.1)
    assert outcome.hits.median == pytest.approx(1 / 3)
    assert outcome.wrong == {"504": 1}


def test_a_primary_is_mostly_back_when_it_has_most_of_half_a_second() -> None:
    samples = [(0.0, 0, 0), (0.5, 0, 20), (1.0, 8, 32), (1.5, 28, 32), (2.0, 48, 32)]
    assert mostly_back(samples) == 1.5
    assert math.isnan(mostly_back(samples[:3]))
    assert math.isnan(mostly_back([(0.0, 0, 0), (0.5, 0, 0)]))


def test_the_report_puts_the_goals_first_and_lines_up() -> None:
    part = Section("Costs", ("who", "µs"), [["ours", "1"]], ["A remark."])
    part.findings.append(judge(GOAL, {"ours": Series([50])}, Field("ours")))
    text = document("# Head", [part])
    assert text.index("## Against the goals") < text.index("## Costs") < text.index("A remark.")
    assert table(("a", "b"), [["long", "1"]]).splitlines() == [
        "| a    | b |",
        "| ---- | - |",
        "| long | 1 |",
    ]
