"""The picture of a report: drawn, labelled, the same each time, and refused with a remedy."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest

from gateway.errors import ConfigError, InvalidRequest
from gateway.plot import check_plot, save_plot
from gateway.report import Report
from gateway.scenarios import Scenario
from gateway.simulate import run_scenario
from gateway.simulator.service import Service


@functools.cache
def report() -> Report:
    return run_scenario("outage", minutes=8)


def svg(report: Report, path: Path) -> str:
    save_plot(report, path)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    return svg(report(), tmp_path_factory.mktemp("plots") / "outage.svg")


def test_png(tmp_path: Path) -> None:
    save_plot(report(), tmp_path / "outage.png")
    data = (tmp_path / "outage.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert width == 1500 and height == 1200


def test_every_axis_says_what_it_shows_and_in_which_unit(drawn: str) -> None:
    # matplotlib keeps each text it draws as a comment beside its outlines.
    for text in (
        "answered by, %",
        "circuit",
        "in force, s",
        "in 30 s",
        "simulated time in minutes",
        "outage: creative's upstream refuses every connection for eight minutes",
        "balanced",
        "open",
        "3600",
        "300",
    ):
        assert text in drawn, text


def test_the_same_report_gives_the_same_bytes(tmp_path: Path, drawn: str) -> None:
    assert svg(report(), tmp_path / "again.svg") == drawn


def test_many_modes_and_no_trouble_are_drawn_too(tmp_path: Path) -> None:
    ladder = {f"mode-{index}": Service(tokens=1) for index in range(7)}
    calm = Scenario(
        name="calm",
        story="nothing happens",
        faults={},
        ladder=ladder,
        demand=dict.fromkeys(ladder, 1.0),
        minutes=0.5,
    )
    assert "mode-6" in svg(run_scenario(calm), tmp_path / "calm.svg")


def test_an_unknown_format_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"\.png or \.svg"):
        check_plot(tmp_path / "outage.jpg")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"no folder .*nowhere"):
        check_plot(tmp_path / "nowhere" / "outage.png")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(InvalidRequest, match=r"cannot write .*taken\.png"):
        save_plot(report(), tmp_path / "taken.png")


def test_without_matplotlib_the_pip_line_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'downshift-gateway\[plot\]'"):
        check_plot(tmp_path / "outage.png")
