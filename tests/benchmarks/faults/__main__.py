"""Everyone meets the fault wall, one after the other, and the cards are laid side by side.

    python -m tests.benchmarks.faults [--only NAME...] [--scenarios 8,15] [--write]

Each gateway's card is kept under `runs/faults` as soon as it is there; `--kept` lays out what
is there and runs nobody again.
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
from typing import Any

from gateway.faultlab import Lab, runs, scorecard, wall
from gateway.faultlab.catalogue import ELSEWHERE
from tests.benchmarks import peers
from tests.benchmarks.faults.gateways import CONFIGURED, installed
from tests.benchmarks.report import machine, slug

_RESULTS = Path(__file__).parents[1] / "results"
_KEPT = Path(__file__).parents[3] / "runs" / "faults"
_SIGNS = {"pass": "pass", "partial": "*partial*", "safe": "safe", "fail": "**FAIL**"}

Card = dict[str, Any]
"""What `gateway faultlab --json` writes, with the time, the load average and the commit."""


async def meet(name: str, only: list[str], at_once: int, patience: float) -> Card:
    """One gateway's card."""
    wanted, before, began = runs(only), os.getloadavg()[0], time.monotonic()
    async with Lab(wanted) as lab, installed()[name](lab, wanted) as endpoint:
        print(f"{name} meets {len(wanted)} runs ...", file=sys.stderr, flush=True)
        results = await wall(
            wanted, endpoint, lab.url, lab.urls, at_once=at_once, patience=patience
        )
    took_s = round(time.monotonic() - began)
    print(f"{name} took {took_s} s", file=sys.stderr)
    told = scorecard.as_json(
        results,
        gateway=name,
        at=time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        took_s=took_s,
        load=[round(before, 1), round(os.getloadavg()[0], 1)],
        commit=_commit(),
    )
    card: Card = json.loads(told)
    return card


def table(cards: list[Card]) -> list[str]:
    """Grades side by side."""
    grades = [{(run["id"], run["form"]): run["grade"] for run in card["runs"]} for card in cards]
    names = " | ".join(card["gateway"] for card in cards)
    lines = [f"| | scenario | form | {names} |", "|---|---|---|" + "---|" * len(cards)]
    for run in cards[0]["runs"]:
        signs = [_SIGNS.get(of_one.get((run["id"], run["form"])), "-") for of_one in grades]
        lines.append(f"| {' | '.join([run['id'], run['title'], run['form'], *signs])} |")
    return lines


def totals(cards: list[Card]) -> list[str]:
    """How many of each grade."""
    lines = ["| | pass | partial | safe | fail |", "|---|---|---|---|---|"]
    for card in cards:
        found = [run["grade"] for run in card["runs"]]
        counts = " | ".join(str(found.count(grade)) for grade in _SIGNS)
        lines.append(f"| {card['gateway']} | {counts} |")
    return lines


def evidence(cards: list[Card]) -> list[str]:
    """What speaks for every grade that is not a pass."""
    lines = []
    for card in cards:
        lines += ["", f"### {card['gateway']}", ""]
        for run in card["runs"]:
            if run["grade"] != "pass":
                said = f"{run['grade']}: {run['evidence']}"
                lines.append(f"- {run['id']} {run['form']} ({run['title']}): {said}")
    return lines


def _met(card: Card) -> str:
    before, after = card["load"]
    return (
        f"- {card['gateway']}: {CONFIGURED[card['gateway']]}. {card['at']} UTC, commit "
        f"{card['commit']}, {card['took_s']} s, load average {before} before and {after} after"
    )


def report(cards: list[Card]) -> str:
    """The whole document."""
    return "\n".join(
        [
            f"# Fault wall, {max(card['at'] for card in cards)} UTC",
            "",
            f"- Machine: {machine()}",
            f"- Peers: {peers.versions()}",
            "- Run as `python -m tests.benchmarks.faults`; what each "
            "scenario demands: `gateway faultlab --list`",
            *map(_met, cards),
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
            *(f"- {one.id}: {one.title} ({one.tested})" for one in ELSEWHERE),
            "",
        ]
    )


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _file(name: str) -> Path:
    return _KEPT / f"{slug(name)}.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.faults", description="The fault wall, side by side."
    )
    parser.add_argument("--only", nargs="+", choices=list(CONFIGURED), help="only these gateways")
    parser.add_argument("--scenarios", default="", help="only these, such as 8,15,cache")
    parser.add_argument("--at-once", type=int, default=6, help="runs at the same time")
    parser.add_argument("--patience", type=float, default=1.0, help="multiplies what is waited")
    parser.add_argument("--kept", action="store_true", help="lay out the cards that are kept")
    parser.add_argument("--write", action="store_true", help="keep the report under results/")
    options = parser.parse_args()
    only = [name for name in options.scenarios.split(",") if name]
    names = options.only or list(CONFIGURED)
    _KEPT.mkdir(parents=True, exist_ok=True)
    for name in [] if options.kept else names:
        if name not in installed():
            print(f"{name} is {peers.ABSENT}", file=sys.stderr)
            continue
        _file(name).unlink(missing_ok=True)
        card = asyncio.run(meet(name, only, options.at_once, options.patience))
        _file(name).write_text(json.dumps(card, indent=1), encoding="utf-8")
    cards = [json.loads(_file(name).read_text()) for name in names if _file(name).exists()]
    if not cards:
        parser.error("no card is kept")
    told = report(cards)
    print(told)
    if options.write:
        date = time.strftime("%Y-%m-%d", time.gmtime())
        path = _RESULTS / f"faults_{slug(machine())}_{date}.md"
        path.write_text(told, encoding="utf-8")
        print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
