"""Goals, findings and tables, as Markdown that also reads well in a terminal."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.measure import Quiet, Series

ROOT = Path(__file__).resolve().parents[2]
_VERSIONS = ("msgspec", "httptools", "uvloop", "aiobreaker", "cachetools", "httpx", "openai")
_CPU = ("model name", "cpu family", "model")  # virtual machines often hide the name proper


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the table of goals.

    Args:
        what: as the performance goals say it.
        text: the goal, quoted.
        limit: the number in it.
        beside: where the limit and the best peer stood when the goals were set, on the machine
            they were measured on.
        ratio: the goal over the bare client of that day; 0 where there was none.
    """

    what: str
    text: str
    limit: float
    beside: str = ""
    ratio: float = 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """A goal and what came out.

    Args:
        goal: what was to be reached.
        value: the median, in the goal's unit.
        shown: the figure with its unit and its spread.
        ratio: how many times the bare client of this run.
    """

    goal: Goal
    value: float
    shown: str
    ratio: float = math.inf

    @property
    def met(self) -> str:
        """Whether the median meets the goal: in figures, or at least beside the bare client."""
        if self.value <= self.goal.limit:
            return "yes"
        return "by ratio" if self.ratio <= self.goal.ratio else "**no**"


@dataclass(slots=True)
class Section:
    """One subject: a table, remarks, and what it says about the goals."""

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def costs(self, series: dict[str, Series], base: str) -> None:
        """Add one row per subject: CPU, spread, rate, and how many times `base`."""
        for name, one in series.items():
            times = f"{one.times(series[base]):.2f}" if name != base else "1"
            self.rows.append([name, number(one.cpu), spread(one), f"{one.per_s:,.0f}", times])

    def judge(self, goal: Goal, series: Series, bare: Series | None = None) -> None:
        """Hold one median of CPU µs against its goal, and against the bare client of this run."""
        shown, ratio = f"{number(series.cpu)} µs ({spread(series)})", math.inf
        if bare is not None:
            ratio = series.times(bare)
            shown += f", {ratio:.1f} × bare"
        self.findings.append(Finding(goal, series.cpu, shown, ratio))

    def find(self, goal: Goal, value: float, shown: str) -> None:
        """Hold a figure against its goal."""
        self.findings.append(Finding(goal, value, shown))


def number(value: float) -> str:
    """Three significant digits, never in exponents."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(series: Series) -> str:
    """Least to most of the rounds."""
    return f"{number(min(series.cpu_us))}-{number(max(series.cpu_us))}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def machine() -> str:
    """The processor and its cores, in words."""
    name = platform.processor() or platform.machine()
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        told = ""
    words = [re.search(rf"^{key}\s*: (.+)", told, re.MULTILINE) for key in _CPU]
    if all(words):
        name = "{} family {} model {}".format(*(word[1] for word in words if word))
    return f"{name}, {os.cpu_count()} cores"


def slug(text: str) -> str:
    """`text` as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def header(quiet: Quiet, options: str, load: Sequence[float]) -> str:
    """When, where and on what."""
    versions = []
    for name in _VERSIONS:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    now = os.getloadavg()
    call = f"{min(quiet.call_us):.3f}-{max(quiet.call_us):.3f}"
    lines = [
        f"# Library benchmarks, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC",
        "",
        f"- Machine: {machine()}; {platform.system()} {platform.release()}",
        f"- Python {platform.python_version()}; {', '.join(versions)}",
        f"- Commit {_commit()}; run as `python -m tests.benchmarks{options}`",
        f"- Load average before {load[0]:.2f}, after {now[0]:.2f}; share of its core this process"
        f" got: {min(quiet.share):.0%} at worst, {max(quiet.share):.0%} at best",
        f"- An empty Python call took {call} µs (0.052 on the machine the goals were set on,"
        " 2 cores of an AMD EPYC Zen 4): figures in µs move with it, ratios hardly",
    ]
    return "\n".join(lines)


def document(head: str, sections: Sequence[Section]) -> str:
    """Everything, goals first."""
    findings = [finding for section in sections for finding in section.findings]
    parts = [head]
    if findings:
        rows = [[f.goal.what, f.goal.beside, f.shown, f.goal.text, f.met] for f in findings]
        columns = ["what", "when the goals were set", "here: median (spread)", "goal", "met"]
        parts += ["## Against the goals", table(columns, rows)]
    for section in sections:
        parts.append(f"## {section.title}")
        if section.rows:
            parts.append(table(section.columns, section.rows))
        parts += section.remarks
    return "\n\n".join(parts) + "\n"


def _commit() -> str:
    """The commit, and whether the tree differs from it."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
