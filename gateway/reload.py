"""A new configuration is on trial; one that makes things worse is taken back.

The shared primitives at work: `Snapshots` keep the configurations that were well, `Trial` compares
what follows a change with what went before, `Rollback` returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.clock import Clock
from gateway.config import Config
from gateway.errors import GatewayError, RequestRejected, UpstreamRejected
from gateway.generation import Generation
from gateway.policies.sampling import Sampling
from gateway.policies.trial import Trial, Verdict
from gateway.primitives.rollback import Rollback

_BEFORE_S = 120.0


class Reloads:
    """Keeps configurations, and the one in force on trial after a reload.

    Args:
        config: the first configuration, taken to be well.
        swap: puts a configuration in force; told "applied" or "rolled_back".
        clock: monotonic seconds.
    """

    def __init__(self, config: Config, swap: Callable[[Config, str], None], clock: Clock) -> None:
        self._target = _InForce(config, swap)
        self._rollback = Rollback(self._target, duplicate=lambda config: config)
        self._rollback.commit(config.source or "")
        self._rollback.healthy()
        self._clock = clock
        self._outcomes = Sampling(_BEFORE_S)
        self._trial: Trial | None = None
        self._last = "none"

    def apply(self, config: Config) -> None:
        """Put `config` in force, on trial.

        Raises:
            ConfigError: it cannot be built; nothing has changed.
        """
        self._target.become(config, "applied")
        self._rollback.commit(config.source or "")
        calls, failures = self._outcomes.totals(self._clock())
        self._trial = Trial((failures, calls), clock=self._clock)
        self._last = "applied"

    def hear(self, generation: Generation | None, error: BaseException | None) -> None:
        """Count one request: an answer from a lower mode is worse than one as asked."""
        if generation is not None:
            ok = not generation.degraded
        elif isinstance(error, GatewayError) and not _callers_fault(error):
            ok = False
        else:
            return  # cancelled or the caller's own mistake: says nothing about a configuration
        self._outcomes.add(self._clock(), failed=not ok)
        if self._trial is not None:
            self._follow(self._trial.record(ok))

    def status(self) -> dict[str, Any]:
        """Where the configuration came from and whether it is on trial."""
        if self._trial is not None:
            self._follow(self._trial.judge())
        return {
            "source": self._target.config.source,
            "last_reload": self._last,
            "on_trial": self._trial is not None,
        }

    def _follow(self, verdict: Verdict) -> None:
        if verdict is Verdict.KEEP:
            self._trial = None
            self._rollback.healthy()
        elif verdict is Verdict.REVERT:
            self._trial = None
            if self._rollback.current is not None:
                self._rollback.suspect(self._rollback.current)
            self._rollback.rollback()
            self._last = "rolled_back"


def _callers_fault(error: GatewayError) -> bool:
    return isinstance(error, (RequestRejected, UpstreamRejected)) and error.http_status < 429


class _InForce:
    """The configuration in force, as something that can be rolled back."""

    def __init__(self, config: Config, swap: Callable[[Config, str], None]) -> None:
        self.config = config
        self._swap = swap

    def become(self, config: Config, result: str) -> None:
        self._swap(config, result)
        self.config = config

    def state_dict(self) -> Config:
        """The configuration."""
        return self.config

    def load_state_dict(self, config: Config, /) -> None:
        """Return to a configuration."""
        self.become(config, "rolled_back")
