"""One run of PPO on CartPole-v1 with one fault, in one of three arms."""

from __future__ import annotations

import copy
import hashlib
import shutil
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import training
from tests.benchmarks.training_proof.faults import Fault, FaultyEnvs, Patient
from training import AnomalyConfig, CheckpointConfig, OperationsManager, environments
from training.checkpoints.state import rng_state, set_rng_state
from training.ppo import PPOTrainer

ENV, N_ENVS, N_STEPS, N_EPOCHS = "CartPole-v1", 8, 32, 20
BATCH, LEARNING_RATE, CLIP = 256, 1e-3, 0.2
ARMS = ("no ops", "literal rule", "ours")
SAVE_EVERY = 10
_JUDGED = 30
_RECENT = 20

# The owner's rule names neither a cooldown nor a limit nor a slower learning rate nor probation.
_LITERAL = {
    "profile": "spec",
    "cooldown_steps": 0,
    "rollback_window_steps": 1,
    "probation_steps": 0,
}


@dataclass
class Outcome:
    """One finished run.

    Attributes:
        fault, arm, seed, updates: which.
        final: mean return of 30 new episodes of the policy that is left, acting at its best; 0 if
            it gives no numbers any more.
        last100: mean true return of the last 100 training episodes.
        made: updates.
        kept: those whose learning is in the final policy; rollbacks threw the others away.
        rollbacks: how many.
        dropped: optimizer steps that were dropped for gradients that are not finite.
        crashed: the error that ended training, or "".
        halted: the update at which it stopped and said so, 0 if it did not.
        first_rollback: its distance from the fault's begin, None if there was none after it.
        seconds: processor time.
        source: which version of `training/` ran, as a hash of its files.
        curve: mean true return of the last 20 episodes, after each update.
        events: the first few, in words.
    """

    fault: str
    arm: str
    seed: int
    updates: int
    final: float = 0.0
    last100: float = 0.0
    made: int = 0
    kept: list[int] = field(default_factory=list)
    rollbacks: int = 0
    dropped: int = 0
    crashed: str = ""
    halted: int = 0
    first_rollback: int | None = None
    seconds: float = 0.0
    source: str = ""
    curve: list[float] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Updates that were made and thrown away."""
        return self.made - len(self.kept)


@dataclass
class Start:
    """Where every fault of one arm and seed begins: the first half of a run, trained once.

    Attributes:
        outcome, trainer, envs: as they are then; copied for each fault.
        random: of torch and numpy.
        manager: its state, None without operations.
        folder: its checkpoints.
        scale: what its rollbacks made of the learning rate.
    """

    outcome: Outcome
    trainer: PPOTrainer
    envs: FaultyEnvs
    random: dict[str, Any]
    manager: dict[str, Any] | None
    folder: Path
    scale: float


def prepare(arm: str, seed: int, updates: int, folder: Path) -> Start:
    """Train up to where the faults begin."""
    outcome = Outcome("", arm, seed, updates, source=_source())
    began = time.process_time()
    torch.manual_seed(seed)
    np.random.seed(seed)
    envs = FaultyEnvs(environments.make(ENV, N_ENVS))
    trainer = PPOTrainer(
        4, 2, learning_rate=LEARNING_RATE, gamma=0.98, gae_lambda=0.8, clip_epsilon=CLIP,
        entropy_coef=0.0, clip_value_loss=False, seed=seed,
    )  # fmt: skip
    manager = _manager(arm, folder, trainer)
    with manager or nullcontext():
        patient = Patient(trainer, envs, updates // 2, folder, lambda: None, seed)
        scale = _train(outcome, patient, Fault(), manager, range(updates // 2), 1.0)
    kept = manager.state_dict() if manager is not None else None
    outcome.seconds = time.process_time() - began
    return Start(outcome, trainer, envs, rng_state(), kept, folder, scale)


def run(start: Start, fault: Fault) -> Outcome:
    """Train the second half, in which something breaks."""
    began = time.process_time()
    outcome = copy.deepcopy(start.outcome)
    outcome.fault, updates = fault.name, outcome.updates
    # What watches the optimizer belongs to a manager, and this run gets a manager of its own.
    start.trainer.optimizer._optimizer_step_pre_hooks.clear()
    trainer, envs = copy.deepcopy((start.trainer, start.envs))
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "checkpoints"
        shutil.copytree(start.folder, own)
        manager = _manager(outcome.arm, own, trainer)
        with manager or nullcontext():
            if manager is not None:
                manager.load_state_dict(start.manager or {})
            set_rng_state(start.random)
            settle = manager.flush if manager is not None else lambda: None
            patient = Patient(trainer, envs, updates // 2, own, settle, torch.initial_seed())
            rest = range(updates // 2, updates)
            try:
                _train(outcome, patient, fault, manager, rest, start.scale)
            except (ValueError, RuntimeError) as error:
                outcome.crashed = f"{type(error).__name__}: {error}"[:120]
    outcome.curve += [0.0 if outcome.crashed else _recent(envs)] * (updates - len(outcome.curve))
    outcome.last100 = float(np.mean(envs.returns[-100:]))
    outcome.final = _judge(trainer, outcome.seed)
    outcome.seconds += time.process_time() - began
    return outcome


def _manager(arm: str, folder: Path, trainer: PPOTrainer) -> OperationsManager | None:
    if arm == "no ops":
        return None
    config = CheckpointConfig(save_interval_steps=SAVE_EVERY)
    if arm == "literal rule":
        literal = AnomalyConfig(**_LITERAL)
        return OperationsManager(folder, checkpoint_config=config, anomaly_config=literal)
    manager = OperationsManager(folder, checkpoint_config=config)
    return manager.attach(model=trainer.network, optimizer=trainer.optimizer)


def _train(
    outcome: Outcome,
    patient: Patient,
    fault: Fault,
    manager: OperationsManager | None,
    numbers: range,
    scale: float,
) -> float:
    trainer, envs = patient.trainer, patient.envs
    for number in numbers:
        left, since = 1.0 - number / outcome.updates, number - patient.begin
        trainer.clip_epsilon = CLIP * left
        trainer.learning_rate = LEARNING_RATE * left * scale
        fault.before_collect(patient, since)
        reward = trainer.collect_rollout(envs, N_STEPS)
        fault.before_train(patient, since)
        stats = trainer.train_step(N_EPOCHS, BATCH)
        outcome.curve.append(_recent(envs))
        outcome.made += 1
        outcome.kept.append(number)
        if manager is None:
            continue
        if outcome.arm == "ours":
            told: dict[str, Any] = {**stats, "reward": reward}
            result = manager.on_training_step(number, told)
        else:
            told = {"loss": stats["policy_loss"], "reward": reward}  # as in the guide
            result = manager.on_training_step(number, told, trainer.network.state_dict())
        scale = result["lr_scale"]
        if result["rollback_path"]:
            if outcome.arm == "ours":
                trainer.discard_rollout()
            else:
                trainer.load_checkpoint(result["rollback_path"])
            outcome.rollbacks += 1
            outcome.kept = [each for each in outcome.kept if each <= result["restored_step"]]
            if outcome.first_rollback is None and since >= 0:
                outcome.first_rollback = since
        if result["anomaly"] and len(outcome.events) < 60:
            outcome.events += [f"{number}: {event}"[:160] for event in result["events"]]
        if result["halt"] and outcome.arm == "ours":
            outcome.halted = number
            break
    return scale


def _source() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(training.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:10]


def _recent(envs: FaultyEnvs) -> float:
    return float(np.mean(envs.returns[-_RECENT:])) if envs.returns else 0.0


@torch.no_grad()
def _judge(trainer: PPOTrainer, seed: int) -> float:
    """The first episode of each of 30 environments; none lasts longer than 500 steps."""
    network = trainer.network
    if not all(bool(torch.isfinite(p).all()) for p in network.parameters()):
        return 0.0
    envs = environments.make(ENV, _JUDGED)
    seen, _ = envs.reset(seed=1_000_000 + seed)
    returns, alive = np.zeros(_JUDGED), np.ones(_JUDGED, bool)
    while alive.any():
        actions = network.act(torch.from_numpy(np.asarray(seen, np.float32)), best=True).numpy()
        seen, rewards, terminated, truncated, _ = envs.step(actions)
        returns += rewards * alive
        alive &= ~(terminated | truncated)
    envs.close()
    return float(returns.mean())
