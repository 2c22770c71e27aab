"""What is done about an anomaly: the ladder, its limits, and the way back up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import AnomalyConfig, CheckpointConfig, OperationsManager
from training.anomaly import Anomaly
from training.recovery import RecoveryPolicy

torch = pytest.importorskip("torch")
CALM = {"loss": 1.0, "reward": 10.0}


def anomaly(step: int, kind: str = "reward_drop", metric: str = "reward") -> Anomaly:
    return Anomaly(kind, metric, step, 0.0, 1.0, acts=True)


kinds = st.sampled_from(["reward_drop", "loss_spike", "progress_lost", "non_finite"])
story = st.lists(st.tuples(st.integers(1, 400), kinds, st.booleans()), max_size=60)


@settings(max_examples=150, deadline=None)
@given(story)
def test_the_ladder_as_a_state_machine(events: list[tuple[int, str, bool]]) -> None:
    config = AnomalyConfig(cooldown_steps=100, max_rollbacks=3, rollback_window_steps=2_000)
    policy = RecoveryPolicy(lambda: config)
    restores: list[int] = []
    step, last = 0, ""
    for gap, kind, dropped in events:
        step += gap
        decision = policy.decide(step, anomaly(step, kind, "loss"), dropped=dropped)
        window = [at for at in restores if step - at < 2_000]
        assert not (decision.restore and decision.halt)
        assert decision.restore or decision.why  # it does nothing only with a reason
        assert decision.halt <= (len(window) >= 3)  # halts only after the last rung
        cooling = bool(window) and step - window[-1] < 100
        if decision.restore:
            assert len(window) < 3
            assert kind == "non_finite" or not cooling
            assert decision.lr_factor == (0.5 if window else 1.0)
            again = bool(window) and step - window[-1] <= 100 and kind == last
            assert decision.suspect == (again or len(window) >= 2)
            restores.append(step)
            last = kind
        elif not decision.halt and not dropped:
            assert cooling  # it always leaves cooldown
        if step % 3 == 0:
            policy.load_state_dict(json.loads(json.dumps(policy.state_dict())))


def test_a_dropped_update_needs_no_rollback_unless_they_all_are() -> None:
    policy = RecoveryPolicy(AnomalyConfig)
    found = [policy.decide(s, anomaly(s, "non_finite", "loss"), dropped=True) for s in range(3)]
    assert [decision.restore for decision in found] == [False, False, True]
    reward = anomaly(9_999, "non_finite", "reward")  # that came from no update
    assert RecoveryPolicy(AnomalyConfig).decide(9_999, reward, dropped=True).restore


class Run:
    """A model and an optimizer under a manager that saves every ten steps."""

    def __init__(self, folder: Path, **anomaly: Any) -> None:
        self.model = torch.nn.Linear(2, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.ops = OperationsManager(
            folder,
            checkpoint_config=CheckpointConfig(save_interval_steps=10, async_save=False),
            anomaly_config=AnomalyConfig(**anomaly),
        ).attach(model=self.model, optimizer=self.optimizer)
        self.now = 0

    def calm(self, steps: int) -> dict[str, Any]:
        for _ in range(steps):
            self.now += 1
            result = self.ops.on_training_step(self.now, CALM)
        return result

    def step(self, **metrics: float) -> dict[str, Any]:
        self.now += 1
        return self.ops.on_training_step(self.now, {**CALM, **metrics})

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


def test_the_ladder_to_its_end(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.calm(25)
    with run.ops as ops:
        first = run.step(reward=1.0)
        assert (first["restored_step"], first["lr_scale"], run.lr) == (20, 1.0, 0.1)
        run.calm(120)
        second = run.step(reward=1.0)
        assert (second["restored_step"], second["lr_scale"]) == (140, 0.5)
        assert run.lr == pytest.approx(0.05)
        run.calm(3)
        cooling = run.step(reward=1.0)
        assert cooling["rollback_path"] is None
        assert any("cooling down" in event for event in cooling["events"])
        run.calm(120)
        # The anomaly right after the restore marked 140 suspect; this rung goes past the last one.
        third = run.step(loss=9.0)
        assert third["rollback_path"]
        run.calm(120)
        halted = run.step(loss=9.0)
        assert halted["halt"]
        assert any(event.startswith("halt: 3 rollbacks") for event in halted["events"])
        assert run.step()["halt"]
        assert run.calm(30)["checkpoint_path"] is None
        assert ops.store.paths()


def test_the_same_anomaly_right_after_goes_to_an_older_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.calm(35)
    with run.ops:
        assert run.step(loss=math.nan)["restored_step"] == 30
        second = run.step(loss=math.nan)
        assert second["restored_step"] == 20
        assert run.step(loss=math.nan)["restored_step"] == 10
        assert run.step(loss=math.nan)["halt"]


def test_the_learning_rate_glides_back_over_a_thousand_healthy_steps(tmp_path: Path) -> None:
    run = Run(tmp_path, cooldown_steps=0)
    with run.ops:
        run.calm(15)
        run.step(loss=math.nan)
        run.calm(15)
        assert run.step(loss=math.nan)["lr_scale"] == 0.5
        assert run.calm(500)["lr_scale"] == pytest.approx(0.75)
        assert run.lr == pytest.approx(0.075)
        assert run.calm(500)["lr_scale"] == 1.0
        assert run.lr == pytest.approx(0.1)
        assert run.calm(10)["lr_scale"] == 1.0


def test_a_halt_is_never_silent_and_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.ops:
        result = run.step(loss=math.nan)
        assert result["rollback_path"] is None
        assert "no healthy checkpoint to return to yet" in result["events"]
        for _ in range(5):
            assert not run.step(loss=math.nan)["halt"]  # nothing was carried out, nothing counts
