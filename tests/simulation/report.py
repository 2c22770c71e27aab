"""What a run showed: the table, the picture, and where a peer's policy did better."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.benchmarks.report import _commit, machine, slug, table
from tests.simulation.campaign import World, replay
from tests.simulation.compare import OURS, POLICIES, Tally
from tests.simulation.invariants import EVERYTHING

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
_VERSIONS = ("aiobreaker", "msgspec", "cachetools")


class Run(msgspec.Struct):
    """What was played.

    Attributes:
        worlds: all, with the gateway as it ships.
        compared: those that every policy played.
        options: of the command.
    """

    worlds: list[World]
    compared: list[World]
    options: list[str]

    def tallies(self) -> dict[str, Tally]:
        """Each policy's sums over the compared worlds."""
        sums = {policy: Tally() for policy in POLICIES}
        for world in self.compared:
            for policy, tally in world.tallies.items():
                sums[policy].add(tally)
        return sums


class Measure(NamedTuple):
    """One column: what a policy is judged by.

    Attributes:
        name: for a heading.
        meaning: a sentence for the page.
        of: the figure of a tally.
        shown: how to write it.
        more: whether more is better.
    """

    name: str
    meaning: str
    of: Callable[[Tally], float]
    shown: Callable[[float], str]
    more: bool


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _seconds(seconds: float) -> str:
    return "not back" if math.isinf(seconds) else f"{seconds:.1f}"


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


MEASURES = (
    Measure(
        "availability",
        "share answered whole and in time, by whichever mode",
        lambda t: _share(t.answered, t.asked),
        _percent,
        True,
    ),
    Measure(
        "the same in faults",
        "of the requests that came while their own mode had a fault",
        lambda t: _share(t.troubled_answered, t.troubled),
        _percent,
        True,
    ),
    Measure(
        "as asked",
        "quality-weighted availability: share answered by the very mode that was asked for",
        lambda t: _share(t.native, t.asked),
        _percent,
        True,
    ),
    Measure(
        "as asked in faults",
        "of the requests that came while their own mode had a fault",
        lambda t: _share(t.troubled_native, t.troubled),
        _percent,
        True,
    ),
    Measure(
        "goodput /min",
        "answers whole and in time, in a simulated minute",
        lambda t: _share(60.0 * t.answered, t.simulated_s),
        lambda value: f"{value:.2f}",
        True,
    ),
    Measure(
        "amplification",
        "calls that reached upstreams, for each request that no cache answered",
        lambda t: _share(t.calls, t.uncached),
        lambda value: f"{value:.3f}",
        False,
    ),
    Measure(
        "wasted calls /min",
        "calls to an upstream that was all gone, in each minute that it was",
        lambda t: _share(60.0 * t.dead_calls, t.dead_s),
        lambda value: f"{value:.2f}",
        False,
    ),
    Measure(
        "recovery p50 s",
        "from an outage's end to the next request its mode answered itself",
        lambda t: t.recovery_s(0.5),
        _seconds,
        False,
    ),
    Measure("recovery p95 s", "the same", lambda t: t.recovery_s(0.95), _seconds, False),
    Measure("answer p50 s", "how long an answer took", lambda t: t.wait_s(0.5), _seconds, False),
    Measure("answer p99 s", "the same", lambda t: t.wait_s(0.99), _seconds, False),
)


def summary(run: Run) -> str:
    """What was played and whether all promises held."""
    requests = sum(world.requests for world in run.worlds)
    hours = sum(world.tallies[OURS].simulated_s for world in _alive(run)) / 3600
    checks = sum(world.checks for world in run.worlds)
    broken = [line for world in run.worlds for line in world.broken]
    lines = [
        f"{len(run.worlds):,} schedules, {requests:,} requests, {hours:,.0f} simulated hours;"
        f" {len({rule.name for rule in EVERYTHING}) + 2} invariants, asked {checks:,} times:"
        f" {f'{len(broken)} broken' if broken else 'none was broken'}."
    ]
    lines += [
        f"- {line}; again: `{replay(world.seed)}`" for world in run.worlds for line in world.broken
    ]
    return "\n".join(lines)


def _alive(run: Run) -> list[World]:
    return [world for world in run.worlds if OURS in world.tallies]


def markdown(run: Run) -> str:
    """The whole page."""
    tallies = run.tallies()
    parts = [_head(run), summary(run), "## All policies, the same worlds"]
    parts.append(_compared(run, tallies))
    parts += [_table(tallies), _meanings(), "## Where another policy did better", _better(tallies)]
    parts += ["## Why requests went without an answer", _errors(tallies)]
    return "\n\n".join(parts) + "\n"


def _head(run: Run) -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _VERSIONS)
    cpu_s = sum(world.cpu_s for world in run.worlds)
    return "\n".join(
        [
            f"# Simulation at scale, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC",
            "",
            f"- Machine: {machine()}; {platform.system()} {platform.release()}",
            f"- Python {platform.python_version()}; {versions}",
            f"- Commit {_commit()}; run as `python -m tests.simulation {' '.join(run.options)}`",
            f"- {cpu_s:,.0f} s of CPU, all policies together",
            "",
            "How it is made, and what each policy is: tests/simulation/README.md.",
        ]
    )


def _compared(run: Run, tallies: dict[str, Tally]) -> str:
    ours = tallies[OURS]
    return (
        f"{len(run.compared):,} schedules, {ours.simulated_s / 3600:,.0f} simulated hours; of each"
        f" policy {ours.asked:,} requests count, {ours.troubled:,} of them came while their own"
        f" mode had a fault; {len(ours.recoveries):,} outages had time to be recovered from."
    )


def _table(tallies: dict[str, Tally]) -> str:
    best = {m.name: _best(m, tallies) for m in MEASURES}
    rows = []
    for policy, tally in tallies.items():
        row = [policy]
        for measure in MEASURES:
            shown = measure.shown(measure.of(tally))
            row.append(f"**{shown}**" if shown == best[measure.name] else shown)
        rows.append(row)
    return table(["policy", *(measure.name for measure in MEASURES)], rows)


def _best(measure: Measure, tallies: dict[str, Tally]) -> str:
    figures = [measure.of(tally) for tally in tallies.values()]
    return measure.shown(max(figures) if measure.more else min(figures))


def _meanings() -> str:
    lines = [f"- *{measure.name}*: {measure.meaning}." for measure in MEASURES]
    lines.append(
        "- Bold is the best of a column. Wherever callers come seldom, a recovery cannot be seen"
        " before the next one asks: the figures of *no resilience* are the traffic's own gaps."
    )
    return "\n".join(lines)


def _better(tallies: dict[str, Tally]) -> str:
    """Every measure in which somebody beats the gateway as it ships, said plainly."""
    ours, lines = tallies[OURS], []
    for measure in MEASURES:
        mine = measure.of(ours)
        ahead = []
        for policy, tally in tallies.items():
            theirs = measure.of(tally)
            better = theirs > mine if measure.more else theirs < mine
            if better and measure.shown(theirs) != measure.shown(mine):
                ahead.append(f"{policy} {measure.shown(theirs)}")
        if ahead:
            lines.append(f"- {measure.name}: {measure.shown(mine)} here; {', '.join(ahead)}.")
    return "\n".join(lines) or "Nowhere."


def _errors(tallies: dict[str, Tally]) -> str:
    codes = sorted({code for tally in tallies.values() for code in tally.errors})
    rows = [
        [policy, *(f"{tally.errors.get(code, 0):,}" for code in codes)]
        for policy, tally in tallies.items()
    ]
    return table(["policy", *(code.replace("_", " ") for code in codes)], rows)


def save(run: Run, page: str, folder: Path = RESULTS) -> Sequence[Path]:
    """Write the page and draw the picture."""
    from tests.simulation.picture import draw

    name = f"simulation_{slug(machine())}_{time.strftime('%Y-%m-%d', time.gmtime())}"
    paths = folder / f"{name}.md", folder / f"{name}.png"
    paths[0].write_text(page + f"\n![The same as a picture]({paths[1].name})\n")
    draw(run.tallies(), len(run.compared), paths[1])
    return paths
