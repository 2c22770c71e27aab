"""The scorecard: for people at a terminal, for files, for programs."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from gateway.faultlab.catalogue import ELSEWHERE, SCENARIOS
from gateway.faultlab.recipes import EARLY_PROBE_S
from gateway.faultlab.scenario import BOTH, Grade, Scenario
from gateway.faultlab.wall import Result

_COLOURS = {
    Grade.PASS: "green",
    Grade.PARTIAL: "yellow",
    Grade.SAFE: "cyan",
    Grade.FAIL: "bold red",
}
LEGEND = (
    "pass: all that is demanded. partial: answered, but late, dear or unclear about who answered.",
    "safe: an honest error where an answer was possible. fail: a lie, a hang, or forbidden.",
)
_NARROWEST = 20


class Row(NamedTuple):
    """One scenario on the card.

    Attributes:
        scenario: which.
        grades: by form; a form that was not run is missing.
        evidence: the worst form's, in one line.
    """

    scenario: Scenario
    grades: dict[str, Grade]
    evidence: str


def rows(results: Sequence[Result]) -> list[Row]:
    """The scenarios in order, their forms side by side."""
    found = []
    by_id: dict[str, list[Result]] = {}
    for result in results:
        by_id.setdefault(result.run.scenario.id, []).append(result)
    for of_one in by_id.values():
        grades: dict[str, Grade] = {result.run.form: result.verdict.grade for result in of_one}
        worst = max(of_one, key=lambda result: result.verdict.grade)
        differ = len(set(grades.values())) > 1
        told = f"{worst.run.form}: " if differ else ""
        evidence = told + worst.verdict.evidence
        found.append(Row(of_one[0].run.scenario, grades, evidence))
    return found


def tally(results: Iterable[Result]) -> str:
    """How many of each grade."""
    grades = [result.verdict.grade for result in results]
    told = [f"{grades.count(grade)} {grade.name.lower()}" for grade in Grade]
    return f"{len(grades)} runs: {', '.join(told)}"


def remarks(results: Sequence[Result], *, ours: bool) -> list[str]:
    """What a reader of the card should know."""
    lines = [*LEGEND]
    probed = [row.scenario.id for row in rows(results) if row.scenario.early_probe]
    if ours and probed:
        lines.append(
            f"* {', '.join(probed)}: early_probe_s = {EARLY_PROBE_S} (shipped: a hold of 300 s). "
            "Everything else is as shipped."
        )
    return lines


def plain(results: Sequence[Result], *, ours: bool, width: int = 0) -> str:
    """The card as lines of text.

    Args:
        results: what to show.
        ours: whether our own gateway was tested, with shipped values.
        width: columns; 0 takes the terminal's.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    titles = max((len(row.scenario.title) for row in rows(results)), default=0)
    titles = min(titles, 52)
    lines, group = [], ""
    for row in rows(results):
        if row.scenario.group != group:
            group = row.scenario.group
            lines += ["", f"{group.upper():<{titles + 6}}  {'stream':<8}{'whole':<8}"]
        cells = "".join(f"{_cell(row, form):<8}" for form in BOTH)
        title = f"{_cut(row.scenario.title, titles):<{titles}}"
        left = f"{_number(row.scenario, ours):<5} {title}  {cells}"
        room = max(_NARROWEST, width - len(left))
        first, *more = textwrap.wrap(row.evidence, room) or [""]
        lines.append(left + first)
        lines += [" " * len(left) + line for line in more]
    return "\n".join([*lines, "", tally(results), *remarks(results, ours=ours)])


def show(results: Sequence[Result], *, ours: bool) -> None:
    """The card on a terminal, in colours where `rich` is installed."""
    try:
        from rich.console import Console  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
    except ImportError:
        print(plain(results, ours=ours))  # noqa: T201
        return
    console = Console()
    if not console.is_terminal:
        print(plain(results, ours=ours))  # noqa: T201
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("scenario", max_width=48)
    for form in BOTH:
        table.add_column(form)
    table.add_column("evidence", style="dim")
    group = ""
    for row in rows(results):
        if row.scenario.group != group:
            group = row.scenario.group
            table.add_row("", f"[bold]{group}[/bold]", "", "", "")
        cells = [_coloured(row, form) for form in BOTH]
        number = _number(row.scenario, ours)
        table.add_row(number, row.scenario.title, *cells, _plain_markup(row.evidence))
    console.print(table)
    console.print(f"\n{tally(results)}", highlight=False)
    for line in remarks(results, ours=ours):
        console.print(line, style="dim", highlight=False)


def as_json(results: Sequence[Result], **facts: Any) -> bytes:
    """The card for programs; `facts` stand on top."""
    told = [
        {
            "id": result.run.scenario.id,
            "form": result.run.form,
            "group": result.run.scenario.group,
            "title": result.run.scenario.title,
            "grade": result.verdict.grade.name.lower(),
            "evidence": result.verdict.evidence,
            "took_s": round(result.took_s, 2),
        }
        for result in results
    ]
    return msgspec.json.format(msgspec.json.encode({**facts, "runs": told}), indent=1)


def contents() -> Iterator[str]:
    """What there is to run, and what cannot be seen from outside."""
    group = ""
    for scenario in SCENARIOS:
        if scenario.group != group:
            group = scenario.group
            yield f"\n{group}"
        forms = " ".join(scenario.forms)
        yield f"  {scenario.id:<4} {scenario.title} ({forms})\n       {scenario.demands}"
    yield "\nnot a black-box matter, and tested elsewhere"
    for one in ELSEWHERE:
        yield f"  {one.id:<4} {one.title}: {one.why}; {one.tested}"


def _cell(row: Row, form: str) -> str:
    grade = row.grades.get(form)
    return "-" if grade is None else grade.name.lower()


def _coloured(row: Row, form: str) -> str:
    grade = row.grades.get(form)
    colour = "dim" if grade is None else _COLOURS[grade]
    return f"[{colour}]{_cell(row, form)}[/]"


def _plain_markup(text: str) -> str:
    return text.replace("[", "\\[")


def _number(scenario: Scenario, ours: bool) -> str:
    return f"{scenario.id}{'*' if ours and scenario.early_probe else ''}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
