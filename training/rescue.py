"""Acts upon anomalies and trials: decides nothing itself, and tells everything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from training.anomaly import Anomaly, AnomalyDetector
from training.config import AnomalyConfig
from training.errors import TrainingError
from training.keeper import Keeper, Return
from training.metrics import Reporter
from training.recovery import STRANDED, RecoveryPolicy
from training.trial import Trials


class Rescue:
    """Takes a run back, slower; brings its learning rate up again; ends trials.

    Args:
        config: read anew at each use.
        detector, keeper, trials, report: the manager's own.

    Attributes:
        halted: the run was told to stop.
        sick: the last step was one to act upon.
    """

    def __init__(
        self,
        config: Callable[[], AnomalyConfig],
        detector: AnomalyDetector,
        keeper: Keeper,
        trials: Trials,
        report: Reporter,
    ) -> None:
        self.halted = self.sick = False
        self._config = config
        self._detector = detector
        self._recovery = RecoveryPolicy(config)
        self._keeper = keeper
        self._trials = trials
        self._report = report
        self._glide_from = 1.0
        self._stranded = 0

    def well(self) -> None:
        """This step was well."""
        self.sick = False
        self._stranded = 0
        self._recovery.well()

    def went_back(self, step: int) -> None:
        """The caller counts from an earlier step again."""
        self._recovery.went_back(step)

    def flagged(
        self,
        step: int,
        found: list[Anomaly],
        result: dict[str, Any],
        *,
        dropped: bool,
        roll_back: bool,
    ) -> Anomaly | None:
        """Tell of the anomalies; the one to act upon, after acting upon it.

        Args:
            dropped: the gradient guard kept this update from the weights.
            roll_back: whether to go back.
        """
        result["anomaly"] = found[0]
        result["events"].extend(map(str, found))
        self._report.anomalies(found)
        if not found[0].acts:
            self.well()
            return None
        self.sick = True
        undone = self._trials.anomaly(str(found[0]))
        if roll_back:
            self._recover(step, found[0], result, dropped=dropped)
        if undone is not None:
            self._trials.undo(undone)
            result["events"].append(f"trial reverted: {undone.why}")
        return found[0]

    def _recover(
        self, step: int, anomaly: Anomaly, result: dict[str, Any], *, dropped: bool
    ) -> None:
        decision = self._recovery.decide(step, anomaly, dropped=dropped)
        events, back = result["events"], None
        if decision.halt:
            self._halt(decision.why, result)
        elif decision.why:
            events.append(decision.why)
        try:
            if decision.suspect:
                self._keeper.suspect_last()
            if decision.restore:
                back = self._keeper.go_back(decision)
        except Exception as error:  # noqa: BLE001 - a safety net that fails must not end the run
            events.append(_failed(error))
            if decision.restore:
                self._stay(anomaly, result)
            return
        if back is None:
            if decision.restore:
                events.append("no checkpoint to return to")
                self._stay(anomaly, result)
            return
        self._glide_from = self._keeper.lr_scale
        self._trials.returned(back.in_force)
        self._report.rollback(anomaly.kind)
        self._tell(back, result)

    def _stay(self, anomaly: Anomaly, result: dict[str, Any]) -> None:
        """A decision to restore could not be carried out: not for ever."""
        self._recovery.forget()
        self._stranded += anomaly.kind == "non_finite"
        if self._keeper.rollbacks:  # those there were proved bad
            self._halt("no checkpoint is left to return to", result)
        elif self._stranded >= STRANDED:
            self._halt(f"not finite for {STRANDED} steps, and nothing to return to", result)

    def _halt(self, why: str, result: dict[str, Any]) -> None:
        if not self.halted:
            self._report.halt()
        self.halted = result["halt"] = True
        result["events"].append(f"halt: {why}")

    def glide(self, ahead: int) -> None:
        """After a rollback the learning rate returns, as slowly as it takes to be sure."""
        scale, share = self._keeper.lr_scale, ahead / self._config().lr_recovery_steps
        fresh = scale + (1.0 - self._glide_from) * share
        self._keeper.lr_scale = fresh = 1.0 if fresh > 1.0 - 1e-12 else fresh
        optimizer = self._keeper.attached.optimizer
        for group in optimizer.param_groups if optimizer is not None else ():
            group["lr"] *= fresh / scale

    def follow(self, result: dict[str, Any]) -> None:
        """See what the users say of a retune."""
        ended = self._trials.follow()
        if ended is None:
            return
        trial, path = ended
        result["events"].append(f"trial {trial.verdict}: {trial.why}")
        if trial.verdict == "kept":
            return
        try:
            if path is not None:
                self._tell(self._keeper.return_to(path), result)
        except Exception as error:  # noqa: BLE001 - as above
            result["events"].append(_failed(error))
        self._trials.undo(trial)

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON types; a run that was halted may be taken up again."""
        return {"recovery": self._recovery.state_dict(), "glide_from": self._glide_from}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        self._recovery.load_state_dict(state["recovery"])
        self._glide_from = float(state["glide_from"])

    def _tell(self, back: Return, result: dict[str, Any]) -> None:
        self._detector.forget()
        result["events"] += [f"passed by: {why}" for why in back.passed_by]
        result["events"].append(f"rolled back to {back.path}; discard the present rollout")
        result["rollback_path"], result["restored"] = back.path, back.restored
        result["restored_step"] = back.step


def _failed(error: Exception) -> str:
    told = error if isinstance(error, (TrainingError, OSError)) else repr(error)
    return f"rollback failed: {told}"
