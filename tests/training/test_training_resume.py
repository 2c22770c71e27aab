"""2N updates are N updates, a new process, and N more: bit for bit."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training import curves
from training.checkpoints import files
from training.errors import CheckpointForeign
from training.run import Settings, settings_for
from training.train import RunRefused, Summary, prepare, train

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]
N = 4


@pytest.fixture(autouse=True)
def nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and TensorBoard take most of so short a run's time."""
    monkeypatch.setattr(curves, "learning_curve", lambda *told: None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


def small(env: str, updates: int = 2 * N) -> Settings:
    return settings_for(
        env, total_steps=updates * 2 * 96, n_envs=2, n_steps=96, n_epochs=2, batch_size=50, seed=7
    )


def run(folder: Path, settings: Settings, **options: Any) -> Summary:
    chosen = {name: value for name, value in vars(settings).items() if name != "env"}
    kept = prepare(folder, settings.env, chosen, resume=options.get("resume", False))
    assert kept == settings
    return train(kept, folder, save_every=3, tell=lambda line: None, **options)


def last(folder: Path) -> dict[str, Any]:
    """What the checkpoint at the end of a run holds."""
    return files.load(max((folder / "checkpoints").glob("*.pt")))


def assert_same(one: Any, other: Any, place: str = "state") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for number, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            assert_same(mine, theirs, f"{place}[{number}]")
    else:
        assert one == other, place


def assert_same_run(one: Path, other: Path, updates: int = 2 * N) -> None:
    """Weights, Adam's moments, random generators, environments, returns, schedules, the log."""
    mine, theirs = last(one), last(other)
    assert {"model", "optimizer", "rng", "extra", "ops"} <= mine.keys()
    assert mine["extra"]["collector"]["env"]["exact"]
    assert mine["extra"]["collector"]["steps"] == updates * 2 * 96
    for state in (mine, theirs):  # a run that was interrupted has a checkpoint more on probation
        state["ops"]["saves"].pop("young")
    assert_same(mine, theirs)
    tables = []
    for folder in (one, other):
        with (folder / "progress.csv").open() as rows:
            tables.append(
                [{k: v for k, v in row.items() if k != "event"} for row in csv.DictReader(rows)]
            )
    assert len(tables[0]) == updates
    assert tables[0] == tables[1]


def disturb() -> None:
    """What a new process would find: every generator elsewhere."""
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)


@pytest.mark.parametrize("env", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1"])
def test_a_resumed_run_is_the_run_that_never_stopped(env: str, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run(whole, small(env))
    first = run(halves, small(env), stop_after=N)
    assert (first.update, first.interrupted) == (N, True)
    disturb()
    second = run(halves, small(env), resume=True)
    assert (second.update, second.interrupted) == (2 * N, False)
    assert_same_run(whole, halves)


def test_scaled_rewards_go_on_in_their_scale(tmp_path: Path) -> None:
    settings = Settings(**{**vars(small("Pendulum-v1")), "scale_rewards": True})
    run(tmp_path / "whole", settings)
    run(tmp_path / "halves", settings, stop_after=N)
    disturb()
    run(tmp_path / "halves", settings, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


def command(folder: Path, *more: str, updates: int = 2 * N) -> list[str]:
    s = small("CartPole-v1", updates)
    options = ["--folder", str(folder), "--save-every", "3", *more]
    if "--resume" not in more:
        options += ["--total-steps", str(s.total_steps), "--seed", str(s.seed), "--n-envs", "2"]
        options += ["--n-steps", "96", "--n-epochs", "2", "--batch-size", "50"]
    return [sys.executable, "-m", "training", "train", *options]


@pytest.mark.slow
def test_a_new_process_continues(tmp_path: Path) -> None:
    run(tmp_path / "whole", small("CartPole-v1"))
    halves = tmp_path / "halves"
    run(halves, small("CartPole-v1"), stop_after=N)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(
        command(halves, "--resume"),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"resumed after update {N} of {2 * N}" in printed
    assert_same_run(tmp_path / "whole", halves)


@pytest.mark.slow
def test_ctrl_c_in_a_process_of_its_own_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    run(tmp_path / "whole", small("CartPole-v1", 80))
    halves = tmp_path / "halves"
    child = subprocess.Popen(
        command(halves, updates=80), cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("update 8/"):
            child.send_signal(signal.SIGINT)
            break
    printed, _ = child.communicate(timeout=60)
    assert child.returncode == 130
    assert f"continue with: python -m training train --resume --folder {halves}" in printed
    subprocess.run(command(halves, "--resume"), cwd=ROOT, check=True, capture_output=True)
    assert_same_run(tmp_path / "whole", halves, 80)


def test_ctrl_c_ends_the_run_after_the_update_under_way(tmp_path: Path) -> None:
    @contextmanager
    def display(done: int, updates: int) -> Iterator[Any]:
        def show(number: int, reward: float, speed: float) -> None:
            if number == 2:
                signal.raise_signal(signal.SIGINT)

        yield show

    before = signal.getsignal(signal.SIGINT)
    summary = run(tmp_path / "halves", small("CartPole-v1"), display=display)
    assert (summary.update, summary.interrupted) == (3, True)
    assert signal.getsignal(signal.SIGINT) is before
    assert last(tmp_path / "halves")["step"] == 3
    run(tmp_path / "halves", small("CartPole-v1"), resume=True)
    run(tmp_path / "whole", small("CartPole-v1"))
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


def test_a_broken_newest_checkpoint_is_passed_by(tmp_path: Path) -> None:
    run(tmp_path, small("CartPole-v1"), stop_after=N)
    newest = max((tmp_path / "checkpoints").glob("*.pt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    told: list[str] = []
    settings = prepare(tmp_path, None, {}, resume=True)
    train(settings, tmp_path, resume=True, tell=told.append)
    assert any(line.startswith("passed by:") and newest.name in line for line in told)
    assert any("resumed after update 3" in line for line in told)
    with (tmp_path / "progress.csv").open() as rows:
        numbers = [int(row["update"]) for row in csv.DictReader(rows)]
    assert numbers == list(range(1, 2 * N + 1))


def test_what_cannot_be_continued_is_refused(tmp_path: Path) -> None:
    settings = small("CartPole-v1")
    with pytest.raises(RunRefused, match="holds no run to resume"):
        prepare(tmp_path / "nothing", None, {}, resume=True)
    run(tmp_path, settings, stop_after=1)
    with pytest.raises(RunRefused, match="holds an earlier run"):
        prepare(tmp_path, None, {}, resume=False)
    with pytest.raises(RunRefused, match="was begun with seed=7, not 8"):
        prepare(tmp_path, None, {"seed": 8}, resume=True)
    with pytest.raises(RunRefused, match="was begun with env=CartPole-v1, not Acrobot-v1"):
        prepare(tmp_path, "Acrobot-v1", {}, resume=True)
    assert prepare(tmp_path, None, {"total_steps": 9999}, resume=True).total_steps == 9999
    other = Settings(**{**vars(settings), "hidden": 8})
    with pytest.raises(CheckpointForeign):
        train(other, tmp_path, resume=True, tell=lambda line: None)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunRefused, match=r"run\.json is not a run's settings"):
        prepare(tmp_path, None, {}, resume=True)
