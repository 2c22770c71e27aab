"""TorchRL's Trainer: PPO on CartPole."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torchrl
from scenarios import Steps, broken_gradient, holds, inside, manager, same, tell, weights
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.envs import RewardSum, TransformedEnv
from torchrl.envs.libs.gym import GymEnv
from torchrl.modules import OneHotCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE
from torchrl.trainers import Trainer

from training.callbacks.torchrl import OperationsHook

warnings.filterwarnings("ignore")
FRAMES = 64  # in one batch


class Host:
    """A trainer that can be struck."""

    def __init__(self, batches: int, *, seed: int = 0, wreck: tuple[int, ...] = ()) -> None:
        torch.manual_seed(seed)
        env = TransformedEnv(GymEnv("CartPole-v1"), RewardSum())
        env.set_seed(seed)
        body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        actor = ProbabilisticActor(
            TensorDictModule(body, in_keys=["observation"], out_keys=["logits"]),
            in_keys=["logits"],
            distribution_class=OneHotCategorical,
            return_log_prob=True,
        )
        critic = ValueOperator(torch.nn.Linear(4, 1), in_keys=["observation"])
        self.policy = body
        self.loss = ClipPPOLoss(actor, critic, entropy_coeff=0.5)
        self.wreck, self.resets = wreck, 0
        self.noted: list[float] = []
        self.collector = Collector(env, actor, frames_per_batch=FRAMES, total_frames=10**6)
        self.trainer = Trainer(
            collector=self.collector,
            total_frames=batches * FRAMES,
            frame_skip=1,
            optim_steps_per_batch=2,
            loss_module=self.loss,
            optimizer=torch.optim.Adam(self.loss.parameters(), lr=1e-3),
            progress_bar=False,
        )
        advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
        self.trainer.register_op("batch_process", advantage)
        self.trainer.register_op("pre_optim_steps", self._before)
        reset = self.collector.reset

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.resets += 1
            return reset(*args, **kwargs)

        self.collector.reset = counted

    def _before(self) -> None:
        self.noted.append(float(self.loss.entropy_coeff))
        if len(self.noted) in self.wreck:
            with torch.no_grad():
                for parameter in self.loss.parameters():
                    parameter.mul_(1000.0).add_(1000.0)


class Diary:
    """Stands behind ours: what the host has in hand after each batch."""

    def __init__(self, host: Host, hook: OperationsHook) -> None:
        self.host, self.hook = host, hook
        self.results: dict[int, dict[str, Any]] = {}
        self.returns: list[dict[str, Any]] = []
        host.trainer.register_op("post_steps_log", self._note)

    def _note(self, batch: Any) -> None:
        result = self.hook.watch.last
        self.results[self.hook.batches] = result
        self.kept = self.host.trainer.state_dict()["operations"]["batches"]
        if result["rollback_path"]:
            payload = inside(self.hook.watch.ops, result["rollback_path"])
            saved = dict(payload["model"])
            saved["entropy_coeff"] = self.host.loss.entropy_coeff  # set anew since
            acting = list(self.host.collector.policy.parameters())
            self.returns.append(
                {
                    "step": self.hook.batches,
                    "to": result["restored_step"],
                    "restored": result["restored"],
                    "weights_are_the_saved": same(self.host.loss, saved),
                    "the_collector_acts_with_them": all(
                        a.equal(b)
                        for a, b in zip(acting, self.host.policy.parameters(), strict=True)
                    ),
                    "episodes_started_anew": self.host.resets,
                }
            )


def train(
    batches: int, ops: Any, *, seed: int = 0, resume: bool = False, wreck: tuple[int, ...] = ()
) -> tuple[Host, OperationsHook, Diary]:
    host = Host(batches, seed=seed, wreck=wreck)
    hook = OperationsHook(ops, resume=resume)
    hook.register(host.trainer)
    return host, hook, Diary(host, hook)


def calm() -> None:
    """Six batches, then three more by another trainer."""
    ops = manager("calm")
    host, _, diary = train(6, ops)
    host.trainer.train()
    saved = {s: r["checkpoint_path"] for s, r in diary.results.items() if r["checkpoint_path"]}
    tell(
        "calm",
        version=torchrl.__version__,
        looked_at=list(diary.results),
        entropy_coeff=host.noted,
        saved=list(saved),
        holds=holds(ops, saved[6]),
        metrics=sorted(diary.results[3]["metrics"]),
        anomalies=[str(r["anomaly"]) for r in diary.results.values() if r["anomaly"]],
        in_the_trainers_checkpoint=diary.kept,
    )
    ops.close()
    again = manager("calm")
    other, _, later = train(9, again, seed=1, resume=True)
    same_weights = weights(other.loss).equal(weights(host.loss))
    frames = other.trainer.collected_frames
    other.trainer.train()
    again.close()
    tell("resumed", same_weights=same_weights, frames=frames, looked_at=list(later.results))


def gradient() -> None:
    """One gradient in the fifth update is NaN: with operations, and without."""
    ops = manager("gradient")
    host, hook, _ = train(4, ops)
    seen = broken_gradient(host.loss, at=5)
    steps = Steps(host.loss, host.trainer.optimizer)
    host.trainer.train()
    ops.close()
    alone = Host(4)
    broken_gradient(alone.loss, at=5)
    try:
        alone.trainer.train()
        without = "went on"
    except (ValueError, RuntimeError):
        without = "died"
    finite_without = bool(torch.isfinite(weights(alone.loss)).all())
    tell(
        "gradient",
        injected=seen["injected"],
        moved=steps.moved,
        finite=bool(torch.isfinite(weights(host.loss)).all()),
        without=without,
        finite_without=finite_without,
        batches=hook.batches,
    )


def collapse() -> None:
    """The weights are wrecked before the fifth and the eighth batch is learned from."""
    ops = manager("collapse", cooldown_steps=0)
    host, hook, diary = train(10, ops, wreck=(5, 8))
    host.trainer.train()
    ops.close()
    tell(
        "collapse",
        returns=diary.returns,
        lr=host.trainer.optimizer.param_groups[0]["lr"],
        batches=hook.batches,
        last_loss=diary.results[10]["metrics"]["loss"],
    )


def halt() -> None:
    """Wrecked twice, with one rollback allowed."""
    ops = manager("halt", cooldown_steps=0, max_rollbacks=1)
    host, hook, _ = train(20, ops, wreck=(4, 6))
    host.trainer.train()
    ops.close()
    tell("halt", batches=hook.batches, events=hook.watch.last["events"])


calm()
gradient()
collapse()
halt()
