"""Break training in every way we can think of, with and without operations.

python -m tests.benchmarks.training_proof [--quick] [--seeds N] [--first-seed N] [--write]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tests.benchmarks.training_proof import report
from tests.benchmarks.training_proof.measure import jobs, measure, read

RESULTS = Path(__file__).resolve().parents[1] / "results"
UPDATES, QUICK_UPDATES = 390, 160


def main() -> None:
    """Measure, print, and perhaps keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_UPDATES} updates instead of {UPDATES}"
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--raw",
        type=Path,
        default=Path("training_proof.jsonl"),
        help="file of outcomes; what it holds is not run again",
    )
    parser.add_argument("--only-report", action="store_true", help="run nothing, read --raw")
    parser.add_argument("--write", action="store_true", help="keep table and plot under results/")
    options = parser.parse_args()
    if options.only_report:
        outcomes = read(options.raw)
    else:
        updates = QUICK_UPDATES if options.quick else UPDATES
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        outcomes = measure(list(jobs(seeds, updates)), options.raw, options.jobs)
    text = report.document(outcomes)
    print(text)
    if options.write:
        print(report.keep(outcomes, text, RESULTS), file=sys.stderr)


if __name__ == "__main__":
    main()
