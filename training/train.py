"""A training run with all that belongs to it: operations, logs, progress, a plot, a way back."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from training import environments
from training.config import CheckpointConfig, LearningScheduleConfig
from training.errors import TrainingError
from training.guard import GradientGuard
from training.operations import OperationsManager
from training.progress import Interrupt, Lines, Log
from training.run import Run, Settings, settings_for

_ENTROPY_END = 0.1  # the owner's schedule falls to a tenth of where it starts
_MOST_BETWEEN_SAVES = 500
_SAVES = 20


class RunRefused(Exception):
    """The run cannot begin as asked; the message says what to do."""


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        settings, folder: of the run.
        update: the last one done.
        reward: mean return of the last 100 episodes; NaN if none has ended.
        seconds, steps_per_s: of this process.
        checkpoints, rollbacks: of the whole run.
        interrupted: somebody asked it to stop.
        halted: the operations stopped it: why; empty if they did not.
        notes: what could not be done, in words.
    """

    settings: Settings
    folder: Path
    update: int
    reward: float
    seconds: float
    steps_per_s: float
    checkpoints: int
    rollbacks: int
    interrupted: bool
    halted: str
    notes: list[str]

    def __str__(self) -> str:
        steps = self.update * self.settings.n_envs * self.settings.n_steps
        return (
            f"{self.settings.env}: mean return {self.reward:.1f} after {steps:,} steps, "
            f"{self.seconds:.0f} s at {self.steps_per_s:,.0f} steps/s, {self.checkpoints} "
            f"checkpoints, {self.rollbacks} rollbacks; {self.folder}"
        )

    @property
    def how_to_resume(self) -> str:
        """The command that continues."""
        return f"python -m training train --resume --folder {shlex.quote(str(self.folder))}"


def prepare(folder: Path, env: str | None, chosen: dict[str, Any], *, resume: bool) -> Settings:
    """The settings of a new run, or of the one that is continued; the folder is made and writable.

    Args:
        env: None takes the earlier run's, or CartPole-v1.
        chosen: settings that were asked for; None means no choice.

    Raises:
        RunRefused: nothing to continue, an earlier run where a new one was to begin, other
            settings than the run was begun with, or a folder that cannot be written to.
        EnvironmentUnknown: see `environments.make`.
    """
    file = folder / "run.json"
    begun = file.exists() or any(folder.glob("checkpoints/*.pt"))
    if begun and not resume:
        raise RunRefused(
            f"{folder} holds an earlier run: --resume continues it; or choose another --folder"
        )
    if resume and not file.exists():
        raise RunRefused(f"{folder} holds no run to resume")
    settings = settings_for(env or "CartPole-v1", **chosen)
    if resume:
        settings = _continued(file, env, chosen)
    environments.make(settings.env, 1).close()  # before anything is written
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".run.{os.getpid()}"
        partial.write_text(json.dumps(asdict(settings), indent=1) + "\n", encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise RunRefused(f"cannot write to {folder}: {error.strerror or error}") from None
    return settings


def _continued(file: Path, env: str | None, chosen: dict[str, Any]) -> Settings:
    try:
        known = {field.name for field in fields(Settings)}
        saved = json.loads(file.read_text(encoding="utf-8"))
        settings = Settings(**{name: saved[name] for name in known})
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RunRefused(f"{file} is not a run's settings: {error!r}") from None
    for name, value in {"env": env, **chosen}.items():
        if value is not None and name != "total_steps" and value != getattr(settings, name):
            begun = getattr(settings, name)
            raise RunRefused(f"{file.parent} was begun with {name}={begun}, not {value}")
    # To another length it may go on; the learning rate's way to 0 is stretched along.
    return replace(settings, total_steps=chosen.get("total_steps") or settings.total_steps)


def train(
    settings: Settings,
    folder: Path,
    *,
    with_ops: bool = True,
    resume: bool = False,
    save_every: int | None = None,
    stop_after: int | None = None,
    tell: Callable[[str], None] = print,
    display: Callable[[int, int], Any] | None = None,
) -> Summary:
    """Train, and leave checkpoints, `progress.csv`, TensorBoard logs and `curve.png` in a folder.

    A resumed run continues bit for bit on one CPU thread, wherever the state of the environments
    can be kept (`Collector.exact`); otherwise with new episodes.

    Args:
        settings, folder: from `prepare`.
        with_ops: False trains without checkpoints, schedules of entropy, guard and rollback.
        save_every: updates between checkpoints; None takes 20 in a run, at least every 500.
        stop_after: end after this update, with a checkpoint, as if interrupted.
        tell: gets each line.
        display: makes a context manager that is called with update, reward and steps/s.

    Raises:
        RunRefused: there is no checkpoint to resume from.
        TrainingError: a checkpoint is of another run, or somebody else writes to the folder.
    """
    torch.set_num_threads(1)  # the networks are small: more threads only wait for each other
    run = Run(settings)
    every = save_every or max(1, min(_MOST_BETWEEN_SAVES, settings.updates // _SAVES))
    ops = OperationsManager(
        folder / "checkpoints",
        schedule_config=LearningScheduleConfig(
            entropy_coef_start=settings.entropy_coef,
            entropy_coef_end=settings.entropy_coef * _ENTROPY_END,
            entropy_decay_steps=settings.updates,
        ),
        checkpoint_config=CheckpointConfig(save_interval_steps=every),
        enable_all_features=with_ops,
        seed=settings.seed,
    )
    first = 1
    with contextlib.ExitStack() as stack:
        stack.callback(run.close)
        if with_ops:
            stack.enter_context(ops)
            parts = {"trainer": run.trainer, "collector": run.collector}
            ops.attach(model=run.trainer.network, optimizer=run.trainer.optimizer, extra=parts)
            stack.callback(GradientGuard(run.trainer.optimizer).remove)
        if resume:
            first = 1 + _resume(run, ops, tell)
        log = stack.enter_context(Log(folder, first, settings, tell))
        show = stack.enter_context((display or Lines(tell))(first - 1, settings.updates))
        stop = stack.enter_context(Interrupt())
        return _loop(run, ops, with_ops, first, stop_after, stop, log, show)


def _resume(run: Run, ops: OperationsManager, tell: Callable[[str], None]) -> int:
    """Put everything back where the last checkpoint was taken; its update."""
    found = ops.resume()
    if found is None:
        raise RunRefused(f"{ops.checkpoint_dir} holds no checkpoint to resume from")
    for passed in found["passed_by"]:
        tell(f"passed by: {passed}")
    if not run.collector.exact:
        tell("note: this environment's state cannot be kept; episodes begin anew")
    # What the loop takes from the step's result, and the checkpoint was taken before that.
    run.trainer.entropy_coef = ops.schedule_config.entropy_coef(found["step"])
    run.lr_scale = ops.lr_scale
    tell(f"resumed after update {found['step']} of {run.settings.updates} from {found['path']}")
    return int(found["step"])


def _save(ops: OperationsManager, result: dict[str, Any]) -> None:
    try:
        result["checkpoint_path"] = ops.save()
    except (TrainingError, OSError) as error:
        result["events"].append(f"checkpoint failed: {error}")


def _loop(
    run: Run,
    ops: OperationsManager,
    with_ops: bool,
    first: int,
    stop_after: int | None,
    stop: Interrupt,
    log: Log,
    show: Callable[[int, float, float], None],
) -> Summary:
    s, reward, halted, number = run.settings, math.nan, "", first - 1
    began = time.perf_counter()
    for number in range(first, s.updates + 1):
        stats = run.update(number)
        reward = stats.get("reward", math.nan)
        last = stop.asked or number in (s.updates, stop_after)
        result = ops.on_training_step(number, stats)
        if last:  # whatever the interval: the end of a run is worth a checkpoint
            _save(ops, result)
        if with_ops:
            run.trainer.entropy_coef, run.lr_scale = result["entropy_coef"], result["lr_scale"]
        if result["rollback_path"]:
            run.trainer.discard_rollout()
        log.write(number, stats, result)
        speed = (number - first + 1) * s.n_envs * s.n_steps / (time.perf_counter() - began)
        show(number, reward, speed)
        if result["halt"]:
            why = [line for line in result["events"] if line.startswith("halt")]
            halted = why[0] if why else "halt: asked for by the operations"
        if last or halted:
            break
    ops.flush()
    seconds = max(time.perf_counter() - began, 1e-9)
    done = (number - first + 1) * s.n_envs * s.n_steps
    log.draw()
    return Summary(
        settings=s,
        folder=log.folder,
        update=number,
        reward=reward,
        seconds=seconds,
        steps_per_s=done / seconds,
        checkpoints=log.count("checkpoint"),
        rollbacks=log.count("rollback"),
        interrupted=number < s.updates and not halted,
        halted=halted,
        notes=log.notes,
    )
