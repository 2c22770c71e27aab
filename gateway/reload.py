"""The configuration in force. A new one is on trial; one that makes things worse is taken back.

The shared primitives at work: `Snapshots` keep the configurations that were well, `Trial` compares
what follows a change with what went before, `Rollback` returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gateway.clock import Clock
from gateway.config import Config
from gateway.errors import ConfigError, GatewayError, RequestRejected, UpstreamRejected
from gateway.events import ConfigReloaded, EventBus
from gateway.generation import Generation
from gateway.policies.quota import QuotaRefused
from gateway.policies.sampling import Sampling
from gateway.policies.trial import Trial, Verdict
from gateway.primitives.rollback import Rollback

if TYPE_CHECKING:
    from gateway.pipeline import Pipeline

_BEFORE_S = 120.0
# Why a lower mode answered, where no configuration is to blame.
_NOT_ITS_DOING = frozenset({"recovering", "forced"})


class InForce:
    """Holds the pipeline that serves, replaces it, and returns to an earlier one if need be.

    Args:
        config: the first configuration, taken to be well.
        build: makes a pipeline of a configuration and the pipeline it replaces.
        events: told of every change.
        clock: monotonic seconds.

    Attributes:
        pipeline: what serves new requests; those under way keep the one they began with.
    """

    def __init__(
        self,
        config: Config,
        build: Callable[[Config, Pipeline | None], Pipeline],
        events: EventBus,
        clock: Clock,
    ) -> None:
        self.pipeline = build(config, None)
        self._build = build
        self._events = events
        self._clock = clock
        self._outcomes = Sampling(_BEFORE_S)
        self._trial: Trial | None = None
        self._last = "none"
        self._leaving: list[Pipeline] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._rollback = Rollback(self, duplicate=lambda config: config)
        self._rollback.commit(config.source or "")
        self._rollback.healthy()

    def apply(self, config: Config) -> None:
        """Put `config` in force, on trial.

        Raises:
            ConfigError: it cannot be built; nothing has changed.
        """
        if self._trial is not None and self._trial.judge() is Verdict.KEEP:
            self._rollback.healthy()
        self._swap(config, "applied")
        self._rollback.commit(config.source or "")
        calls, failures = self._outcomes.totals(self._clock())
        self._trial = Trial((failures, calls), clock=self._clock)

    def hear(
        self, by: Pipeline, generation: Generation | None, error: BaseException | None
    ) -> None:
        """Count one request: an answer from a lower mode is worse than one as asked.

        Requests that began with an earlier configuration say nothing about this one, nor do those
        that a lower mode answered because a mode ramps up or an operator holds it open.
        """
        if by is not self.pipeline:
            return
        if generation is not None:
            if generation.reason in _NOT_ITS_DOING:
                return
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
        on_trial = self._trial is not None and self._trial.judge() is Verdict.UNDECIDED
        return {
            "source": self.pipeline.config.source,
            "last_reload": self._last,
            "on_trial": on_trial,
        }

    def _follow(self, verdict: Verdict) -> None:
        if verdict is Verdict.KEEP:
            self._trial = None
            self._rollback.healthy()
        elif verdict is Verdict.REVERT:
            self._trial = None
            if self._rollback.current is not None:
                self._rollback.suspect(self._rollback.current)
            try:
                self._rollback.rollback()
            except ConfigError as error:  # what it needs is gone: a key, a file; better this one
                self._tell("not_rolled_back", error.message)

    def state_dict(self) -> Config:
        """The configuration in force, for `Rollback`."""
        return self.pipeline.config

    def load_state_dict(self, config: Config, /) -> None:
        """Return to an earlier configuration, for `Rollback`."""
        self._swap(config, "rolled_back")

    async def aclose(self) -> None:
        """Stop what is under way and close everything that was opened for it."""
        leaving, self._leaving = self._leaving, []
        for old in leaving:
            old.on_idle = None
            await old.cache.aclose()
            await old.retire([self.pipeline])
        await self.pipeline.aclose()
        if self._closing:
            await asyncio.wait(self._closing)

    def _swap(self, config: Config, result: str) -> None:
        """Build, then switch: a configuration that cannot be built changes nothing."""
        old = self.pipeline
        self.pipeline = self._build(config, old)
        self._tell(result, config.source or "")
        self._leaving.append(old)
        old.on_idle = self._retire_idle
        self._retire_idle()

    def _retire_idle(self) -> None:
        """Close what only pipelines used that have answered their last request."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # called from outside the loop: the next one to end will see to it
        for old in [leaving for leaving in self._leaving if not leaving.in_flight]:
            self._leaving.remove(old)
            old.on_idle = None
            task = loop.create_task(old.retire([self.pipeline, *self._leaving]))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _tell(self, result: str, detail: str) -> None:
        self._last = result
        self._events.emit(ConfigReloaded(at=self._clock(), result=result, detail=detail))


def _callers_fault(error: GatewayError) -> bool:
    if isinstance(error, QuotaRefused):  # a limit made tighter is meant to be felt
        return True
    return isinstance(error, (RequestRejected, UpstreamRejected)) and error.http_status < 429
