"""What a training step without a checkpoint costs: `python -m tests.benchmarks.training_steps`.

Prints microseconds, and a ratio to a calibration loop that runs between the rounds, for machines
differ and are busy; `--soak` looks at memory over a million steps instead.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from training import OperationsManager


class Cost(NamedTuple):
    """Microseconds a step, the least of all rounds, and p50 in units of the calibration loop."""

    p50: float
    p99: float
    ratio: float


def calibration() -> float:
    """Microseconds for a hundred turns of dict, float and call work in plain Python."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter_ns()
        table: dict[str, float] = {}
        for turn in range(100):
            table["x"] = abs(table.get("x", 0.0) - float(turn))
        best = min(best, time.perf_counter_ns() - began)
    return best / 1e3


def measure(rounds: int = 10, steps: int = 2_000) -> Cost:
    """Drive a manager with ordinary metrics."""
    rng = random.Random(1)
    rows = [{"loss": abs(rng.gauss(1, 0.1)), "reward": rng.gauss(100, 5)} for _ in range(steps)]
    found: list[Cost] = []
    with tempfile.TemporaryDirectory() as folder, OperationsManager(folder) as ops:
        number = 0
        for _ in range(rounds):
            unit, taken = calibration(), []
            for row in rows:
                number += 1
                began = time.perf_counter_ns()
                ops.on_training_step(number, row)
                taken.append((time.perf_counter_ns() - began) / 1e3)
            cuts = statistics.quantiles(taken, n=100)
            found.append(Cost(cuts[49], cuts[98], cuts[49] / unit))
    return Cost(*(min(column) for column in zip(*found, strict=True)))


def soak(steps: int) -> None:
    """Print the resident memory as the steps go by."""
    rng = random.Random(2)
    with tempfile.TemporaryDirectory() as folder, OperationsManager(folder) as ops:
        for number in range(steps + 1):
            ops.on_training_step(
                number, {"loss": abs(rng.gauss(1, 0.3)), "reward": rng.gauss(0, 1)}
            )
            if number % (steps // 10) == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                print(f"{number:>9,} steps  {pages * resource.getpagesize() / 2**20:6.1f} MB")


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--soak", type=int, nargs="?", const=1_000_000, help="steps")
    options = parser.parse_args()
    if options.soak:
        soak(options.soak)
        return
    cost = measure()
    print(f"p50 {cost.p50:.1f} us  p99 {cost.p99:.1f} us  {cost.ratio:.2f} x the calibration loop")


if __name__ == "__main__":
    main()
