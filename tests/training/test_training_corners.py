"""Corners of a run: what must hold where two rules meet, or where a part of the run fails."""

from __future__ import annotations

import errno
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from training.anomaly import Anomaly
from training.callbacks.host import LearningRates
from training.checkpoints import files, manifest, state
from training.checkpoints import store as stores
from training.checkpoints.store import CheckpointStore
from training.config import AnomalyConfig, CheckpointConfig, RetuningConfig
from training.errors import CheckpointError, SaveFailed
from training.guard import GradientGuard
from training.operations import OperationsManager
from training.recovery import RecoveryPolicy
from training.retuning import Suggestions

WELL = {"loss": 1.0, "reward": 1.0}
BROKEN = {"loss": math.nan, "reward": 1.0}


class Run:
    """A linear model that saves every ten steps, before the step returns."""

    def __init__(self, folder: Path, probation: int = 5, **options: Any) -> None:
        torch.set_num_threads(1)
        self.model = torch.nn.Linear(2, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.ops = OperationsManager(
            folder,
            checkpoint_config=CheckpointConfig(save_interval_steps=10, async_save=False),
            anomaly_config=AnomalyConfig(probation_steps=probation),
            **options,
        ).attach(model=self.model, optimizer=self.optimizer)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.ops.close()

    @property
    def rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def well(self, first: int, last: int) -> list[int]:
        """Steps that are well; which of them saved."""
        told = {step: self.ops.on_training_step(step, WELL) for step in range(first, last + 1)}
        return [step for step, result in told.items() if result["checkpoint_path"]]

    def on_trial(self, mean: float) -> None:
        """Retune the learning rate to a half."""

        def put(value: float) -> None:
            self.optimizer.param_groups[0]["lr"] = value

        self.ops.attach(hyperparameters={"learning_rate": (lambda: self.rate, put)})
        found = Suggestions({"learning_rate": 0.05})
        found.n, found.mean, found.std = 100, mean, 0.5
        self.ops.apply(found, force=True)

    def rated(self, rating: float) -> None:
        for user in range(60):
            self.ops.on_user_feedback({"rating": rating, "user_id": user, "formula_id": "f"})


def flip(path: str | Path) -> None:
    data = bytearray(Path(path).read_bytes())
    data[len(data) // 2] ^= 1
    Path(path).write_bytes(data)


# -- what is sensed, and what is done about it ----------------------------------------------------


@pytest.mark.parametrize("known", [{}, {"loss": 1.0}, {"reward": 1.0}, WELL])
def test_a_signal_needs_no_loss_and_no_reward_beside_it(
    tmp_path: Path, known: dict[str, float]
) -> None:
    ops = OperationsManager(tmp_path)
    for step in range(40):
        ops.on_training_step(step, {**known, "grad_norm": 1.0 + step % 5 / 100})
    found = ops.on_training_step(40, {**known, "grad_norm": 1e6})["anomaly"]
    assert found is not None
    assert found.kind == "grad_norm"


def test_updates_dropped_one_at_a_time_never_add_up(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        for step in range(1, 81):
            if step % 10:
                told = run.ops.on_training_step(step, WELL)
            else:
                run.model(torch.full((1, 2), math.nan)).sum().backward()
                run.optimizer.step()
                told = run.ops.on_training_step(step, BROKEN)
                assert "the update was dropped, the weights are as they were" in told["events"]
            assert told["rollback_path"] is None
            assert not told["halt"]


def test_the_cooldown_counts_from_where_the_caller_counts_on() -> None:
    policy = RecoveryPolicy(AnomalyConfig)
    spike = Anomaly("loss_spike", "loss", 0, 9.0, 1.0, acts=True)
    assert policy.decide(1990, spike).restore
    policy.went_back(1501)
    assert policy.decide(1590, spike).why == "cooling down, 11 steps to go"
    assert policy.decide(1601, spike).restore


def test_a_caller_that_counts_on_from_the_checkpoint_is_not_left_alone_for_long(
    tmp_path: Path,
) -> None:
    with Run(tmp_path) as run:
        run.ops.anomaly_config.profile = "spec"
        run.well(1, 300)
        spike = {"loss": 5.0, "reward": 1.0}
        run.ops.checkpoint_config.save_interval_steps = 10**6  # the one at 100 stays the last
        back = run.ops.on_training_step(990, spike)["restored_step"]
        run.well(back + 1, back + 150)
        assert run.ops.on_training_step(back + 151, spike)["rollback_path"] is not None


# -- when a checkpoint is due ---------------------------------------------------------------------


@pytest.mark.parametrize(("every", "saved"), [(50, [150, 200]), (7, [105, 112, 119])])
def test_another_interval_counts_from_the_next_step(
    tmp_path: Path, every: int, saved: list[int]
) -> None:
    with Run(tmp_path) as run:
        run.well(1, 100)
        run.ops.checkpoint_config = CheckpointConfig(save_interval_steps=every, async_save=False)
        assert run.well(101, saved[-1]) == saved


def test_a_resumed_run_saves_where_the_uninterrupted_one_does(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        assert run.well(1, 12) == [10]
    with Run(tmp_path) as run:
        found = run.ops.resume()
        assert found is not None
        assert found["step"] == 10
        assert run.well(11, 31) == [20, 30]


# -- which checkpoint is taken, and what is said of the others ------------------------------------


def test_a_resume_tells_of_the_newer_one_that_was_no_good(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        run.well(1, 20)
    flip(tmp_path / "step_000000020_000.pt")
    with Run(tmp_path) as run:
        found = run.ops.resume()
    assert found is not None
    assert found["step"] == 10
    (told,) = found["passed_by"]
    assert "step_000000020_000.pt" in told
    assert json.loads((tmp_path / "step_000000020_000.json").read_text())["health"] == "corrupt"


def test_a_rollback_tells_of_the_healthy_one_that_was_no_good(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        run.well(1, 21)
        flip(tmp_path / "step_000000010_000.pt")
        told = run.ops.on_training_step(22, BROKEN)
    assert told["restored_step"] == 20
    assert any("passed by" in event and "step_000000010" in event for event in told["events"])


def test_a_manifest_that_cannot_be_read_just_now_is_no_lasting_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.read_text
    failed: list[Path] = []

    def once(path: Path, *args: Any, **named: Any) -> str:
        if path.suffix == ".json" and not failed:
            failed.append(path)
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, *args, **named)

    with Run(tmp_path, probation=0) as run:
        run.well(1, 21)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", once)
            told = run.ops.on_training_step(22, BROKEN)
    assert told["restored_step"] == 10
    assert any("Too many open files" in event for event in told["events"])
    assert json.loads((tmp_path / "step_000000020_000.json").read_text())["health"] == "healthy"


def test_a_folder_that_is_opened_without_the_right_to_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run(tmp_path) as run:
        run.well(1, 10)

    def denied(path: Path, *args: Any, **named: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)
    found, broken = manifest.survey(tmp_path)
    assert found == []
    assert ["Permission denied" in str(error) for error in broken] == [True]


def test_a_verdict_the_disk_does_not_take_still_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Run(tmp_path, probation=1000) as run:
        run.well(1, 21)
        monkeypatch.setattr(stores, "write_manifest", full)
        back = [run.ops.on_training_step(s, BROKEN)["restored_step"] for s in range(22, 25)]
    assert back == [20, 10, None]  # never to the one that led straight back, again


# -- parts of the run that fail -------------------------------------------------------------------


class Moody:
    """A part whose state can be taken at times."""

    well = True

    def state_dict(self) -> dict[str, int]:
        if not self.well:
            raise RuntimeError("not now")
        return {}

    def load_state_dict(self, state: Any) -> None: ...


def test_a_part_that_fails_costs_a_checkpoint_and_not_the_run(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        part = Moody()
        run.ops.attach(extra={"part": part})
        run.well(1, 19)
        part.well = False
        told = run.ops.on_training_step(20, WELL)
        assert told["checkpoint_path"] is None
        assert any("checkpoint failed" in e and "not now" in e for e in told["events"])
        told = run.ops.on_training_step(21, BROKEN)
        assert told["rollback_path"] is None
        assert any("rollback failed" in e and "not now" in e for e in told["events"])
        part.well = True
        assert run.ops.on_training_step(22, BROKEN)["restored_step"] == 10


def test_weights_that_cannot_be_gathered_cost_a_checkpoint_and_not_the_run(tmp_path: Path) -> None:
    def gather() -> dict[str, Any]:
        raise RuntimeError("a peer is gone")

    config = CheckpointConfig(save_interval_steps=1)
    with OperationsManager(tmp_path, checkpoint_config=config) as ops:
        assert "a peer is gone" in ops.on_training_step(1, WELL, gather)["events"][0]
        ops.checkpoint_config.on_save_error = "raise"
        with pytest.raises(SaveFailed, match="a peer is gone"):
            ops.on_training_step(2, WELL, gather)


def test_a_commit_that_fails_at_its_very_end_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    store = CheckpointStore(tmp_path, writer="none")
    monkeypatch.setattr(manifest, "sync_folder", broken)
    with pytest.raises(SaveFailed, match="Input/output error"):
        store.save(1, {"model": {"w": torch.ones(1)}})
    store.close()
    assert list(tmp_path.glob("step*")) == []


def fail(*args: object) -> None:
    raise SaveFailed("no space")


def test_a_last_checkpoint_that_fails_after_the_last_step_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "save", fail)
    with caplog.at_level(logging.WARNING), OperationsManager(tmp_path) as ops:
        ops.on_training_step(1, WELL)
        ops.save({"w": torch.ones(1)})
    assert [record.getMessage() for record in caplog.records] == ["checkpoint failed: no space"]


def test_a_retune_without_a_checkpoint_of_before_is_refused_as_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run(tmp_path) as run:
        run.ops.checkpoint_config.async_save = True
        run.well(1, 1)
        monkeypatch.setattr(files, "save", fail)
        with pytest.raises(SaveFailed):
            run.on_trial(3.0)
        assert run.ops.trial is None
        assert run.rate == 0.1


# -- retunes and rollbacks ------------------------------------------------------------------------


@pytest.mark.parametrize(("rating", "rate"), [(5.0, 0.05), (1.0, 0.1)], ids=["kept", "reverted"])
def test_a_rollback_undoes_no_verdict_of_the_users(
    tmp_path: Path, rating: float, rate: float
) -> None:
    with Run(tmp_path, retuning_config=RetuningConfig(min_feedback=5, max_feedback=10)) as run:
        run.well(1, 24)
        run.on_trial(mean=3.0)
        if rating == 1.0:  # back to a checkpoint of the trial; else to one of before it
            run.well(25, 50)
        run.rated(rating)
        run.well(51, 51)
        assert run.ops.trial is None
        assert run.rate == rate
        assert run.ops.on_training_step(52, BROKEN)["rollback_path"] is not None
        assert run.rate == rate


def test_a_learning_rate_that_no_checkpoint_brought_back_is_not_scaled_twice(
    tmp_path: Path,
) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = CheckpointConfig(save_interval_steps=10, async_save=False)
    with OperationsManager(tmp_path, checkpoint_config=config) as ops:
        ops.attach(model=model)
        for step in range(1, 45):
            ops.on_training_step(step, WELL)
        ops.attach(optimizer=optimizer)
        for step in range(45, 48):
            result = ops.on_training_step(step, BROKEN)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * result["lr_scale"])
    assert result["lr_scale"] == 0.25


# -- gradients, schedules, generators -------------------------------------------------------------


@pytest.mark.parametrize("value", [1.0, math.nan])
def test_the_guard_looks_into_sparse_gradients(value: float) -> None:
    model = torch.nn.Embedding(4, 2, sparse=True)
    guard = GradientGuard(optimizer := torch.optim.SGD(model.parameters(), lr=0.1))
    before = model.weight.detach().clone()
    (model(torch.tensor([1, 1])).sum() * value).backward()
    optimizer.step()
    assert guard.dropped == math.isnan(value)
    assert torch.isfinite(model.weight).all()
    assert torch.equal(model.weight, before) == math.isnan(value)


@pytest.mark.parametrize(("odd", "dropped"), [(3000.0, 0), (math.inf, 1), (math.nan, 1)])
def test_a_norm_beyond_half_precision_is_no_broken_gradient(odd: float, dropped: int) -> None:
    weights = torch.nn.Parameter(torch.ones(1000, dtype=torch.float16))
    guard = GradientGuard(optimizer := torch.optim.SGD([weights], lr=1e-6))
    weights.grad = torch.full_like(weights, 3000.0)
    weights.grad[7] = odd
    optimizer.step()
    assert guard.dropped == dropped


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_one_broken_gradient_of_any_precision_drops_them_all(bad: int) -> None:
    kinds = (torch.bfloat16, torch.float32, torch.float64)
    weights = [torch.nn.Parameter(torch.ones(3, dtype=kind)) for kind in kinds]
    groups = [{"params": [each], "lr": 0.1} for each in weights]
    idle = torch.nn.Parameter(torch.ones(1))  # never has a gradient
    GradientGuard(optimizer := torch.optim.SGD([*groups, {"params": [idle], "lr": 1.0}]))
    for number, each in enumerate(weights):
        each.grad = torch.ones_like(each)
        if number == bad:
            each.grad[1] = math.inf
    optimizer.step()
    assert all(bool((each == 1).all()) for each in weights)


def test_schedules_inside_a_schedule_know_the_scale_too() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    parts: list[Any] = [lr_scheduler.LambdaLR(optimizer, lambda step: 1.0) for _ in range(2)]
    schedule = lr_scheduler.SequentialLR(optimizer, parts, milestones=[2])
    LearningRates([schedule]).scale(0.5)
    for _ in range(4):
        optimizer.step()
        schedule.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_a_run_of_two_gpus_resumes_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = state.rng_state()
    taken["cuda"] = [torch.zeros(8), torch.ones(8)]
    put: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", put.extend)
    state.set_rng_state(taken)
    assert len(put) == 1


def test_what_cannot_be_read_is_no_checkpoint_error_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "step_000000001_000.json").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        manifest.read_manifest(tmp_path / "step_000000001_000.pt")


def test_a_resumed_schedule_of_schedules_passes_its_milestones(tmp_path: Path) -> None:
    def rates(folder: Path, first: int, last: int) -> list[float]:
        with Run(folder) as run:
            parts: list[Any] = [
                lr_scheduler.LinearLR(run.optimizer, total_iters=5),
                lr_scheduler.MultiStepLR(run.optimizer, [3, 6]),
            ]
            schedule = lr_scheduler.SequentialLR(run.optimizer, parts, milestones=[12])
            run.ops.attach(extra={"schedule": schedule})
            assert (run.ops.resume() is None) == (first == 1)
            found = []
            for step in range(first, last + 1):
                run.optimizer.step()
                schedule.step()
                run.ops.on_training_step(step, WELL)
                found.append(run.rate)
            return found

    whole = rates(tmp_path / "whole", 1, 20)
    assert rates(tmp_path / "parts", 1, 10) + rates(tmp_path / "parts", 11, 20) == whole


def test_a_mask_of_infinities_is_no_reason_not_to_save(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        run.model.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))
        run.ops.attach(model=run.model)
        assert run.well(1, 10) == [10]
        with torch.no_grad():
            run.model.weight.fill_(math.inf)
        told = run.ops.on_training_step(20, WELL)
        assert told["checkpoint_path"] is None
        assert "state.model.weight is not finite" in " ".join(told["events"])
