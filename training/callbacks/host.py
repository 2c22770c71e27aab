"""What every host is told the same way: numbers in, a decision out, what happened into the log."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

from training.operations import OperationsManager

_log = logging.getLogger("training.callbacks")


def imported(module: str, package: str) -> Any:
    """A module of the host.

    Raises:
        ModuleNotFoundError: it is not installed; names the line that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this callback needs {error.name}: pip install {package}", name=error.name
        ) from None


class Watch:
    """One run as its operations see it.

    Args:
        ops: the run's manager; the caller closes it.
        resume: continue from the last healthy checkpoint in its folder, if there is one.

    Attributes:
        last: what `on_training_step` said last.
        resumed_step: the step the run continued from, 0 for a new one.
        lr_scale: what rollbacks made of the learning rate.
        in_place: whether this process has the whole model. If not, nothing is kept or put back
            here, and an anomaly to act upon stops the run.
    """

    def __init__(self, ops: OperationsManager, *, resume: bool) -> None:
        self.ops = ops
        self.last: dict[str, Any] = {}
        self.resumed_step = 0
        self.lr_scale = 1.0
        self.in_place = True
        self._progress: set[str] = set()
        self._resume = resume
        self._resuming = False

    def attach(self, model: Any, optimizer: Any, **progress: Any) -> None:
        """Name the parts of the run, and continue an earlier one if that was asked for.

        Args:
            model, optimizer: as for `OperationsManager.attach`.
            progress: what tells how far the run is, such as the schedule of the learning rate. It
                comes back with a resume only: after a rollback the run goes on counting.
        """
        if not self.in_place:
            return
        self._progress |= progress.keys()
        extra = {name: _Progress(part, self) for name, part in progress.items()}
        self.ops.attach(model=model, optimizer=optimizer, extra=extra)
        if self._resume:
            self._resume, self._resuming = False, True
            try:
                found = self.ops.resume()
            finally:
                self._resuming = False
            if found is not None:
                self.resumed_step = found["step"]
                self.lr_scale = self.ops.lr_scale
                _log.info("resumed at step %d from %s", found["step"], found["path"])

    @property
    def stops(self) -> bool:
        """Whether the host is to stop."""
        anomaly = self.last.get("anomaly")
        acts = anomaly is not None and anomaly.acts
        return bool(self.last.get("halt")) or (acts and not self.in_place)

    def look(self, step: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """One step of the host.

        Only `loss` and `reward` may be non-finite and count: elsewhere a NaN may mean no more than
        "undefined" (the explained variance of constant returns), or that the guard has already
        dropped the update it speaks of (the norm of its gradient).
        """
        told = {
            name: value
            for name, value in metrics.items()
            if name in {"loss", "reward"} or math.isfinite(float(value))
        }
        self.last = self.ops.on_training_step(step, told)
        self.lr_scale = self.last["lr_scale"]
        self.last["restored"] = [n for n in self.last["restored"] if n not in self._progress]
        for event in self.last["events"]:
            _log.warning("%s", event)
        return self.last


class LearningRates:
    """Schedulers set the learning rate anew at every step, so they too must know its scale.

    Args:
        schedulers: of `torch.optim.lr_scheduler`, as they were made.
    """

    def __init__(self, schedulers: Iterable[Any]) -> None:
        self._factor = 1.0
        inside = [each for one in schedulers for each in _all_in(one)]
        self._bases = [(each, list(each.base_lrs)) for each in inside if _has_bases(each)]

    def scale(self, factor: float) -> None:
        """From the next step on, `factor` times what was planned at first."""
        if factor == self._factor:
            return
        self._factor = factor
        for scheduler, bases in self._bases:
            scheduler.base_lrs = [base * factor for base in bases]


def _all_in(scheduler: Any) -> list[Any]:
    """Itself, and those it puts one after the other or on top of each other."""
    parts = getattr(scheduler, "_schedulers", ())
    return [scheduler, *(each for part in parts for each in _all_in(part))]


def _has_bases(scheduler: Any) -> bool:
    return hasattr(scheduler, "base_lrs")  # one that waits for a plateau works on what it finds


class _Progress:
    """A part that a checkpoint keeps and only a resume puts back."""

    def __init__(self, part: Any, watch: Watch) -> None:
        self._part = part
        self._watch = watch

    def state_dict(self) -> Any:
        return self._part.state_dict()

    def load_state_dict(self, state: Any, /) -> None:
        if self._watch._resuming:
            self._part.load_state_dict(state)
