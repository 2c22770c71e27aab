"""The comparison as a picture: what each policy gives, what it costs, how soon it is back.

Drawn as `gateway/plot.py` draws: Okabe and Ito's colours, few lines, figures beside the bars.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from tests.simulation.compare import EARLY, OURS, Tally
from tests.simulation.report import MEASURES

_TEXT, _GRID = "#333333", "#DDDDDD"
_COLOURS = {
    OURS: "#0072B2",
    EARLY: "#56B4E9",
    "no resilience": "#999999",
    "retries, then fallback": "#D55E00",
    "cooldown 5 s": "#E69F00",
    "cooldown 60 s": "#CC79A7",
    "aiobreaker, plain": "#009E73",
}
_DASHES = {"no resilience": ":", EARLY: "--", "cooldown 60 s": "--"}
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
}
_BARS = (
    ("the same in faults", "answered, of requests while their mode has a fault"),
    ("as asked", "answered by the mode asked for, of all requests"),
    ("wasted calls /min", "calls to a dead upstream, in a minute (log)"),
    ("amplification", "upstream calls for each request"),
    ("answer p99 s", "p99 of the time to an answer, s"),
)


def draw(tallies: Mapping[str, Tally], schedules: int, path: Path) -> None:
    """Draw every policy's sums into a file."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(12.5, 7.2), layout="constrained")
        panels = list(figure.subplots(2, 3).flat)
        for panel, (name, title) in zip(panels, _BARS, strict=False):
            _bars(panel, tallies, name, title)
        for number, panel in enumerate(panels[:5]):
            if number % 3:
                panel.set_yticklabels([])
        _recoveries(panels[5], tallies)
        requests = tallies[OURS].asked
        figure.suptitle(
            f"The same {schedules:,} random fault schedules, {requests:,} requests for each policy",
            x=0.01,
            ha="left",
            fontsize=12,
            fontweight="bold",
        )
        figure.savefig(path, dpi=150)


def _bars(panel: Axes, tallies: Mapping[str, Tally], name: str, title: str) -> None:
    measure = next(measure for measure in MEASURES if measure.name == name)
    values = [measure.of(tally) for tally in tallies.values()]
    levels = list(range(len(values)))[::-1]
    logarithmic = name.startswith("wasted")
    low = 0.0
    if "%" in measure.shown(values[0]):
        low = math.floor((min(values) - 0.02) * 20) / 20
    elif name == "amplification":
        low = 0.8
    elif logarithmic:
        low = 1.0
        panel.set_xscale("log")
    widths = [max(0.0, value - low) for value in values]
    panel.barh(levels, widths, 0.72, low, color=[_COLOURS[policy] for policy in tallies])
    high = 1.0 if "%" in measure.shown(values[0]) else max(values)
    span = high / low if logarithmic else high - low
    for level, value in zip(levels, values, strict=True):
        at = value * span**0.02 if logarithmic else value + 0.015 * span
        panel.text(at, level, measure.shown(value), va="center", size=8)
    panel.set_xlim(low, high * span**0.18 if logarithmic else high + 0.16 * span)
    panel.set_yticks(levels, list(tallies))
    panel.tick_params(axis="y", length=0)
    panel.set_title(title, loc="left", fontsize=9.5)
    if high == 1.0:
        panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panel.set_xticks([tick for tick in panel.get_xticks() if low <= tick <= 1.0])
    panel.xaxis.grid(True, color=_GRID, lw=0.6)
    panel.set_axisbelow(True)


def _recoveries(panel: Axes, tallies: Mapping[str, Tally]) -> None:
    """Of how many outages each policy had recovered after how long."""
    for policy, tally in tallies.items():
        back = sorted(seconds for seconds in tally.recoveries if seconds is not None)
        total = len(tally.recoveries)
        if not total:
            continue
        xs = [0.5, *(max(0.5, seconds) for seconds in back), 900.0]
        ys = [0.0, *(100.0 * (n + 1) / total for n in range(len(back))), 100.0 * len(back) / total]
        style = _DASHES.get(policy, "-")
        panel.step(xs, ys, where="post", color=_COLOURS[policy], lw=1.8, ls=style)
    panel.set_xscale("log")
    panel.set_xlim(0.5, 900.0)
    panel.set_xticks([1, 5, 10, 60, 300], ["1", "5", "10", "60", "300"])
    panel.minorticks_off()
    panel.set_ylim(0, 102)
    panel.set_xlabel("seconds after it ended (log); colours as in the bars", fontsize=8)
    panel.set_title("outages whose mode answers for itself again, %", loc="left", fontsize=9.5)
    panel.grid(True, color=_GRID, lw=0.6)
