"""A step without a checkpoint costs next to nothing (T15), as work and not as time."""

from __future__ import annotations

import cProfile
import pstats
import random
import sys
import tracemalloc
from pathlib import Path

import pytest

from training import OperationsManager


def steps(ops: OperationsManager, first: int, count: int) -> None:
    rng = random.Random(first)
    for step in range(first, first + count):
        ops.on_training_step(step, {"loss": 1 + rng.random(), "reward": 100 + rng.random()})


def test_a_step_makes_few_calls(tmp_path: Path) -> None:
    """Calls count the same on a busy machine; 10 us are some 100 of them."""
    with OperationsManager(tmp_path) as ops:
        steps(ops, 0, 1_200)
        rows = [{"loss": 1 + n % 7 / 9, "reward": 100 + n % 5 / 9} for n in range(1_000)]
        profile = cProfile.Profile()
        profile.enable()
        for number, row in enumerate(rows):
            ops.on_training_step(1_200 + number, row)
        profile.disable()
        calls = pstats.Stats(profile).total_calls  # type: ignore[attr-defined]
        assert calls / len(rows) <= 110


def test_a_long_run_keeps_no_more_than_a_short_one(tmp_path: Path) -> None:
    if sys.gettrace() is not None:
        pytest.skip("a tracer keeps things of its own")
    with OperationsManager(tmp_path) as ops:
        steps(ops, 0, 2_500)
        tracemalloc.start()
        try:
            steps(ops, 2_500, 500)
            before = tracemalloc.get_traced_memory()[0]
            steps(ops, 3_000, 2_000)
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert grown < 20_000
