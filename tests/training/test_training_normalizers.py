"""Rewards in other scales: sign and zero, outliers, states."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from training import CheckpointConfig, OperationsManager, ReturnScale, WindowScale, WindowZ
from training.normalizers import NORMALIZERS

KINDS = list(NORMALIZERS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_continues_elsewhere(kind: Any) -> None:
    rng = random.Random(1)
    rewards = [rng.gauss(5, 2) for _ in range(2_500)]
    one, two = kind(), kind()
    for number, reward in enumerate(rewards[:1_700]):
        one(reward, done=number % 50 == 49)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert [one(r) for r in rewards[1_700:]] == [two(r) for r in rewards[1_700:]]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_is_not_finite_comes_out_or_stays(kind: Any) -> None:
    found = kind()
    for reward in (1.0, math.nan, math.inf, -math.inf, 1e300, 0.0, 2.0, -1e149):
        assert math.isfinite(found(reward))
    assert math.isfinite(found(1.0))


@pytest.mark.parametrize("kind", [WindowScale, ReturnScale])
def test_what_one_learns_from_keeps_sign_and_zero(kind: Any) -> None:
    rng = random.Random(2)
    found = kind()
    for _ in range(3_000):
        reward = rng.gauss(50, 30)
        scaled = found(reward)
        assert scaled * reward >= 0.0
        assert abs(scaled) <= 10.0
    assert found(0.0) == 0.0


def test_the_owners_moves_the_mean() -> None:
    found = WindowZ(window=100)
    scores = [found(float(n % 10)) for n in range(1_000)][-100:]
    assert sum(scores) == pytest.approx(0.0, abs=1.0)
    assert max(scores) == pytest.approx(1.5666989)


def test_one_outlier_that_has_left_leaves_nothing_behind() -> None:
    found = WindowScale(window=100)
    rng = random.Random(3)
    for _ in range(150):
        found(rng.gauss(0, 1))
    found(1e12)
    last = [found(rng.gauss(0, 1)) for _ in range(300)][-100:]
    assert 0.7 < math.sqrt(sum(x * x for x in last) / 100) < 1.4


def test_returns_are_scaled_as_gymnasium_does() -> None:
    np = pytest.importorskip("numpy")
    rng = random.Random(4)
    found = ReturnScale(gamma=0.9)
    total, returns = 0.0, []
    for number in range(500):
        reward, done = rng.gauss(1, 2), number % 20 == 19
        total = 0.9 * total + reward
        returns.append(total)
        expected = reward / math.sqrt(float(np.var(returns)) + 1e-8)
        assert found(reward, done=done) == pytest.approx(max(-10.0, min(10.0, expected)))
        total = 0.0 if done else total


def test_one_that_is_attached_comes_back_with_the_run(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    config = CheckpointConfig(save_interval_steps=10, async_save=False)
    scale = ReturnScale()
    with OperationsManager(tmp_path, checkpoint_config=config) as ops:
        ops.attach(extra={"reward_scale": scale})
        for step in range(1, 11):
            scale(float(step))
            ops.on_training_step(step, {"loss": 1.0, "reward": 1.0})
    other = ReturnScale()
    with OperationsManager(tmp_path).attach(extra={"reward_scale": other}) as ops:
        back = ops.resume()
        assert back is not None
        assert "reward_scale" in back["restored"]
    assert other.state_dict() == scale.state_dict()
