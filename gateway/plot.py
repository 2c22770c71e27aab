"""A report as a picture: who answered, how each mode stood, the TTL in force, what failed.

Needs the extra `plot`. Modes have colours of Okabe and Ito's, which colour-blind eyes tell apart;
phases differ in lightness too, and bands that are wide enough bear their name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.errors import ConfigError, InvalidRequest
from gateway.report import CACHE, FAILED, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")
"""What a picture's name may end in."""

_LADDER = ("#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#F0E442")  # best mode first
_CACHE, _FAILED, _TEXT = "#C4C4C4", "#D55E00", "#333333"
# Teal is well, brown is not (ColorBrewer's BrBG); darker is further from the usual.
_PHASES = {
    "closed": "#E0F1EE",
    "recovering": "#80CDC1",
    "cooling": "#F6E8C3",
    "probe_due": "#DFC27D",
    "probing": "#BF812D",
    "open": "#7F4A09",
}
_OTHER_PHASE = "#999999"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.edgecolor": "#888888",
    "axes.labelcolor": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "text.color": _TEXT,
    "svg.hashsalt": "downshift-gateway",  # the same report gives the same file
}


def check_plot(path: Path) -> None:
    """Say before a long run that its picture could not be drawn.

    Raises:
        InvalidRequest: a name that ends in no known format, or a folder that is not there.
        ConfigError: the extra `plot` is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise InvalidRequest(
            f"{path}: a picture's name ends in {' or '.join(FORMATS)}", param="plot"
        )
    if not path.parent.is_dir():
        raise InvalidRequest(f"there is no folder {path.parent} to write {path.name} into")
    try:
        import matplotlib  # noqa: F401, PLC0415
    except ImportError:
        raise ConfigError(
            "drawing needs matplotlib; install it with: pip install 'downshift-gateway[plot]'"
        ) from None


def save_plot(report: Report, path: Path) -> None:
    """Draw a report into a file; its name's end says the format.

    Raises:
        InvalidRequest, ConfigError: see `check_plot`; or the file cannot be written.
    """
    check_plot(path)
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 8), layout="constrained")
        _draw(report, figure)
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
        try:
            figure.savefig(path, dpi=150, metadata=metadata)
        except OSError as error:
            raise InvalidRequest(f"cannot write {path}: {error.strerror}") from None


def _draw(report: Report, figure: Figure) -> None:
    modes = list(report.shares)
    colours = {mode: _LADDER[index % len(_LADDER)] for index, mode in enumerate(modes)}
    panels: Sequence[Axes] = figure.subplots(
        4, 1, sharex=True, height_ratios=[3.2, 0.5 * len(modes), 1.2, 1.3]
    )
    shares, phases, ttls, failures = panels
    _draw_shares(report, shares, colours)
    _draw_phases(report, phases)
    _draw_ttls(report, ttls, colours)
    _draw_failures(report, failures, colours)
    _mark_faults(report, panels)
    figure.align_ylabels(list(panels))
    figure.suptitle(
        f"{report.scenario}: {report.story}", x=0.01, ha="left", fontsize=12, fontweight="bold"
    )
    failures.set_xlim(0, report.minutes)
    requests = report.requests
    failures.set_xlabel(
        f"simulated time in minutes      ({requests.asked} requests, {requests.failed} failed, "
        f"amplification {report.amplification:.3f}, seed {report.seed})"
    )


def _draw_shares(report: Report, panel: Axes, colours: Mapping[str, str]) -> None:
    answered, every = report.buckets.answered, report.buckets.every_s / 60
    palette = {**colours, CACHE: _CACHE, FAILED: _FAILED}
    count = len(answered[CACHE])
    totals = [sum(answered[name][index] for name in palette) or 1 for index in range(count)]
    floor = [0.0] * count
    for name, colour in palette.items():
        heights = [100 * answered[name][index] / totals[index] for index in range(count)]
        starts = [index * every for index in range(count)]
        panel.bar(starts, heights, every, floor, align="edge", color=colour, label=name, lw=0)
        floor = [low + height for low, height in zip(floor, heights, strict=True)]
    panel.set_ylim(0, 100)
    panel.set_ylabel("requests\nanswered by, %")
    _legend(panel)


def _draw_phases(report: Report, panel: Axes) -> None:
    modes = list(report.shares)
    labelled: set[str] = set()
    for level, mode in enumerate(reversed(modes)):
        for start, end, phase in _spans(report, mode):
            panel.barh(
                level,
                end - start,
                0.84,
                start,
                color=_PHASES.get(phase, _OTHER_PHASE),
                label=None if phase in labelled else phase.replace("_", " "),
                lw=0,
            )
            labelled.add(phase)
            if end - start > report.minutes * 0.009 * len(phase):
                colour = "white" if phase in ("open", "probing") else _TEXT
                left = start + 0.006 * report.minutes
                panel.text(left, level, phase.replace("_", " "), va="center", color=colour, size=8)
    panel.set_yticks(range(len(modes)), modes[::-1])
    panel.set_ylim(-0.5, len(modes) - 0.5)
    panel.tick_params(axis="y", length=0)
    panel.set_ylabel("circuit")
    _legend(panel)


def _spans(report: Report, mode: str) -> Iterator[tuple[float, float, str]]:
    """A mode's phases as (start, end, phase), in minutes; equal neighbours are one."""
    start, phase = 0.0, report.timeline[0].standings[mode].phase
    for row in report.timeline[1:]:
        following = row.standings[mode].phase
        if following != phase:
            yield start, row.at_s / 60, phase
            start, phase = row.at_s / 60, following
    yield start, report.minutes, phase


def _draw_ttls(report: Report, panel: Axes, colours: Mapping[str, str]) -> None:
    ticks: set[float] = set()
    times = [row.at_s / 60 for row in report.timeline] + [report.minutes]
    for index, (mode, colour) in enumerate(colours.items()):
        ttls = [row.standings[mode].ttl_s for row in report.timeline]
        ticks.update(ttls)
        style = ("-", "--", ":")[min(index, 2)]  # where lines lie upon each other, all show
        panel.step(times, [*ttls, ttls[-1]], where="post", color=colour, lw=2, ls=style)
    panel.set_yticks(sorted(ticks), [f"{ttl:g}" for ttl in sorted(ticks)])
    panel.set_ylim(0, max(ticks) * 1.15)
    panel.set_ylabel("cache TTL\nin force, s")


def _draw_failures(report: Report, panel: Axes, colours: Mapping[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    every = report.buckets.every_s / 60
    lost = report.buckets.answered[FAILED]
    starts = [index * every for index in range(len(lost))]
    floor = [0] * len(lost)
    for mode, colour in colours.items():
        counts = report.buckets.failed_attempts[mode]
        label = f"attempts at {mode}"
        panel.bar(starts, counts, every, floor, align="edge", color=colour, label=label, lw=0)
        floor = [low + count for low, count in zip(floor, counts, strict=True)]
    edges = [*starts, report.minutes]
    panel.step(edges, [*lost, 0], where="post", color=_FAILED, lw=1.6, label="requests")
    panel.set_ylim(0, max(4, *floor, *lost) * 1.1)
    panel.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    panel.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer=True))
    panel.set_ylabel(f"failures\nin {report.buckets.every_s:g} s")
    _legend(panel)


def _legend(panel: Axes) -> None:
    panel.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 0.98),
        ncols=6,
        frameon=False,
        fontsize=8,
        handlelength=1.2,
        columnspacing=1.2,
        borderaxespad=0.1,
    )


def _mark_faults(report: Report, panels: Sequence[Axes]) -> None:
    """Shade where the faults are, and name them once."""
    windows: dict[tuple[float, float], set[str]] = {}
    for incident in report.incidents:
        window = incident.start_s / 60, min(incident.end_s / 60, report.minutes)
        if window[0] < report.minutes:
            windows.setdefault(window, set()).add(incident.fault)
    for (start, end), faults in windows.items():
        for panel in panels:
            panel.axvspan(start, end, color="#000000", alpha=0.07, lw=0, zorder=0)
            for edge in (start, end):
                panel.axvline(edge, color=_TEXT, lw=0.8, ls=(0, (2, 3)), zorder=3)
        panels[2].text(
            (start + end) / 2,
            0.5,
            ", ".join(sorted(faults)),
            transform=panels[2].get_xaxis_transform(),
            ha="center",
            va="center",
            style="italic",
            bbox={"facecolor": "#EDEDED", "edgecolor": "none", "pad": 2},
        )
