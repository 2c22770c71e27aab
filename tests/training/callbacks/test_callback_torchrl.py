"""TorchRL's Trainer under operations, real: PPO on CartPole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Facts = dict[str, Any]


@pytest.fixture(scope="module")
def torchrl(play: Callable[[str], Facts]) -> Facts:
    return play("torchrl_run")


def test_every_batch_is_looked_at(torchrl: Facts) -> None:
    assert torchrl["calm"]["looked_at"] == [1, 2, 3, 4, 5, 6]
    assert torchrl["calm"]["anomalies"] == []
    assert {"loss", "reward", "entropy", "grad_norm"} <= set(torchrl["calm"]["metrics"])


def test_the_entropy_coefficient_reaches_the_loss(torchrl: Facts) -> None:
    expected = [0.01 - 0.009 * batch / 8 for batch in range(6)]
    assert torchrl["calm"]["entropy_coeff"] == pytest.approx(expected)


def test_checkpoints_hold_the_whole_run(torchrl: Facts) -> None:
    assert torchrl["calm"]["saved"] == [2, 4, 6]
    assert {"model", "optimizer", "rng", "ops", "extra.count"} <= set(torchrl["calm"]["holds"])
    assert torchrl["calm"]["in_the_trainers_checkpoint"] == 6


def test_another_trainer_continues_where_the_first_stopped(torchrl: Facts) -> None:
    assert torchrl["resumed"]["same_weights"]
    assert torchrl["resumed"]["frames"] == 6 * 64
    assert torchrl["resumed"]["looked_at"] == [7, 8, 9]


def test_a_broken_gradient_never_reaches_the_weights(torchrl: Facts) -> None:
    gradient = torchrl["gradient"]
    assert (gradient["without"], gradient["finite_without"]) == ("died", False)
    assert gradient["injected"] == 1
    assert gradient["moved"].index(False) == 4
    assert gradient["moved"].count(False) == 1
    assert gradient["finite"]
    assert gradient["batches"] == 4


def test_a_collapse_is_rolled_back_in_place_and_the_host_goes_on(torchrl: Facts) -> None:
    first, second = torchrl["collapse"]["returns"]
    assert (first["step"], first["to"]) == (5, 4)
    assert (second["step"], second["to"]) == (8, 6)
    for number, back in enumerate((first, second), start=1):
        assert back["restored"] == ["model", "optimizer"]
        assert back["weights_are_the_saved"]
        assert back["the_collector_acts_with_them"]
        assert back["episodes_started_anew"] == number
    assert torchrl["collapse"]["batches"] == 10
    assert torchrl["collapse"]["last_loss"] < 100.0
    assert torchrl["collapse"]["lr"] == pytest.approx(0.5e-3, rel=0.01)


def test_a_halt_stops_the_host(torchrl: Facts) -> None:
    assert torchrl["halt"]["batches"] == 6  # of 20
    assert any(event.startswith("halt: ") for event in torchrl["halt"]["events"])
