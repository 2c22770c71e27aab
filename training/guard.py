"""Keeps broken gradients away from the weights: before a step, not after it.

Stable-Baselines3 and RSL-RL crash inside their own `train()` once a weight is NaN, before any
callback runs. So the check hangs on the optimizer: an update whose gradients are not finite is
dropped, and Adam does nothing for parameters without a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils import get_total_norm


class GradientGuard:
    """Drops updates with gradients that are not finite.

    Args:
        optimizer: any `torch.optim.Optimizer`.

    Attributes:
        dropped: updates dropped so far.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.dropped = 0
        self._reported = 0
        self._handle = optimizer.register_step_pre_hook(self.check)

    def news(self) -> int:
        """Updates dropped since the last call."""
        new, self._reported = self.dropped - self._reported, self.dropped
        return new

    def remove(self) -> None:
        """Let every update through again."""
        self._handle.remove()

    def check(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Drop the update if it is broken: for hosts whose `step` makes the gradients itself."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.broken([p.grad for p in parameters if p.grad is not None]):
            for parameter in parameters:
                parameter.grad = None
            self.dropped += 1

    def broken(self, gradients: list[torch.Tensor]) -> bool:
        """Whether these gradients are not to reach the weights."""
        # One number tells: the norm of all is finite only if each part is. A norm that overflows
        # although each part is finite would be no update to make, either.
        if not gradients:
            return False
        dense = [each.coalesce().values() if each.is_sparse else each for each in gradients]
        if bool(torch.isfinite(get_total_norm(dense))):
            return False
        # Half of the range is soon left: there the norm of an ordinary update may overflow.
        whole = [each.float() if each.dtype is torch.float16 else each for each in dense]
        return not bool(torch.isfinite(get_total_norm(whole)))
