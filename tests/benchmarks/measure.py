"""Rounds, medians, ratios of one run, and how quiet the machine was meanwhile."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Series:
    """One figure of one subject, round by round, oldest first."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of all rounds that have a figure; NaN without any."""
        known = [value for value in self.values if not math.isnan(value)]
        return statistics.median(known) if known else math.nan

    def times(self, other: Series) -> float:
        """How many times `other`: the median of the ratios within each round."""
        pairs = zip(self.values, other.values, strict=False)
        return Series([a / b for a, b in pairs if b]).median

    def above(self, other: Series) -> Series:
        """What this is above `other`, round by round."""
        return Series([a - b for a, b in zip(self.values, other.values, strict=False)])

    def scaled(self, factor: float) -> Series:
        """In another unit."""
        return Series([value * factor for value in self.values])


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which `share` of all values lie (nearest rank); NaN without any."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else float("nan")


def timed(call: Callable[[], object], times: int, *, rounds: int = 7) -> Series:
    """CPU µs of something synchronous; the loop around it is subtracted."""
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
        series.values.append(cost / times * 1e6)
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


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where; -1 is anywhere, where there is no choice.

    Args:
        subject: what is measured, nothing else.
        other: the stub, the load, and this process while it waits.
    """

    subject: int
    other: int

    @classmethod
    def split(cls) -> Cores:
        """Take the first two cores of this process, and move it to the second."""
        if not hasattr(os, "sched_setaffinity"):
            return cls(-1, -1)
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            return cls(-1, -1)
        os.sched_setaffinity(0, {allowed[1]})
        return cls(allowed[0], allowed[1])

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """This process is itself what is measured for a while."""
        if self.subject < 0:
            yield
            return
        os.sched_setaffinity(0, {self.subject})
        try:
            yield
        finally:
            os.sched_setaffinity(0, {self.other})
