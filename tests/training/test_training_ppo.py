"""PPO against numbers worked out by hand, and on edges where it is easily wrong."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from training import PPOTrainer
from training.guard import GradientGuard
from training.rollout import Rollout

torch.set_num_threads(1)


class Still:
    """Shows the same numbers for ever; an episode is `length` steps of reward 1."""

    def __init__(self, shown: int, length: int = 4) -> None:
        self.shown, self.length = shown, length

    def reset(self, *, seed: int | None = None) -> tuple[list[float], dict[str, Any]]:
        self.at = 0
        return [0.5] * self.shown, {}

    def step(self, action: Any) -> tuple[list[float], float, bool, bool, dict[str, Any]]:
        self.at += 1
        return [0.5] * self.shown, 1.0, self.at == self.length, False, {}


def vector(env_id: str, count: int = 2) -> Any:
    mode = gym.vector.AutoresetMode.SAME_STEP
    return gym.vector.SyncVectorEnv([lambda: gym.make(env_id)] * count, autoreset_mode=mode)


# -- advantages --------------------------------------------------------------------------------


def sums(rollout: Rollout, gamma: float, lam: float) -> np.ndarray[Any, Any]:
    """Generalized advantages as the paper writes them: a sum of deltas for each step."""
    steps, envs = rollout.rewards.shape
    found = np.zeros((steps, envs))
    for env in range(envs):
        for start in range(steps):
            weight, total = 1.0, 0.0
            for t in range(start, steps):
                over = bool(rollout.dones[t, env])
                after = rollout.last_values if t == steps - 1 else rollout.values[t + 1]
                value_after = 0.0 if over else float(after[env])
                now = float(rollout.rewards[t, env]) - float(rollout.values[t, env])
                total += weight * (now + gamma * value_after)
                if over:
                    break
                weight *= gamma * lam
            found[start, env] = total
    return found


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_advantages_are_sums_of_deltas_that_stop_where_an_episode_ends(
    gamma: float, lam: float
) -> None:
    random = torch.Generator().manual_seed(7)
    shape = (23, 3)
    rollout = Rollout(
        *[torch.zeros(shape)] * 3,
        values=torch.randn(shape, generator=random),
        rewards=torch.randn(shape, generator=random),
        dones=(torch.rand(shape, generator=random) < 0.2).float(),
        last_values=torch.randn(3, generator=random),
    )
    assert rollout.dones.sum() > 3
    advantages = rollout.advantages(gamma, lam)
    np.testing.assert_allclose(advantages.numpy(), sums(rollout, gamma, lam), atol=1e-5)


def test_one_step_of_one_environment_by_hand() -> None:
    one = torch.ones(1, 1)
    rollout = Rollout(one, one, one, 2.0 * one, 3.0 * one, 0.0 * one, torch.tensor([4.0]))
    assert rollout.advantages(0.5, 0.9).item() == 3.0 + 0.5 * 4.0 - 2.0
    rollout.dones += 1.0
    assert rollout.advantages(0.5, 0.9).item() == 3.0 - 2.0


# -- the loss ----------------------------------------------------------------------------------


def learned(trainer: PPOTrainer, ratios: list[float], **columns: list[float]) -> dict[str, float]:
    """One mini-batch through the trainer, with the old log-probabilities set for these ratios."""
    seen = torch.full((len(ratios), trainer.state_dim), 0.5)
    chosen = torch.zeros(len(ratios), dtype=torch.long)
    with torch.no_grad():
        log_probs = trainer.network.distribution(seen).log_prob(chosen)
        values = trainer.network.value(seen)
    old_values = values + torch.tensor(columns["old_values_off"])
    advantages = torch.tensor(columns["advantages"])
    trainer._rollout = Rollout(
        seen[:, None],
        chosen[:, None],
        (log_probs - torch.tensor(ratios).log())[:, None],
        old_values[:, None],
        # With gamma 0 the advantage is reward - old value, and the return is the reward.
        (advantages + old_values)[:, None],
        torch.ones(len(ratios), 1),
        torch.zeros(1),
    )
    return trainer.train_step(n_epochs=1, batch_size=len(ratios))


def test_the_clipped_surrogate_and_value_loss_are_those_of_the_paper() -> None:
    trainer = PPOTrainer(3, 2, seed=1, gamma=0.0, clip_epsilon=0.2, entropy_coef=0.3, vf_coef=0.7)
    ratios, advantages = [1.5, 1.5, 0.5, 0.5, 1.1], [1.0, -1.0, 2.0, -2.0, 0.5]
    old_values_off = [0.0, 1.0, -1.0, 0.1, 0.0]
    entropy = math.log(2)  # a policy that has learned nothing is all but even
    stats = learned(trainer, ratios, advantages=advantages, old_values_off=old_values_off)

    normal = (np.array(advantages) - np.mean(advantages)) / (np.std(advantages, ddof=1) + 1e-8)
    surrogate = [min(r * a, min(max(r, 0.8), 1.2) * a) for r, a in zip(ratios, normal, strict=True)]
    assert stats["policy_loss"] == pytest.approx(-np.mean(surrogate), abs=1e-5)
    # The value v, the old value v + off, the return v + off + advantage: v falls out.
    errors = []
    for off, advantage in zip(old_values_off, advantages, strict=True):
        kept_near = off + min(max(-off, -0.2), 0.2)
        target = off + advantage
        errors.append(max(target**2, (kept_near - target) ** 2))
    assert stats["value_loss"] == pytest.approx(0.5 * np.mean(errors), abs=1e-5)
    assert stats["entropy"] == pytest.approx(entropy, abs=1e-3)
    whole = stats["policy_loss"] - 0.3 * stats["entropy"] + 0.7 * stats["value_loss"]
    assert stats["loss"] == pytest.approx(whole, abs=1e-5)
    assert stats["clip_fraction"] == pytest.approx(0.8)
    kl = np.mean([(r - 1) - math.log(r) for r in ratios])
    assert stats["approx_kl"] == pytest.approx(kl, abs=1e-5)


def test_without_clipping_the_value_loss_is_half_a_mean_square() -> None:
    trainer = PPOTrainer(3, 2, seed=1, gamma=0.0, clip_value_loss=False)
    stats = learned(trainer, [1.0, 1.0], advantages=[1.0, 3.0], old_values_off=[1.0, -1.0])
    assert stats["value_loss"] == pytest.approx(0.5 * (4.0 + 4.0) / 2, abs=1e-5)
    assert stats["clip_fraction"] == 0.0


def test_past_the_clip_range_the_policy_feels_no_pull() -> None:
    trainer = PPOTrainer(3, 2, seed=1, gamma=0.0, entropy_coef=0.0)
    before = [p.clone() for p in trainer.network.actor.parameters()]
    learned(trainer, [1.5, 0.5], advantages=[1.0, -1.0], old_values_off=[0.0, 0.0])
    after = list(trainer.network.actor.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    learned(trainer, [1.0, 1.0], advantages=[1.0, -0.5], old_values_off=[0.0, 0.0])
    learned(trainer, [0.5, 1.0], advantages=[1.0, -1.0], old_values_off=[0.0, 0.0])
    assert not torch.equal(before[-1], after[-1])


def test_gradients_are_clipped_together() -> None:
    trainer = PPOTrainer(3, 2, seed=1, gamma=0.0, max_grad_norm=0.25)
    stats = learned(trainer, [1.0, 1.0], advantages=[1e3, 2e3], old_values_off=[0.0, 0.0])
    assert stats["grad_norm"] > 1.0  # as it was before
    norms = [p.grad.norm() for p in trainer.network.parameters() if p.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(0.25, rel=1e-3)


def test_a_vector_action_has_one_probability() -> None:
    network = PPOTrainer(2, 3, continuous=True, seed=1).network
    policy = network.distribution(torch.zeros(5, 2))
    action = torch.ones(5, 3)
    assert policy.log_prob(action).shape == (5,)
    by_hand = -0.5 * (1.0 + math.log(2 * math.pi)) * 3  # mean 0, deviation 1, in each of 3
    assert policy.log_prob(action)[0].item() == pytest.approx(by_hand, abs=0.05)
    assert policy.entropy()[0].item() == pytest.approx(1.5 * (1 + math.log(2 * math.pi)))


def test_actions_are_drawn_as_the_distribution_says() -> None:
    torch.manual_seed(3)
    network = PPOTrainer(2, 3, seed=1).network
    network.actor[-1].bias.data = torch.tensor([0.0, 1.0, 2.0])
    seen = torch.zeros(4000, 2)
    share = torch.bincount(network.act(seen), minlength=3) / 4000
    wanted = torch.softmax(torch.tensor([0.0, 1.0, 2.0]), 0)
    assert (share - wanted).abs().max() < 0.03
    assert set(network.act(seen[:9], best=True).tolist()) == {2}
    gaussian = PPOTrainer(2, 1, continuous=True, seed=1).network
    gaussian.log_std.data += math.log(3.0)  # type: ignore[union-attr]
    drawn = gaussian.act(seen)
    assert drawn.std().item() == pytest.approx(3.0, rel=0.05)
    assert gaussian.act(seen, best=True).abs().max() < 0.1


# -- edges -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "batch"), [(9, 4), (1, 64), (8, 8), (7, 100), (5, 1)])
def test_rollouts_and_mini_batches_of_any_size(steps: int, batch: int) -> None:
    """Among them a last mini-batch of one, whose deviation is not a number."""
    trainer = PPOTrainer(3, 2, seed=1)
    trainer.collect_rollout(Still(3), n_steps=steps)
    stats = trainer.train_step(n_epochs=2, batch_size=batch)
    assert all(math.isfinite(value) for value in stats.values())
    assert all(bool(torch.isfinite(p).all()) for p in trainer.network.parameters())


def test_every_step_is_learned_from_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = PPOTrainer(3, 2, seed=1)
    trainer.collect_rollout(Still(3), n_steps=10)
    rollout = trainer._rollout
    assert rollout is not None
    rollout.values.copy_(torch.arange(10.0)[:, None])
    seen: list[float] = []
    inner = trainer._minibatch

    def spy(*columns: torch.Tensor) -> torch.Tensor:
        seen.extend(columns[3].tolist())
        return inner(*columns)

    monkeypatch.setattr(trainer, "_minibatch", spy)
    trainer.train_step(n_epochs=3, batch_size=4)
    for epoch in (seen[:10], seen[10:20], seen[20:]):
        assert sorted(epoch) == list(range(10))
    assert seen[:10] != seen[10:20]


def test_a_target_kl_ends_an_update_early() -> None:
    counts = {}
    for target in (None, 1e-9):
        trainer = PPOTrainer(3, 2, seed=1, learning_rate=0.01, target_kl=target)
        trainer.collect_rollout(Still(3), n_steps=32)
        trainer.train_step(n_epochs=10, batch_size=8)
        counts[target] = int(trainer.optimizer.state_dict()["state"][0]["step"])
    assert counts[None] == 40
    assert counts[1e-9] < 40


def test_an_update_the_guard_dropped_does_not_count() -> None:
    trainer = PPOTrainer(3, 2, seed=1)
    guard = GradientGuard(trainer.optimizer)
    trainer.collect_rollout(Still(3), n_steps=32)
    assert trainer._rollout is not None
    trainer._rollout.log_probs[3] = math.nan  # one broken sample
    stats = trainer.train_step(n_epochs=2, batch_size=8)
    assert guard.dropped == 2  # the one mini-batch it is in, in each of two epochs
    assert all(math.isfinite(value) for value in stats.values())
    assert all(bool(torch.isfinite(p).all()) for p in trainer.network.parameters())


def test_where_nothing_was_learned_from_the_stats_say_so() -> None:
    trainer = PPOTrainer(3, 2, seed=1)
    GradientGuard(trainer.optimizer)
    trainer.collect_rollout(Still(3), n_steps=8)
    assert trainer._rollout is not None
    trainer._rollout.log_probs[:] = math.nan
    assert math.isnan(trainer.train_step(n_epochs=1, batch_size=8)["loss"])


def test_the_owners_dimensions() -> None:
    trainer = PPOTrainer(state_dim=40, action_dim=60)
    reward = trainer.collect_rollout(Still(40), n_steps=64)
    stats = trainer.train_step(n_epochs=10, batch_size=64)
    assert reward == 4.0
    assert stats["entropy"] == pytest.approx(math.log(60), abs=0.05)


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("CartPole-v1", {"state_dim": 4, "action_dim": 2}),
        ("Pendulum-v1", {"state_dim": 3, "action_dim": 1, "continuous": True}),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_discrete_and_continuous_alone_and_in_a_vector(
    env_id: str, options: dict[str, Any], alone: bool
) -> None:
    trainer = PPOTrainer(**options, seed=1)
    env = gym.make(env_id) if alone else vector(env_id)
    trainer.collect_rollout(env, n_steps=16)
    assert trainer._rollout is not None
    assert trainer._rollout.rewards.shape == (16, 1 if alone else 2)
    assert all(math.isfinite(value) for value in trainer.train_step(2, 8).values())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"state_dim": 5, "action_dim": 2}, "built with state_dim=5, but the environment has 4"),
        ({"state_dim": 4, "action_dim": 3}, "built with action_dim=3, but the environment has 2"),
        (
            {"state_dim": 4, "action_dim": 2, "continuous": True},
            "built with continuous=True, but the environment has False",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_a_step(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PPOTrainer(**options).collect_rollout(vector("CartPole-v1"), n_steps=1)


def test_other_mistakes_are_said_too() -> None:
    with pytest.raises(ValueError, match="state_dim=0"):
        PPOTrainer(0, 2)
    trainer = PPOTrainer(3, 2)
    with pytest.raises(ValueError, match="environment shows 4 numbers"):
        trainer.collect_rollout(Still(4))
    with pytest.raises(RuntimeError, match="collect_rollout first"):
        trainer.train_step()
    trainer.collect_rollout(Still(3), n_steps=4)
    with pytest.raises(ValueError, match="n_epochs=0"):
        trainer.train_step(n_epochs=0)
    with pytest.raises(ValueError, match="n_steps=0"):
        trainer.collect_rollout(Still(3), n_steps=0)
    trainer.network.critic[0].weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        trainer.collect_rollout(Still(3), n_steps=4)


def test_the_same_seed_is_the_same_run() -> None:
    found = []
    for _ in range(2):
        trainer = PPOTrainer(4, 2, seed=5)
        envs = vector("CartPole-v1")
        for _ in range(2):
            trainer.collect_rollout(envs, n_steps=32)
            trainer.train_step(2, 16)
        found.append(torch.cat([p.detach().flatten() for p in trainer.network.parameters()]))
    assert torch.equal(*found)
