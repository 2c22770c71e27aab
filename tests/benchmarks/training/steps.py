"""Steps per second with and without operations: ours, Stable-Baselines3, a loop in one file.

    python -m tests.benchmarks.training.steps [--rounds N] [--write]

All learn CartPole-v1 with the same settings (4 environments x 128 steps, 4 epochs of mini-batches
of 128, two layers of 64) in one process, on one thread and one core, in turns. With operations
means: schedules, detectors, gradient guard, and a checkpoint in each turn, which is fifty times as
often as by default. Stable-Baselines3 needs an environment of its own, made from
`requirements/adapters/adapters.lock`; this module starts itself there.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks.report import machine, slug, table
from tests.clients import environments

_RESULTS = Path(__file__).parents[1] / "results"
_LOCK = environments.ROOT / "requirements" / "adapters" / "adapters.lock"
_SOURCE = Path(__file__).with_name("single_file.py")
_UPDATES = 10  # in a turn
_STEPS = 4 * 128 * _UPDATES
_PAIRS = (
    ("training/ppo.py", "ours"),
    ("Stable-Baselines3", "SB3"),
    ("one file, CleanRL's style", "file"),
)

Turn = Callable[[], None]


def ours(folder: Path, *, with_ops: bool) -> Turn:
    """The loop of `python -m training train`, without its logs."""
    from training import OperationsManager
    from training.run import Run, Settings

    run = Run(Settings(total_steps=10**9))
    ops = OperationsManager(folder, checkpoint_config=_config()) if with_ops else None
    if ops is not None:
        parts = {"trainer": run.trainer, "collector": run.collector}
        ops.attach(model=run.trainer.network, optimizer=run.trainer.optimizer, extra=parts)
    done = 0

    def turn() -> None:
        nonlocal done
        for _ in range(_UPDATES):
            done += 1
            stats = run.update(done)
            if ops is not None:
                result = ops.on_training_step(done, stats)
                run.trainer.entropy_coef, run.lr_scale = result["entropy_coef"], result["lr_scale"]
                _see_that_it_is_well(result)

    return turn


def sb3(folder: Path, *, with_ops: bool) -> Turn:
    """`PPO.learn`, with our callback or without."""
    from training import OperationsManager
    from training.callbacks.sb3 import OperationsCallback

    host: Any = importlib.import_module("stable_baselines3")
    tools: Any = importlib.import_module("stable_baselines3.common.env_util")
    model = host.PPO(
        "MlpPolicy",
        tools.make_vec_env("CartPole-v1", n_envs=4, seed=1),
        learning_rate=2.5e-4,
        n_steps=128,
        batch_size=128,
        n_epochs=4,
        ent_coef=0.01,
        clip_range_vf=0.2,
        seed=1,
        device="cpu",
    )
    callback = None
    if with_ops:
        callback = OperationsCallback(OperationsManager(folder, checkpoint_config=_config()))

    def turn() -> None:
        model.learn(_STEPS, callback=callback, reset_num_timesteps=False)
        if callback is not None:
            _see_that_it_is_well(callback.watch.last)

    return turn


def single_file(folder: Path, *, with_ops: bool) -> Turn:
    """The loop of `single_file.py`."""
    updates = single_file_loop(folder, 10**9, every=_UPDATES, with_ops=with_ops)

    def turn() -> None:
        for _ in range(_UPDATES):
            next(updates)

    return turn


def single_file_loop(folder: Path, count: int, *, every: int, with_ops: bool) -> Iterator[int]:
    """That loop with the lines that end in `# +`, or without; gives the number of each update.

    Args:
        folder: for checkpoints.
        count: of updates.
        every: updates between them.
    """
    from training import CheckpointConfig

    config = CheckpointConfig(save_interval_steps=every)
    lines = _SOURCE.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if with_ops or not line.endswith("# +")]
    names: dict[str, Any] = {"__name__": "single_file"}
    exec(compile("\n".join(kept), _SOURCE.name, "exec"), names)
    updates: Iterator[int] = names["updates"](folder, config, count)
    return updates


def added_lines() -> int:
    """How many lines operations take there."""
    return sum(line.endswith("# +") for line in _SOURCE.read_text(encoding="utf-8").splitlines())


_MAKERS = {"ours": ours, "SB3": sb3, "file": single_file}


def measure(rounds: int, folder: Path) -> dict[tuple[str, bool], list[tuple[float, float]]]:
    """Seconds of the processor and on the clock for each turn; the first two are not counted."""
    turns = {
        (name, with_ops): maker(folder / f"{name}{with_ops}", with_ops=with_ops)
        for name, maker in _MAKERS.items()
        for with_ops in (False, True)
    }
    found: dict[tuple[str, bool], list[tuple[float, float]]] = {key: [] for key in turns}
    for count in range(rounds + 2):
        # In the other direction every second time: what grows slower hits all alike.
        for key in list(turns) if count % 2 else reversed(list(turns)):
            began, began_cpu = time.perf_counter(), time.process_time()
            turns[key]()
            took = time.process_time() - began_cpu, time.perf_counter() - began
            if count >= 2:
                found[key].append(took)
        print(f"round {count + 1} of {rounds + 2}", file=sys.stderr, flush=True)
    for name, _ in turns:
        saved = len(list((folder / f"{name}True").glob("*.json")))
        if not saved:
            raise RuntimeError(f"{name}: no checkpoint was written, so this measures nothing")
    return found


def report(found: dict[tuple[str, bool], list[tuple[float, float]]]) -> str:
    """Two tables: each loop with and without operations, and the loops beside ours."""
    rows, beside = [], []
    cpu = {key: [each for each, _ in times] for key, times in found.items()}
    clock = {key: [each for _, each in times] for key, times in found.items()}
    for title, name in _PAIRS:
        pairs = list(zip(cpu[name, True], cpu[name, False], strict=True))
        ratios = [with_ops / without for with_ops, without in pairs]
        more = statistics.median((a - b) / _UPDATES * 1e6 for a, b in pairs)
        low, high = statistics.quantiles(ratios, n=4)[::2]
        rows.append(
            [
                title,
                _rate(cpu[name, False]),
                _rate(cpu[name, True]),
                f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})",
                f"{more:,.0f} us",
                f"{_rate(clock[name, False])}; {_rate(clock[name, True])}",
            ]
        )
        against = [
            other / mine for other, mine in zip(cpu[name, False], cpu["ours", False], strict=True)
        ]
        beside.append([title, f"{statistics.median(against):.2f}"])
    head = [
        "loop",
        "steps/s",
        "with operations",
        "time with / without (quartiles)",
        "more per update",
        "on the clock",
    ]
    return "\n".join(
        [
            table(head, rows),
            "",
            table(["loop, without operations", "its time / ours"], beside),
        ]
    )


def _rate(seconds: list[float]) -> str:
    return f"{_STEPS / statistics.median(seconds):,.0f}"


def _config() -> Any:
    from training import CheckpointConfig

    return CheckpointConfig(save_interval_steps=_UPDATES)


def _see_that_it_is_well(result: dict[str, Any]) -> None:
    if result["rollback_path"] or result["halt"]:
        raise RuntimeError(f"a rollback would be measured, too: {result['events']}")


def _elsewhere() -> int:
    """Run this again where Stable-Baselines3 is."""
    why = environments.make(_LOCK)
    if why:
        print(f"Stable-Baselines3 cannot be installed: {why}", file=sys.stderr)
        return 1
    place = {**os.environ, "PYTHONPATH": str(environments.ROOT), "OMP_NUM_THREADS": "1"}
    command = [str(environments.python(_LOCK.stem)), "-m", "tests.benchmarks.training.steps"]
    return subprocess.run([*command, *sys.argv[1:]], env=place, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each")
    parser.add_argument("--write", action="store_true", help="keep it beside the other results")
    options = parser.parse_args()
    if importlib.util.find_spec("stable_baselines3") is None:
        return _elsewhere()
    import torch

    torch.set_num_threads(1)
    with contextlib.suppress(AttributeError):  # not everywhere
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.rounds, Path(folder))
    load = ", ".join(f"{value:.1f}" for value in before)
    versions = ("torch", "stable-baselines3", "gymnasium", "numpy")
    text = "\n".join(
        [
            f"# Steps per second, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC",
            "",
            f"- Machine: {machine()}; {platform.system()} {platform.release()}; load {load}",
            f"- Python {platform.python_version()}, "
            + ", ".join(f"{name} {version(name)}" for name in versions)
            + "; one thread, one core, CPU",
            f"- Run as `python -m tests.benchmarks.training.steps --rounds {options.rounds}"
            f"{' --write' if options.write else ''}`",
            f"- CartPole-v1, {_STEPS:,} environment steps ({_UPDATES} updates) a turn, all loops",
            f"  in turns, {options.rounds} turns each; medians. Seconds are of the processor,",
            "  the thread that writes checkpoints included; *on the clock* is what passed, with",
            "  whatever else the machine had to do. Ratios are within a turn of each.",
            f"- With operations: a checkpoint of everything every {_UPDATES} updates (the default",
            f"  is 500). In the one file they are {added_lines()} added lines.",
            "- Where quartiles lie on both sides of 1, operations cost less than the machine's",
            "  noise.",
            "",
            report(found),
            "",
        ]
    )
    print(text)
    if options.write:
        date = time.strftime("%Y-%m-%d", time.gmtime())
        target = _RESULTS / f"training_steps_{slug(machine())}_{date}.md"
        target.write_text(text, encoding="utf-8")
        print(f"written to {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
