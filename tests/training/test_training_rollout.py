"""Rollouts: where episodes end, what a time limit hides, where each environment stands."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from training import environments
from training.normalizers import ReturnScale
from training.policy import ActorCritic
from training.rollout import Collector

torch.set_num_threads(1)


class Counting(gym.Env[Any, Any]):
    """Shows [episode, step within it]; ends after `length` steps, by itself or cut off."""

    observation_space = gym.spaces.Box(-1e9, 1e9, (2,), np.float32)

    def __init__(self, length: int = 3, *, cut: bool = False, actions: Any = None) -> None:
        self.length, self.cut = length, cut
        self.episode, self.at = -1, 0
        self.action_space = actions or gym.spaces.Discrete(2)
        self.acted: list[Any] = []

    def _seen(self) -> Any:
        return np.array([self.episode, self.at], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.at = self.episode + 1, 0
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        self.acted.append(action)
        self.at += 1
        over = self.at == self.length
        return self._seen(), float(self.at), over and not self.cut, over and self.cut, {}


class Old:
    """The interface before 0.26: `reset` gives the observation, `step` four things."""

    def __init__(self, *, cut: bool) -> None:
        self.env = Counting(cut=cut)
        self.observation_space, self.action_space = (
            self.env.observation_space,
            gym.spaces.Discrete(2),
        )

    def reset(self) -> Any:
        return self.env.reset()[0]

    def step(self, action: Any) -> Any:
        seen, reward, ended, cut, _ = self.env.step(action)
        return seen, reward, ended or cut, {"TimeLimit.truncated": True} if cut else {}


class Worth(ActorCritic):
    """Values an observation at ten times its step."""

    def value(self, observations: torch.Tensor) -> torch.Tensor:
        return observations[..., 1] * 10.0


def vector(*envs: Any, mode: Any = gym.vector.AutoresetMode.SAME_STEP) -> Any:
    return gym.vector.SyncVectorEnv([lambda env=env: env for env in envs], autoreset_mode=mode)


def forms(*, cut: bool) -> list[Any]:
    return [vector(Counting(cut=cut)), Counting(cut=cut), Old(cut=cut)]


@pytest.mark.parametrize("form", [0, 1, 2])
def test_an_episode_begins_in_the_step_that_ends_the_last(form: int) -> None:
    collector = Collector(forms(cut=False)[form])
    rollout = collector.collect(Worth(2, 2), 7, 0.9)
    shown = rollout.observations[:, 0].tolist()
    assert shown == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0]]
    assert rollout.rewards[:, 0].tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert rollout.dones[:, 0].tolist() == [0, 0, 1, 0, 0, 1, 0]
    assert rollout.values[:, 0].tolist() == [0, 10, 20, 0, 10, 20, 0]
    assert rollout.last_values.tolist() == [10]
    assert list(collector.returns) == [6, 6]
    assert (collector.steps, collector.ended, collector.mean_return()) == (7, 2, 6.0)


@pytest.mark.parametrize("form", [0, 1, 2])
def test_what_a_time_limit_cut_off_is_estimated(form: int) -> None:
    collector = Collector(forms(cut=True)[form])
    rollout = collector.collect(Worth(2, 2), 4, 0.9)
    # The last observation of the episode, [0, 3], is worth 30.
    np.testing.assert_allclose(rollout.rewards[:, 0], [1, 2, 3 + 0.9 * 30, 1])
    assert rollout.dones[:, 0].tolist() == [0, 0, 1, 0]
    assert list(collector.returns) == [6]  # what is counted is what was given


def test_each_environment_of_a_vector_is_its_own() -> None:
    collector = Collector(vector(Counting(2), Counting(3, cut=True)))
    rollout = collector.collect(Worth(2, 2), 4, 1.0)
    np.testing.assert_allclose(rollout.rewards, [[1, 1], [2, 2], [1, 3 + 30], [2, 1]])
    assert rollout.dones.tolist() == [[0, 0], [1, 0], [0, 1], [1, 0]]
    assert list(collector.returns) == [3, 6, 3]


def test_episodes_go_on_from_rollout_to_rollout() -> None:
    collector = Collector(Counting(5))
    first = collector.collect(Worth(2, 2), 3, 0.9)
    second = collector.collect(Worth(2, 2), 3, 0.9)
    assert first.observations[:, 0, 1].tolist() == [0, 1, 2]
    assert second.observations[:, 0, 1].tolist() == [3, 4, 0]
    assert list(collector.returns) == [15]
    collector.collect(Worth(2, 2), 1, 0.9)
    collector.restart()
    third = collector.collect(Worth(2, 2), 1, 0.9)
    assert third.observations[0, 0].tolist() == [2, 0]


def test_the_other_autoreset_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="SAME_STEP"):
        Collector(vector(Counting(), mode=gym.vector.AutoresetMode.NEXT_STEP))


def test_a_gaussian_action_stays_within_bounds_and_the_policy_knows_what_it_drew() -> None:
    env = Counting(actions=gym.spaces.Box(-0.01, 0.01, (2, 3), np.float32))
    torch.manual_seed(0)
    rollout = Collector(env).collect(ActorCritic(2, 6, continuous=True), 8, 0.9)
    assert all(action.shape == (2, 3) and abs(action).max() <= 0.0101 for action in env.acted)
    assert rollout.actions.shape == (8, 1, 6)
    assert rollout.actions.abs().max() > 0.1


def test_choices_that_do_not_begin_at_zero() -> None:
    env = Counting(actions=gym.spaces.Discrete(2, start=5))
    rollout = Collector(env).collect(ActorCritic(2, 2), 16, 0.9)
    assert set(env.acted) == {5, 6}
    assert set(rollout.actions.flatten().tolist()) == {0, 1}


def test_scaled_rewards_are_learned_from_and_plain_ones_are_told() -> None:
    collector = Collector(vector(Counting(), Counting()), normalizer=ReturnScale)
    rollout = collector.collect(Worth(2, 2), 6, 0.9)
    by_hand = ReturnScale()
    wanted = [by_hand(r, done=r == 3) for r in (1.0, 2.0, 3.0, 1.0, 2.0, 3.0)]
    np.testing.assert_allclose(rollout.rewards[:, 0], wanted, rtol=1e-6)
    assert list(collector.returns) == [6] * 4


# -- where environments stand --------------------------------------------------------------------

CLASSIC = ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0"]


@pytest.mark.parametrize("env_id", CLASSIC)
def test_an_environment_goes_on_where_it_was_taken(env_id: str) -> None:
    torch.manual_seed(1)
    here = environments.make(env_id, 2)
    network = ActorCritic(**environments.spaces(here))
    collector = Collector(here, seed=3)
    collector.collect(network, 60, 0.99)
    assert collector.exact
    saved = json.loads(json.dumps(collector.state_dict()))
    generator = torch.get_rng_state()
    wanted = collector.collect(network, 250, 0.99)  # past a time limit, for some

    there = Collector(environments.make(env_id, 2), seed=99)
    there.load_state_dict(saved)
    torch.set_rng_state(generator)
    found = there.collect(network, 250, 0.99)
    for name in wanted.__slots__:
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert list(there.returns) == list(collector.returns)
    assert (there.steps, there.ended) == (collector.steps, collector.ended)
    for one, other in zip(here.envs, there.env.envs, strict=True):
        assert one.np_random.bit_generator.state == other.np_random.bit_generator.state


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        2**127 + 1,
        -(2**70),
        0.1,
        float("inf"),
        "text",
        (1, (2.5, None)),
        [np.float32(0.1), {"a": (1,)}],
        np.array([[0.1, np.nan], [np.inf, -0.0]], np.float32),
        np.arange(3, dtype=np.uint8),
        np.float64(1 / 3),
        np.bool_(True),
        np.zeros((0, 2)),
    ],
)
def test_data_comes_back_as_it_was(value: Any) -> None:
    back = environments.decoded(json.loads(json.dumps(environments.encoded(value))))
    assert type(back) is type(value)
    np.testing.assert_equal(back, value)
    if isinstance(value, (np.ndarray, np.generic)):
        assert back.dtype == value.dtype
        assert back.tobytes() == value.tobytes()


def test_a_generator_goes_on_where_it_was() -> None:
    generator = np.random.default_rng(5)
    generator.normal(size=7)
    back = environments.decoded(json.loads(json.dumps(environments.encoded(generator))))
    assert back.normal(size=9).tolist() == generator.normal(size=9).tolist()


@pytest.mark.parametrize(
    "saved", [["code", "x"], ["generator", ["dict", {"bit_generator": ["plain", "os"]}]]]
)
def test_what_is_no_data_is_refused(saved: list[Any]) -> None:
    with pytest.raises(ValueError, match="unknown"):
        environments.decoded(saved)
    with pytest.raises(TypeError):
        environments.encoded(object())


def test_what_cannot_be_kept_begins_new_episodes() -> None:
    env = Counting(5)
    env.engine = object()  # type: ignore[attr-defined]
    collector = Collector(env)
    collector.collect(Worth(2, 2), 7, 0.9)
    assert not collector.exact
    saved = collector.state_dict()
    collector.collect(Worth(2, 2), 1, 0.9)
    collector.load_state_dict(saved)
    rollout = collector.collect(Worth(2, 2), 1, 0.9)
    assert rollout.observations[0, 0, 1].item() == 0
    assert list(collector.returns) == [15]
    assert collector.steps == 8


def test_the_state_of_other_environments_is_refused() -> None:
    saved = Collector(vector(Counting(), Counting())).state_dict()
    with pytest.raises(ValueError, match="it is of 2 environments, here are 1"):
        Collector(vector(Counting())).load_state_dict(saved)


class Odd(Counting):
    """Shows NaN at its second step."""

    def _seen(self) -> Any:
        return np.array([self.episode, np.nan if self.at == 2 else self.at], np.float32)


def test_who_is_not_finite_is_named() -> None:
    collector = Collector(vector(Counting(), Odd()))
    network = ActorCritic(2, 2)
    with pytest.raises(ValueError, match="environment 1 gave an observation that is not finite"):
        collector.collect(network, 4, 0.99)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(np.nan)
    collector = Collector(vector(Counting(), Counting()))
    with pytest.raises(ValueError, match="network's output is not finite"):
        collector.collect(network, 4, 0.99)
