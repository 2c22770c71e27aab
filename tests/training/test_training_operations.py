"""The facade: what every step reports, and what it survives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from training import (
    CheckpointConfig,
    CheckpointError,
    LearningScheduleConfig,
    OperationsManager,
    OperationsMetricsCollector,
)

torch = pytest.importorskip("torch")
prometheus = pytest.importorskip("prometheus_client")

KEYS = {
    "entropy_coef",
    "metrics",
    "checkpoint_path",
    "anomaly",
    "rollback_path",
    "restored",
    "restored_step",
    "lr_scale",
    "halt",
    "events",
    "should_downshift",
    "current_ttl",
}
CALM = {"loss": 1.0, "reward": 10.0}


def saving(**config: Any) -> CheckpointConfig:
    return CheckpointConfig(save_interval_steps=10, async_save=False, **config)


@pytest.fixture
def ops(tmp_path: Path) -> Any:
    with OperationsManager(tmp_path, checkpoint_config=saving()) as manager:
        yield manager


@pytest.mark.parametrize(
    "metrics",
    [
        CALM,
        {},
        None,
        {"loss": math.nan},
        {"reward": math.inf, "loss": -math.inf},
        {"reward": "ten", "loss": [1, 2], 3: None},
        {"loss": torch.tensor(1.0, requires_grad=True), "reward": torch.tensor([[2.0]])},
        {"loss": torch.tensor([1.0, 2.0]), "reward": 10**400},
        {"reward": 1e300},
    ],
)
def test_every_key_is_always_there(ops: Any, metrics: Any) -> None:
    state = {"weight": torch.zeros(2)}
    for step in range(1, 25):
        result = ops.on_training_step(step, metrics, state)
        assert type(result) is dict
        assert result.keys() == KEYS
        found = result["metrics"]
        assert type(found) is dict
        assert {"normalized_reward", "reward_mean", "reward_std"} <= found.keys()
        assert all(math.isfinite(found[k]) for k in ("normalized_reward", "reward_std"))
        assert all(isinstance(event, str) for event in result["events"])
    assert set(metrics or {}).isdisjoint({"normalized_reward"})


def test_a_zero_dimensional_tensor_is_a_number(ops: Any) -> None:
    result = {}
    for step in range(1, 25):
        metrics = {"loss": torch.tensor(1.0), "reward": torch.tensor(10.0, requires_grad=True)}
        result = ops.on_training_step(step, metrics)
    assert result["metrics"]["reward_mean"] == 10.0
    assert ops.on_training_step(25, {"loss": torch.tensor(5.0)})["anomaly"].kind == "loss_spike"


def test_switched_off_it_does_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "never"
    with OperationsManager(folder, enable_all_features=False) as ops:
        ops.attach(model=torch.nn.Linear(1, 1))
        for step in range(0, 2_000, 500):
            result = ops.on_training_step(step, {"loss": math.nan}, lambda: pytest.fail("asked"))
            assert result.keys() == KEYS
            assert (result["anomaly"], result["checkpoint_path"], result["events"]) == (
                None,
                None,
                [],
            )
            assert (result["should_downshift"], result["current_ttl"]) == (False, 3600)
        for _ in range(5):
            ops.on_llm_failure("qwen")
        ops.on_llm_success("qwen")
        assert not ops.circuit_breaker.should_use_downshift()
        assert ops.on_user_feedback({"rating": "nonsense"}) is None
    assert not folder.exists()


def test_the_state_is_asked_for_on_saving_steps_only(ops: Any) -> None:
    asked: list[int] = []
    for step in range(1, 36):

        def state(step: int = step) -> dict[str, Any]:
            asked.append(step)
            return {"weight": torch.zeros(1)}

        ops.on_training_step(step, CALM, state)
    assert asked == [10, 20, 30]


def test_a_flagged_step_is_not_saved_and_the_next_one_is(ops: Any) -> None:
    state = {"weight": torch.zeros(1)}
    for step in range(1, 10):
        ops.on_training_step(step, CALM, state)
    flagged = ops.on_training_step(10, {"loss": math.nan, "reward": 10.0}, state)
    assert flagged["checkpoint_path"] is None
    assert "checkpoint skipped: this step is flagged" in flagged["events"]
    assert ops.on_training_step(11, CALM, state)["checkpoint_path"]


def test_a_state_that_is_not_finite_is_not_saved(ops: Any) -> None:
    broken = {"weight": torch.tensor([math.nan])}
    result = ops.on_training_step(10, CALM, broken)
    assert result["checkpoint_path"] is None
    assert any("not finite" in event for event in result["events"])
    assert ops.store.paths() == []


def test_steps_may_go_back(ops: Any) -> None:
    state = {"weight": torch.zeros(1)}
    for step in range(1, 31):
        ops.on_training_step(step, CALM, state)
    back = ops.on_training_step(12, CALM, state)
    assert back["events"] == ["step went back from 30 to 12"]
    assert back["checkpoint_path"] is None
    assert ops.on_training_step(12, CALM, state)["events"] == []
    assert ops.on_training_step(20, CALM, state)["checkpoint_path"]


@pytest.mark.parametrize("how", ["warn", "raise"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, how: str) -> None:
    (tmp_path / "file").write_text("in the way")
    config = saving(on_save_error=how)
    with OperationsManager(tmp_path / "file" / "x", checkpoint_config=config) as ops:
        state = {"weight": torch.zeros(1)}
        if how == "raise":
            with pytest.raises(CheckpointError):
                ops.on_training_step(10, CALM, state)
        else:
            result = ops.on_training_step(10, CALM, state)
            assert any(event.startswith("checkpoint failed") for event in result["events"])
            assert ops.on_training_step(11, CALM, state)["anomaly"] is None


def test_two_managers_in_one_folder(tmp_path: Path) -> None:
    state = {"weight": torch.zeros(1)}
    with OperationsManager(tmp_path, checkpoint_config=saving()) as one:
        assert one.on_training_step(10, CALM, state)["checkpoint_path"]
        with OperationsManager(tmp_path, checkpoint_config=saving()) as two:
            result = two.on_training_step(10, CALM, state)
            assert any("another manager" in event for event in result["events"])


def test_the_collector_hears_of_everything(tmp_path: Path) -> None:
    registry = prometheus.CollectorRegistry()
    collector = OperationsMetricsCollector(registry)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def value(name: str, **labels: str) -> float:
        return registry.get_sample_value(f"operations_{name}", labels) or 0.0

    config = saving()
    with OperationsManager(tmp_path, checkpoint_config=config, metrics=collector) as ops:
        ops.attach(model=model, optimizer=optimizer)
        for step in range(1, 31):
            ops.on_training_step(step, CALM)
        assert value("checkpoint_blocking_seconds_count") == 3
        assert value("checkpoint_persist_seconds_count") == 3
        assert value("checkpoint_blocking_seconds_sum") > 0
        model(torch.full((1, 2), math.nan)).sum().backward()
        optimizer.step()
        ops.on_training_step(31, {"loss": math.nan, "reward": 10.0})
        assert value("updates_dropped_total") == 1
        assert value("anomalies_total", kind="non_finite", acts="true") == 1
        assert value("rollbacks_total", reason="non_finite") == 0
        for step in range(32, 35):
            result = ops.on_training_step(step, {"loss": 1.0, "reward": math.nan})
        assert value("rollbacks_total", reason="non_finite") == 2
        assert "halt: no checkpoint is left to return to" in result["events"]
        assert value("halts_total") == 1
        assert value("lr_scale") == 0.5
        assert value("entropy_coef") == pytest.approx(0.01, rel=1e-3)
        for _ in range(4):
            ops.on_llm_failure("qwen")
        ops.on_training_step(36, CALM)
        ops.on_training_step(37, CALM)
        labels = {"service": "llm", "from_mode": "creative", "to_mode": "balanced"}
        assert value("circuit_breaker_downgrades_total", **labels) == 1


@pytest.mark.parametrize("loss", ["abc", torch.ones(3), object()])
def test_a_loss_that_is_no_number_is_told_of_once(ops: Any, loss: Any) -> None:
    told = [ops.on_training_step(step, {**CALM, "loss": loss})["events"] for step in range(1, 4)]
    assert [len(events) for events in told] == [1, 0, 0]
    assert "loss is not judged" in told[0][0]
    assert ops.on_training_step(4, {**CALM, "note": "words are welcome"})["events"] == []
    assert ops.on_training_step(5, {**CALM, "approx_kl": None})["events"] == []


@pytest.mark.parametrize("name", ["model", "optimizer", "scheduler"])
def test_a_part_that_cannot_be_saved_is_refused_at_once(ops: Any, name: str) -> None:
    model = torch.nn.Linear(2, 2)
    parts: dict[str, Any] = {"model": model, "extra": {}}
    (parts["extra"] if name == "scheduler" else parts)[name] = 42
    with pytest.raises(TypeError, match=rf"attach\({name}=.*int has no state_dict"):
        ops.attach(**parts)
    assert ops.attach(model=model).on_training_step(10, CALM)["checkpoint_path"]


def test_saved_when_asked_for_whatever_the_interval(ops: Any) -> None:
    model = torch.nn.Linear(2, 2)
    ops.attach(model=model)
    assert ops.save() is None, "no step yet"
    ops.on_training_step(3, CALM)
    path = ops.save()
    assert path is not None
    assert ops.save() == path
    assert ops.store.paths() == [path]
    ops.on_training_step(4, {**CALM, "loss": math.nan})
    assert ops.save() is None, "a flagged step is not saved"


@pytest.mark.parametrize("name", ["window_scale", "return_scale"])
def test_rewards_are_scaled_as_chosen_and_a_resume_goes_on(tmp_path: Path, name: str) -> None:
    def scores(ops: OperationsManager, steps: range) -> list[float]:
        rewards = [10.0 + step % 7 for step in steps]
        return [
            ops.on_training_step(step, {"loss": 1.0, "reward": reward})["metrics"][
                "normalized_reward"
            ]
            for step, reward in zip(steps, rewards, strict=True)
        ]

    def manager(folder: str) -> OperationsManager:
        return OperationsManager(
            tmp_path / folder, schedule_config=LearningScheduleConfig(reward_normalizer=name)
        )

    with manager("whole") as ops:
        whole = scores(ops, range(1, 41))
    assert all(0 < score <= 10 for score in whole[1:]), "scaled, not centred"
    with manager("first") as first, manager("second") as second:
        begun = scores(first, range(1, 21))
        second.load_state_dict(first.state_dict())
        assert begun + scores(second, range(21, 41)) == whole
