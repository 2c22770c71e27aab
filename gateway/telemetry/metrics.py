"""Metrics for Prometheus: a listener that counts, and a page that is scraped.

What happened (requests, attempts, tokens) is counted event by event; how things stand (phases,
queue, budgets) is read from the gateway's status when somebody looks, see `state`. No label ever
bears a user, a request or a text of the caller's.

Several workers on one machine share a folder, see `worker_metrics`: any worker's page is
everybody's.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import msgspec

from gateway.errors import GatewayError
from gateway.events import (
    AttemptFinished,
    ByKind,
    CircuitChanged,
    ConfigReloaded,
    HTTPFinished,
    RequestFinished,
    TargetResting,
)
from gateway.telemetry.families import (
    DOWNSHIFTED,
    METHODS,
    Counted,
    Labelled,
    labelled,
    made_in,
    none_if_empty,
)
from gateway.telemetry.kept import Kept
from gateway.telemetry.state import GAUGES, Sample, combined, samples_of
from gateway.telemetry.worker_metrics import (
    FOLDER,
    missing,
    reading,
    shared_folder,
    state_file,
)

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FRESH_S = 1.0

_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(list[tuple[str, list[str], float]]).decode
_counters: WeakKeyDictionary[CollectorRegistry, Labelled] = WeakKeyDictionary()
_making = threading.Lock()


class Metrics(ByKind):
    """A listener that counts what happens, and renders it for Prometheus.

    Args:
        status: how things stand, as `Gateway.status` tells it; None leaves those metrics out.
        registry: where the counters live; None is prometheus_client's own, shared by the process.
            Made twice for one registry, both count into the same metrics.
        at_once: False loads prometheus_client with the first `render` and not before: 20 ms and
            2 MB that a service which is never scraped need not spend. Until then the process's own
            registry does not show these metrics.

    Raises:
        GatewayError: prometheus_client is not installed, or was imported before it could know that
            several workers share its metrics.
    """

    content_type = CONTENT_TYPE

    def __init__(
        self,
        status: Callable[[], Mapping[str, Any]] | None = None,
        *,
        registry: CollectorRegistry | None = None,
        at_once: bool = True,
    ) -> None:
        super().__init__(
            {
                RequestFinished: self._request,
                AttemptFinished: self._attempt,
                HTTPFinished: self._http,
                CircuitChanged: self._circuit,
                TargetResting: self._resting,
                ConfigReloaded: self._config,
            }
        )
        self._folder = shared_folder()
        self._registry = registry
        if at_once or self._folder is not None:
            self._registry = registry or _shared_registry()
        elif importlib.util.find_spec("prometheus_client") is None:
            raise missing()
        self._of = counters_in(self._registry)
        self._requests: dict[tuple[str, str, str, bool, bool], Counted] = {}
        self._attempts: dict[tuple[str, str, str, str], Callable[[], None]] = {}
        self._https: dict[tuple[str, str, int], _HTTPCounted] = {}
        if self._folder is not None:
            _check_that_it_shares()
        self._status = status
        self._samples: list[Sample] = []
        self._refreshed = -_FRESH_S
        self._reloads_well = True

    def refresh(self) -> None:
        """Read the status. Call it in the gateway's own loop (some 60 us), before each `render`;
        with several workers also every few seconds in each, for whoever of them is scraped.
        """
        self._refreshed = time.monotonic()
        if self._status is None:
            return
        reload_ok: Sample = ("gateway_config_reload_success", (), self._reloads_well)
        taken = (*samples_of(self._status()), reload_ok)
        self._samples = [(name, labels, float(value)) for name, labels, value in taken]
        if self._folder is not None:
            path = state_file(self._folder, os.getpid())
            fresh = path.with_suffix(".new")
            fresh.write_bytes(_encode(self._samples))
            fresh.replace(path)  # whoever reads it finds the old or the new, never half of it

    def render(self) -> bytes:
        """The page, in the text format 0.0.4; `content_type` names it. Takes milliseconds, so a
        server calls it in a thread, after `refresh`. Reads the status itself if nobody has for a
        second.
        """
        import prometheus_client as prometheus  # noqa: PLC0415
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

        if time.monotonic() - self._refreshed > _FRESH_S:
            self.refresh()
        standing = prometheus.CollectorRegistry()
        standing.register(_State(self._workers()))
        counters = self._registry or _shared_registry()
        counters_in(counters)  # seen from now on at the latest
        if self._folder is not None:
            counters = prometheus.CollectorRegistry()
            MultiProcessCollector(counters, path=str(self._folder))  # type: ignore[no-untyped-call]
        with reading(self._folder):
            counted = prometheus.generate_latest(counters)
        return counted + prometheus.generate_latest(standing)

    def _workers(self) -> Iterator[list[Sample]]:
        """The samples of every worker, our own if we are alone."""
        if self._folder is None:
            yield self._samples
            return
        for path in self._folder.glob("state_*.json"):
            try:
                read = _decode(path.read_bytes())
            except FileNotFoundError:  # forgotten meanwhile
                continue
            yield [(name, tuple(labels), value) for name, labels, value in read if name in GAUGES]

    def _request(self, event: RequestFinished) -> None:
        key = (event.requested_mode, event.mode, event.outcome, event.cached, event.stale)
        counted = self._requests.get(key)
        if counted is None:
            counted = self._requests[key] = Counted(self._of, event)
        counted.count(event)
        if event.degraded:
            self._of(
                "gateway_degraded_requests_total",
                event.requested_mode,
                event.mode,
                none_if_empty(event.reason),
            ).inc()

    def _attempt(self, event: AttemptFinished) -> None:
        key = (event.mode, event.target, event.outcome, event.kind)
        inc = self._attempts.get(key)
        if inc is None:
            labels = (event.mode, event.target, event.outcome, none_if_empty(event.kind))
            inc = self._attempts[key] = self._of("gateway_attempts_total", *labels).inc
        inc()

    def _http(self, event: HTTPFinished) -> None:
        key = (event.method, event.route, event.status)
        counted = self._https.get(key)
        if counted is None:
            counted = self._http_counted(event)
            if event.method in METHODS:  # else it is a caller's own word, of which there is no end
                self._https[key] = counted
        counted.inc()
        counted.observe(event.duration_s)
        if event.client_disconnected:
            self._of("gateway_http_disconnects_total", event.route or "unmatched").inc()

    def _http_counted(self, event: HTTPFinished) -> _HTTPCounted:
        method = event.method if event.method in METHODS else "other"
        route = event.route or "unmatched"
        return _HTTPCounted(
            self._of("gateway_http_requests_total", method, route, str(event.status)).inc,
            self._of("gateway_http_request_duration_seconds", route).observe,
        )

    def _circuit(self, event: CircuitChanged) -> None:
        mode, old, new = event.mode, event.old, event.new
        if new in DOWNSHIFTED and old not in DOWNSHIFTED:
            self._of("gateway_downshifts_total", mode, none_if_empty(event.cause)).inc()
        elif old in DOWNSHIFTED and new not in DOWNSHIFTED:
            self._of("gateway_recoveries_total", mode).inc()

    def _resting(self, event: TargetResting) -> None:
        alarm = str(event.alarm).lower()
        self._of("gateway_target_rests_total", event.mode, event.target, event.kind, alarm).inc()

    def _config(self, event: ConfigReloaded) -> None:
        self._reloads_well = event.result == "applied"
        self._refreshed = -_FRESH_S
        self._of("gateway_config_reloads_total", event.result).inc()


class OperationsMetricsCollector:
    """Metrics of a training run beside a gateway, in the process's shared registry.

    Any number may be made; all of them count into the same metrics.

    Args:
        registry: another registry than the process's own.

    Raises:
        GatewayError: prometheus_client is not installed.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._of = counters_in(registry or _shared_registry())

    def record_rl_update(
        self,
        *,
        algorithm: str,
        policy_loss: float,
        value_loss: float,
        reward: float,
        entropy: float,
    ) -> None:
        """Record one update of a policy: its losses, its reward and its entropy (coefficient)."""
        values = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "reward": reward,
            "entropy": entropy,
        }
        self._of("operations_rl_updates_total", algorithm).inc()
        for what, value in values.items():
            self._of(f"operations_rl_{what}", algorithm).set(value)

    def record_circuit_breaker_downgrade(self, service: str, from_mode: str, to_mode: str) -> None:
        """Count one downgrade of a service, such as `("llm", "creative", "balanced")`."""
        self._of("operations_circuit_breaker_downgrades_total", service, from_mode, to_mode).inc()

    def set_cache_size(self, cache: str, size: float) -> None:
        """Say how many entries a cache holds now."""
        self._of("operations_cache_size", cache).set(size)

    def record_anomaly(self, kind: str, *, acts: bool) -> None:
        """Count an anomaly; `acts`: sure enough to go back for."""
        self._of("operations_anomalies_total", kind, str(acts).lower()).inc()

    def record_rollback(self, reason: str) -> None:
        """Count a return to a checkpoint."""
        self._of("operations_rollbacks_total", reason).inc()

    def record_halt(self) -> None:
        """Count a run that was stopped."""
        self._of("operations_halts_total").inc()

    def record_dropped_updates(self, count: int) -> None:
        """Count updates that never reached the weights."""
        self._of("operations_updates_dropped_total").inc(count)

    def record_retune(self, result: str) -> None:
        """Count a trial of hyperparameters: `applied`, `kept` or `reverted`."""
        self._of("operations_retunes_total", result).inc()

    def record_checkpoint_failure(self) -> None:
        """Count a checkpoint that could not be written."""
        self._of("operations_checkpoint_failures_total").inc()

    def observe_checkpoint_blocking(self, seconds: float) -> None:
        """How long a checkpoint kept the training loop waiting."""
        self._of("operations_checkpoint_blocking_seconds").observe(seconds)

    def observe_checkpoint_persist(self, seconds: float) -> None:
        """How long a checkpoint took to be on disk."""
        self._of("operations_checkpoint_persist_seconds").observe(seconds)

    def set_training_state(self, *, entropy_coef: float, lr_scale: float) -> None:
        """How the schedule and the rollbacks stand now."""
        self._of("operations_entropy_coef").set(entropy_coef)
        self._of("operations_lr_scale").set(lr_scale)


def counters_in(registry: CollectorRegistry | None) -> Labelled:
    """What counts the metrics of a registry, made with the first who asks; of None the process's
    own, which prometheus_client's registry shows once it is asked for by name.
    """
    if registry is None:
        return _of_this_process()
    with _making:  # two scrapes come in two threads
        of = _counters.get(registry)
        if of is None:
            of = _counters[registry] = _made_in(registry)
        return of


def _made_in(registry: CollectorRegistry) -> Labelled:
    if shared_folder() is not None:  # prometheus_client's own, which count in files that all see
        import prometheus_client  # noqa: PLC0415

        return labelled(made_in(registry, prometheus_client))
    kept = _of_this_process() if registry is _shared_registry() else Kept()
    registry.register(kept)
    return kept


@functools.cache
def _of_this_process() -> Kept:
    return Kept()


class _HTTPCounted(NamedTuple):
    """What HTTP requests of one kind count into."""

    inc: Callable[[], None]
    observe: Callable[[float], None]


def _shared_registry() -> CollectorRegistry:
    try:
        from prometheus_client import REGISTRY  # noqa: PLC0415
    except ImportError as error:
        raise missing() from error
    return REGISTRY


def _check_that_it_shares() -> None:
    from prometheus_client import values  # noqa: PLC0415

    if not getattr(values.ValueClass, "_multiprocess", False):
        raise GatewayError(f"{FOLDER} must be set before prometheus_client is imported")


class _State:
    """A collector of samples that have been taken already."""

    def __init__(self, workers: Iterable[Iterable[Sample]]) -> None:
        self._found = combined(workers)

    def collect(self) -> Iterator[Metric]:
        """Every metric of the table, as families."""
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415

        for name, gauge in GAUGES.items():
            family = GaugeMetricFamily(name, gauge.help, labels=gauge.labels)
            for labels, value in self._found[name].items():
                family.add_metric(labels, value)
            yield family

    def describe(self) -> Iterator[Metric]:
        """The names, without asking for the samples."""
        return iter(())
