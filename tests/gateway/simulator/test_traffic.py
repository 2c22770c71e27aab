"""Traffic: arrivals come when they should, results come back in order, cancelling stops all."""

from __future__ import annotations

import asyncio
import random
import statistics
from itertools import pairwise

import pytest

from gateway.simulator.clock import run
from gateway.simulator.traffic import bursts, closed_loop, merge, play, poisson, steady


def now() -> float:
    return asyncio.get_running_loop().time()


def test_steady_arrivals_are_evenly_spaced_without_drift() -> None:
    times = list(steady(3, start=10, end=1010))
    assert len(times) == 3000
    assert times[0] == 10
    assert times[-1] == pytest.approx(1010 - 1 / 3)


def test_poisson_arrivals_scatter_and_repeat_from_their_seed() -> None:
    times = list(poisson(50, random.Random(1), start=5, end=205))
    assert times == list(poisson(50, random.Random(1), start=5, end=205))
    assert times != list(poisson(50, random.Random(2), start=5, end=205))
    assert times == sorted(times)
    assert times[0] > 5
    assert times[-1] < 205
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(0.02, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.02, rel=0.05)  # as an exponential's is


def test_bursts_come_together_again_and_again() -> None:
    assert list(bursts(3, every_s=10, start=1, end=21)) == [1, 1, 1, 11, 11, 11]


def test_schedules_merge_in_order() -> None:
    assert list(merge(steady(1, end=3), bursts(2, every_s=9, start=1.5, end=2))) == [
        0,
        1,
        1.5,
        1.5,
        2,
    ]


def test_play_starts_each_call_at_its_time_whatever_happens_to_the_others() -> None:
    async def ask(number: int) -> float:
        began = now()
        await asyncio.sleep(100 - number)
        if number == 1:
            raise ValueError("mine")
        return began

    results = run(lambda: play([0.0, 2.5, 2.5, 7.0], ask))
    assert results[0] == 0.0
    assert isinstance(results[1], ValueError)
    assert results[2:] == [2.5, 7.0]


def test_cancelling_play_cancels_what_it_started() -> None:
    ended: list[int] = []

    async def ask(number: int) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append(number)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await play(steady(1, end=100), ask)

    run(main)
    assert sorted(ended) == [0, 1, 2, 3, 4]


def test_a_closed_loop_never_has_more_at_once_than_workers() -> None:
    busy, most = 0, 0

    async def ask(number: int) -> int:
        nonlocal busy, most
        busy, most = busy + 1, max(most, busy + 1)
        await asyncio.sleep(2)
        busy -= 1
        if number == 3:
            raise ValueError("mine")
        return number

    async def main() -> tuple[float, list[int | BaseException]]:
        results = await closed_loop(4, ask, until=9.5, think_s=1)
        return now(), results

    ended, results = run(main)
    assert most == 4
    assert ended == 12  # started at 0, 3, 6 and 9, each 2 s and 1 s of thinking
    assert len(results) == 16
    assert isinstance(results[3], ValueError)
    assert results[4:] == list(range(4, 16))
