"""The wall: every run against one gateway, as many at once as it takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    tell: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Run everything.

    Args:
        runs: what to run; each has a model of its own, so that they do not meet.
        endpoint: the gateway under test.
        lab_url: where the lab's upstream takes the caller's word.
        urls: the upstream's base URLs by run.
        at_once: how many at the same time.
        tell: told of each result as it comes.

    Raises:
        GatewayError: the lab or the gateway cannot be reached at all.
    """
    room = asyncio.Semaphore(at_once)

    async def one(run: Run) -> Result:
        async with room, endpoint.open(run, urls(run)) as address:
            result = await _one(Trial(run, address, lab_url))
        tell(result)
        return result

    # The longest first, or the last would be waited for alone.
    order = sorted(runs, key=lambda run: -run.scenario.limit_s)
    tasks = {run: asyncio.create_task(one(run)) for run in order}
    try:
        await asyncio.gather(*tasks.values())
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
    return [tasks[run].result() for run in runs]


async def _one(trial: Trial) -> Result:
    limit_s = trial.run.scenario.limit_s
    await trial.begin()
    started = time.monotonic()
    try:
        async with asyncio.timeout(limit_s):
            verdict = await trial.run.scenario.check(trial)
    except TimeoutError:
        verdict = Verdict(Grade.FAIL, [f"not over after {limit_s:.0f} s"])
    return Result(trial.run, verdict, time.monotonic() - started)
