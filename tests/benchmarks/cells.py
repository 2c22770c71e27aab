"""What each subject did under each load, and the table of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.benchmarks.goals import number
from tests.benchmarks.measure import Series
from tests.benchmarks.report import Section, spread


@dataclass(slots=True)
class Cell:
    """One subject under one load, round by round.

    Args:
        said: what was wrong with those that were no answers.
        why_not: why it could not be measured, or stopped being.
    """

    per_s: Series = field(default_factory=Series)
    cpu_us: Series = field(default_factory=Series)
    p50_ms: Series = field(default_factory=Series)
    p99_ms: Series = field(default_factory=Series)
    errors: int = 0
    said: str = ""
    why_not: str = ""

    def add(
        self, answers: float, wall_s: float, cpu_s: float, p50_ms: float, p99_ms: float
    ) -> None:
        """Add a round; one without an answer says so instead."""
        if not answers:
            self.why_not = self.why_not or f"no answer in {wall_s:.0f} s"
            return
        self.per_s.values.append(answers / wall_s)
        self.cpu_us.values.append(cpu_s / answers * 1e6)
        self.p50_ms.values.append(p50_ms)
        self.p99_ms.values.append(p99_ms)


Cells = Mapping[str, Cell]


def cpu(cells: Cells, *, per: int = 1) -> dict[str, Series]:
    """CPU µs per request, or per one of the `per` units of it."""
    return {name: cell.cpu_us.scaled(1 / per) for name, cell in cells.items()}


def section(title: str, cells: Cells, base: str, *, per: int = 1, unit: str = "request") -> Section:
    """A row a subject: what it cost, how fast it was, how many times `base`."""
    columns = ("who", f"CPU µs/{unit}", "rounds", f"{unit}s/s", "p50 ms", "p99 ms", f"x {base}")
    told = Section(title, (*columns, "errors"))
    bases = cells[base].cpu_us if base in cells else Series()
    for name, cell in cells.items():
        costs = cell.cpu_us.scaled(1 / per)
        if not costs.values:
            told.rows.append([name, cell.why_not or "not measured", *[""] * 6])
            continue
        # What works beside the load and the stub has no CPU time of its own to tell.
        free = math.isnan(costs.median) or costs.median == 0
        told.rows.append(
            [
                name,
                "-" if free else number(costs.median),
                "-" if free else spread(costs),
                f"{cell.per_s.median * per:,.0f}",
                number(cell.p50_ms.median),
                number(cell.p99_ms.median),
                "-" if free or not bases.values else f"{cell.cpu_us.times(bases):.2f}",
                cell.said or str(cell.errors),
            ]
        )
    return told
