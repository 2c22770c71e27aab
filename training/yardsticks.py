"""The published protocols, run again, our figures beside theirs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from training import curves, environments
from training.run import PENDULUM, Run, Settings

_EVALUATION_ENVS = 10
_POINTS = 200
_QUICK = 20


@dataclass(frozen=True)
class Yardstick:
    """A protocol and what others reached with it.

    Attributes:
        name: short.
        settings: of each run; the seed changes.
        evaluation_steps: for how many steps the agent is judged afterwards, acting at its best;
            with 0 it is judged by its last 100 episodes of training.
        mean: the published one.
        published: the figure in words, and where it is from.
        least: what a mean over the seeds must reach.
    """

    name: str
    settings: Settings
    evaluation_steps: int
    mean: float
    published: str
    least: float


YARDSTICKS = (
    Yardstick("cartpole", Settings(), 0, 490.0, "490.0 ± 6.1 (CleanRL, 3 seeds)", 475.0),
    Yardstick(
        "acrobot",
        Settings(env="Acrobot-v1"),
        0,
        -86.4,
        "−86.4 ± 1.3 (CleanRL, 3 seeds)",
        -95.0,
    ),
    Yardstick(
        "pendulum",
        PENDULUM,
        150_000,
        -172.2,
        "−172.2 ± 104.2 (SB3 zoo with gSDE, 1 run, ± over episodes)",
        -276.4,  # one published deviation below the published mean
    ),
)


@dataclass
class Result:
    """One finished run.

    Attributes:
        yardstick, seed: which.
        score, spread: mean and deviation over the episodes it is judged by.
        episodes: how many those are.
        seconds: of training, on the clock and of the processor.
        steps: environment steps.
        curve: (steps, mean return of the last 100 episodes).
    """

    yardstick: str
    seed: int
    score: float
    spread: float
    episodes: int
    seconds: float
    cpu_seconds: float
    steps: int
    curve: list[tuple[int, float]]


def measure(yardstick: Yardstick, seed: int, tell: Callable[[str], None]) -> Result:
    """Run a protocol with one seed."""
    run = Run(replace(yardstick.settings, seed=seed))
    curve: list[tuple[int, float]] = []
    began, began_cpu = time.perf_counter(), time.process_time()
    updates = run.settings.updates
    for number in range(1, updates + 1):
        stats = run.update(number)
        if "reward" in stats and number % max(1, updates // _POINTS) == 0:
            curve.append((run.collector.steps, stats["reward"]))
        if number % max(1, updates // 10) == 0:
            took = time.perf_counter() - began
            rate = run.collector.steps / took
            reward = stats.get("reward", float("nan"))
            tell(f"  {run.collector.steps:>7} steps  {reward:8.1f}  {rate:6.0f} steps/s")
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    returns = (
        evaluate(run, yardstick.evaluation_steps)
        if yardstick.evaluation_steps
        else np.array(run.collector.returns)
    )
    run.close()
    return Result(
        yardstick.name,
        seed,
        float(returns.mean()),
        float(returns.std()),
        len(returns),
        seconds,
        cpu_seconds,
        run.collector.steps,
        curve,
    )


def evaluate(run: Run, steps: int) -> np.ndarray:
    """Returns of the episodes that end within `steps` steps in which the agent acts at its best."""
    from training.rollout import Collector  # noqa: PLC0415

    envs = environments.make(run.settings.env, _EVALUATION_ENVS)
    collector = Collector(envs, seed=1_000_000 + run.settings.seed)
    returns = collector.watch(run.trainer.network, steps // _EVALUATION_ENVS)
    envs.close()
    return np.array(returns)


def names_in(text: str) -> list[str]:
    """Names of protocols, with commas between.

    Raises:
        ValueError: there is no such protocol.
    """
    names, known = [name.strip() for name in text.split(",")], [y.name for y in YARDSTICKS]
    for name in names:
        if name not in known:
            raise ValueError(f"unknown yardstick {name!r}; there are {', '.join(known)}")
    return names


def seeds_in(text: str) -> list[int]:
    """Seeds, with commas between.

    Raises:
        ValueError: one is no whole number from 0.
    """
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ValueError(f"seeds are whole numbers with commas between, got {text!r}")
    return [int(part) for part in text.split(",")]


def run_all(
    folder: Path,
    names: Sequence[str],
    seeds: Sequence[int],
    tell: Callable[[str], None],
    *,
    quick: bool = False,
) -> list[Result]:
    """Run what has not been run yet; each result is written down at once.

    Args:
        folder: results lie in it as `results.jsonl`; those that lie there are not measured again.
        quick: a twentieth of the steps: it runs, and says nothing about what it reaches.
    """
    torch.set_num_threads(1)  # the nets are small: more threads only wait for each other
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.jsonl"
    results = read(file)
    done = {(result.yardstick, result.seed) for result in results}
    for yardstick in YARDSTICKS:
        for seed in seeds:
            if yardstick.name not in names or (yardstick.name, seed) in done:
                continue
            tell(f"{yardstick.settings.env}, seed {seed}")
            result = measure(_shortened(yardstick) if quick else yardstick, seed, tell)
            results.append(result)
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(asdict(result)) + "\n")
    return results


def _shortened(yardstick: Yardstick) -> Yardstick:
    settings, evaluation = yardstick.settings, yardstick.evaluation_steps
    return replace(
        yardstick,
        settings=replace(settings, total_steps=settings.total_steps // _QUICK),
        evaluation_steps=evaluation // _QUICK,
    )


def read(file: Path) -> list[Result]:
    """The results in a file; none if there is no such file."""
    if not file.exists():
        return []
    return [Result(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def report(
    folder: Path, results: Sequence[Result], *, quick: bool = False, name: str = "yardsticks"
) -> str:
    """The table, also written to `NAME.md`, and the curves in `NAME.png`.

    Returns:
        The table, and a note where matplotlib is missing.
    """
    lines = [
        "| protocol | steps | ours, mean ± std over seeds | each seed | published | at least "
        "| holds | steps/s (clock; processor) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    panels: list[tuple[str, list[list[tuple[int, float]]], float | None]] = []
    for yardstick in YARDSTICKS:
        mine = [result for result in results if result.yardstick == yardstick.name]
        lines.append(_row(yardstick, mine, quick=quick))
        level = None if yardstick.evaluation_steps else float(yardstick.mean)
        panels.append((yardstick.settings.env, [result.curve for result in mine], level))
    text = "\n".join(lines) + "\n\n" + _NOTES
    try:
        curves.yardstick_curves(panels, folder / f"{name}.png")
        text += f"\n![learning curves]({name}.png)\n"
    except ModuleNotFoundError as error:
        text += f"\n(no plot: {error})\n"
    (folder / f"{name}.md").write_text("# Yardsticks\n\n" + text, encoding="utf-8")
    return text


def _row(yardstick: Yardstick, results: Sequence[Result], *, quick: bool) -> str:
    head = f"| {yardstick.settings.env} | {yardstick.settings.total_steps:,} "
    published = f"{yardstick.published} | {yardstick.least:g}"
    if not results:
        return f"{head}| **not run** | | {published} | | |"
    scores = np.array([result.score for result in results])
    each = ", ".join(
        f"{result.seed}: {result.score:.1f} ± {result.spread:.1f}" for result in results
    )
    mean = f"{scores.mean():.1f} ± {scores.std():.1f}"
    if len(results) < _SEEDS:
        mean += f" ({len(results)} of {_SEEDS} seeds)"
    holds = "yes" if scores.mean() >= yardstick.least else "no"
    if len(results) < _SEEDS:
        holds += ", so far"
    if quick:
        holds = "quick run"
    steps = sum(result.steps for result in results)
    clock = steps / sum(result.seconds for result in results)
    cpu = steps / sum(result.cpu_seconds for result in results)
    return f"{head}| {mean} | {each} | {published} | {holds} | {clock:,.0f}; {cpu:,.0f} |"


_SEEDS = 3
_NOTES = """\
CartPole and Acrobot: the defaults of CleanRL's `ppo.py` (4 environments x 128 steps, learning rate
2.5e-4 falling to 0, 4 epochs of 4 mini-batches); unlike it, what a time limit cuts off is estimated
and learned from. A seed's score is the mean of its last 100 episodes of training. Pendulum: the
hyperparameters of Stable-Baselines3's zoo, but plain Gaussian exploration, **no gSDE**; a seed's
score is the mean return of the best actions over 150,000 further steps (750 episodes), as the zoo
judges. "At least" for Pendulum is the published mean less one published deviation, which is over
the episodes of a single run; so is the figure after ± under "each seed". One CPU thread, no
operations attached; "processor" counts the time the process ran, "clock" the time that passed,
with whatever else the machine had to do. Run them again: `python -m training yardsticks`.
"""
