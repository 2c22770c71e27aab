"""Many worlds, spread over processes; what is done is kept, so that a stopped run goes on."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec

from tests.simulation import compare
from tests.simulation.compare import EARLY, OURS, Tally
from tests.simulation.schedule import Schedule, schedule
from tests.simulation.watch import Broken
from tests.simulation.world import Played


class World(msgspec.Struct):
    """One world, played.

    Attributes:
        seed: which.
        requests: how many were asked of the gateway as it ships.
        checks: how many questions the invariants were asked.
        digest: of all that its gateway told.
        cpu_s: seconds of CPU it took, all policies together.
        tallies: by policy; of all policies, or of the gateway alone.
        broken: the invariants that did not hold, with a line each.
    """

    seed: int
    requests: int
    checks: int
    digest: str
    cpu_s: float
    tallies: dict[str, Tally]
    broken: list[str]


def replay(seed: int) -> str:
    """The command that plays a seed again."""
    return f"python -m tests.simulation --replay {seed}"


def play(task: tuple[int, bool]) -> World:
    """Play one seed: with the gateway as it ships, or else with everybody it is compared with."""
    seed, alone = task
    started = time.process_time()
    world = World(seed, 0, 0, "", 0.0, {}, [])
    try:
        (_alone if alone else _others)(schedule(seed), world)
    except Exception as error:  # a crash is a broken promise like any other
        world.broken.append(f"seed {seed} ended in {error!r}")
    world.cpu_s = time.process_time() - started
    gc.collect()  # and not in between: what a world keeps, it keeps to its end
    return world


def _alone(schedule: Schedule, world: World) -> None:
    played, world.tallies[OURS] = compare.ours(schedule)
    world.requests, world.checks = len(played.outcomes), played.checks
    world.digest = played.digest
    _note(world, played, "")


def _others(schedule: Schedule, world: World) -> None:
    played, world.tallies[EARLY] = compare.early(schedule)
    _note(world, played, ", with early_probe_s = 10")
    world.tallies.update(compare.others(schedule))


def _note(world: World, played: Played, where: str) -> None:
    world.broken += [told(world.seed, broken) + where for broken in played.broken]


def told(seed: int, broken: Broken) -> str:
    """What did not hold, in a line."""
    return f"seed {seed}, {broken.at:.3f} s: {broken.invariant} ({broken.source}): {broken.what}"


def campaign(
    seeds: range, *, compared: int, processes: int, keep: Path | None = None
) -> Iterator[World]:
    """Play every seed with the gateway as it ships, then with everybody else; yields each as it is
    done, a world's second part with what is known of the first.

    Args:
        seeds: which.
        compared: how many of them, from the first, everybody else plays.
        processes: how many at once.
        keep: a file of what has been played, which is not played again; it grows.
    """
    worlds: dict[int, World] = {}
    tasks = dict.fromkeys([(seed, True) for seed in seeds])
    tasks |= dict.fromkeys([(seed, False) for seed in seeds[:compared]])
    for part in _kept(keep):
        if tasks.pop((part.seed, OURS in part.tallies), True) is None:
            yield _join(worlds, part)
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        pool = stack.enter_context(context.Pool(processes, initializer=_begin))
        file = stack.enter_context(keep.open("ab")) if keep is not None else None
        for part in pool.imap_unordered(play, tasks):
            if file is not None:
                file.write(msgspec.json.encode(part) + b"\n")
                file.flush()
            yield _join(worlds, part)


def _join(worlds: dict[int, World], part: World) -> World:
    """Two parts of one world make one."""
    whole = worlds.setdefault(part.seed, part)
    if whole is not part:
        whole.requests += part.requests
        whole.checks += part.checks
        whole.digest += part.digest
        whole.cpu_s += part.cpu_s
        whole.tallies.update(part.tallies)
        whole.broken += part.broken
    return whole


def _begin() -> None:
    gc.freeze()
    gc.disable()


def _kept(keep: Path | None) -> list[World]:
    if keep is None or not keep.exists():
        return []
    decode = msgspec.json.Decoder(World).decode
    return [decode(line) for line in keep.read_bytes().splitlines()]
