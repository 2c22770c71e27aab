"""Stable-Baselines3 under operations: PPO and A2C, real, on CartPole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Facts = dict[str, Any]


@pytest.fixture(scope="module")
def sb3(play: Callable[[str], Facts]) -> Facts:
    return play("sb3_run")


def test_every_update_is_looked_at_the_last_one_too(sb3: Facts) -> None:
    assert sb3["calm"]["looked_at"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sb3["calm"]["anomalies"] == []


def test_the_entropy_coefficient_reaches_the_loss(sb3: Facts) -> None:
    expected = [0.01 - 0.009 * update / 8 for update in range(8)]
    assert sb3["calm"]["ent_coef"] == pytest.approx(expected)


def test_checkpoints_hold_the_whole_run(sb3: Facts) -> None:
    assert sb3["calm"]["saved"] == [2, 4, 6, 8]
    assert {"model", "optimizer", "rng", "ops"} <= set(sb3["calm"]["holds"])
    assert {"extra.count", "extra.statistics"} <= set(sb3["calm"]["holds"])


def test_another_process_continues_where_the_first_stopped(sb3: Facts) -> None:
    resumed = sb3["resumed"]
    assert resumed["same_weights"]
    assert resumed["same_moments"]
    assert resumed["same_statistics"]  # of VecNormalize
    assert resumed["timesteps"] == 8 * 128
    assert sb3["continued"]["looked_at"] == [9, 10, 11, 12]
    assert sb3["continued"]["timesteps"] == 12 * 128


def test_a_broken_gradient_never_reaches_the_weights(sb3: Facts) -> None:
    gradient = sb3["gradient"]
    assert gradient["without"] == "ValueError"  # SB3 alone dies of it
    assert gradient["injected"] == 1
    assert gradient["moved"].index(False) == 4
    assert gradient["moved"].count(False) == 1
    assert gradient["finite"]
    assert gradient["updates"] == 4


def test_a_collapse_is_rolled_back_in_place_and_the_host_goes_on(sb3: Facts) -> None:
    first, second = sb3["collapse"]["returns"]
    assert (first["step"], first["to"]) == (5, 4)
    assert (second["step"], second["to"]) == (8, 6)
    for back in (first, second):
        assert back["restored"] == ["model", "optimizer", "statistics"]
        assert back["weights_are_the_saved"]
        assert back["episodes_start_anew"]
        assert back["old_episodes_forgotten"]
    assert sb3["collapse"]["finite"]
    assert sb3["collapse"]["updates"] == 10


def test_the_second_rollback_halves_the_rate_the_schedule_sets(sb3: Facts) -> None:
    rates = sb3["collapse"]["lr"]
    assert rates[:8] == pytest.approx([3e-4] * 8)
    assert rates[8] == pytest.approx(1.5e-4)
    assert rates[9] < 2e-4  # it comes back slowly


def test_what_ratings_suggest_is_set_through_the_schedules(sb3: Facts) -> None:
    clip, rate = sb3["retune"]["clip_epsilon"], sb3["retune"]["learning_rate"]
    assert [used[0] for used in clip] == pytest.approx([0.2, 0.2, 0.1])
    assert [used[1] for used in clip] == pytest.approx([3e-4] * 3)
    assert [used[1] for used in rate] == pytest.approx([3e-4, 3e-4, 1e-4])


def test_a_halt_stops_the_host(sb3: Facts) -> None:
    assert sb3["halt"]["updates"] == 6
    assert sb3["halt"]["timesteps"] <= 6 * 128 + 2  # of twenty rollouts
    assert any(event.startswith("halt: ") for event in sb3["halt"]["events"])


def test_a2c_tells_a_loss_and_sac_is_refused(sb3: Facts) -> None:
    assert sb3["kin"]["updates"] == 4
    assert {"loss", "entropy"} <= set(sb3["kin"]["metrics"])
    assert sb3["kin"]["ent_coef"] == pytest.approx(0.0055)
    assert sb3["kin"]["refused"] == "SAC does not learn from rollouts, as PPO does"
