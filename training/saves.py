"""When a checkpoint is due, and what becomes of one that fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from training.config import CheckpointConfig
from training.errors import SaveSkipped, TrainingError
from training.keeper import Keeper, ModelState
from training.metrics import Reporter


class Saves:
    """A checkpoint at every multiple of the interval, or at the first step after it that is well.

    Args:
        config: read anew at each step.
        keeper, report: the manager's own.

    Attributes:
        marks: multiples that are done with.
    """

    def __init__(
        self, config: Callable[[], CheckpointConfig], keeper: Keeper, report: Reporter
    ) -> None:
        self.marks = 0
        self._config = config
        self._keeper = keeper
        self._report = report

    def went_back(self, step: int) -> None:
        """The caller counts from an earlier step again."""
        self.marks = step // self._config().save_interval_steps

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
        mark = step // self._config().save_interval_steps
        if mark <= self.marks:
            return
        if flagged:
            result["events"].append("checkpoint skipped: this step is flagged")
            return
        try:
            path = self._keeper.save(step, numbers, model_state)
            if path is not None:
                result["checkpoint_path"] = path
                self._report.saved(self._keeper.store.costs.blocking_s)
        except (TrainingError, OSError) as error:
            self._complain(error, result["events"])
        self.marks = mark

    def _complain(self, error: Exception, events: list[str]) -> None:
        raises = self._config().on_save_error == "raise"
        if raises and not isinstance(error, SaveSkipped):
            raise error
        self._report.failure()
        events.append(f"checkpoint failed: {error}")
