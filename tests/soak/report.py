"""What a soak found, as a page and a picture."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.benchmarks.report import _commit, machine, number, slug, table
from tests.soak.run import Found
from tests.soak.slopes import Slope, floors, theil_sen

RESULTS: Final = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
_WARM_UP: Final = 0.25  # share of the time in which caches and tables fill
_BLOCK_S: Final = 60.0
_SHORTEST_S: Final = 600.0  # of a run whose slopes mean anything


class Watched(NamedTuple):
    """A quantity, and how much growth an hour is none: less than that cannot be told from chance,
    and would take days to matter."""

    name: str
    what: str
    none_per_h: float


WATCHED: Final = (
    Watched("rss_mb", "resident memory, MB", 3.0),
    Watched("objects", "Python objects", 2000.0),
    Watched("tasks", "asyncio tasks", 1.0),
    Watched("files", "open file descriptors", 1.0),
    Watched("sockets", "open sockets", 1.0),
    Watched("threads", "threads", 0.5),
    Watched("disk_files", "files in the shared folder", 0.5),
)


def slopes(found: Found) -> dict[str, Slope]:
    """How each quantity grew after the warm-up; nothing if the run was too short to tell."""
    warm = _warm_s(found)
    kept = [sample for sample in found.samples if sample.at_s >= warm]
    if not kept or kept[-1].at_s - warm < _SHORTEST_S:
        return {}
    at = [sample.at_s for sample in kept]
    return {
        one.name: theil_sen(*floors(at, [getattr(s, one.name) for s in kept], _BLOCK_S))
        for one in WATCHED
    }


def judged(found: Found) -> list[str]:
    """What grew: the whole interval lies above what counts as none."""
    per = slopes(found)
    return [
        f"{one.what} grew by {number(per[one.name].per_h)} an hour"
        for one in WATCHED
        if one.name in per and per[one.name].low > one.none_per_h
    ]


def write(found: Found, folder: Path | None = None) -> Path:
    """Write both; the page's path."""
    folder = folder or RESULTS
    day = time.strftime("%Y-%m-%d", time.gmtime(found.began))
    plan = found.plan
    name = f"soak_{plan.minutes:g}min_{plan.workers}w_{slug(machine())}_{day}"
    page, picture = folder / f"{name}.md", folder / f"{name}.png"
    draw(found, picture)
    page.write_text(text(found, picture.name), encoding="utf-8")
    return page


def text(found: Found, picture: str) -> str:
    """The page."""
    plan, ends = found.plan, found.ends
    began = time.strftime("%Y-%m-%d %H:%M", time.gmtime(found.began))
    options = f"--minutes {plan.minutes:g} --rate {plan.per_s:g} --workers {plan.workers}"
    wrong = [*found.failures(), *judged(found)]
    seconds = sum(episode.lasts_s for episode in found.episodes)
    parts = [
        f"# Soak, {began} UTC: {'; '.join(wrong) if wrong else 'all is well'}",
        f"- Machine: {machine()}; {platform.system()} {platform.release()};"
        f" Python {platform.python_version()}; it did other work at the same time: load average"
        f" {found.load[0]:.1f} at the beginning, {found.load[1]:.1f} at the end; the server waited"
        f" for a processor {found.waited:.0%} of the time\n"
        f"- Commit {_commit()}; run as `python -m tests.soak {options} --seed {plan.seed}`\n"
        f"- {found.asked:,} requests in {plan.minutes:g} min; {len(found.episodes)} episodes of"
        f" faults, {seconds / 60:.0f} min of them in all on two upstreams; reloads by SIGHUP:"
        f" {found.reloads['applied']} applied, {found.reloads['refused']} refused as they should"
        f" be, {found.reloads['rolled_back']} taken back after a trial under faults",
        "## What became of every request",
        table(
            ("end", "requests", "share"),
            [
                (name, f"{count:,}", f"{count / found.asked:.2%}")
                for name, count in sorted(ends.items(), key=lambda item: -item[1])
            ]
            + [("lost", "0", "0.00%")] * (not ends["lost"]),
        ),
        "Honest errors by status: "
        + (", ".join(f"{s}: {n:,}" for s, n in sorted(found.statuses.items())) or "none")
        + ". An answer is checked word for word against what its mode's model says to that"
        " question. `lost` is any other end: no answer, half an answer that looks whole, another"
        " question's answer, a 500, an error without its envelope.",
        "## At rest, before and after",
        table(
            ("", "before", "after"),
            [
                (
                    one.what,
                    _plain(getattr(found.before, one.name)),
                    _plain(getattr(found.after, one.name)),
                )
                for one in WATCHED
            ],
        ),
        "Under way at the end: " + ", ".join(f"{k} {n}" for k, n in found.still.items()) + ".",
        *_growth(found),
        f"![The run]({picture})",
        "## The weather",
        table(
            ("at min", "upstream", "played", "share", "for s"),
            [
                (f"{e.at_s / 60:.1f}", e.upstream, e.fault, f"{e.share:.0%}", f"{e.lasts_s:.0f}")
                for e in found.episodes
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _growth(found: Found) -> Sequence[str]:
    per = slopes(found)
    if not per:
        return ["The run was too short for slopes."]
    kept = [sample for sample in found.samples if sample.at_s >= _warm_s(found)]
    rows = []
    for one in WATCHED:
        values = [float(getattr(sample, one.name)) for sample in kept]
        slope = per[one.name]
        rows.append(
            (
                one.what,
                f"{_plain(min(values))}-{_plain(max(values))}",
                f"{slope.per_h:+.2f}",
                f"{slope.low:+.2f} to {slope.high:+.2f}",
                f"{one.none_per_h:g}",
                "**grows**" if slope.low > one.none_per_h else "flat",
            )
        )
    return [
        "## Growth",
        table(("", "least-most", "per hour", "95 % interval", "none is up to", ""), rows),
        f"After {_warm_s(found) / 60:.0f} min of warm-up; a Theil-Sen slope of the least of each"
        " minute, with Sen's interval. Flat: the interval does not lie wholly above what counts"
        " as none.",
    ]


def draw(found: Found, path: Path) -> None:
    """The picture: each quantity over time, bad weather shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 11), layout="constrained")
    panels: Any = figure.subplots(len(WATCHED), 1, sharex=True)
    minutes = [sample.at_s / 60 for sample in found.samples]
    colours = {"primary": "#c0392b", "standby": "#e67e22"}
    for one, panel in zip(WATCHED, panels, strict=True):
        panel.plot(minutes, [getattr(s, one.name) for s in found.samples], color="#1f5a7a", lw=1)
        panel.set_ylabel(one.what.replace(" in ", "\nin ").replace(", ", ",\n"), fontsize=8)
        panel.axvline(_warm_s(found) / 60, color="#888888", lw=0.8, ls=":")
        panel.margins(x=0)
        panel.grid(alpha=0.25)
        for episode in found.episodes:
            begin = episode.at_s / 60
            panel.axvspan(
                begin, begin + episode.lasts_s / 60, color=colours[episode.upstream],
                alpha=0.25 * episode.share, lw=0,
            )  # fmt: skip
    panels[-1].set_xlabel(
        "minutes; shaded: faults (red: the best mode's upstream, orange: the others'); "
        "dotted: end of the warm-up"
    )
    figure.suptitle(
        f"{found.asked:,} requests, {found.ends['lost']} lost, "
        f"{len(found.episodes)} episodes of faults, {found.reloads['applied']} reloads",
        x=0.01, ha="left", fontsize=12, fontweight="bold",
    )  # fmt: skip
    figure.savefig(path, dpi=110)


def _warm_s(found: Found) -> float:
    return found.plan.minutes * 60 * _WARM_UP


def _plain(value: float) -> str:
    return f"{value:,.1f}" if isinstance(value, float) and value % 1 else f"{value:,.0f}"
