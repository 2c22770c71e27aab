"""Training operations: a run that degrades before it breaks, and goes back by itself.

ops = OperationsManager(checkpoint_dir="./checkpoints")
result = ops.on_training_step(step, {"loss": loss, "reward": reward}, model.state_dict)
"""

from typing import TYPE_CHECKING, Any

from training.anomaly import Anomaly
from training.config import (
    AnomalyConfig,
    CheckpointConfig,
    CircuitBreakerConfig,
    ConfigValueError,
    LearningScheduleConfig,
    RetuningConfig,
)
from training.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointForeign,
    FeedbackRejected,
    FolderBusy,
    SaveFailed,
    SaveSkipped,
    TrainingError,
)
from training.normalizers import ReturnScale, WindowScale, WindowZ
from training.operations import OperationsManager
from training.retuning import Suggestions
from training.trial import Trial, TrialRejected

if TYPE_CHECKING:
    from gateway.telemetry.metrics import OperationsMetricsCollector
    from training.ppo import PPOTrainer

__all__ = [
    "Anomaly",
    "AnomalyConfig",
    "CheckpointConfig",
    "CheckpointCorrupt",
    "CheckpointError",
    "CheckpointForeign",
    "CircuitBreakerConfig",
    "ConfigValueError",
    "FeedbackRejected",
    "FolderBusy",
    "LearningScheduleConfig",
    "OperationsManager",
    "OperationsMetricsCollector",
    "PPOTrainer",
    "RetuningConfig",
    "ReturnScale",
    "SaveFailed",
    "SaveSkipped",
    "Suggestions",
    "TrainingError",
    "Trial",
    "TrialRejected",
    "WindowScale",
    "WindowZ",
]

# These need an extra: they load when they are first named.
_LAZY = {
    "OperationsMetricsCollector": "gateway.telemetry.metrics",
    "PPOTrainer": "training.ppo",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415

    return getattr(importlib.import_module(_LAZY[name]), name)
