"""What a detector finds, and how long it waits before it is sure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Anomaly:
    """Something is wrong with this step.

    Attributes:
        kind: `non_finite`, `loss_spike`, `reward_drop`, `progress_lost`, `kl`, `entropy`,
            `grad_norm`, `explained_variance` or `outlier` (a rise beyond belief).
        metric: its name in the caller's metrics.
        step: when.
        value: what it was.
        reference: what it was held against.
        acts: whether it is sure enough to roll back for.
    """

    kind: str
    metric: str
    step: int
    value: float
    reference: float
    acts: bool

    def __str__(self) -> str:
        told = {
            "non_finite": "is not finite",
            "loss_spike": f"jumped from {self.reference:.4g}",
            "reward_drop": f"fell from {self.reference:.4g}",
            "progress_lost": f"lost half of what was learned, from {self.reference:.4g}",
            "kl": f"stays above {self.reference:.4g}",
            "entropy": f"collapsed from {self.reference:.4g}",
            "grad_norm": f"stands out from {self.reference:.4g}",
            "explained_variance": f"stays below {self.reference:.4g}",
            "outlier": f"is beyond belief beside {self.reference:.4g}",
        }[self.kind]
        return f"step {self.step}: {self.metric} {self.value:.4g} {told}"


class Patience:
    """How many steps in a row something has held, by name."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def holds(self, name: str, now: bool) -> int:
        """How many steps in a row it has held, this one included; 0 if it does not."""
        counts = self.counts
        if now:
            counts[name] = count = counts.get(name, 0) + 1
            return count
        if name in counts:
            del counts[name]
        return 0

    def state_dict(self) -> dict[str, int]:
        """Everything."""
        return dict(self.counts)

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        self.counts = {name: int(count) for name, count in state.items()}
