"""Measure, print, and perhaps keep: `python -m tests.benchmarks --help`."""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import os
import pstats
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.benchmarks import failure, micro, overhead, processes, streams
from tests.benchmarks.calls import callers, generate
from tests.benchmarks.measure import Quiet, Subject, interleave, new_loop, pin
from tests.benchmarks.report import Section, document, header, machine, slug
from tests.benchmarks.upstream import Upstream

_RESULTS = Path(__file__).with_name("results")


async def _sections(
    upstream: Upstream, core: int, options: argparse.Namespace, quiet: Quiet
) -> list[Section]:
    quick: bool = options.quick
    parts: dict[str, Callable[[], Awaitable[list[Section]]]] = {}
    sections = []
    async with callers(upstream) as everyone:
        parts["overhead"] = lambda: overhead.measure(everyone, quick=quick)
        parts["streams"] = lambda: streams.measure(upstream, everyone, quick=quick)
        parts["micro"] = lambda: micro.measure(everyone, quick=quick)
        parts["failure"] = lambda: failure.measure(core, quick=quick)
        parts["processes"] = lambda: _soon(upstream, quick=quick)
        for name, part in parts.items():
            if options.only and name not in options.only:
                continue
            quiet.look()
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                sections += await part()
            except Exception as error:  # one broken part must not hide the others
                traceback.print_exc()
                told = f"{type(error).__name__}: {error}"
                sections.append(Section(f"{name}: could not be measured", (), remarks=[told]))
            quiet.look()
    return sections


async def _soon(upstream: Upstream, *, quick: bool) -> list[Section]:
    return processes.measure(upstream, quick=quick)


async def _profile(upstream: Upstream, what: str, calls: int) -> None:
    """Where the time goes: cProfile, dear functions first. Shares and counts, not microseconds."""
    async with callers(upstream) as everyone:
        gateway = everyone.gateway(stream=what == "stream")
        make = generate(gateway)
        if what == "hit":
            await gateway.generate("the same", "creative")
            subject = Subject(what, lambda _: gateway.generate("the same", "creative"), calls)
        else:
            subject = Subject(what, make, calls)
        await interleave([subject], rounds=1, concurrency=64)
        profile = cProfile.Profile()
        profile.enable()
        await interleave([subject], rounds=1, concurrency=64)
        profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(45)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description="What the gateway costs."
    )
    names = ("overhead", "streams", "micro", "failure", "processes")
    parser.add_argument("--quick", action="store_true", help="fewer requests and rounds")
    parser.add_argument("--write", action="store_true", help="keep the report under results/")
    parser.add_argument("--only", nargs="+", choices=names, help="only these parts")
    parser.add_argument("--profile", choices=("json", "stream", "hit"), help="cProfile instead")
    options = parser.parse_args()
    load, quiet, core = os.getloadavg(), Quiet(), pin()
    with Upstream(core) as upstream, asyncio.Runner(loop_factory=new_loop) as runner:
        if options.profile:
            runner.run(_profile(upstream, options.profile, 2000))
            return
        sections = runner.run(_sections(upstream, core, options, quiet))
    given = "".join(f" {argument}" for argument in sys.argv[1:])
    report = document(header(quiet, given, load), sections)
    print(report)
    if options.write:
        date = time.strftime("%Y-%m-%d", time.gmtime())
        path = _RESULTS / f"library_{slug(machine())}_{date}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(report, encoding="utf-8")
        print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
