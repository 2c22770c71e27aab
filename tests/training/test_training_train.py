"""`python -m training train` and `yardsticks`: what they leave behind, and what they refuse."""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from training import yardsticks
from training.run import PENDULUM, Run, Settings, settings_for
from training.train import prepare, train

torch.set_num_threads(1)
SHORT = ["--total-steps", "1024", "--n-envs", "2", "--n-steps", "64"]


def ask(*words: str) -> Any:
    from training.cli import main

    return CliRunner().invoke(main, list(words))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "progress.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_checkpoints_logs_and_a_curve(tmp_path: Path) -> None:
    result = ask("train", *SHORT, "--folder", str(tmp_path), "--save-every", "3")
    assert result.exit_code == 0, result.output
    assert "CartPole-v1: mean return " in result.output
    assert "after 1,024 steps" in result.output
    assert "3 checkpoints, 0 rollbacks" in result.output
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    table = rows(tmp_path)
    assert [row["steps"] for row in table] == [str(128 * n) for n in range(1, 9)]
    assert [row["update"] for row in table if row["event"] == "checkpoint"] == ["3", "6", "8"]
    assert [float(row["learning_rate"]) for row in table] == pytest.approx(
        [2.5e-4 * (1 - n / 8) for n in range(8)]
    )
    settings = json.loads((tmp_path / "run.json").read_text())
    assert (settings["env"], settings["seed"], settings["n_steps"]) == ("CartPole-v1", 1, 64)


def test_tensorboard_reads_the_logs(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = prepare(tmp_path, None, {"total_steps": 512, "n_steps": 64}, resume=False)
    train(settings, tmp_path, tell=lambda line: None)
    board = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    told = board.Scalars("train/entropy_coef")
    assert [one.step for one in told] == [256, 512]
    assert told[-1].value == pytest.approx(0.001)  # the owner's schedule, at its end
    assert {"train/loss", "train/reward", "train/approx_kl"} <= set(board.Tags()["scalars"])


def test_without_operations_nothing_is_kept_and_the_coefficient_stays(tmp_path: Path) -> None:
    result = ask("train", *SHORT, "--no-ops", "--folder", str(tmp_path), "--stop-after", "2")
    assert result.exit_code == 0, result.output
    assert "0 checkpoints" in result.output
    assert "nothing was saved (--no-ops)" in result.output
    assert not (tmp_path / "checkpoints").exists()
    assert len(rows(tmp_path)) == 2


def test_with_and_without_operations_the_weights_learn_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watching changes nothing: the same weights, as long as entropy counts for nothing."""
    closed: list[Run] = []

    def close(run: Run) -> None:
        closed.append(run)

    monkeypatch.setattr(Run, "close", close)
    for with_ops in (True, False):
        folder = tmp_path / str(with_ops)
        chosen = {"total_steps": 512, "n_steps": 64, "entropy_coef": 0.0}
        settings = prepare(folder, None, chosen, resume=False)
        train(settings, folder, with_ops=with_ops, tell=lambda line: None)
    weights = [[p.detach() for p in run.trainer.network.parameters()] for run in closed]
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_broken_weights_lead_back_to_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Run.update

    def broken(run: Run, number: int) -> dict[str, float]:
        stats = update(run, number)
        if number == 6:
            run.trainer.network.actor[0].weight.data[0, 0] = math.nan
            stats["loss"] = math.nan
        return stats

    monkeypatch.setattr(Run, "update", broken)
    told: list[str] = []
    settings = prepare(tmp_path, None, {"total_steps": 10 * 256, "n_steps": 64}, resume=False)
    summary = train(settings, tmp_path, save_every=2, tell=told.append)
    assert (summary.rollbacks, summary.update, summary.halted) == (1, 10, "")
    assert math.isfinite(summary.reward)
    assert any("rolled back to" in line and "step_000000004" in line for line in told)
    events = {row["update"]: row["event"] for row in rows(tmp_path) if row["event"]}
    assert events == {
        "2": "checkpoint",
        "4": "checkpoint",
        "6": "rollback",
        "7": "checkpoint",  # the one that was due
        "8": "checkpoint",
        "10": "checkpoint",
    }
    assert (tmp_path / "curve.png").exists()


def test_a_run_that_cannot_be_saved_halts_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Run.update

    def always_broken(run: Run, number: int) -> dict[str, float]:
        stats = update(run, number)
        return {**stats, "loss": math.nan} if number > 3 else stats

    monkeypatch.setattr(Run, "update", always_broken)
    result = ask("train", "--n-steps", "32", "--save-every", "1", "--folder", str(tmp_path))
    assert result.exit_code == 1
    assert "halt: 3 rollbacks" in result.output


def test_what_is_missing_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = ask("train", *SHORT, "--folder", str(tmp_path), "--stop-after", "1")
    assert result.exit_code == 0, result.output
    assert "note: no TensorBoard logs: pip install tensorboard" in result.output
    assert "note: no plot: plots need matplotlib: pip install" in result.output


def test_what_cannot_be_done_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    cases = [
        (["--env", "Nope-v0"], "Nope-v0: Environment `Nope` doesn't exist"),
        (["--env", "FrozenLake-v1"], "FrozenLake-v1: observations must be a Box"),
        (["--folder", str(tmp_path / "file" / "x")], "cannot write to"),
        (["--folder", str(tmp_path / "none"), "--resume"], "holds no run to resume"),
        (["--resume", "--no-ops"], "--resume needs the checkpoints"),
    ]
    for words, told in cases:
        given = words if "--folder" in words else [*words, "--folder", str(tmp_path / "new")]
        result = ask("train", *given)
        assert result.exit_code == 2, result.output
        assert result.output.startswith("error: "), result.output
        assert told in result.output
        assert result.output.count("\n") == 1
    assert not (tmp_path / "new").exists()
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    result = ask("train", "--folder", str(tmp_path / "new"))
    assert result.exit_code == 2
    assert "pip install 'downshift-gateway[training]'" in result.output


def test_the_same_folder_twice_is_refused(tmp_path: Path) -> None:
    assert ask("train", *SHORT, "--folder", str(tmp_path), "--stop-after", "1").exit_code == 0
    result = ask("train", *SHORT, "--folder", str(tmp_path))
    assert result.exit_code == 2
    assert "holds an earlier run: --resume continues it" in result.output


def test_settings_known_to_work_and_what_was_chosen() -> None:
    assert settings_for("Pendulum-v1") == PENDULUM
    assert settings_for("Pendulum-v1", gamma=0.5, seed=None).gamma == 0.5
    assert settings_for("MountainCar-v0") == Settings(env="MountainCar-v0")
    assert Settings().updates == 976


# -- yardsticks --------------------------------------------------------------------------------


@pytest.mark.slow
def test_yardsticks_run_once_and_are_laid_beside_the_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yardsticks, "_QUICK", 75)
    short = [
        replace(one, settings=replace(one.settings, n_steps=250, n_epochs=1))
        for one in yardsticks.YARDSTICKS
    ]
    monkeypatch.setattr(yardsticks, "YARDSTICKS", tuple(short))
    words = ["yardsticks", "--quick", "--only", "cartpole,pendulum", "--folder", str(tmp_path)]
    result = ask(*words)
    assert result.exit_code == 0, result.output
    table = (tmp_path / "quick" / "yardsticks.md").read_text()
    line = {part.split(" | ")[0]: part for part in table.splitlines() if part.startswith("| ")}
    assert "490.0 ± 6.1 (CleanRL, 3 seeds) | 475 | quick run" in line["| CartPole-v1"]
    assert "(1 of 3 seeds)" in line["| CartPole-v1"]
    assert "| **not run** |" in line["| Acrobot-v1"]
    assert "| -1" in line["| Pendulum-v1"]
    assert (tmp_path / "quick" / "yardsticks.png").read_bytes().startswith(b"\x89PNG")
    kept = yardsticks.read(tmp_path / "quick" / "results.jsonl")
    assert [(one.yardstick, one.seed) for one in kept] == [("cartpole", 1), ("pendulum", 1)]
    assert kept[1].episodes == 10  # an evaluation of 2,000 steps
    monkeypatch.setattr(yardsticks, "measure", None)  # nothing is measured twice
    assert ask(*words).exit_code == 0


def test_yardsticks_that_do_not_exist() -> None:
    for words, told in (
        (["--only", "chess"], "unknown yardstick 'chess'; there are cartpole, acrobot, pendulum"),
        (["--seeds", "1,x"], "seeds are whole numbers with commas between"),
    ):
        result = ask("yardsticks", *words)
        assert result.exit_code == 2
        assert told in result.output


def test_a_row_says_whether_it_holds() -> None:
    def result(seed: int, score: float) -> yardsticks.Result:
        return yardsticks.Result("acrobot", seed, score, 9.0, 100, 10.0, 5.0, 1000, [(1, score)])

    acrobot = yardsticks.YARDSTICKS[1]
    three = [result(seed, score) for seed, score in ((1, -84.0), (2, -86.0), (3, -88.0))]
    row = yardsticks._row(acrobot, three, quick=False)
    assert "| -86.0 ± 1.6 | 1: -84.0 ± 9.0, 2: -86.0 ± 9.0, 3: -88.0 ± 9.0 |" in row
    assert "| yes | 100; 200 |" in row
    worse = yardsticks._row(acrobot, [result(1, -96.0)], quick=False)
    assert "-96.0 ± 0.0 (1 of 3 seeds)" in worse
    assert "| no, so far |" in worse


@pytest.mark.parametrize("words", [[], ["simulate"], ["train"]])
def test_without_the_extra_one_line_says_how_to_get_it(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = ModuleNotFoundError("No module named 'torch'", name="torch")

    def refuse(*_: object, **__: object) -> None:
        raise missing

    monkeypatch.setattr("training.simulate.simulate", refuse)
    monkeypatch.setattr("training.train.prepare", refuse)
    result = ask(*words)
    assert result.exit_code == 2
    assert result.stderr == "error: this needs torch: pip install 'downshift-gateway[training]'\n"


def test_both_packages_say_that_they_are_typed() -> None:
    for package in ("gateway", "training"):
        assert (Path(__file__).parents[2] / package / "py.typed").is_file()
