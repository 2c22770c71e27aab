"""One soak: traffic, weather and reloads for a time, then quiet, and what is found then."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from gateway.simulator.scripted import ScriptedUpstream
from tests.soak.service import ADMIN_KEY, MODES, Sample, Service
from tests.soak.traffic import Traffic
from tests.soak.weather import Episode, Sky

_QUIET_S: Final = 15.0
_BROKEN: Final = 5  # every so manieth reload offers a broken file


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do.

    Attributes:
        minutes: how long.
        per_s: mean requests a second.
        workers: how many the server has.
        seed: traffic and weather follow from it.
        every_s: seconds between two samples.
        reload_s: seconds between two reloads.
        calm_s: the shortest and longest calm of the primary upstream; the standby's are double.
        bad_s: the shortest and longest bad weather.
    """

    minutes: float
    per_s: float = 40.0
    workers: int = 1
    seed: int = 1
    every_s: float = 5.0
    reload_s: float = 45.0
    calm_s: tuple[float, float] = (8.0, 25.0)
    bad_s: tuple[float, float] = (4.0, 15.0)


@dataclass(frozen=True, slots=True)
class Found:
    """What was seen.

    Attributes:
        plan: what was done.
        began: Unix seconds.
        samples: over the time of the traffic.
        before, after: primed and at rest; and at rest again when all was over.
        asked: requests sent.
        ends: how they ended.
        statuses: honest errors by status.
        lost: what happened to some of those lost.
        episodes: the weather.
        reloads: configurations put in force and refused, as the server's log tells.
        still: what was under way at the end, after the quiet; all zero.
        tracebacks: in the server's log, and requests that failed by a fault of ours.
        exit_code: of the server, stopped as an operator does.
        load: the machine's load average before and after.
        waited: share of the time in which the server was ready to run and had no processor.
    """

    plan: Plan
    began: float
    samples: list[Sample]
    before: Sample
    after: Sample
    asked: int
    ends: Counter[str]
    statuses: Counter[int]
    lost: list[str]
    episodes: list[Episode]
    reloads: dict[str, int]
    still: dict[str, int]
    tracebacks: int
    exit_code: int
    load: tuple[float, float]
    waited: float

    def failures(self) -> list[str]:
        """What went wrong, nothing if all is well; slopes are judged apart."""
        wrong = [f"{count} {name} at the end" for name, count in self.still.items() if count]
        if self.ends["lost"]:
            wrong.append(f"{self.ends['lost']} requests lost, such as {self.lost}")
        if self.ends.total() != self.asked:
            wrong.append(f"{self.asked} asked, {self.ends.total()} ended")
        for what in ("files", "sockets", "threads", "tasks", "disk_files"):
            before, after = getattr(self.before, what), getattr(self.after, what)
            if after > before:
                wrong.append(f"{what}: {before} before, {after} after")
        if self.tracebacks:
            wrong.append(f"{self.tracebacks} tracebacks in the log")
        if self.exit_code:
            wrong.append(f"exit code {self.exit_code}")
        return wrong


async def soak(plan: Plan, folder: Path, say: Callable[[str], None] = lambda _: None) -> Found:
    """Do as planned.

    Args:
        plan: what to do.
        folder: an empty one, for the server's configuration, log and data.
        say: hears how it goes, a line every minute.
    """
    dice = random.Random(plan.seed)
    async with (
        ScriptedUpstream() as primary,
        ScriptedUpstream() as standby,
        Service(folder, primary.base_url, standby.base_url, plan.workers) as service,
    ):
        calm, long_calm = plan.calm_s, (2 * plan.calm_s[0], 2 * plan.calm_s[1])
        first, second = random.Random(dice.random()), random.Random(dice.random())
        skies = [
            Sky("primary", primary, calm, plan.bad_s, first, lasting=0.05),
            Sky("standby", standby, long_calm, plan.bad_s, second, lasting=0.0),
        ]
        traffic = Traffic(service.port, plan.per_s, random.Random(dice.random()))
        await traffic.prime(plan.workers)
        before = await _at_rest(service, primary, standby)
        began, samples = time.time(), []
        clock = asyncio.get_running_loop().time
        start = clock()
        load, waited = os.getloadavg()[0], service.waited_s()
        enough = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, enough.set)

        async def sampling() -> None:
            samples.append(await service.sample(clock() - start))
            if len(samples) % round(60 / plan.every_s) == 0:
                say(
                    f"{samples[-1]}, {traffic.asked} asked, {dict(traffic.ends)} {traffic.lost[:3]}"
                )

        async def reloading() -> None:
            service.reload(broken=dice.randrange(_BROKEN) == 0)

        await _for_a_while(
            plan.minutes * 60,
            enough.wait(),
            traffic.run(),
            _every(plan.every_s, sampling),
            _every(plan.reload_s, reloading),
            *(sky.run() for sky in skies),
        )
        lasted_s = clock() - start
        waited = (service.waited_s() - waited) / lasted_s
        await traffic.end()
        after = await _at_rest(service, primary, standby)
        still = await _still(service.port)
        code = await service.stop()
        logged = service.logged()
        return Found(
            plan=replace(plan, minutes=round(lasted_s / 60, 1)),
            began=began,
            samples=samples,
            before=before,
            after=after,
            asked=traffic.asked,
            ends=traffic.ends,
            statuses=traffic.statuses,
            lost=traffic.lost,
            episodes=sorted((e for sky in skies for e in sky.episodes), key=lambda e: e.at_s),
            reloads=_reloads(logged),
            still=still,
            tracebacks=logged.count("Traceback") + logged.count('"internal_error"'),
            exit_code=code,
            load=(load, os.getloadavg()[0]),
            waited=waited,
        )


async def _for_a_while(seconds: float, *doing: Coroutine[Any, Any, Any]) -> None:
    """Do it all at once for so long, or until one of it ends."""
    tasks = [asyncio.create_task(one) for one in doing]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _every(seconds: float, do: Callable[[], Awaitable[None]]) -> None:
    clock = asyncio.get_running_loop().time
    due = clock()
    while True:
        due += seconds
        await asyncio.sleep(due - clock())
        await do()


async def _at_rest(service: Service, *upstreams: ScriptedUpstream) -> Sample:
    """The sample with fewest open files within a while after everybody has gone.

    The upstreams hang up, so that no idle connection to them counts; what the server keeps for
    its callers a while is not counted either.
    """
    best: Sample | None = None
    loop = asyncio.get_running_loop()
    end, steady = loop.time() + _QUIET_S, 0
    for upstream in upstreams:
        await upstream.refuse()
    while loop.time() < end and steady < 8:
        sample = await service.sample(0.0)
        if best is None or (sample.files, sample.tasks) < (best.files, best.tasks):
            best, steady = sample, 0
        steady += 1
        await asyncio.sleep(0.25)
    for upstream in upstreams:
        await upstream.listen()
    assert best is not None
    return best


async def _still(port: int) -> dict[str, int]:
    """What the server says is under way."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"GET /status HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {ADMIN_KEY}\r\n"
        "connection: close\r\n\r\n".encode()
    )
    status = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
    writer.close()
    found = {name: status[name] for name in ("in_flight", "queued", "listener_faults")}
    for mode in MODES:
        found |= {f"{mode} {k}": n for k, n in status["modes"][mode]["in_flight"].items()}
    return found


def _reloads(logged: str) -> dict[str, int]:
    return {
        result: logged.count(f'"result":"{result}"')
        for result in ("applied", "refused", "rolled_back")
    }
