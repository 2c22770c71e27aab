"""OperationsManager: watches a run, keeps its checkpoints, takes it back when it breaks.

ops = OperationsManager(checkpoint_dir="./checkpoints")
result = ops.on_training_step(step, {"loss": loss, "reward": reward}, model.state_dict)
entropy_coef = result["entropy_coef"]
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from gateway.clock import Clock
from gateway.primitives.normalization import Normalizer
from training.anomaly import AnomalyDetector
from training.circuit import TrainingCircuit
from training.config import (
    AnomalyConfig,
    CheckpointConfig,
    CircuitBreakerConfig,
    LearningScheduleConfig,
    RetuningConfig,
)
from training.keeper import Keeper, ModelState
from training.metrics import Reporter
from training.rescue import Rescue
from training.retuning import Retuning, Suggestions
from training.rewards import Rewards
from training.saves import Saves
from training.trial import Trial, TrialRejected, Trials

if TYPE_CHECKING:
    from gateway.telemetry.metrics import OperationsMetricsCollector
    from training.guard import GradientGuard


class OperationsManager:
    """The owner's facade: one call a step.

    Args:
        checkpoint_dir: this run's own folder; made with the first checkpoint.
        schedule_config, checkpoint_config, anomaly_config, circuit_breaker_config,
            retuning_config: see `training.config`; each may be replaced, or changed in place, at
            any time, and takes effect from the next step.
        gateway: a live `Gateway`, whose circuit and TTL are reported instead of our own; read in
            this thread at every step.
        metrics: an `OperationsMetricsCollector`, for Prometheus.
        enable_all_features: False makes every call do nothing and report so.
        seed: where reseeding after a rollback starts from.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        checkpoint_dir: str | os.PathLike[str] = "./checkpoints",
        *,
        schedule_config: LearningScheduleConfig | None = None,
        checkpoint_config: CheckpointConfig | None = None,
        anomaly_config: AnomalyConfig | None = None,
        circuit_breaker_config: CircuitBreakerConfig | None = None,
        retuning_config: RetuningConfig | None = None,
        gateway: Any = None,
        metrics: OperationsMetricsCollector | None = None,
        enable_all_features: bool = True,
        seed: int = 0,
        clock: Clock = time.monotonic,
    ) -> None:
        self.checkpoint_dir = os.fspath(checkpoint_dir)
        self.schedule_config = schedule_config or LearningScheduleConfig()
        self.checkpoint_config = checkpoint_config or CheckpointConfig()
        self.anomaly_config = anomaly_config or AnomalyConfig()
        self.circuit_breaker_config = circuit_breaker_config or CircuitBreakerConfig()
        self.retuning_config = retuning_config or RetuningConfig()
        self.enabled = enable_all_features
        self._rewards = Rewards(self.schedule_config)
        self.circuit_breaker = TrainingCircuit(lambda: self.circuit_breaker_config, clock, gateway)
        self.retuning = Retuning(lambda: self.retuning_config)
        checkpoint, anomaly = (lambda: self.checkpoint_config), (lambda: self.anomaly_config)
        self._detector = AnomalyDetector(anomaly, checkpoint)
        self._keeper = Keeper(self.checkpoint_dir, checkpoint, self.state_dict, seed)
        self._report = Reporter(metrics)
        retune = self._report.retune
        self._trials = Trials(lambda: self.retuning_config, self.retuning, self._keeper, retune)
        self.guard: GradientGuard | None = None
        self._pending: list[str] = []  # told with the next step
        self._rescue = Rescue(anomaly, self._detector, self._keeper, self._trials, self._report)
        self._last_step: int | None = None
        self._last: dict[str, Any] = {}
        self._saves = Saves(checkpoint, anomaly, self._keeper, self._report, self._detector)

    # -- every step -----------------------------------------------------------------------------

    def on_training_step(
        self,
        step: int,
        metrics: Mapping[str, Any] | None = None,
        model_state: ModelState | None = None,
    ) -> dict[str, Any]:
        """Look at one step: normalize, judge, save if due, go back if need be.

        Args:
            step: rises from call to call; the caller's word counts.
            metrics: `loss` and `reward`, and whatever else is known (`approx_kl`, `entropy`,
                `grad_norm`, `explained_variance`); numbers or 0-d tensors. Missing ones are missed
                by nobody.
            model_state: a `state_dict()`, or a function that makes one (it is called on the steps
                that save). Not needed after `attach`.

        Returns:
            `entropy_coef`, `metrics` (the caller's, with `normalized_reward`, `reward_mean`,
            `reward_std`), `checkpoint_path`, `anomaly`, `rollback_path` (None where nothing
            happened), `should_downshift`, `current_ttl`, `restored` (attached parts that went
            back), `restored_step`, `lr_scale`, `halt`, `events` (what happened, in words).

        Raises:
            SaveFailed: a checkpoint could not be written and `on_save_error` is `raise`.
        """
        numbers = dict(metrics) if metrics else {}
        events, self._pending = self._pending, []
        trials, rescue, saves = self._trials, self._rescue, self._saves
        result: dict[str, Any] = {
            "entropy_coef": self.schedule_config.entropy_coef(step),
            "metrics": numbers,
            "checkpoint_path": None,
            "anomaly": None,
            "rollback_path": None,
            "restored": [],
            "restored_step": None,
            "lr_scale": 1.0,
            "halt": self._rescue.halted,
            "events": events,
        }
        if self.enabled:
            ahead, dropped = self._note_step(step, events), self._drops(events)
            found = self._detector.observe(step, numbers, events)
            self._rewards.take(numbers, found, self.schedule_config)
            sure = None
            if found:
                roll_back = self.checkpoint_config.enable_auto_rollback
                sure = rescue.flagged(step, found, result, dropped=dropped, roll_back=roll_back)
                if result["rollback_path"] is not None:
                    saves.returned(step, result["rollback_path"])
            else:
                rescue.well()
                if self._keeper.lr_scale != 1.0:
                    rescue.glide(ahead)
            if saves.young and sure is None:
                saves.prove(step)
            if trials.trial is not None:
                rescue.follow(result)
            flagged = sure is not None or rescue.halted
            saves.if_due(step, numbers, model_state, flagged=flagged, result=result)
            result["entropy_coef"] *= trials.hyperparameters.entropy_scale
            result["lr_scale"] = self._keeper.lr_scale
            self._last = result
        else:
            numbers.update(normalized_reward=0.0, reward_mean=0.0, reward_std=0.0)
        result["should_downshift"], result["current_ttl"] = self.circuit_breaker.standing()
        if self._report.collector is not None:
            self._report.step(result, self._keeper.persist_s)
        return result

    # -- the language model and its users ---------------------------------------------------------

    def on_llm_success(self, service: str = "qwen") -> None:
        """A call of the language model answered."""
        if self.enabled and not self.circuit_breaker.success():
            self._ignored("on_llm_success", service)

    def on_llm_failure(self, service: str = "qwen") -> None:
        """A call of the language model failed."""
        if self.enabled and not self.circuit_breaker.failure():
            self._ignored("on_llm_failure", service)

    def on_user_feedback(self, feedback: Mapping[str, Any]) -> Suggestions | None:
        """Take one rating, `{"rating": 4.5, "user_id": ..., "formula_id": ...}`.

        Returns:
            Suggested hyperparameters once there are enough ratings and anything is to be suggested,
            else None. `should_apply` says whether the ratings are clear enough to act on.

        Raises:
            FeedbackRejected: no rating from 1 to 5.
        """
        return self.retuning.add(feedback) if self.enabled else None

    def apply(self, suggestions: Suggestions, *, force: bool = False) -> Trial:
        """Set suggested hyperparameters, on trial: what is now is kept in a pinned checkpoint.

        New ratings decide: kept if they are not worse, taken back if they are, or if training turns
        anomalous. What happens is told in the events of the steps. `result["entropy_coef"]` follows
        the schedule from the new value on.

        Args:
            suggestions: as `on_user_feedback` returned them.
            force: also if `should_apply` is false.

        Raises:
            TrialRejected: a trial is open, the ratings are not clear enough, the last step was
                anomalous, or there is nothing to change; nothing has changed.
            SaveFailed: the checkpoint could not be written; nothing has changed.
        """
        if not self.enabled:
            raise TrialRejected("every feature is switched off")
        if not (force or suggestions.should_apply):
            raise TrialRejected("the ratings are not clear enough; force=True tries it anyway")
        if self._rescue.sick or self._rescue.halted:
            raise TrialRejected("the last step was anomalous")
        step = self._last_step or 0
        scale = self._trials.hyperparameters.entropy_scale
        entropy_coef = self.schedule_config.entropy_coef(step) * scale
        trial = self._trials.begin(step, suggestions, entropy_coef)
        changes = ", ".join(f"{n} {trial.old[n]:g} -> {v:g}" for n, v in trial.new.items())
        self._pending.append(f"on trial: {changes}")
        return trial

    @property
    def reward_normalizer(self) -> Normalizer:
        """The sliding window of rewards: `get_stats()` has `mean`, `std` and `count`."""
        return self._rewards.normalizer

    @property
    def trial(self) -> Trial | None:
        """The retune on trial; None if there is none."""
        return self._trials.trial

    # -- the whole run ----------------------------------------------------------------------------

    def attach(
        self,
        *,
        model: Any = None,
        optimizer: Any = None,
        extra: Mapping[str, Any] | None = None,
        hyperparameters: Any = None,
        guard: bool = True,
    ) -> Self:
        """Name the parts of the run: checkpoints then hold everything, rollbacks restore in place.

        Args:
            model: a `torch.nn.Module`.
            optimizer: its optimizer.
            extra: further parts with `state_dict` and `load_state_dict`, by name.
            hyperparameters: what `apply` may set: `{"clip_epsilon": (getter, setter)}`, or an
                object with attributes of these names, such as a `PPOTrainer`.
            guard: drop updates of the optimizer whose gradients are not finite.

        Raises:
            TypeError: a part has no `state_dict` and `load_state_dict`; nothing was attached.
        """
        self._keeper.attached.add(model, optimizer, extra or {})
        if optimizer is not None and guard and self.enabled:
            from training.guard import GradientGuard  # noqa: PLC0415

            self._unguard()
            self.guard = GradientGuard(optimizer)
        if hyperparameters is not None:
            self._trials.hyperparameters.attach(hyperparameters)
        return self

    def resume(self) -> dict[str, Any] | None:
        """Continue from the newest good checkpoint, on probation or not: all the parts there are.

        Returns:
            `step`, `path`, `restored`, and `passed_by`: newer checkpoints that could not be used,
            and why. None if there is nothing to continue from.

        Raises:
            CheckpointForeign: the checkpoint is of another run; nothing has changed.
        """
        found = self._keeper.resume()
        if found is None:
            return None
        loaded, restored = found
        if "ops" in loaded.payload:
            self.load_state_dict(loaded.payload["ops"])
            restored.append("ops")
        if loaded.manifest.health == "candidate":
            self._saves.watch(loaded.path, loaded.manifest.step)
        return {
            "step": loaded.manifest.step,
            "path": loaded.path,
            "restored": restored,
            "passed_by": loaded.passed_by,
        }

    def save(self, model_state: ModelState | None = None) -> str | None:
        """Save the last step now, whatever the interval; the path, None if it is flagged.

        Raises:
            SaveFailed, FolderBusy: nothing was saved; older checkpoints are as they were.
        """
        if not self._last or self._rescue.sick or self._rescue.halted or self._last_step is None:
            return None
        path: str | None = self._last["checkpoint_path"]
        if path is None:
            path = self._saves.save(self._last_step, self._last["metrics"], model_state)
            self._last["checkpoint_path"] = path
        return path

    @property
    def lr_scale(self) -> float:
        """What rollbacks made of the learning rate; whoever sets it at each step multiplies."""
        return self._keeper.lr_scale

    @property
    def store(self) -> Any:
        """The `CheckpointStore`: list, pin, load. Opened when first needed; errors as there."""
        return self._keeper.store

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until every checkpoint under way is on disk."""
        self._keeper.flush(timeout_s)

    def close(self) -> None:
        """Flush, and let go of the folder and the optimizer. Idempotent."""
        self._unguard()
        self._keeper.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """This manager's own state, in JSON types."""
        return {
            "rewards": self._rewards.state_dict(),
            "detector": self._detector.state_dict(),
            "rescue": self._rescue.state_dict(),
            "retuning": self.retuning.state_dict(),
            "last_step": self._last_step,
            "saves": self._saves.state_dict(),
            "trials": self._trials.state_dict(),
            "keeper": self._keeper.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        self._rewards.load_state_dict(state["rewards"])
        self._detector.load_state_dict(state["detector"])
        self._rescue.load_state_dict(state["rescue"])
        self.retuning.load_state_dict(state["retuning"])
        self._last_step = state["last_step"]
        self._saves.load_state_dict(state["saves"])
        self._trials.load_state_dict(state["trials"])
        self._keeper.load_state_dict(state["keeper"])

    # -- inside -----------------------------------------------------------------------------------

    def _note_step(self, step: int, events: list[str]) -> int:
        """How many steps this is after the last one."""
        last, self._last_step = self._last_step, step
        self._saves.failed(events)
        if last is not None and step < last:
            events.append(f"step went back from {last} to {step}")
            self._saves.went_back(step)
            self._rescue.went_back(step)
        return 1 if last is None else max(0, step - last)

    def _drops(self, events: list[str]) -> bool:
        dropped = self.guard.news() if self.guard is not None else 0
        if dropped:
            self._report.dropped(dropped)
            events.append(f"{dropped} updates with gradients that are not finite were dropped")
        return dropped > 0

    def _ignored(self, call: str, service: str) -> None:
        told = f"{call}({service!r}) ignored: the gateway sees its own calls"
        if told not in self._pending:
            self._pending.append(told)

    def _unguard(self) -> None:
        if self.guard is not None:
            self.guard.remove()
            self.guard = None
