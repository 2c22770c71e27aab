"""The wall: every run against one gateway, as many at once as it takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.faultlab.endpoints import Endpoint
from gateway.faultlab.recipes import Urls
from gateway.faultlab.scenario import Grade, Run, Verdict
from gateway.faultlab.trial import Trial

AT_ONCE = 16
"""Runs at the same time: most of each is waiting."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a run went.

    Attributes:
        run: what was run.
        verdict: how it went.
        took_s: how long it took, without starting the gateway.
    """

    run: Run
    verdict: Verdict
    took_s: float


async def wall(
    runs: Sequence[Run],
    endpoint: Endpoint,
    lab_url: str,
    urls: Urls,
    *,
    at_once: int = AT_ONCE,
    patience: float = 1.0,
    tell: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Run everything.

    Args:
        runs: what to run; each has a model of its own, so that they do not meet.
        endpoint: the gateway under test.
        lab_url: where the lab's upstream takes the caller's word.
        urls: the upstream's base URLs by run.
        at_once: how many at the same time.
        patience: multiplies how long is waited before a run is given up, for slow machines.
        tell: told of each result as it comes.

    Raises:
        GatewayError: the lab or the gateway cannot be reached at all.
    """
    results: dict[Run, Result] = {}

    async def one(run: Run) -> None:
        async with room, endpoint.open(run, urls(run)) as address:
            trial = Trial(run, address, lab_url, patience=patience)
            results[run] = await _one(trial, run.scenario.limit_s * patience)
        tell(results[run])

    alone = [run for run in runs if run.scenario.crowd and endpoint.shared]
    # The longest first, or the last would be waited for alone.
    together = sorted(set(runs).difference(alone), key=lambda run: -run.scenario.limit_s)
    room = asyncio.Semaphore(at_once)
    await _all(one(run) for run in together)
    room = asyncio.Semaphore(1)
    await _all(one(run) for run in alone)
    return [results[run] for run in runs]


async def _all(waiting: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; if one raises, none is left behind, and that is what is raised."""
    tasks = [asyncio.create_task(one) for one in waiting]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _one(trial: Trial, limit_s: float) -> Result:
    await trial.begin()
    started = time.monotonic()
    try:
        async with asyncio.timeout(limit_s):
            verdict = await trial.run.scenario.check(trial)
    except TimeoutError:
        verdict = Verdict(Grade.FAIL, [f"not over after {limit_s:.0f} s"])
    return Result(trial.run, verdict, time.monotonic() - started)
