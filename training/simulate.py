"""The owner's simulation: what the operations do, in a second and without a model."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable

from training.operations import OperationsManager


def simulate(tell: Callable[[str], None] = print, *, seed: int = 0) -> None:
    """Tell the story: two checkpoints, three failures, a hundred ratings.

    Args:
        tell: gets each line.
        seed: of the pretended metrics and ratings.

    Raises:
        ModuleNotFoundError: torch is not installed; names the extra.
    """
    import torch  # noqa: PLC0415

    rng = random.Random(seed)  # noqa: S311 - pretended ratings
    tell("=== operations simulation ===")
    with tempfile.TemporaryDirectory() as folder, OperationsManager(folder) as ops:
        tell("")
        tell("1. training steps")
        model = torch.nn.Linear(40, 60)
        for step in range(1, 1001):
            metrics = {"loss": 1.0 - step / 2000, "reward": 10.0 + step / 100}
            if ops.on_training_step(step, metrics, model.state_dict)["checkpoint_path"]:
                tell(f"  Step {step}: Checkpoint saved")

        tell("")
        tell("2. Qwen fails")
        for failure in range(1, 4):
            ops.on_llm_failure("qwen")
            if ops.circuit_breaker.should_use_downshift():
                ttl_s = ops.circuit_breaker.get_current_ttl()
                tell(f"  Failure {failure}: Downshift activated! (TTL {ttl_s} s)")

        tell("")
        tell("3. ratings")
        for number in range(1, 101):
            # Two camps: most dislike it, some love it. The mean is low and the spread wide.
            rating = 1.0 if rng.random() < 0.6 else 4.8
            vote = {"rating": rating, "user_id": f"user_{number}", "formula_id": "F001"}
            suggestions = ops.on_user_feedback(vote)
            if suggestions:
                tell(f"  ✓ Retuning triggered after {number} samples")
                tell(f"  Suggestions: {dict(suggestions)}")
                tell(f"  Apply them now: {suggestions.should_apply}")
                for reason in suggestions.reasons:
                    tell(f"    {reason}")
    tell("")
    tell("done")
