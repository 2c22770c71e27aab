"""All faults, all arms, all seeds, in a few processes."""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch

from tests.benchmarks.training_proof.faults import FAULTS
from tests.benchmarks.training_proof.run import ARMS, Outcome, prepare, run

Job = tuple[str, int, int]


def jobs(seeds: Iterable[int], updates: int) -> Iterator[Job]:
    """Seed by seed, so that what was finished when it is stopped early is whole pairs."""
    for seed in seeds:
        for arm in ARMS:
            yield arm, seed, updates


def work(job: Job, known: set[str], file: Path) -> None:
    """Every fault of one arm and seed that `file` does not hold; each is written down at once."""
    torch.set_num_threads(1)  # the nets are small: more threads only wait for each other
    todo = [fault for fault in FAULTS if fault.name not in known]
    if not todo:
        return
    with tempfile.TemporaryDirectory() as folder:
        start = prepare(*job, Path(folder))
        for fault in todo:
            outcome = run(start, fault())
            with file.open("a", encoding="utf-8") as out:  # one short write: no other falls between
                out.write(json.dumps(asdict(outcome)) + "\n")
            print(_told(outcome), file=sys.stderr, flush=True)


def measure(wanted: list[Job], file: Path, processes: int) -> list[Outcome]:
    """Run what `file` does not hold yet."""
    known: dict[Job, set[str]] = {job: set() for job in wanted}
    for outcome in read(file):
        known.setdefault((outcome.arm, outcome.seed, outcome.updates), set()).add(outcome.fault)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for future in [pool.submit(work, job, known[job], file) for job in wanted]:
            future.result()
    return [each for each in read(file) if (each.arm, each.seed, each.updates) in wanted]


def read(file: Path) -> list[Outcome]:
    """What a file of outcomes holds; none if it is not there."""
    if not file.exists():
        return []
    return [Outcome(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def _told(outcome: Outcome) -> str:
    end = outcome.crashed or (f"halted at {outcome.halted}" if outcome.halted else "")
    return (
        f"seed {outcome.seed}  {outcome.fault:22} {outcome.arm:13} {outcome.final:6.1f}"
        f"  {outcome.rollbacks} rollbacks, {outcome.lost} lost  {end}"
    )
