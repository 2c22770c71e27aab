"""One mind for several processes: what one rank sees, all ranks act upon, in the same step.

    ops = DistributedOperations("./checkpoints", model=model, optimizer=optimizer)   # on every rank
    resumed = ops.resume()
    result = ops.on_training_step(step, {"loss": loss, "reward": reward})            # on every rank

A rank that rolls back alone trains on with other weights than its peers, or waits for ever in a
collective they never enter. So each step ends in one all-reduce of a handful of integers, and only
what comes out of it is acted upon. A process that dies is the launcher's business: it starts all
ranks again, and `resume` finds the last checkpoint that is whole on all of them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from training.anomaly import Anomaly, AnomalyDetector
from training.attached import Stateful
from training.checkpoints.state import reseed, rng_state, set_rng_state
from training.config import AnomalyConfig, CheckpointConfig
from training.errors import CheckpointError, TrainingError
from training.guard import GradientGuard
from training.recovery import STRANDED, RecoveryPolicy
from training.sharded import Peers, ShardedStore

# In the order of their weight: the largest number any rank reports is what all act upon.
_KINDS = ("", "progress_lost", "reward_drop", "loss_spike", "entropy", "kl", "non_finite")
_SEED_STEP = 1_000_003


class OutOfStep(TrainingError):
    """The ranks called with different steps: they no longer train the same run."""


class SharedGuard(GradientGuard):
    """Drops an update on all ranks or on none.

    Ranks that average their gradients all see a NaN; ranks that hold a shard each see only theirs,
    and one that left an update out alone would be another model.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, peers: Peers) -> None:
        self._peers = peers
        super().__init__(optimizer)

    def broken(self, gradients: list[torch.Tensor]) -> bool:
        """Whether these gradients, or any other rank's, are not to reach the weights."""
        own = [part.to_local() if isinstance(part, DTensor) else part for part in gradients]
        return bool(self._peers.most(super().broken(own))[0])


class DistributedOperations:
    """Judges, saves and goes back on all ranks together.

    Schedules, reward statistics, the language model's circuit and retuning need no agreement: keep
    an `OperationsManager` with `enable_auto_rollback=False` beside this where they are used.

    Args:
        checkpoint_dir: a folder that every rank can read and write.
        model, optimizer: plain, DDP or FSDP2; what is sharded is saved sharded.
        extra: this rank's own further parts, by name; states in JSON types.
        checkpoint_config, anomaly_config: the same on all ranks.
        process_group: the ranks of this run; None means all there are. Messages travel on gloo
            groups of the same ranks, made here.
        guard: drop an update on all ranks if its gradients are not finite on any of them. That
            takes one small message each `optimizer.step`, which every rank must call as often.
        seed: where reseeding after a rollback starts from; each rank gets its own.

    Raises:
        FolderBusy, SaveFailed: on all ranks.
    """

    def __init__(
        self,
        checkpoint_dir: str | os.PathLike[str],
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        extra: Mapping[str, Stateful] | None = None,
        checkpoint_config: CheckpointConfig | None = None,
        anomaly_config: AnomalyConfig | None = None,
        process_group: dist.ProcessGroup | None = None,
        guard: bool = True,
        seed: int = 0,
    ) -> None:
        self.model, self.optimizer, self.extra = model, optimizer, dict(extra or {})
        self.checkpoint_config = checkpoint_config or CheckpointConfig()
        self.anomaly_config = anomaly_config or AnomalyConfig()
        self.lr_scale, self.rollbacks, self._last = 1.0, 0, 0
        self._detector = AnomalyDetector(
            lambda: self.anomaly_config, lambda: self.checkpoint_config
        )
        self._recovery = RecoveryPolicy(lambda: self.anomaly_config)
        self._seed, self._halted, self._done, self._stranded = seed, False, 0, 0
        self.peers = Peers(process_group)
        self.store = ShardedStore(
            checkpoint_dir, self.peers, keep=self.checkpoint_config.max_checkpoints
        )
        self.guard = SharedGuard(optimizer, self.peers) if guard else None

    def on_training_step(
        self, step: int, metrics: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Look at one step; every rank calls it with the same `step` and its own metrics.

        Returns:
            `anomaly`, `seen_by` (a rank that saw it), `checkpoint_path`, `rollback_path`,
            `restored_step` (None where nothing happened), `lr_scale`, `halt`, `events`: the same
            on all ranks, but for warnings of this rank's own in `events`.

        Raises:
            OutOfStep: on all ranks.
            SaveFailed: a checkpoint failed and `on_save_error` is `raise`.
        """
        numbers = dict(metrics or {})
        if step < self._last:  # the caller counts from an earlier step again
            self._recovery.went_back(step)
            self._done = step
        self._last = step
        found = self._detector.observe(step, numbers)
        events = [str(anomaly) for anomaly in found]
        dropped = self.guard.news() if self.guard is not None else 0
        if dropped:
            events.append(f"updates dropped for their gradients, on all ranks: {dropped}")
        mine = next((one for one in found if one.acts), None)
        anomaly, seen_by, of_reward = self._agree(step, mine)
        result: dict[str, Any] = {
            "anomaly": anomaly,
            "seen_by": seen_by,
            "checkpoint_path": None,
            "rollback_path": None,
            "restored_step": None,
            "events": events,
        }
        for failure in self.store.failures():
            self._complain(failure, events)
        if anomaly is not None and self.checkpoint_config.enable_auto_rollback:
            # A reward that is not finite is no matter of gradients, whichever rank has it.
            self._recover(step, anomaly, result, dropped=dropped > 0 and not of_reward)
        if anomaly is None:
            self._recovery.well()
            self._stranded = 0
        self._save_if_due(step, numbers, result, flagged=anomaly is not None)
        result["lr_scale"], result["halt"] = self.lr_scale, self._halted
        return result

    def resume(self) -> dict[str, Any] | None:
        """Continue from the newest checkpoint that is whole on all ranks.

        Returns:
            `step`, `path` and `passed_by`; None if there is nothing to continue from.

        Raises:
            CheckpointForeign: it is of another run; nothing has changed.
        """
        found = self._load()
        if found is None:
            return None
        if found.local is not None:  # a rank that was not there before has nothing of its own
            set_rng_state(_unlisted(found.local["rng"]))
            self._detector.load_state_dict(found.local["detector"])
            self._put_extra(found.local)
        shared = found.shared
        self._recovery.load_state_dict(shared["recovery"])
        self.lr_scale, self.rollbacks = float(shared["lr_scale"]), int(shared["rollbacks"])
        self._done = found.step
        return {"step": found.step, "path": found.path, "passed_by": found.passed_by}

    def flush(self) -> None:
        """Wait until the checkpoint under way is on disk."""
        self.store.flush()

    def close(self) -> None:
        """Flush, and let go of the folder and the optimizer. Idempotent."""
        if self.guard is not None:
            self.guard.remove()
        self.store.close()

    # -- inside -----------------------------------------------------------------------------------

    def _agree(self, step: int, mine: Anomaly | None) -> tuple[Anomaly | None, int | None, bool]:
        """What all act upon, a rank that saw it, and whether any rank's reward is not finite."""
        kind = _KINDS.index(mine.kind) if mine is not None else 0
        seen = self.peers.rank + 1 if mine is not None else 0
        reward = mine is not None and (mine.kind, mine.metric) == ("non_finite", "reward")
        # One message: the gravest kind, a rank that saw it, and whether all are at the same step.
        worst, seen, last, first, of_reward = self.peers.most(kind, seen, step, -step, reward)
        if last != -first:
            raise OutOfStep(f"the ranks are at steps {-first} to {last}")
        if not worst:
            return None, None, False
        if mine is None or mine.kind != _KINDS[worst]:
            mine = Anomaly(_KINDS[worst], "of another rank", step, math.nan, math.nan, acts=True)
        return mine, seen - 1, bool(of_reward)

    def _recover(
        self, step: int, anomaly: Anomaly, result: dict[str, Any], *, dropped: bool
    ) -> None:
        decision = self._recovery.decide(step, anomaly, dropped=dropped)
        events = result["events"]
        if decision.suspect:
            self.store.suspect_last()
        if decision.halt:
            self._halted = True
        if decision.why:
            events.append(("halt: " if decision.halt else "") + decision.why)
        if not decision.restore:
            return
        try:
            found = self._load()
        except CheckpointError as error:
            self._recovery.forget()
            events.append(f"rollback failed: {error}")
            return
        if found is None:
            self._recovery.forget()
            self._stranded += anomaly.kind == "non_finite"
            self._halted = self._halted or self._stranded >= STRANDED
            halt = "halt: " if self._halted else ""
            events.append(f"{halt}no healthy checkpoint to return to yet")
            return
        self.rollbacks += 1
        self.store.attempt += 1
        self.lr_scale *= decision.lr_factor
        already = float(found.shared["lr_scale"])  # a checkpoint taken after a rollback is scaled
        for group in self.optimizer.param_groups:
            group["lr"] *= self.lr_scale / already if already > 0.0 else 1.0
        # The same random numbers from the same weights would lead to the same place.
        reseed(self._seed + _SEED_STEP * self.rollbacks + self.peers.rank)
        self._detector.forget()
        if found.local is not None:
            self._put_extra(found.local)
        events += [f"passed by: {why}" for why in found.passed_by]
        events.append(f"rolled back to {found.path}; discard the present rollout")
        result["rollback_path"], result["restored_step"] = found.path, found.step

    def _save_if_due(
        self, step: int, numbers: Mapping[str, Any], result: dict[str, Any], *, flagged: bool
    ) -> None:
        interval = self.checkpoint_config.save_interval_steps
        if step // interval <= self._done // interval:
            return
        if flagged or self._halted:
            result["events"].append("checkpoint skipped: this step is flagged")
            return
        plain = {name: float(n) for name, n in numbers.items() if isinstance(n, (int, float))}
        finite = {name: number for name, number in plain.items() if math.isfinite(number)}
        try:
            result["checkpoint_path"] = self.store.save(step, self._state(), finite)
        except CheckpointError as error:
            self._complain(error, result["events"])
        self._done = step

    def _complain(self, error: CheckpointError, events: list[str]) -> None:
        if self.checkpoint_config.on_save_error == "raise":
            raise error
        events.append(f"checkpoint failed: {error}")

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        local = {
            "rng": _random_text(),
            "detector": self._detector.state_dict(),
            "extra": {name: part.state_dict() for name, part in self.extra.items()},
        }
        shared = {
            "recovery": self._recovery.state_dict(),
            "lr_scale": self.lr_scale,
            "rollbacks": self.rollbacks,
        }
        ranks = {str(self.peers.rank): json.dumps(local)}
        return {
            "model": model,
            "optimizer": optimizer,
            "ranks": ranks,
            "shared": json.dumps(shared),
        }

    def _load(self) -> _Found | None:
        """Model and optimizer back from the newest whole checkpoint, on all ranks or on none."""
        state = _copied(self._state())
        found = self.store.load(state)
        if found is None:
            return None
        manifest, passed_by = found
        self.peers.together(lambda: self._put(state))
        local = state["ranks"].get(str(self.peers.rank))
        return _Found(
            manifest.step,
            str(self.store.folder / manifest.name),
            passed_by,
            json.loads(state["shared"]),
            json.loads(local) if local else None,
        )

    def _put(self, state: Mapping[str, Any]) -> None:
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )

    def _put_extra(self, local: Mapping[str, Any]) -> None:
        for name in self.extra.keys() & local["extra"].keys():
            self.extra[name].load_state_dict(local["extra"][name])


@dataclass(frozen=True, slots=True)
class _Found:
    step: int
    path: str
    passed_by: list[str]
    shared: dict[str, Any]
    local: dict[str, Any] | None


def _copied(state: Any) -> Any:
    """Reading fills tensors in place, and these must not be the live ones until all is well."""
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {name: _copied(part) for name, part in state.items()}
    return [_copied(part) for part in state] if isinstance(state, list) else state


def _random_text() -> dict[str, Any]:
    """Every generator's state in JSON types: as text it need not be as long as the last one."""
    return {name: _listed(part) for name, part in rng_state().items()}


def _listed(part: Any) -> Any:
    if isinstance(part, torch.Tensor):
        return {"dtype": str(part.dtype).removeprefix("torch."), "values": part.tolist()}
    if isinstance(part, Mapping):
        return {name: _listed(each) for name, each in part.items()}
    return [_listed(each) for each in part] if isinstance(part, list) else part


def _unlisted(part: Any) -> Any:
    if isinstance(part, Mapping):
        if part.keys() == {"dtype", "values"}:
            return torch.tensor(part["values"], dtype=getattr(torch, part["dtype"]))
        return {name: _unlisted(each) for name, each in part.items()}
    return [_unlisted(each) for each in part] if isinstance(part, list) else part
