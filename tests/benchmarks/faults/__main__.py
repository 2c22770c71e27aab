"""Everyone meets the fault wall, one after the other, and the cards are laid side by side.

python -m tests.benchmarks.faults [--only NAME...] [--scenarios 8,15] [--write]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from gateway.faultlab import Grade, Lab, Result, runs, wall
from gateway.faultlab.catalogue import ELSEWHERE
from tests.benchmarks import peers
from tests.benchmarks.faults.gateways import CONFIGURED, installed
from tests.benchmarks.report import machine, slug

_RESULTS = Path(__file__).parents[1] / "results"
_SIGNS = {
    Grade.PASS: "pass",
    Grade.PARTIAL: "*partial*",
    Grade.SAFE: "safe",
    Grade.FAIL: "**FAIL**",
}

Card = dict[tuple[str, str], Result]


async def meet(name: str, only: list[str], at_once: int) -> Card:
    """One gateway's card."""
    wanted = runs(only)
    async with Lab(wanted) as lab, installed()[name](lab, wanted) as endpoint:
        print(f"{name} meets {len(wanted)} runs ...", file=sys.stderr, flush=True)
        results = await wall(wanted, endpoint, lab.url, lab.urls, at_once=at_once)
    return {(result.run.scenario.id, result.run.form): result for result in results}


def table(cards: dict[str, Card]) -> list[str]:
    """Grades side by side."""
    lines = [f"| | scenario | form | {' | '.join(cards)} |", "|---|---|---|" + "---|" * len(cards)]
    first = next(iter(cards.values()))
    for key, result in first.items():
        scenario = result.run.scenario
        grades = [_SIGNS[card[key].verdict.grade] for card in cards.values()]
        cells = [key[0], scenario.title, key[1], *grades]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def totals(cards: dict[str, Card]) -> list[str]:
    """How many of each grade."""
    lines = ["| | pass | partial | safe | fail |", "|---|---|---|---|---|"]
    for name, card in cards.items():
        grades = [result.verdict.grade for result in card.values()]
        lines.append(f"| {name} | {' | '.join(str(grades.count(grade)) for grade in Grade)} |")
    return lines


def evidence(cards: dict[str, Card]) -> list[str]:
    """What speaks for every grade that is not a pass."""
    lines = []
    for name, card in cards.items():
        lines += ["", f"### {name}", ""]
        for (number, form), result in card.items():
            verdict = result.verdict
            if verdict.grade is not Grade.PASS:
                said = f"{verdict.grade.name.lower()}: {verdict.evidence}"
                lines.append(f"- {number} {form} ({result.run.scenario.title}): {said}")
    return lines


def report(cards: dict[str, Card], command: str, loads: list[float]) -> str:
    """The whole document."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    seen = sorted({f"{one.id} ({one.title}): {one.tested}" for one in ELSEWHERE})
    return "\n".join(
        [
            f"# Fault wall, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC",
            "",
            f"- Machine: {machine()}; load average {', '.join(f'{load:.1f}' for load in loads)} "
            "before and after each gateway",
            f"- Commit {commit}; peers: {peers.versions()}",
            f"- Run as `{command}`; what each scenario demands: `gateway faultlab --list`",
            *(f"- {name}: {CONFIGURED[name]}" for name in cards),
            "- pass: all that is demanded. partial: answered, but late, dear or unclear about who "
            "answered. safe: an honest error where an answer was possible. fail: a truncated or "
            "foreign answer given for a whole one, garbage, a hang, or what was forbidden.",
            "",
            *totals(cards),
            "",
            *table(cards),
            "",
            "## What speaks against a pass",
            *evidence(cards),
            "",
            "## Not a black-box matter, and tested elsewhere",
            "",
            *(f"- {one}" for one in seen),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.faults", description="The fault wall, side by side."
    )
    parser.add_argument("--only", nargs="+", choices=list(CONFIGURED), help="only these gateways")
    parser.add_argument("--scenarios", default="", help="only these, such as 8,15,cache")
    parser.add_argument("--at-once", type=int, default=8, help="runs at the same time")
    parser.add_argument("--write", action="store_true", help="keep the report under results/")
    options = parser.parse_args()
    here = installed()
    cards: dict[str, Card] = {}
    loads = [os.getloadavg()[0]]
    only = [name for name in options.scenarios.split(",") if name]
    for name in options.only or list(CONFIGURED):
        if name not in here:
            print(f"{name} is {peers.ABSENT}", file=sys.stderr)
            continue
        began = time.monotonic()
        cards[name] = asyncio.run(meet(name, only, options.at_once))
        loads.append(os.getloadavg()[0])
        print(f"{name} took {time.monotonic() - began:.0f} s", file=sys.stderr)
    command = " ".join(["python -m tests.benchmarks.faults", *map(json.dumps, sys.argv[1:])])
    told = report(cards, command, loads)
    print(told)
    if options.write:
        date = time.strftime("%Y-%m-%d", time.gmtime())
        path = _RESULTS / f"faults_{slug(machine())}_{date}.md"
        path.write_text(told, encoding="utf-8")
        print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
