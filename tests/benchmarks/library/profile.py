"""Where the time goes: `python -m tests.benchmarks.library.profile json|stream|iterate|hit`.

cProfile, dear functions first: shares and counts, not microseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import itertools
import pstats
from contextlib import AsyncExitStack

from tests.benchmarks.library.asking import Call, Given
from tests.benchmarks.library.callers import ours
from tests.benchmarks.measure import Cores, new_loop
from tests.benchmarks.upstream import Upstream

_CONCURRENCY, _CALLS = 64, 2000


async def _profile(given: Given, what: str) -> cProfile.Profile:
    async with AsyncExitStack() as stack:
        kinds = await ours.generate(stack, given)
        call: Call = kinds["json" if what == "hit" else what]
        numbers = itertools.repeat(0) if what == "hit" else itertools.count(1)

        async def ask(calls: int) -> None:
            left = iter(range(calls))

            async def work() -> None:
                for _ in left:
                    await call(next(numbers))

            await asyncio.gather(*(work() for _ in range(_CONCURRENCY)))

        await ask(4 * _CONCURRENCY)
        profile = cProfile.Profile()
        profile.enable()
        await ask(_CALLS)
        profile.disable()
        return profile


def main() -> None:
    parser = argparse.ArgumentParser(description="cProfile of the library's hot path")
    parser.add_argument("what", choices=("json", "stream", "iterate", "hit"))
    what = parser.parse_args().what
    cores = Cores.split()
    with (
        Upstream(cores.other) as upstream,
        cores.measuring(),
        asyncio.Runner(loop_factory=new_loop) as runner,
    ):
        profile = runner.run(_profile(Given([upstream.url()]), what))
    pstats.Stats(profile).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    main()
