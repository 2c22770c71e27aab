"""Who asks, and when: schedules of arrival times, and the two ways to play them.

An *open* load keeps coming whatever happens (`play` a schedule), a *closed* one waits for its
answer before it asks again (`closed_loop`). An outage shows its teeth only under an open load.

Schedules are sorted iterators of seconds on the event loop's clock; join them with `merge`.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def steady(per_s: float, *, start: float = 0.0, end: float) -> Iterator[float]:
    """Evenly spaced: `per_s` a second from `start` (included) to `end` (excluded)."""
    number = 0
    while (at := start + number / per_s) < end:
        yield at
        number += 1


def poisson(per_s: float, rng: random.Random, *, start: float = 0.0, end: float) -> Iterator[float]:
    """Independent callers, `per_s` a second on average: gaps are exponentially distributed."""
    at = start
    while (at := at + rng.expovariate(per_s)) < end:
        yield at


def bursts(size: int, *, every_s: float, start: float = 0.0, end: float) -> Iterator[float]:
    """`size` callers at the same moment, again every `every_s` seconds."""
    for at in steady(1.0 / every_s, start=start, end=end):
        for _ in range(size):
            yield at


def merge(*schedules: Iterable[float]) -> Iterator[float]:
    """All arrivals of several schedules, in order."""
    return heapq.merge(*schedules)


async def play(
    schedule: Iterable[float], ask: Callable[[int], Awaitable[T]]
) -> list[T | BaseException]:
    """Start `ask(number)` at each time of the schedule and wait for all of them.

    Args:
        schedule: sorted times; one already past starts at once.
        ask: gets the number of the arrival, 0 first.

    Returns:
        What each call returned or raised, in order of arrival. If `play` is cancelled, so are they.
    """
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Future[T]] = []
    try:
        for number, at in enumerate(schedule):
            if (wait := at - loop.time()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.ensure_future(ask(number)))
        return await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        for task in tasks:
            task.cancel()


async def closed_loop(
    workers: int,
    ask: Callable[[int], Awaitable[T]],
    *,
    until: float,
    think_s: float = 0.0,
) -> list[T | BaseException]:
    """`workers` callers who each ask again `think_s` seconds after their last answer.

    Args:
        workers: how many ask at once, at most.
        ask: gets the number of the call, 0 first.
        until: when nobody starts another call, seconds on the event loop's clock.
        think_s: pause between an answer, or an error, and the next question; > 0 if `ask` can
            return without waiting, or time would stand still.

    Returns:
        What each call returned or raised, in the order the calls started.
    """
    loop = asyncio.get_running_loop()
    results: dict[int, T | BaseException] = {}
    started = 0

    async def worker() -> None:
        nonlocal started
        while loop.time() < until:
            number, started = started, started + 1
            try:
                results[number] = await ask(number)
            except Exception as error:  # noqa: BLE001 - a load goes on, whatever it meets
                results[number] = error
            await asyncio.sleep(think_s)

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(worker())
    return [results[number] for number in range(started)]
