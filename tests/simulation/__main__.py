"""`python -m tests.simulation`: a thousand worlds, every invariant, all policies; see README.md."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.simulation.campaign import World, campaign, replay, told
from tests.simulation.compare import EARLY, OURS
from tests.simulation.invariants import EVERYTHING
from tests.simulation.report import Run, markdown, save, summary
from tests.simulation.schedule import MODES, schedule
from tests.simulation.world import play


def main() -> int:
    """Run the command line; returns the exit status."""
    options = _options().parse_args()
    if options.invariants:
        for invariant in EVERYTHING:
            print(f"{invariant.source:8} {invariant.name}")
        return 0
    if options.replay is not None:
        return _replay(options.replay)
    return _run(options)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1000, help="how many worlds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--compared", type=int, default=None, help="in how many all policies are played; all"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="keep worlds in this file, and go on from it")
    parser.add_argument("--write", action="store_true", help="into tests/benchmarks/results")
    parser.add_argument("--replay", type=int, metavar="SEED", help="play one world again")
    parser.add_argument("--invariants", action="store_true", help="list them")
    return parser


def _replay(seed: int) -> int:
    """Play one world again and tell everything of it."""
    world = schedule(seed)
    print(f"seed {seed}: {len(world.asks)} requests in {world.horizon_s:.0f} s")
    for mode in MODES:
        for fault in world.faults[mode]:
            print(f"  {mode}: {fault}")
    for changes, where in (({}, ""), ({"circuit": {"early_probe_s": 10}}, ", early_probe_s = 10")):
        played = play(world, changes)
        for broken in played.broken:
            print(told(seed, broken) + where)
        print(f"{played.checks:,} checks, digest {played.digest}{where}")
        if played.broken:
            return 1
    return 0


def _run(options: argparse.Namespace) -> int:
    seeds = range(options.first, options.first + options.schedules)
    compared = len(seeds) if options.compared is None else options.compared
    started, worlds, told_of = time.monotonic(), dict[int, World](), set[str]()
    parts = campaign(seeds, compared=compared, processes=options.processes, keep=options.keep)
    for number, world in enumerate(parts, 1):
        worlds[world.seed] = world
        for line in set(world.broken) - told_of:
            told_of.add(line)
            print(f"{line}\n    again: {replay(world.seed)}", flush=True)
        if number % 50 == 0:
            took, parts_in_all = time.monotonic() - started, len(seeds) + compared
            print(f"{number} of {parts_in_all} played, {took:.0f} s", file=sys.stderr, flush=True)
    ordered = [worlds[seed] for seed in sorted(worlds)]
    both = [world for world in ordered if OURS in world.tallies and EARLY in world.tallies]
    run = Run(ordered, both, sys.argv[1:])
    print(summary(run))
    if options.write:
        save(run, markdown(run))
    return 1 if any(world.broken for world in ordered) else 0


if __name__ == "__main__":
    sys.exit(main())
