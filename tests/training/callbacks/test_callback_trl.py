"""Transformers' Trainer and TRL's GRPO under operations, real, on a tiny model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

Facts = dict[str, Any]


@pytest.fixture(scope="module")
def trl(play: Callable[[str], Facts]) -> Facts:
    return play("trl_run")


def test_every_step_is_looked_at_though_every_third_is_logged(trl: Facts) -> None:
    assert trl["calm"]["looked_at"] == [1, 2, 3, 4, 5, 6]
    assert trl["calm"]["anomalies"] == []


def test_checkpoints_hold_the_whole_run(trl: Facts) -> None:
    assert trl["calm"]["saved"] == [2, 4, 6]
    assert {"model", "optimizer", "rng", "ops", "extra.schedule"} <= set(trl["calm"]["holds"])


def test_another_trainer_continues_where_the_first_stopped(trl: Facts) -> None:
    resumed = trl["resumed"]
    assert resumed["began_at"] == 6
    assert resumed["same_weights"]
    assert resumed["looked_at"] == [7, 8, 9]
    assert resumed["schedule"] == 9
    # Averaged over its own three steps, not over nine.
    assert math.isclose(*resumed["losses"], rel_tol=0.1)


def test_a_nan_loss_never_reaches_the_weights_and_the_log_hides_it(trl: Facts) -> None:
    gradient = trl["gradient"]
    assert gradient["moved"] == [True, True, False, True, True]
    assert gradient["finite"]
    assert not gradient["finite_without"]
    assert gradient["logged_losses_are_finite"]  # why the logged loss is not believed
    assert gradient["anomalies"] == []
    assert gradient["steps"] == 5


def test_a_collapse_is_rolled_back_in_place_and_the_host_goes_on(trl: Facts) -> None:
    first, second = trl["collapse"]["returns"]
    assert (first["step"], first["to"]) == (5, 4)
    assert (second["step"], second["to"]) == (8, 6)
    for back in (first, second):
        assert back["restored"] == ["model", "optimizer"]
        assert back["weights_are_the_saved"]
    assert trl["collapse"]["steps"] == 10
    assert trl["collapse"]["last_loss"] < 3.0


def test_the_second_rollback_halves_the_rate_the_scheduler_sets(trl: Facts) -> None:
    assert trl["collapse"]["lr"][:8] == pytest.approx([1e-3] * 8)
    assert trl["collapse"]["lr"][9] == pytest.approx(0.5e-3)


def test_a_halt_stops_the_host(trl: Facts) -> None:
    assert trl["halt"]["steps"] == 6  # of 20
    assert any(event.startswith("halt: ") for event in trl["halt"]["events"])


def test_the_entropy_coefficient_reaches_grpos_loss(trl: Facts) -> None:
    assert trl["grpo"]["entropy_coef"] == pytest.approx([0.01 - 0.009 * s / 8 for s in range(7)])
    assert {"loss", "reward", "entropy", "grad_norm"} <= set(trl["grpo"]["metrics"])
    assert trl["grpo"]["saved"] == [2, 4, 6]


def test_fallen_rewards_take_grpo_back_and_its_completions_are_discarded(trl: Facts) -> None:
    (back,) = trl["grpo"]["returns"]
    assert (back["step"], back["to"]) == (5, 4)
    assert back["weights_are_the_saved"]
    assert back["completions_discarded"]
    assert trl["grpo"]["steps"] == 7
