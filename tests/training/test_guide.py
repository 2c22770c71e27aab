"""The owner's operations guide, run as it is written (import paths aside), with its numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training import (
    CheckpointConfig,
    CircuitBreakerConfig,
    LearningScheduleConfig,
    OperationsManager,
    PPOTrainer,
)

ROOT = Path(__file__).resolve().parents[2]


class ManualClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Fragrances:
    """An environment with 40 numbers to see and 60 things to do: the 7th is always right."""

    def reset(self, *, seed: int | None = None) -> tuple[list[float], dict[str, Any]]:
        self.left = 16
        return [0.1] * 40, {}

    def step(self, action: int) -> tuple[list[float], float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return [0.1] * 40, float(action == 7), self.left == 0, False, {}


@pytest.fixture
def ops_manager(tmp_path: Path) -> Any:
    with OperationsManager(checkpoint_dir=str(tmp_path / "checkpoints")) as manager:
        yield manager


@pytest.fixture
def trainer() -> PPOTrainer:
    return PPOTrainer(state_dim=40, action_dim=60, seed=1)


def test_the_learning_loop_decays_entropy(ops_manager: Any, trainer: PPOTrainer) -> None:
    found = {}
    for step in range(0, 12001, 500):
        result = ops_manager.on_training_step(
            step=step,
            metrics={"loss": 0.5, "reward": 10.0},
            model_state=trainer.network.state_dict(),
        )
        trainer.entropy_coef = result["entropy_coef"]
        found[step] = trainer.entropy_coef
    assert found[0] == 0.01
    assert found[5000] == 0.0055
    assert found[10000] == found[12000] == 0.001


def test_rewards_are_normalized_over_a_thousand_steps(ops_manager: Any) -> None:
    for step in range(1500):
        metrics = {"loss": 0.5, "reward": float(step % 10)}
        result = ops_manager.on_training_step(step, metrics)
    assert result["metrics"]["normalized_reward"] == pytest.approx((9 - 4.5) / 2.8722813, abs=1e-6)
    stats = ops_manager.reward_normalizer.get_stats()
    assert stats["mean"] == pytest.approx(4.5)
    assert stats["std"] == pytest.approx(2.8722813)
    assert stats["count"] == 1000
    assert "normalized_reward" not in metrics  # the caller's own dict is left alone


def test_a_checkpoint_every_500_steps_and_five_are_kept(
    ops_manager: Any, trainer: PPOTrainer, tmp_path: Path
) -> None:
    saved = {}
    for step in range(1, 4001):
        result = ops_manager.on_training_step(
            step, {"loss": 0.5, "reward": 10.0}, trainer.network.state_dict
        )
        if result["checkpoint_path"]:
            saved[step] = result["checkpoint_path"]
    ops_manager.flush()
    assert list(saved) == list(range(500, 4001, 500))
    kept = sorted((tmp_path / "checkpoints").glob("*.pt"))
    assert len(kept) == 5
    assert str(kept[-1]) == saved[4000]


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({"loss": 1.0, "reward": 10.0}, ""),
        ({"loss": 0.9999, "reward": 10.0}, ""),
        ({"loss": 2.0, "reward": 10.0}, "loss 2 jumped from 1"),
        ({"loss": 1.9999, "reward": 10.0}, ""),
        ({"loss": 1.0, "reward": 5.0}, "reward 5 fell from 10"),
        ({"loss": 1.0, "reward": 5.0001}, ""),
        ({"loss": float("nan"), "reward": 10.0}, "loss nan is not finite"),
    ],
)
def test_an_anomaly_rolls_back(
    ops_manager: Any, trainer: PPOTrainer, metrics: dict[str, float], told: str
) -> None:
    for step in range(1, 601):
        ops_manager.on_training_step(
            step, {"loss": 1.0, "reward": 10.0}, trainer.network.state_dict
        )
    saved = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    with_noise = next(trainer.network.parameters())
    with_noise.data += 1.0
    result = ops_manager.on_training_step(601, metrics, trainer.network.state_dict)
    assert (told in str(result["anomaly"])) if told else result["anomaly"] is None
    assert bool(result["rollback_path"]) is bool(told)
    if result["rollback_path"]:
        trainer.load_checkpoint(result["rollback_path"])
        for name, value in trainer.network.state_dict().items():
            assert value.equal(saved[name])


def test_three_failures_downshift_for_five_minutes(tmp_path: Path) -> None:
    clock = ManualClock()
    ops_manager = OperationsManager(checkpoint_dir=tmp_path, clock=clock)
    told = []
    for _ in range(3):
        ops_manager.on_llm_failure("qwen")
        told.append(ops_manager.circuit_breaker.should_use_downshift())
    assert told == [False, False, True]
    assert ops_manager.circuit_breaker.get_current_ttl() == 300
    result = ops_manager.on_training_step(1, {"loss": 1.0, "reward": 1.0})
    assert (result["should_downshift"], result["current_ttl"]) == (True, 300)
    clock.now = 299.999
    assert ops_manager.circuit_breaker.should_use_downshift()
    clock.now = 300.0
    assert not ops_manager.circuit_breaker.should_use_downshift()
    ops_manager.on_llm_success("qwen")
    assert ops_manager.circuit_breaker.get_current_ttl() == 3600


def test_a_failed_probe_holds_for_another_five_minutes(tmp_path: Path) -> None:
    clock = ManualClock()
    ops_manager = OperationsManager(checkpoint_dir=tmp_path, clock=clock)
    for _ in range(3):
        ops_manager.on_llm_failure("qwen")
    clock.now = 300.0
    ops_manager.on_llm_failure("qwen")
    assert ops_manager.circuit_breaker.should_use_downshift()
    clock.now = 600.0
    assert not ops_manager.circuit_breaker.should_use_downshift()


def test_a_hundred_ratings_suggest(ops_manager: Any, trainer: PPOTrainer) -> None:
    for number in range(100):
        suggestions = ops_manager.on_user_feedback(
            {
                "rating": 1.0 if number % 5 < 3 else 4.9,
                "user_id": f"user_{number}",
                "formula_id": "F001",
            }
        )
        assert bool(suggestions) is (number == 99)
    assert suggestions == {"entropy_coef": 0.02, "learning_rate": 1e-4}
    trainer.optimizer.param_groups[0]["lr"] = suggestions["learning_rate"]
    trainer.entropy_coef = suggestions["entropy_coef"]
    assert trainer.learning_rate == 1e-4


def test_pleased_users_suggest_keeping_to_it(ops_manager: Any) -> None:
    for number in range(100):
        feedback = {"rating": 4.5, "user_id": f"user_{number}", "formula_id": "F001"}
        suggestions = ops_manager.on_user_feedback(feedback)
    assert suggestions == {"clip_epsilon": 0.1}


def test_the_whole_loop_learns(ops_manager: Any, trainer: PPOTrainer) -> None:
    env = Fragrances()
    rewards = []
    for step in range(12):
        avg_reward = trainer.collect_rollout(env, n_steps=256)
        train_stats = trainer.train_step(n_epochs=10, batch_size=64)
        ops_result = ops_manager.on_training_step(
            step=step,
            metrics={"loss": train_stats["policy_loss"], "reward": avg_reward},
            model_state=trainer.network.state_dict(),
        )
        trainer.entropy_coef = ops_result["entropy_coef"]
        if ops_result["rollback_path"]:
            trainer.load_checkpoint(ops_result["rollback_path"])
        assert ops_result["current_ttl"] == 3600
        rewards.append(avg_reward)
    assert {"policy_loss", "value_loss"} <= train_stats.keys()
    assert rewards[-1] > 5 * max(rewards[0], 0.25)


def test_configs_may_be_assigned_and_changed_at_any_time(ops_manager: Any) -> None:
    ops_manager.schedule_config = LearningScheduleConfig(
        entropy_coef_start=0.02,
        entropy_coef_end=0.0005,
        entropy_decay_type="linear",
        reward_norm_window=2000,
    )
    ops_manager.checkpoint_config = CheckpointConfig(
        save_interval_steps=1000, loss_spike_threshold=1.5, enable_auto_rollback=True
    )
    state = {"weight": __import__("torch").zeros(3)}
    paths = {}
    for step in range(1, 2101):
        result = ops_manager.on_training_step(step, {"loss": 1.0, "reward": 1.0}, state)
        if result["checkpoint_path"]:
            paths[step] = result["checkpoint_path"]
    assert list(paths) == [1000, 2000]
    assert ops_manager.reward_normalizer.get_stats()["count"] == 2000
    at_half = ops_manager.on_training_step(5000, {"loss": 1.5, "reward": 1.0}, state)
    assert at_half["entropy_coef"] == pytest.approx((0.02 + 0.0005) / 2)
    assert "loss 1.5" in str(at_half["anomaly"])
    ops_manager.schedule_config.entropy_coef_end = 0.02
    assert ops_manager.on_training_step(9000, {})["entropy_coef"] == 0.02
    ops_manager.circuit_breaker_config = CircuitBreakerConfig(failure_threshold=1)
    ops_manager.on_llm_failure("qwen")
    assert ops_manager.circuit_breaker.should_use_downshift()


def test_the_simulation_prints_what_the_guide_shows() -> None:
    command = [sys.executable, "-m", "training"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for line in (
        "Step 500: Checkpoint saved",
        "Step 1000: Checkpoint saved",
        "Failure 3: Downshift activated!",
        "✓ Retuning triggered after 100 samples",
        "Suggestions: {'entropy_coef': 0.02, 'learning_rate': 0.0001}",
    ):
        assert line in printed
    assert "Failure 1" not in printed
    assert "Failure 2" not in printed
