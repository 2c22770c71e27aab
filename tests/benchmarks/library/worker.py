"""One caller in a process, and perhaps an environment, of its own.

    PYTHONPATH=. python -m tests.benchmarks.library.worker MODULE FUNCTION

Started and steered by `workers.py`. Each line of standard input is a JSON object: first what the
caller is given, then orders, each answered by one line on standard output:

- `{"do": "closed", "kind", "concurrency", "seconds"}`: so many at once, each asking again when
  answered; those under way at the end are waited for and counted.
- `{"do": "open", "rate", "seconds"}`: at a steady rate, whatever happens.

CPU seconds are of the whole process, threads of other languages included.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import os
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

from tests.benchmarks.library.asking import Call, Given, Kinds, Make
from tests.benchmarks.measure import new_loop, percentile

_numbers = itertools.count(1)


async def closed(call: Call, concurrency: int, seconds: float) -> dict[str, float | int | str]:
    """Ask for `seconds`, so many at once."""
    took: list[float] = []
    errors, said = 0, ""
    clock = time.perf_counter
    cpu, begin = time.process_time(), clock()
    end = begin + seconds

    async def work() -> None:
        nonlocal errors, said
        while (began := clock()) < end:
            try:
                await call(next(_numbers))
            except Exception as error:  # a peer's errors are figures, not ours to raise
                errors += 1
                said = said or f"{type(error).__name__}: {error}"[:200]
                await asyncio.sleep(0.01)
            else:
                took.append(clock() - began)

    await asyncio.gather(*(work() for _ in range(concurrency)))
    wall_s, cpu_s = clock() - begin, time.process_time() - cpu
    return {
        "answers": len(took),
        "errors": errors,
        "said": said,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "p50_s": percentile(took, 0.5),
        "p99_s": percentile(took, 0.99),
    }


async def opened(call: Call, rate: float, seconds: float) -> dict[str, Any]:
    """Ask at a steady rate; when each question was put, how long it took, what went wrong."""
    asked: list[tuple[float, float, str]] = []

    async def ask(number: int) -> None:
        began, wrong = time.monotonic(), ""
        try:
            await call(number)
        except Exception as error:
            wrong = type(error).__name__ + (f" {error}" if isinstance(error, RuntimeError) else "")
        asked.append((began, time.monotonic() - began, wrong[:80]))

    begin = time.monotonic()
    tasks = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))
        tasks.append(asyncio.create_task(ask(next(_numbers))))
    await asyncio.gather(*tasks)
    return {"asked": sorted(asked)}


async def _serve(make: Make, given: Given) -> None:
    async with AsyncExitStack() as stack:
        kinds: Kinds = await make(stack, given)
        _tell({"kinds": list(kinds)})
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            call = kinds[order.get("kind", "json")]
            if order["do"] == "closed":
                _tell(await closed(call, order["concurrency"], order["seconds"]))
            else:
                _tell(await opened(call, order["rate"], order["seconds"]))


def _tell(what: dict[str, Any]) -> None:
    _out.write(json.dumps(what) + "\n")
    _out.flush()


if __name__ == "__main__":
    # What a peer prints must not come between: only we keep the real standard output.
    _out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _given = Given(**json.loads(sys.stdin.readline()))
    if _given.core >= 0 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {_given.core})
    _make: Make = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
    with asyncio.Runner(loop_factory=new_loop) as _runner:
        _runner.run(_serve(_make, _given))
