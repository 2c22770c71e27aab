"""The text of a report: what a person reads off it is what happened."""

from __future__ import annotations

import functools

import pytest

from gateway.report import Report
from gateway.simulate import run_scenario
from gateway.timeline import clock, timeline


@functools.cache
def outage() -> Report:
    return run_scenario("outage", 0)


def test_it_tells_phase_ttl_and_who_answers_at_each_turn() -> None:
    lines = timeline(outage()).splitlines()
    assert lines[1] == "20 simulated minutes, 1 request a second, seed 0"
    opened = next(line for line in lines if " open 300 " in line)
    assert opened.startswith("02:0")
    assert "creative: balanced" in opened
    assert any("recovering 3600" in line for line in lines)
    assert lines[lines.index(opened) - 1].endswith("* creative: circuit opens (answers broke off)")


def test_turns_stand_in_the_order_they_happened() -> None:
    times = [line[:5] for line in timeline(outage()).splitlines() if line[2:3] == ":"]
    assert len(times) > 6
    assert times == sorted(times)


def test_the_summary_says_what_it_came_to() -> None:
    report = outage()
    text = timeline(report)
    asked = report.requests.asked
    assert f"{asked} asked, {asked} served, 0 failed" in text
    assert f"amplification {report.amplification:.3f}" in text
    assert "s after it began; creative back" in text


def test_no_line_is_wider_than_a_wide_terminal() -> None:
    assert max(map(len, timeline(outage()).splitlines())) <= 120


def test_failures_are_named() -> None:
    text = timeline(run_scenario("total", minutes=4))
    assert "failed (all_modes_failed" in text
    assert "times until" in text  # probes in vain, told once
    assert "fast not back by the end" in text


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "00:00"), (59.9999999, "01:00"), (61.2, "01:01"), (6000, "100:00")]
)
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown
