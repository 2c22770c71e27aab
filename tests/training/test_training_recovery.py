"""What is done about an anomaly: the ladder, its limits, and the way back up."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training import AnomalyConfig, CheckpointConfig, OperationsManager
from training.anomaly import Anomaly
from training.recovery import RecoveryPolicy

torch = pytest.importorskip("torch")
from training.checkpoints.manifest import read_manifest  # noqa: E402

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
    run.calm(35)
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
    run.calm(45)
    with run.ops:
        assert run.step(loss=math.nan)["restored_step"] == 30  # 40 had not proved itself
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
        assert "no checkpoint to return to" in result["events"]
        for _ in range(18):
            assert not run.step(loss=math.nan)["halt"]  # nothing was carried out, nothing counts
        halted = run.step(loss=math.nan)  # but not for ever
        assert halted["halt"]
        assert any(event.startswith("halt: not finite for 20 steps") for event in halted["events"])


# -- probation ----------------------------------------------------------------------------------


def health(run: Run) -> dict[int, str]:
    manifests = [read_manifest(Path(path)) for path in run.ops.store.paths()]
    return {manifest.step: manifest.health for manifest in manifests}


def test_a_checkpoint_is_healthy_once_it_has_proved_itself(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.ops:
        run.calm(19)
        assert health(run) == {10: "candidate"}
        run.calm(1)
        assert health(run) == {10: "healthy", 20: "candidate"}


def test_none_that_lost_what_was_learned_proves_itself(tmp_path: Path) -> None:
    """Each checkpoint on the way down waits, though nothing acts yet; the last good one stays."""
    run = Run(tmp_path, patience=1_000)
    with run.ops:
        for n in range(100):
            run.step(reward=10.0 + n + n % 3, loss=1.0 + n % 5 / 9)
        for n in range(50):
            result = run.step(reward=110.0 - 3 * n + n % 3, loss=1.0 + n % 5 / 9)
            assert result["rollback_path"] is None
        assert max(step for step, state in health(run).items() if state == "healthy") in (90, 100)


def test_where_none_has_proved_itself_the_newest_will_do(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.ops:
        run.calm(15)
        assert run.step(loss=math.nan)["restored_step"] == 10
        run.calm(30)
        assert health(run)[10] == "healthy"


def test_short_intervals_shorten_the_probation(tmp_path: Path) -> None:
    """Five are kept: with one each step none would be left to prove itself."""
    run = Run(tmp_path)
    run.ops.checkpoint_config.save_interval_steps = 1
    with run.ops:
        run.calm(50)
        assert max(step for step, state in health(run).items() if state == "healthy") == 47


def test_probation_goes_on_in_another_process(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.ops:
        run.calm(25)
    again = Run(tmp_path)
    with again.ops:
        found = again.ops.resume()
        assert found is not None
        assert found["step"] == again.now + 20  # the newest, though it is on probation
        again.now = 20
        again.calm(10)
        assert health(again)[20] == "healthy"


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.sampled_from(["calm", "nan", "spike", "fall", "many"]), min_size=1, max_size=12),
    st.sampled_from([0, 5, 10]),
)
def test_a_run_goes_back_halts_or_goes_on_but_never_in_circles(
    story: list[str], probation: int
) -> None:
    """Every checkpoint that is returned to was whole, rollbacks are few, the last one is never
    silently gone: either there is one to return to, or the run has halted, or it never had one."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), probation_steps=probation)
        rollbacks: list[int] = []
        with run.ops as ops:
            for what in story:
                metrics = {
                    "nan": {"loss": math.nan},
                    "spike": {"loss": 9.0},
                    "fall": {"reward": 1.0},
                }
                many = {"many": 40, "calm": 7}.get(what, 1)
                for _ in range(many):
                    result = run.step(**metrics.get(what, {}))
                    if result["rollback_path"]:
                        rollbacks.append(run.now)
                        assert result["restored_step"] < run.now
                        assert torch.isfinite(run.model.weight).all()
                    if result["halt"]:
                        break
                if result["halt"]:
                    break
            assert len(rollbacks) <= 3
            if rollbacks and not result["halt"]:
                assert {"healthy", "candidate"} & set(health(run).values())
            for _ in range(25):
                result = run.step(loss=math.nan)
            assert result["halt"]  # what stays broken ends
            assert all(ops.store.load(path) for path in ops.store.paths())
