"""Broken gradients never reach the weights, and are told of."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from training import CheckpointConfig, OperationsManager

torch = pytest.importorskip("torch")


def part() -> tuple[torch.nn.Linear, torch.optim.Adam]:
    model = torch.nn.Linear(3, 1)
    return model, torch.optim.Adam(model.parameters(), lr=0.1)


def update(model: torch.nn.Linear, optimizer: torch.optim.Optimizer, value: float) -> None:
    optimizer.zero_grad()
    model(torch.full((2, 3), value)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_dropped(tmp_path: Path, broken: float) -> None:
    model, optimizer = part()
    with OperationsManager(tmp_path).attach(model=model, optimizer=optimizer) as ops:
        update(model, optimizer, 1.0)
        before = [p.clone() for p in model.parameters()]
        moments = optimizer.state[model.weight]["exp_avg"].clone()
        update(model, optimizer, broken)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        assert torch.equal(optimizer.state[model.weight]["exp_avg"], moments)
        result = ops.on_training_step(1, {"loss": 1.0})
        assert result["events"] == ["1 updates with gradients that are not finite were dropped"]
        assert ops.on_training_step(2, {"loss": 1.0})["events"] == []
        update(model, optimizer, 1.0)
        assert not torch.equal(model.weight, before[0])


def test_the_lowest_rung_loses_no_step(tmp_path: Path) -> None:
    model, optimizer = part()
    config = CheckpointConfig(save_interval_steps=10, async_save=False)
    with OperationsManager(tmp_path, checkpoint_config=config) as ops:
        ops.attach(model=model, optimizer=optimizer)
        for step in range(1, 16):
            update(model, optimizer, 1.0)
            ops.on_training_step(step, {"loss": 1.0, "reward": 1.0})
        update(model, optimizer, math.nan)
        result = ops.on_training_step(16, {"loss": math.nan, "reward": 1.0})
        assert result["anomaly"].kind == "non_finite"
        assert result["rollback_path"] is None
        assert "the update was dropped, the weights are as they were" in result["events"]
        # Without an update that was dropped, the weights may be anything.
        assert ops.on_training_step(17, {"loss": math.nan, "reward": 1.0})["rollback_path"]


def test_the_guard_can_be_left_out_and_goes_with_the_manager(tmp_path: Path) -> None:
    model, optimizer = part()
    OperationsManager(tmp_path).attach(optimizer=optimizer, guard=False)
    OperationsManager(tmp_path, enable_all_features=False).attach(optimizer=optimizer)
    OperationsManager(tmp_path).attach(optimizer=optimizer).close()
    update(model, optimizer, math.nan)
    assert bool(torch.isnan(model.weight).all())
