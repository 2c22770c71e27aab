"""`python -m tests.soak`: an hour of everything at once, and what it leaves; see README.md."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from pathlib import Path

from tests.soak.report import judged, write
from tests.soak.run import Plan, soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--rate", type=float, default=40.0, help="mean requests a second (40)")
    parser.add_argument("--workers", type=int, default=1, help="of the server (1)")
    parser.add_argument("--seed", type=int, default=1, help="traffic and faults follow from it (1)")
    parser.add_argument("--out", type=Path, help="folder of the report (tests/benchmarks/results)")
    given = parser.parse_args()
    plan = Plan(minutes=given.minutes, per_s=given.rate, workers=given.workers, seed=given.seed)
    # Upstreams that talk on after their caller has gone, as some faults do, are told so by asyncio.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        found = asyncio.run(soak(plan, Path(folder), lambda line: print(line, flush=True)))
    report = write(found, given.out)
    print(report.read_text(encoding="utf-8"))
    wrong = [*found.failures(), *judged(found)]
    for line in wrong:
        print(f"FAILED: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
