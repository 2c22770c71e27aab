"""Lightning's Trainer under operations, real, on one linear layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Facts = dict[str, Any]


@pytest.fixture(scope="module")
def lightning(play: Callable[[str], Facts]) -> Facts:
    return play("lightning_run")


def test_a_step_is_one_of_the_optimizer_not_a_batch(lightning: Facts) -> None:
    assert lightning["calm"]["looked_at"] == [1, 2, 3, 4, 5, 6]  # of twelve batches
    assert lightning["calm"]["anomalies"] == []
    assert {"loss", "reward", "entropy"} <= set(lightning["calm"]["metrics"])


def test_the_entropy_coefficient_reaches_the_module(lightning: Facts) -> None:
    expected = [0.01 - 0.009 * step / 8 for step in range(6)]
    assert lightning["calm"]["entropy_coef"] == pytest.approx(expected)


def test_checkpoints_hold_the_whole_run(lightning: Facts) -> None:
    assert lightning["calm"]["saved"] == [2, 4, 6]
    holds = set(lightning["calm"]["holds"])
    assert {"model", "optimizer", "rng", "ops", "extra.schedule_1"} <= holds
    assert lightning["calm"]["in_the_trainers_checkpoint"] == 6  # the manager's last step


def test_another_trainer_continues_where_the_first_stopped(lightning: Facts) -> None:
    resumed = lightning["resumed"]
    assert resumed["began_at"] == 6
    assert resumed["same_weights"]
    assert resumed["looked_at"] == [7, 8, 9]
    assert resumed["schedule"] == 9


@pytest.mark.parametrize("optimization", ["automatic", "manual"])
def test_a_broken_gradient_never_reaches_the_weights(lightning: Facts, optimization: str) -> None:
    assert not lightning["gradient"]["finite_without"]
    gradient = lightning["gradient"][optimization]
    assert gradient["moved"] == [True, True, False, True, True]
    assert gradient["finite"]
    assert gradient["steps"] == 5
    assert gradient["rollbacks"] == 0
    assert gradient["events"] == ["1 updates with gradients that are not finite were dropped"]


def test_a_collapse_is_rolled_back_in_place_and_the_host_goes_on(lightning: Facts) -> None:
    first, second = lightning["collapse"]["returns"]
    assert (first["step"], first["to"]) == (5, 4)
    assert (second["step"], second["to"]) == (8, 6)
    for back in (first, second):
        assert back["restored"] == ["model", "optimizer"]
        assert back["weights_are_the_saved"]
    assert lightning["collapse"]["steps"] == 10
    assert lightning["collapse"]["last_loss"] < 100.0  # it was a million


def test_the_second_rollback_halves_the_rate_the_scheduler_sets(lightning: Facts) -> None:
    rates = lightning["collapse"]["lr"]
    assert rates[:8] == pytest.approx([1e-3] * 8)
    assert rates[8] == pytest.approx(0.5e-3)
    assert rates[9] == pytest.approx(0.5e-3, rel=0.01)


def test_a_halt_stops_the_host(lightning: Facts) -> None:
    assert lightning["halt"]["steps"] == 6  # of 20
    assert any(event.startswith("halt: ") for event in lightning["halt"]["events"])


def test_when_the_host_dies_the_checkpoint_under_way_is_whole(lightning: Facts) -> None:
    assert lightning["crash"]["died"]
    assert lightning["crash"]["written"] == ["step_000000002_000.pt"]
