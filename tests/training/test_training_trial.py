"""A retune on trial: set, watched, kept or taken back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from training import (
    CheckpointConfig,
    LearningScheduleConfig,
    OperationsManager,
    PPOTrainer,
    RetuningConfig,
    Suggestions,
    TrialRejected,
)

torch = pytest.importorskip("torch")


class Run:
    """A trainer under a manager, a thousand steps in."""

    def __init__(self, folder: Path, **retuning: Any) -> None:
        self.trainer = PPOTrainer(state_dim=4, action_dim=2, seed=1, hidden=8)
        self.ops = OperationsManager(
            folder,
            schedule_config=LearningScheduleConfig(entropy_decay_type="constant"),
            checkpoint_config=CheckpointConfig(save_interval_steps=100, async_save=False),
            retuning_config=RetuningConfig(**retuning),
        )
        self.now = 0

    def attach(self) -> Run:
        self.ops.attach(
            model=self.trainer.network,
            optimizer=self.trainer.optimizer,
            hyperparameters=self.trainer,
        )
        return self

    def step(self, **metrics: float) -> dict[str, Any]:
        self.now += 1
        result = self.ops.on_training_step(self.now, {"loss": 1.0, "reward": 10.0, **metrics})
        self.trainer.entropy_coef = result["entropy_coef"]
        return result

    def rate(self, mean: float, count: int = 100, spread: float = 0.4) -> Suggestions | None:
        found = None
        for number in range(count):
            rating = mean + (spread if number % 2 else -spread)
            vote = {"rating": rating, "user_id": f"u{number}", "formula_id": f"F{self.now}"}
            found = self.ops.on_user_feedback(vote) or found
        return found

    def retuned(self, mean: float = 2.0, **suggested: float) -> dict[str, Any]:
        suggestions = self.rate(mean)
        assert suggestions is not None
        suggestions.update(suggested)
        self.ops.apply(suggestions, force=True)
        return self.step()


@pytest.fixture
def run(tmp_path: Path) -> Any:
    run = Run(tmp_path).attach()
    for _ in range(150):
        run.step()
    yield run
    run.ops.close()


def test_a_retune_is_set_and_outlives_the_schedule(run: Run) -> None:
    assert run.trainer.entropy_coef == 0.01
    result = run.retuned(learning_rate=1e-4)
    assert result["entropy_coef"] == pytest.approx(0.02)
    assert run.step()["entropy_coef"] == pytest.approx(0.02)
    assert run.trainer.learning_rate == 1e-4
    assert result["events"] == [
        "on trial: learning_rate 0.0003 -> 0.0001, entropy_coef 0.01 -> 0.02"
    ]
    trial = run.ops.trial
    assert trial is not None
    assert (trial.n, trial.policy_version) == (100, 1)
    assert trial.mean == pytest.approx(2.0)
    assert Path(str(trial.snapshot)).exists()


def test_ratings_that_are_better_keep_it(run: Run) -> None:
    run.retuned()
    run.rate(3.5)
    result = run.step()
    assert result["events"][0].startswith("trial kept: surely not worse")
    assert run.ops.trial is None
    assert run.step()["entropy_coef"] == pytest.approx(0.02)
    assert run.ops.retuning.count == 100  # they are what the next retune is judged by


def test_ratings_that_are_worse_take_everything_back(run: Run) -> None:
    before = {k: v.clone() for k, v in run.trainer.network.state_dict().items()}
    run.retuned(2.9, entropy_coef=0.02, learning_rate=1e-4)
    with torch.no_grad():
        for parameter in run.trainer.network.parameters():
            parameter.add_(1.0)
    run.rate(1.5)
    result = run.step()
    assert result["events"][0].startswith("trial reverted: surely worse")
    assert result["restored"] == ["model", "optimizer"]
    after = run.trainer.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert run.trainer.learning_rate == 3e-4
    assert run.step()["entropy_coef"] == 0.01


def test_ratings_that_say_nothing_are_waited_for_until_the_buffer_is_full(run: Run) -> None:
    run.retuned(2.5)
    run.rate(2.5, 299, spread=1.0)
    assert run.step()["events"] == []
    assert run.ops.trial is not None
    run.rate(2.6, 300, spread=1.0)
    (told,) = run.step()["events"]
    assert told.startswith("trial kept: not worse")


def test_an_anomaly_takes_it_back(run: Run) -> None:
    run.retuned(learning_rate=1e-4)
    result = run.step(loss=math.nan)
    assert result["rollback_path"]
    assert any("trial reverted: training turned anomalous" in e for e in result["events"])
    assert run.trainer.learning_rate == 3e-4
    assert run.step()["entropy_coef"] == 0.01
    assert run.ops.trial is None


def test_one_at_a_time_and_only_when_sure(run: Run) -> None:
    suggestions = run.rate(2.9)
    assert suggestions is not None
    assert not suggestions.should_apply
    with pytest.raises(TrialRejected, match="not clear enough"):
        run.ops.apply(suggestions)
    run.ops.apply(suggestions, force=True)
    with pytest.raises(TrialRejected, match="one at a time"):
        run.ops.apply(suggestions, force=True)


def test_a_sick_run_is_not_retuned(run: Run) -> None:
    suggestions = run.rate(2.0)
    assert suggestions is not None
    assert suggestions.should_apply
    run.step(loss=math.nan)
    with pytest.raises(TrialRejected, match="anomalous"):
        run.ops.apply(suggestions)


def test_values_move_by_a_factor_of_two_or_three_and_never_the_wrong_way(run: Run) -> None:
    run.trainer.learning_rate = 3e-3
    run.trainer.clip_epsilon = 0.05
    suggestions = run.rate(2.0)
    assert suggestions is not None
    suggestions.clear()
    suggestions["clip_epsilon"] = 0.1  # the clip range is narrower already
    with pytest.raises(TrialRejected, match="nothing to change"):
        run.ops.apply(suggestions, force=True)
    suggestions.update(learning_rate=1e-4, entropy_coef=0.5)
    trial = run.ops.apply(suggestions, force=True)
    assert trial.new == {"learning_rate": pytest.approx(1e-3), "entropy_coef": 0.02}
    assert run.trainer.clip_epsilon == 0.05


def test_a_trial_survives_the_process(run: Run, tmp_path: Path) -> None:
    run.retuned(2.9, learning_rate=1e-4)
    for _ in range(100):
        run.step()
    run.ops.close()
    other = Run(tmp_path).attach()
    with other.ops as ops:
        back = ops.resume()
        assert back is not None
        other.now = back["step"]
        assert ops.trial is not None
        assert other.trainer.learning_rate == 1e-4
        assert other.step()["entropy_coef"] == pytest.approx(0.02)
        other.rate(1.5)
        assert any("trial reverted" in event for event in other.step()["events"])
        assert other.trainer.learning_rate == 3e-4
        assert other.step()["entropy_coef"] == 0.01


def test_setters_and_late_ratings(tmp_path: Path) -> None:
    values = {"clip_epsilon": 0.2}
    with OperationsManager(tmp_path) as ops:
        ops.attach(
            hyperparameters={
                "clip_epsilon": (
                    lambda: values["clip_epsilon"],
                    lambda value: values.__setitem__("clip_epsilon", value),
                )
            }
        )
        ops.on_training_step(1, {"loss": 1.0, "reward": 1.0})
        for number in range(100):
            vote = {"rating": 4.9, "user_id": f"u{number}", "formula_id": "F"}
            suggestions = ops.on_user_feedback(vote)
        assert suggestions is not None
        trial = ops.apply(suggestions)
        assert (values, trial.snapshot) == ({"clip_epsilon": 0.1}, None)
        # Someone who rates what an earlier policy made is heard no longer.
        ops.on_user_feedback({"rating": 1.0, "policy_version": 0})
        assert ops.retuning.count == 0
        ops.on_user_feedback({"rating": 4.0, "policy_version": 1})
        assert ops.retuning.count == 1
