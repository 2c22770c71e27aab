"""Tables and the report, as Markdown that also reads well in a terminal."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.goals import Finding, number
from tests.benchmarks.measure import Quiet, Series

__all__ = ["ROOT", "Section", "document", "header", "machine", "number", "slug", "spread", "table"]

ROOT = Path(__file__).resolve().parents[2]
_VERSIONS = (
    "uvloop",
    "uvicorn",
    "granian",
    "httptools",
    "msgspec",
    "aiobreaker",
    "cachetools",
    "httpx",
    "openai",
)
_UNDISTURBED = 0.9  # of a core that an idle machine leaves to one process
_CPU = ("model name", "cpu family", "model")  # virtual machines often hide the name proper


@dataclass(slots=True)
class Section:
    """One subject: a table, remarks, and what it says about the goals."""

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def spread(series: Series) -> str:
    """Least to most of the rounds."""
    if not series.values:
        return "-"
    return f"{number(min(series.values))}-{number(max(series.values))}"


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


def header(quiet: Quiet, options: str, load: Sequence[float], remarks: Sequence[str]) -> str:
    """When, where and on what."""
    versions = []
    for name in _VERSIONS:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    now = os.getloadavg()
    if min(quiet.share) < _UNDISTURBED:
        remarks = [*remarks, "**The machine was busy with other things: trust ratios at most.**"]
    call = f"{min(quiet.call_us):.3f}-{max(quiet.call_us):.3f}"
    lines = [
        f"# Benchmarks, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC",
        "",
        f"- Machine: {machine()}; {platform.system()} {platform.release()}",
        f"- Python {platform.python_version()}; {', '.join(versions)}",
        *(f"- {remark}" for remark in remarks),
        f"- Commit {_commit()}; run as `python -m tests.benchmarks{options}`",
        f"- Load average before {load[0]:.2f}, after {now[0]:.2f}; an empty Python loop got"
        f" {min(quiet.share):.0%} of its core at worst, {max(quiet.share):.0%} at best",
        f"- An empty Python call took {call} µs (0.052 on the machine the goals were set on,"
        " 2 cores of an AMD EPYC Zen 4): figures in µs move with it, ratios hardly",
    ]
    return "\n".join(lines)


def document(head: str, sections: Sequence[Section]) -> str:
    """Everything, the summary first."""
    findings = [finding for section in sections for finding in section.findings]
    parts = [head]
    if findings:
        rows = [[f.goal.what, f.goal.text, f.ours, f.met, f.peer, f.limit] for f in findings]
        columns = ["what", "goal", "ours: median (rounds)", "met", "best peer here", "limit here"]
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
