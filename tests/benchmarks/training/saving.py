"""What a save costs: ours beside `torch.save` + fsync, in one run.

    python -m tests.benchmarks.training.saving [--quick] [--write]

*Blocking* is how long the caller waits (*CPU*: of which it computes, which other load on the
machine hardly changes); *persist* how long until it is committed, hashed and synced; *interference*
how much longer a training step (a matrix product on one thread) takes meanwhile.
Rounds are interleaved; each save comes after ordinary steps, as in a run, so caches are cold.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.report import machine, number, slug, table
from training.checkpoints.store import CheckpointStore

_RESULTS = Path(__file__).parents[1] / "results"
_SIZES = {"10k": 10_000, "1M": 1_000_000, "25M": 25_000_000, "100M": 100_000_000}
_GOALS_MS = {"10k": 0.2, "25M": 40.0}
_TENSORS = 8


def state(count: int) -> dict[str, Any]:
    """A model of `count` parameters in eight tensors."""
    return {f"layer{n}": torch.randn(count // _TENSORS) for n in range(_TENSORS)}


def saved_plainly(payload: dict[str, Any], path: Path) -> float:
    """Milliseconds of `torch.save` and fsync: durable, not atomic, not verified."""
    began = time.perf_counter()
    with path.open("wb") as file:
        torch.save(payload, file)
        file.flush()
        os.fsync(file.fileno())
    return (time.perf_counter() - began) * 1e3


class Step:
    """One step of training: about a millisecond of arithmetic."""

    def __init__(self) -> None:
        self._matrix = torch.randn(256, 256)

    def __call__(self) -> None:
        self._matrix @ self._matrix

    def run(self, count: int) -> None:
        for _ in range(count):
            self()


def measure(count: int, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Rounds of each figure for one size, milliseconds (interference: a share)."""
    payload, step = state(count), Step()
    found: dict[str, list[float]] = {}
    stores = {
        kind: CheckpointStore(folder / kind, keep=2, writer=kind) for kind in ("thread", "process")
    }
    for turn in range(rounds + 1):
        step.run(50)
        plain = saved_plainly(payload, folder / "plain.pt")
        step.run(50)
        figures = {"torch.save + fsync": plain}
        for kind, store in stores.items():
            figures.update(_ours(kind, store, turn, payload, step))
        if turn:  # the first allocates, starts the process, and is not repeated in a run
            for name, value in figures.items():
                found.setdefault(name, []).append(value)
        else:
            for kind in stores:
                found[f"{kind}: first blocking"] = [figures[f"{kind}: blocking"]]
    for kind, store in stores.items():
        failed = store.failures()
        store.close()
        if failed:
            raise RuntimeError(f"{kind}: {failed}")
    return found


def _ours(
    kind: str, store: CheckpointStore, turn: int, payload: dict[str, Any], step: Callable[[], None]
) -> dict[str, float]:
    quiet = [_timed(step) for _ in range(100)]
    began = time.thread_time()
    store.save(turn, {"model": payload})
    cpu = (time.thread_time() - began) * 1e3
    during = []
    while store.writing:
        during.append(_timed(step))
    store.flush()
    slower = statistics.median(during) / statistics.median(quiet) - 1 if len(during) > 2 else None
    figures = {
        f"{kind}: blocking": store.costs.blocking_s * 1e3,
        f"{kind}: CPU": cpu,
        f"{kind}: persist": store.costs.persist_s * 1e3,
    }
    return figures if slower is None else {**figures, f"{kind}: interference": slower}


def _timed(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, up to 25M")
    parser.add_argument("--write", action="store_true", help="keep it beside the other results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = [
        "parameters",
        "torch.save + fsync",
        "first",
        "blocking",
        "CPU",
        "times less",
        "least",
    ]
    columns += ["persist", "persist / torch.save", "interference"]
    rows, goals = [], []
    for name, count in _SIZES.items():
        if options.quick and count > 25_000_000:
            continue
        rounds = 60 if count < 10**6 else 20 if count < 10**7 else 7 if count < 10**8 else 3
        with tempfile.TemporaryDirectory() as folder:
            found = measure(count, rounds // 3 if options.quick else rounds, Path(folder))
        plain = found["torch.save + fsync"]
        for kind in ("thread", "process"):
            blocking, persist = found[f"{kind}: blocking"], found[f"{kind}: persist"]
            slower = found.get(f"{kind}: interference", [])
            median = statistics.median
            rows.append(
                [
                    f"{name}, {kind}",
                    f"{number(median(plain))} ms",
                    f"{number(found[f'{kind}: first blocking'][0])} ms",
                    f"{number(median(blocking))} ms",
                    f"{number(median(found[f'{kind}: CPU']))} ms",
                    number(median(a / b for a, b in zip(plain, blocking, strict=True))),
                    f"{number(min(blocking))} ms",
                    f"{number(median(persist))} ms",
                    number(median(a / b for a, b in zip(persist, plain, strict=True))),
                    f"{median(slower):+.0%}" if slower else "too short to tell",
                ]
            )
            if name in _GOALS_MS and kind == "thread":
                goal, value = _GOALS_MS[name], median(blocking)
                met = "yes" if value <= goal else "**no**"
                goals.append(
                    [
                        f"staging {name}",
                        f"<= {number(goal)} ms",
                        f"{number(value)} ms",
                        f"{number(min(blocking))} ms",
                        f"{number(median(found[f'{kind}: CPU']))} ms",
                        met,
                    ]
                )
        print(f"{name} done", flush=True)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    text = "\n".join(
        [
            f"# Saving a checkpoint, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC",
            "",
            f"- Machine: {machine()}; {platform.system()} {platform.release()}; load {load}",
            f"- Python {platform.python_version()}, torch {torch.__version__}, one thread, CPU",
            "- Run as `python -m tests.benchmarks.training.saving"
            f"{' --quick' if options.quick else ''}{' --write' if options.write else ''}`",
            "- Medians of interleaved rounds; *times less* and *persist / torch.save* are medians",
            "  of the ratios within each round. *First* allocates and is paid once a run; *CPU* is",
            "  what of *blocking* the caller computed, the rest it waited for a core.",
            "- *Persist* is committed: hashed with SHA-256, synced, renamed, manifest and folder",
            "  synced, while the next steps of training compete for the cores; `torch.save` has",
            "  them to itself, since nothing else goes on meanwhile.",
            "",
            table(columns, rows),
            "",
            table(["goal", "", "median", "least", "CPU", "met"], goals),
            "",
        ]
    )
    print(text)
    if options.write:
        date = time.strftime("%Y-%m-%d", time.gmtime())
        target = _RESULTS / f"saving_{slug(machine())}_{date}.md"
        target.write_text(text)
        print(f"written to {target}")


if __name__ == "__main__":
    main()
