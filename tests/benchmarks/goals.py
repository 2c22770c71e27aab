"""What was promised, and whether a figure keeps it, beside the limit and the peers of its run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tests.benchmarks.measure import Series
from tests.benchmarks.peers import ABSENT, PEERS

_COUNTED = "streams"  # whole numbers


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the summary.

    Args:
        what: as the performance goals say it.
        text: the goal, quoted.
        bound: the number in it, in the figure's own unit.
        unit: as it is written behind a figure.
        more: more is better.
        ratio: the goal over the limit of the day it was set; 0 where there was none.
    """

    what: str
    text: str
    bound: float
    unit: str = "µs"
    more: bool = False
    ratio: float = 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """A goal and what came out, in the words of the summary."""

    goal: Goal
    ours: str
    met: str
    peer: str
    limit: str


@dataclass(frozen=True, slots=True)
class Field:
    """Who is who among the subjects of one figure.

    Args:
        ours: the subject that is held against the goal.
        limit: the one that shows what the machine can do, "" for none.
        peers: the products we are compared with.
    """

    ours: str
    limit: str = ""
    peers: tuple[str, ...] = ()


def judge(goal: Goal, figures: Mapping[str, Series], field: Field) -> Finding:
    """Hold our median against the goal, beside the best peer and the limit of the same run.

    "By ratio" means: not in figures on this machine and day, but beside the limit of the same run
    it is no dearer than the goal was beside the limit of the day it was set.
    """
    ours = figures.get(field.ours, Series())
    limit = figures.get(field.limit, Series()) if field.limit else Series()
    peers = {name: figures[name] for name in field.peers if name in figures}
    known = {name: one for name, one in peers.items() if not math.isnan(one.median)}
    if known:
        pick = max if goal.more else min
        best = pick(known, key=lambda name: known[name].median)
        peer = f"{best}: {_figure(known[best], goal)}"
    elif field.peers:
        peer = "none measured" if peers or PEERS.exists() else ABSENT
    else:
        peer = "-"
    bounds = f"{_figure(limit, goal)} ({field.limit})" if limit.values else "-"
    return Finding(goal, _ours(ours, limit, goal), _met(goal, ours, limit), peer, bounds)


def _met(goal: Goal, ours: Series, limit: Series) -> str:
    if math.isnan(ours.median):
        return "not measured"
    if ours.median >= goal.bound if goal.more else ours.median <= goal.bound:
        return "yes"
    by_ratio = goal.ratio and limit.values and ours.times(limit) <= goal.ratio
    return "by ratio" if by_ratio else "**no**"


def _ours(ours: Series, limit: Series, goal: Goal) -> str:
    if math.isnan(ours.median):
        return "-"
    shown = _figure(ours, goal)
    if len(ours.values) > 1:
        shown += f" ({number(min(ours.values))}-{number(max(ours.values))})"
    if goal.ratio and limit.values:
        shown += f", {ours.times(limit):.1f} x the limit"
    return shown


def _figure(series: Series, goal: Goal) -> str:
    if goal.unit == _COUNTED:
        return f"{series.median:.0f}"
    return f"{number(series.median)} {goal.unit}".rstrip()


def number(value: float) -> str:
    """Three significant digits, never in exponents."""
    if math.isnan(value):
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.3f}"
