"""What to do about an anomaly: nothing, go back, go back and slow down, go further back, stop.

The rung below all is the gradient guard's: an update that was dropped before it reached the weights
left nothing to go back from.

Pure decisions; `OperationsManager` carries them out. There is a cooldown and a limit, because a run
that goes back again and again never arrives: after the last rung of the ladder it halts, and says
so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from training.anomaly import Anomaly
from training.config import AnomalyConfig

# Steps in a row that are not finite, with nothing to return to, after which a run is given up.
STRANDED = 20


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do.

    Attributes:
        restore: return to the last healthy checkpoint.
        suspect: the checkpoint restored last led straight back here: go past it.
        lr_factor: multiply the learning rate by this.
        halt: stop the run: going back no longer helps.
        why: in words.
    """

    restore: bool = False
    suspect: bool = False
    lr_factor: float = 1.0
    halt: bool = False
    why: str = ""


class RecoveryPolicy:
    """The ladder: drop -> restore -> restore, slower -> older checkpoint, slower -> halt.

    Args:
        config: read anew at each decision.
    """

    def __init__(self, config: Callable[[], AnomalyConfig]) -> None:
        self._config = config
        self._rollbacks: list[int] = []
        self._last_kind = ""
        self._dropped = 0

    def decide(self, step: int, anomaly: Anomaly, *, dropped: bool = False) -> Decision:
        """What to do about an anomaly that is sure enough to act upon.

        Args:
            dropped: the gradient guard kept this update from the weights.
        """
        config = self._config()
        harmless = dropped and anomaly.kind == "non_finite" and anomaly.metric != "reward"
        self._dropped = self._dropped + 1 if harmless else 0
        if 0 < self._dropped < config.patience:
            return Decision(why="the update was dropped, the weights are as they were")
        recent = [at for at in self._rollbacks if step - at < config.rollback_window_steps]
        self._rollbacks = recent
        since = step - recent[-1] if recent else config.cooldown_steps
        again = bool(recent) and since <= config.cooldown_steps and anomaly.kind == self._last_kind
        # What is not finite cannot be waited out: it would reach every weight.
        if since < config.cooldown_steps and anomaly.kind != "non_finite":
            return Decision(
                suspect=again, why=f"cooling down, {config.cooldown_steps - since} steps to go"
            )
        if len(recent) >= config.max_rollbacks:
            return Decision(
                halt=True,
                why=f"{len(recent)} rollbacks within {config.rollback_window_steps} steps",
            )
        rung = len(recent)
        self._rollbacks.append(step)
        self._last_kind = anomaly.kind
        slower = config.lr_backoff if rung else 1.0
        return Decision(restore=True, suspect=again or rung >= 2, lr_factor=slower)

    def well(self) -> None:
        """A step was well: updates dropped before it were single ones."""
        self._dropped = 0

    def went_back(self, step: int) -> None:
        """The caller counts from an earlier step again: what was after it is as if just now."""
        self._rollbacks = [min(at, step) for at in self._rollbacks]

    def forget(self) -> None:
        """A decision to restore could not be carried out."""
        if self._rollbacks:
            self._rollbacks.pop()

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON types."""
        return {
            "rollbacks": list(self._rollbacks),
            "last_kind": self._last_kind,
            "dropped": self._dropped,
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        self._rollbacks = [int(step) for step in state["rollbacks"]]
        self._last_kind, self._dropped = str(state["last_kind"]), int(state["dropped"])
