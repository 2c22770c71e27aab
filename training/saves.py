"""When a checkpoint is due, what becomes of one that fails, and when one has proved itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.anomaly import AnomalyDetector
from training.config import AnomalyConfig, CheckpointConfig
from training.errors import SaveSkipped, TrainingError
from training.keeper import Keeper, ModelState
from training.metrics import Reporter


@dataclass(slots=True)
class _Young:
    """A checkpoint on probation: its path, since which step, and the rewards' level then."""

    path: str
    step: int
    level: float


class Saves:
    """A checkpoint at every multiple of the interval, or at the first step after it that is well.

    Whether a state was well shows later: rewards tell of a broken policy only once its episodes
    have ended. So a checkpoint is a candidate until `AnomalyConfig.probation_steps` further steps
    have passed with nothing to act upon, and with most of what had been learned still there.

    Args:
        config, anomaly: read anew at each step.
        keeper, report, detector: the manager's own.

    Attributes:
        done: up to this step every multiple of the interval is done with.
        young: checkpoints on probation, oldest first.
    """

    def __init__(
        self,
        config: Callable[[], CheckpointConfig],
        anomaly: Callable[[], AnomalyConfig],
        keeper: Keeper,
        report: Reporter,
        detector: AnomalyDetector,
    ) -> None:
        self.done = 0
        self.young: list[_Young] = []
        self._config = config
        self._anomaly = anomaly
        self._keeper = keeper
        self._report = report
        self._detector = detector

    def went_back(self, step: int) -> None:
        """The caller counts from an earlier step again."""
        self.done = step
        for young in self.young:
            young.step = min(young.step, step)

    def failed(self, events: list[str]) -> None:
        """Tell of the saves in the background that failed since the last step."""
        for failure in self._keeper.on_step():
            self._complain(failure, events)

    def if_due(
        self,
        step: int,
        numbers: Mapping[str, Any],
        model_state: ModelState | None,
        *,
        flagged: bool,
        result: dict[str, Any],
    ) -> None:
        """Save if it is time to, never a state that is flagged.

        Raises:
            SaveFailed: it could not be written and `on_save_error` is `raise`.
        """
        interval = self._config().save_interval_steps
        if step // interval <= self.done // interval:
            return
        if flagged:
            result["events"].append("checkpoint skipped: this step is flagged")
            return
        before, self.done = self.done, step  # the checkpoint holds our state: it need be done there
        try:
            result["checkpoint_path"] = self.save(step, numbers, model_state)
        except (TrainingError, OSError) as error:
            self.done = before
            self._complain(error, result["events"])
            self.done = step

    def save(
        self, step: int, numbers: Mapping[str, Any], model_state: ModelState | None
    ) -> str | None:
        """Save now; the path, None if there is nothing to save. Raises as `Keeper.save`."""
        at_once = self._anomaly().probation_steps == 0
        path = self._keeper.save(step, numbers, model_state, healthy=at_once)
        if path is not None:
            if not at_once:
                self.watch(path, step)
            self._report.saved(self._keeper.store.costs.blocking_s)
        return path

    def watch(self, path: str, step: int) -> None:
        """Put a checkpoint on probation."""
        self.young.append(_Young(path, step, self._detector.level))

    def prove(self, step: int) -> None:
        """This step was well: checkpoints that have seen enough of them are healthy."""
        config = self._config()
        # Before the store gives it up for newer ones, or with short intervals none would ever be.
        most = config.save_interval_steps * max(1, config.max_checkpoints - 2)
        before = step - min(self._anomaly().probation_steps, most)
        if self.young[0].step > before or not self._detector.calm:
            return
        holds = self._detector.holds
        ready = [young for young in self.young if young.step <= before and holds(young.level)]
        while ready:
            newest = ready.pop()
            if self._keeper.proved(newest.path):
                self.young = self.young[self.young.index(newest) + 1 :]
                return
            if self._keeper.store.writing:
                return
            self.young.remove(newest)  # it failed, or is gone

    def returned(self, step: int, path: str) -> None:
        """The run went back to `path`: what was saved after it led into trouble."""
        at = next((n for n, young in enumerate(self.young) if young.path == path), -1)
        for young in self.young[at + 1 :]:
            self._keeper.suspect(young.path)
        self.young = self.young[: at + 1]
        for young in self.young:
            young.step = step

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON types."""
        names = [[self._keeper.name(each.path), each.step, each.level] for each in self.young]
        return {"done": self.done, "young": names}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        self.done = int(state["done"])
        young: Sequence[Any] = state["young"]
        self.young = [
            _Young(self._keeper.path(name), int(step), float(level)) for name, step, level in young
        ]

    def _complain(self, error: Exception, events: list[str]) -> None:
        raises = self._config().on_save_error == "raise"
        if raises and not isinstance(error, SaveSkipped):
            raise error
        self._report.failure()
        events.append(f"checkpoint failed: {error}")
