"""A retune that can be taken back: other hyperparameters, on trial until the users have spoken.

One trial at a time. The checkpoint of before is pinned. New ratings, of the new policy, decide:
surely worse than before, or training turns anomalous: everything goes back; surely not worse:
kept; neither after as many ratings as are kept: the better mean decides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from training.config import RetuningConfig
from training.errors import CheckpointError, SaveFailed, TrainingError
from training.keeper import Keeper
from training.retuning import Retuning, Suggestions, half_width

Setter = tuple[Callable[[], float], Callable[[float], Any]]

# What a suggestion is for decides what comes first, and which way it may move a value.
_UP, _DOWN = 1.0, -1.0
_PRIORITY = {"learning_rate": _DOWN, "entropy_coef": _UP, "clip_epsilon": _DOWN}
# Most of one retune: beyond, the figures behind the suggestion say nothing.
_MOST, _LEAST = 2.0, 1.0 / 3.0
_ROUNDING = 1e-9


class TrialRejected(TrainingError):
    """These suggestions cannot be tried now; the message says why. Nothing has changed."""


@dataclass(slots=True)
class Trial:
    """Hyperparameters on trial.

    Attributes:
        step: when it began.
        old, new: the values by name.
        snapshot: the pinned checkpoint of before; None if nothing could be saved.
        n, mean, std: of the ratings of before.
        policy_version: the policy on trial.
        verdict: None while it runs, then `kept` or `reverted`.
        why: in words.
    """

    step: int
    old: dict[str, float]
    new: dict[str, float]
    snapshot: str | None
    n: int
    mean: float
    std: float
    policy_version: int
    verdict: str | None = None
    why: str = ""


@dataclass(slots=True)
class Hyperparameters:
    """What may be retuned, and what has been.

    Attributes:
        setters: getter and setter by name.
        in_force: values set here and not taken back.
        entropy_scale: the schedule's coefficient is multiplied by this, so that it does not undo a
            retuned one at the next step.
    """

    setters: dict[str, Setter] = field(default_factory=dict)
    in_force: dict[str, float] = field(default_factory=dict)
    entropy_scale: float = 1.0

    def attach(self, given: Any) -> None:
        """Take setters, or an object with attributes of these names, such as a `PPOTrainer`."""
        if isinstance(given, Mapping):
            self.setters.update(given)
            return
        for name in _PRIORITY:
            if hasattr(given, name):
                self.setters[name] = _attribute(given, name)

    def put(self, values: Mapping[str, float]) -> None:
        """Set what can be set."""
        for name, value in values.items():
            if name in self.setters:
                self.setters[name][1](value)

    def changes(
        self, suggestions: Mapping[str, float], scheduled: float
    ) -> tuple[dict[str, float], dict[str, float]]:
        """What a retune would change: `(old, new)`.

        At most twice or a third of the present value, and never the wrong way. Of two that both
        make steps smaller, the learning rate comes first and the clip range waits.

        Args:
            scheduled: the entropy coefficient now; it can be retuned without a setter.
        """
        old: dict[str, float] = {}
        new: dict[str, float] = {}
        for name, way in _PRIORITY.items():
            if name not in suggestions or (name == "clip_epsilon" and "learning_rate" in new):
                continue
            if name == "entropy_coef":
                now = scheduled
            elif name in self.setters:
                now = float(self.setters[name][0]())
            else:
                continue
            value = float(suggestions[name])
            if (value - now) * way <= _ROUNDING * abs(now):
                continue
            old[name] = now
            most, least = now * _MOST, now * _LEAST
            bounded = min(max(value, least), most)
            new[name] = value if abs(bounded - value) <= _ROUNDING * value else bounded
        return old, new


def verdict(
    trial: Trial, rated: Suggestions, config: RetuningConfig
) -> tuple[str, str] | tuple[None, str]:
    """`kept` or `reverted` and why, by the ratings of the new policy; None while it is open.

    Both bounds hold at every look, so looking after each rating is no peeking.
    """
    if rated.n < config.min_feedback:
        return None, ""
    alpha = (1.0 - config.confidence) / 2.0  # two means, two bounds
    apart = rated.mean - trial.mean
    known = half_width(rated.n, rated.std, alpha)
    if trial.n:
        known += half_width(trial.n, trial.std, alpha)
    told = f"mean {rated.mean:.2f} of {rated.n} ratings, {trial.mean:.2f} of {trial.n} before"
    if apart + known < 0.0:
        return "reverted", f"surely worse: {told}"
    if apart - known > -config.trial_tolerance:
        return "kept", f"surely not worse: {told}"
    if rated.n >= config.max_feedback:
        return ("kept", f"not worse: {told}") if apart >= 0.0 else ("reverted", f"worse: {told}")
    return None, ""


class Trials:
    """Opens a trial, follows it, ends it.

    Args:
        config: read anew at each look.
        retuning: the ratings.
        keeper: the checkpoints and the attached parts.
        report: hears `applied`, `kept` and `reverted`.
    """

    def __init__(
        self,
        config: Callable[[], RetuningConfig],
        retuning: Retuning,
        keeper: Keeper,
        report: Callable[[str], None],
    ) -> None:
        self.hyperparameters = Hyperparameters()
        self.trial: Trial | None = None
        self._config = config
        self._retuning = retuning
        self._keeper = keeper
        self._report = report
        self._before: dict[str, float] = {}
        self._scale_before = 1.0
        self._given_up: dict[str, float] = {}  # what reverted retunes had found

    def begin(self, step: int, suggestions: Suggestions, scheduled: float) -> Trial:
        """Set the suggested values, after a checkpoint of what is now.

        Args:
            scheduled: the entropy coefficient the schedule asks for, retuned before or not.

        Raises:
            TrialRejected: a trial is open, the learning rate is still recovering, or there is
                nothing to change; nothing has changed.
            SaveFailed: the checkpoint could not be written; nothing has changed.
        """
        if self.trial is not None:
            raise TrialRejected(f"a trial runs since step {self.trial.step}; one at a time")
        if self._keeper.lr_scale != 1.0:
            raise TrialRejected("the learning rate is still recovering from a rollback")
        hyper = self.hyperparameters
        old, new = hyper.changes(suggestions, scheduled)
        if not new:
            raise TrialRejected("nothing to change: no setter is attached, or it is so already")
        snapshot = self._keeper.save(step, {}, None)
        if snapshot is not None:
            self._keeper.flush()
            try:
                self._keeper.store.pin(snapshot)
            except CheckpointError as error:  # it failed in the background; the next step says why
                raise SaveFailed(f"the checkpoint of before was not written: {error}") from error
        self._before, self._scale_before = dict(hyper.in_force), hyper.entropy_scale
        hyper.put(new)
        hyper.in_force.update(new)
        if "entropy_coef" in new and scheduled > 0.0:
            hyper.entropy_scale *= new["entropy_coef"] / scheduled
        self._retuning.new_policy()
        before = (suggestions.n, suggestions.mean, suggestions.std)
        self.trial = Trial(step, old, new, snapshot, *before, self._retuning.policy_version)
        self._report("applied")
        return self.trial

    def follow(self) -> tuple[Trial, str | None] | None:
        """Look at the ratings: the trial and where its checkpoint lies, if it has just ended and
        everything is to go back; the path is None if it is to stay."""
        trial = self.trial
        if trial is None or self._retuning.count < self._config().min_feedback:
            return None
        ended, why = verdict(trial, self._retuning.suggest(), self._config())
        if ended is None:
            return None
        self._end(trial, ended, why)
        return trial, trial.snapshot if ended == "reverted" else None

    def anomaly(self, why: str) -> Trial | None:
        """Training went wrong: whatever is on trial goes back."""
        if self.trial is not None:
            trial = self.trial
            self._end(trial, "reverted", f"training turned anomalous: {why}")
            return trial
        return None

    def undo(self, trial: Trial) -> None:
        """Put the old values back, after a rollback has been carried out."""
        hyper = self.hyperparameters
        old = dict(trial.old)
        if "learning_rate" in old:
            old["learning_rate"] *= self._keeper.lr_scale
        hyper.put(old)
        self._given_up.update(trial.old)
        hyper.in_force, hyper.entropy_scale = self._before, self._scale_before

    def returned(self, then: Mapping[str, float]) -> None:
        """A rollback brought back what was set when the checkpoint was taken: set what holds now.

        Args:
            then: what retunes had set by then.
        """
        now = self.hyperparameters.in_force
        gone = {n: v for n, v in self._given_up.items() if n in then and n not in now}
        changed = gone | {n: v for n, v in now.items() if then.get(n) != v}
        if "learning_rate" in changed:
            changed["learning_rate"] *= self._keeper.lr_scale
        self.hyperparameters.put(changed)

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON types."""
        return {
            "trial": asdict(self.trial) if self.trial is not None else None,
            "in_force": dict(self.hyperparameters.in_force),
            "entropy_scale": self.hyperparameters.entropy_scale,
            "before": dict(self._before),
            "scale_before": self._scale_before,
            "given_up": dict(self._given_up),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken: what was retuned is so again.

        The learning rate comes back with the optimizer, annealed or not.
        """
        kept = state["trial"]
        self.trial = Trial(**kept) if kept is not None else None
        hyper = self.hyperparameters
        hyper.in_force = {name: float(value) for name, value in state["in_force"].items()}
        hyper.entropy_scale = float(state["entropy_scale"])
        self._before = dict(state["before"])
        self._scale_before = float(state["scale_before"])
        self._given_up = dict(state["given_up"])
        restored = self._keeper.attached.optimizer is not None
        skip = {"learning_rate"} if restored else set()
        hyper.put({name: v for name, v in hyper.in_force.items() if name not in skip})

    def _end(self, trial: Trial, ended: str, why: str) -> None:
        trial.verdict, trial.why = ended, why
        self.trial = None
        if trial.snapshot is not None:
            with contextlib.suppress(CheckpointError):
                self._keeper.store.pin(trial.snapshot, pinned=False)
        if ended == "reverted":
            self._retuning.new_policy()
        self._report(ended)


def _attribute(owner: Any, name: str) -> Setter:
    return (lambda: float(getattr(owner, name))), (lambda value: setattr(owner, name, value))
