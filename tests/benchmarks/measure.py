"""Interleaved rounds, medians, ratios of one run, and how quiet the machine was meanwhile."""

from __future__ import annotations

import asyncio
import cProfile
import gc
import itertools
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Subject:
    """Something whose cost is measured.

    Args:
        name: as the table says it.
        call: does it once; given a number that never comes again, for prompts nobody asked before.
        requests: how often in one round.
        per: how many units (chunks) one call makes; costs are told per unit.
    """

    name: str
    call: Callable[[int], Awaitable[object]]
    requests: int
    per: int = 1


@dataclass(slots=True)
class Series:
    """One subject's rounds: CPU µs and wall µs per unit, oldest first."""

    cpu_us: list[float] = field(default_factory=list)
    wall_us: list[float] = field(default_factory=list)

    @property
    def cpu(self) -> float:
        """Median CPU µs per unit."""
        return statistics.median(self.cpu_us)

    @property
    def per_s(self) -> float:
        """Median units per second."""
        return 1e6 / statistics.median(self.wall_us)

    def times(self, other: Series) -> float:
        """How many times as dear as `other`: the median of the ratios within each round."""
        return statistics.median(a / b for a, b in zip(self.cpu_us, other.cpu_us, strict=True))

    def above(self, other: Series) -> Series:
        """What this costs above `other`, round by round."""
        return Series([a - b for a, b in zip(self.cpu_us, other.cpu_us, strict=True)])


async def interleave(
    subjects: Sequence[Subject], *, rounds: int, concurrency: int
) -> dict[str, Series]:
    """Measure A B C, A B C, ...: what disturbs one disturbs all."""
    series = {subject.name: Series() for subject in subjects}
    for subject in subjects:  # connections, caches, first-call imports
        await _run(subject, concurrency, max(2 * concurrency, subject.requests // 10))
    # What the peers' imports left behind must not be walked again by every full collection.
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        for subject in subjects:
            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            await _run(subject, concurrency, subject.requests)
            units = subject.requests * subject.per
            series[subject.name].cpu_us.append((time.process_time() - cpu) / units * 1e6)
            series[subject.name].wall_us.append((time.perf_counter() - wall) / units * 1e6)
    gc.unfreeze()
    return series


async def _run(subject: Subject, concurrency: int, requests: int) -> None:
    left = iter(range(requests))  # shared: each worker takes the next when it is free

    async def work() -> None:
        for _ in left:
            await subject.call(next(_numbers))

    await asyncio.gather(*(work() for _ in range(concurrency)))


async def allocations(subject: Subject, requests: int = 500) -> tuple[float, float]:
    """What one call leaves behind, and what it needs at its height, one call at a time.

    Returns:
        memory blocks still allocated per call after a full collection; KiB at the peak of one.
    """
    await _run(subject, 1, 50)
    gc.collect()
    blocks = sys.getallocatedblocks()
    await _run(subject, 1, requests)
    gc.collect()
    kept = (sys.getallocatedblocks() - blocks) / requests
    peaks = []
    tracemalloc.start()
    for _ in range(20):
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        await subject.call(next(_numbers))
        peaks.append((tracemalloc.get_traced_memory()[1] - before) / 1024)
    tracemalloc.stop()
    return kept, statistics.median(peaks)


async def function_calls(subject: Subject, requests: int = 300) -> float:
    """How many function calls one call makes, coroutines resumed and C functions included.

    The one figure a busy machine cannot move.
    """
    await _run(subject, 1, 50)
    profile = cProfile.Profile()
    profile.enable()
    await _run(subject, 1, requests)
    profile.disable()
    return sum(entry.callcount for entry in profile.getstats()) / requests


def timed(call: Callable[[], object], times: int, *, rounds: int = 7) -> Series:
    """Measure something synchronous; the loop around it is subtracted."""
    series = Series()
    for _ in range(rounds):
        gc.collect()
        empty = time.process_time()
        for _ in range(times):
            pass
        start = time.process_time()
        for _ in range(times):
            call()
        cost = (time.process_time() - start) - (start - empty)
        series.cpu_us.append(cost / times * 1e6)
        series.wall_us.append(series.cpu_us[-1])
    return series


@dataclass(slots=True)
class Quiet:
    """How quiet the machine is: an empty call's price and how much of a core we get."""

    call_us: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)

    def look(self) -> None:
        """Take one look, some 20 ms."""

        def empty() -> None:
            pass

        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(300_000):
            empty()
        spent = time.process_time() - cpu
        self.call_us.append(spent / 300_000 * 1e6)
        self.share.append(spent / (time.perf_counter() - wall))


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's if it is there, for the goals were set on it; else asyncio's own."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.new_event_loop()
    return new_event_loop()


def pin() -> int:
    """Pin this process to its first core.

    Returns:
        the core the stub should take, -1 if there is no choice.
    """
    if not hasattr(os, "sched_setaffinity"):
        return -1
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return -1
    os.sched_setaffinity(0, {cores[0]})
    return cores[1]


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which `share` of all values lie (nearest rank)."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]
