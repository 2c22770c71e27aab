"""The language model's circuit as the training loop sees it, on the gateway's own circuit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.clock import Clock
from gateway.detectors.failures import Outcome
from gateway.policies.circuit import Circuit
from gateway.policies.phases import CircuitOptions, Permit
from training.config import CircuitBreakerConfig

_NEVER_S = 1e12


class TrainingCircuit:
    """A `gateway.policies.circuit.Circuit` driven by hand, or a live gateway's own.

    Args:
        config: read anew at each call.
        clock: monotonic seconds.
        gateway: a live `Gateway`, whose best mode's circuit is reported instead; outcomes told
            here are then ignored, as the gateway sees its own.
    """

    def __init__(
        self, config: Callable[[], CircuitBreakerConfig], clock: Clock, gateway: Any = None
    ) -> None:
        self._config = config
        self._gateway = gateway
        self._seen: tuple[int, float] | None = None
        self._circuit = Circuit("qwen", self._options(), clock)

    def success(self) -> bool:
        """A call answered; False if a live gateway knows better."""
        return self._settle(Outcome.SUCCESS)

    def failure(self) -> bool:
        """A call failed; False if a live gateway knows better."""
        return self._settle(Outcome.FAILURE)

    def should_use_downshift(self) -> bool:
        """Whether to ask a lower mode now."""
        if self._gateway is not None:
            return bool(self._best_mode()["downshifted"])
        self._sync()
        # The next call is the probe: once it is due, the model is asked again.
        return self._circuit.until() not in (None, 0.0)

    def get_current_ttl(self) -> int:
        """How long an answer may be cached now, seconds."""
        if self._gateway is not None:
            return int(self._best_mode()["ttl_s"])
        config = self._config()
        down = self.should_use_downshift()
        return int(config.downshift_ttl_s if down else config.normal_ttl_s)

    def standing(self) -> tuple[bool, int]:
        """`should_use_downshift` and `get_current_ttl`, at one glance."""
        if self._gateway is not None:
            mode = self._best_mode()
            return bool(mode["downshifted"]), int(mode["ttl_s"])
        config, down = self._config(), self.should_use_downshift()
        return down, int(config.downshift_ttl_s if down else config.normal_ttl_s)

    def _best_mode(self) -> dict[str, Any]:
        modes: dict[str, dict[str, Any]] = self._gateway.status()["modes"]
        return next(iter(modes.values()))

    def _settle(self, outcome: Outcome) -> bool:
        if self._gateway is not None:
            return False
        self._sync()
        permit: Permit | None = self._circuit.admit()
        if permit is not None:
            self._circuit.settle(permit, outcome, "told by the training loop")
        return True

    def _sync(self) -> None:
        config = self._config()
        seen = (config.failure_threshold, config.downshift_duration_s)
        if seen != self._seen:
            self._seen = seen
            self._circuit.options = self._options()

    def _options(self) -> CircuitOptions:
        config = self._config()
        return CircuitOptions(
            failure_threshold=config.failure_threshold,
            failure_window_s=_NEVER_S,  # driven by hand: three in a row, whenever they come
            failure_ratio=0.0,
            slow_s=0.0,
            break_duration_s=config.downshift_duration_s,
            ramp_s=0.0,
        )
