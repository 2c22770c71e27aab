"""What a training run tells a collector: a thin layer that does nothing without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.anomaly import Anomaly

if TYPE_CHECKING:
    from gateway.telemetry.metrics import OperationsMetricsCollector


class Reporter:
    """Passes on what happened in a step.

    Args:
        collector: None counts nothing.
    """

    __slots__ = ("_down", "_persisted", "collector")

    def __init__(self, collector: OperationsMetricsCollector | None) -> None:
        self.collector = collector
        self._persisted = 0.0
        self._down = False

    def anomalies(self, found: list[Anomaly]) -> None:
        """What the detector found."""
        if self.collector is not None:
            for anomaly in found:
                self.collector.record_anomaly(anomaly.kind, acts=anomaly.acts)

    def rollback(self, reason: str) -> None:
        """The run went back."""
        if self.collector is not None:
            self.collector.record_rollback(reason)

    def halt(self) -> None:
        """The run was stopped."""
        if self.collector is not None:
            self.collector.record_halt()

    def dropped(self, count: int) -> None:
        """Updates never reached the weights."""
        if self.collector is not None:
            self.collector.record_dropped_updates(count)

    def retune(self, result: str) -> None:
        """A trial began or ended."""
        if self.collector is not None:
            self.collector.record_retune(result)

    def failure(self) -> None:
        """A checkpoint could not be written."""
        if self.collector is not None:
            self.collector.record_checkpoint_failure()

    def saved(self, blocking_s: float) -> None:
        """A checkpoint was staged."""
        if self.collector is not None:
            self.collector.observe_checkpoint_blocking(blocking_s)

    def step(self, result: dict[str, Any], persist_s: float) -> None:
        """A step ended; `persist_s`: how long the last commit took, 0 before the first."""
        if self.collector is None:
            return
        if persist_s != self._persisted:
            self._persisted = persist_s
            self.collector.observe_checkpoint_persist(persist_s)
        entropy_coef, lr_scale = result["entropy_coef"], result["lr_scale"]
        self.collector.set_training_state(entropy_coef=entropy_coef, lr_scale=lr_scale)
        down = result["should_downshift"]
        if down != self._down:
            self._down = down
            if down:
                self.collector.record_circuit_breaker_downgrade("llm", "creative", "balanced")
