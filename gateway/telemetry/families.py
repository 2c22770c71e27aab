"""The metrics that are counted event by event: names, help, labels and buckets, in one table.

The library is handed in: `metrics` is its only door. Every child is kept by whoever counts into
it, for looking one up costs as much as counting.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, NamedTuple

from gateway.events import RequestFinished

DOWNSHIFTED: Final = frozenset({"open", "probe_due", "probing", "forced_open"})
"""Phases of a circuit in which a lower mode answers."""

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""A caller may send any word as its method; a label may not be any word."""

# A token may take minutes (thinking), a cached answer a millisecond.
_SECONDS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
    *(5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
_BETWEEN: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
# Our own time: what is promised is fractions of a millisecond (performance.md).
_OWN: Final = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 2.5),
)


def none_if_empty(label: str | None) -> str:
    """A label that says nothing is easily overlooked in a query: it says `none`."""
    return label or "none"


_COUNTER, _HISTOGRAM, _GAUGE = "Counter", "Histogram", "Gauge"


class Row(NamedTuple):
    """One metric. `labels` are in the order in which they are filled in."""

    kind: str
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = _SECONDS


COUNTED: Final[dict[str, Row]] = {
    "gateway_requests_total": Row(
        _COUNTER,
        "Requests by the mode asked for, the mode that answered and how it ended: ok, "
        "degraded, stale, invalid (the caller's mistake), refused, failed, abandoned.",
        ("requested_mode", "mode", "outcome"),
    ),
    "gateway_degraded_requests_total": Row(
        _COUNTER,
        "Requests that a lower mode answered, and why.",
        ("requested_mode", "mode", "reason"),
    ),
    "gateway_cache_requests_total": Row(
        _COUNTER,
        "Requests by what the response cache had for them: hit, stale (served because "
        "upstream failed) or miss. Requests that found no answer at all are misses.",
        ("requested_mode", "result"),
    ),
    "gateway_request_duration_seconds": Row(
        _HISTOGRAM,
        "From the door to the end of the answer, by the mode asked for.",
        ("requested_mode", "outcome"),
    ),
    "gateway_time_to_first_token_seconds": Row(
        _HISTOGRAM,
        "From the door to the first content token, by the mode that answered; hits excluded.",
        ("mode",),
    ),
    "gateway_inter_token_seconds": Row(
        _HISTOGRAM,
        "Mean time between the tokens of an answer after its first; hits excluded.",
        ("mode",),
        _BETWEEN,
    ),
    "gateway_overhead_seconds": Row(
        _HISTOGRAM,
        "Our own time in a request that was answered: without upstream, queue and slow reader.",
        ("cache",),
        _OWN,
    ),
    "gateway_queue_wait_seconds": Row(
        _HISTOGRAM,
        "How long those waited for a slot who had to.",
        ("requested_mode",),
    ),
    "gateway_tokens_total": Row(
        _COUNTER,
        "Tokens as upstream counts them, hits excluded: prompt or completion.",
        ("mode", "direction"),
    ),
    "gateway_cached_prompt_tokens_total": Row(
        _COUNTER,
        "Prompt tokens that upstream had in its own cache.",
        ("mode",),
    ),
    "gateway_reasoning_tokens_total": Row(
        _COUNTER,
        "Completion tokens that were reasoning.",
        ("mode",),
    ),
    "gateway_attempts_total": Row(
        _COUNTER,
        "Upstream attempts: success, failure (counts against the circuit) or ignored, and "
        "what went wrong.",
        ("mode", "target", "outcome", "error_class"),
    ),
    "gateway_downshifts_total": Row(
        _COUNTER,
        "How often a mode's circuit opened, relapses while it was down excluded.",
        ("mode", "cause"),
    ),
    "gateway_recoveries_total": Row(
        _COUNTER,
        "How often a mode came back.",
        ("mode",),
    ),
    "gateway_target_rests_total": Row(
        _COUNTER,
        "How often a target was left alone for a while; alarm means a person must act.",
        ("mode", "target", "error_class", "alarm"),
    ),
    "gateway_config_reloads_total": Row(
        _COUNTER,
        "Configurations applied, refused, taken back.",
        ("result",),
    ),
    "gateway_http_requests_total": Row(
        _COUNTER,
        "HTTP requests by route template and status.",
        ("method", "route", "status"),
    ),
    "gateway_http_request_duration_seconds": Row(
        _HISTOGRAM,
        "From the first byte of an HTTP request to the last of its answer.",
        ("route",),
    ),
    "gateway_http_disconnects_total": Row(
        _COUNTER,
        "HTTP requests whose caller left before the answer was complete.",
        ("route",),
    ),
    "operations_rl_updates_total": Row(
        _COUNTER,
        "Updates of a policy.",
        ("algorithm",),
    ),
    "operations_circuit_breaker_downgrades_total": Row(
        _COUNTER,
        "Downgrades of a service that a training run has seen.",
        ("service", "from_mode", "to_mode"),
    ),
    "operations_cache_size": Row(
        _GAUGE,
        "Entries in a cache.",
        ("cache",),
    ),
    "operations_anomalies_total": Row(
        _COUNTER,
        "Anomalies of a training run; acts: whether they were sure enough to go back for.",
        ("kind", "acts"),
    ),
    "operations_rollbacks_total": Row(
        _COUNTER,
        "Times a training run went back to a checkpoint, and the anomaly behind it.",
        ("reason",),
    ),
    "operations_halts_total": Row(
        _COUNTER, "Training runs that were stopped: going back no longer helped.", ()
    ),
    "operations_updates_dropped_total": Row(
        _COUNTER, "Updates whose gradients were not finite, dropped before the weights.", ()
    ),
    "operations_retunes_total": Row(
        _COUNTER,
        "Trials of other hyperparameters: applied, kept, reverted.",
        ("result",),
    ),
    "operations_checkpoint_failures_total": Row(
        _COUNTER, "Checkpoints that could not be written.", ()
    ),
    "operations_checkpoint_blocking_seconds": Row(
        _HISTOGRAM, "How long a checkpoint kept the training loop waiting.", (), _OWN
    ),
    "operations_checkpoint_persist_seconds": Row(
        _HISTOGRAM, "How long a checkpoint took to be on disk.", (), _BETWEEN
    ),
    "operations_entropy_coef": Row(_GAUGE, "The entropy coefficient now.", ()),
    "operations_lr_scale": Row(
        _GAUGE, "What rollbacks made of the learning rate; glides back to 1.", ()
    ),
    "operations_rl_policy_loss": Row(
        _GAUGE, "Of the last update: loss of the policy.", ("algorithm",)
    ),
    "operations_rl_value_loss": Row(
        _GAUGE, "Of the last update: loss of the value function.", ("algorithm",)
    ),
    "operations_rl_reward": Row(_GAUGE, "Of the last update: mean reward.", ("algorithm",)),
    "operations_rl_entropy": Row(
        _GAUGE, "Of the last update: entropy or its coefficient, as recorded.", ("algorithm",)
    ),
}


def made_in(registry: object, prometheus: ModuleType) -> Families:
    """Make every metric of the table in a registry."""
    made = {}
    for name, (kind, told, labels, buckets) in COUNTED.items():
        more: dict[str, Any] = {}
        if kind == _HISTOGRAM:
            more = {"buckets": buckets}
        elif kind == _GAUGE:
            more = {"multiprocess_mode": "mostrecent"}
        made[name] = getattr(prometheus, kind)(name, told, labels, registry=registry, **more)
    return made


Families = dict[str, Any]
"""The library's own objects by name."""

Labelled = Callable[..., Any]
"""The child of a metric: its name, then the values of its labels."""


def labelled(families: Families) -> Labelled:
    """Look children up in `families`."""

    def of(name: str, *labels: str) -> Any:
        return families[name].labels(*labels) if labels else families[name]

    return of


class Counted:
    """The children that requests of one kind count into."""

    __slots__ = (
        "_cached_tokens",
        "_completion",
        "_duration",
        "_first_token",
        "_inc",
        "_inc_cache",
        "_inter_token",
        "_live",
        "_overhead",
        "_prompt",
        "_queue_wait",
        "_reasoning",
    )

    def __init__(self, of: Labelled, event: RequestFinished) -> None:
        asked, mode = event.requested_mode, none_if_empty(event.mode)
        result = "stale" if event.stale else "hit" if event.cached else "miss"
        self._live = bool(event.mode) and not event.cached
        self._inc = of("gateway_requests_total", asked, mode, event.outcome).inc
        self._inc_cache = of("gateway_cache_requests_total", asked, result).inc
        self._duration = of("gateway_request_duration_seconds", asked, event.outcome).observe
        self._queue_wait = of("gateway_queue_wait_seconds", asked).observe
        self._overhead = of("gateway_overhead_seconds", "hit" if event.cached else "miss").observe
        if not self._live:
            return  # an empty histogram of a mode that did nothing is noise
        self._first_token = of("gateway_time_to_first_token_seconds", mode).observe
        self._inter_token = of("gateway_inter_token_seconds", mode).observe
        self._prompt = of("gateway_tokens_total", mode, "prompt").inc
        self._completion = of("gateway_tokens_total", mode, "completion").inc
        self._cached_tokens = of("gateway_cached_prompt_tokens_total", mode).inc
        self._reasoning = of("gateway_reasoning_tokens_total", mode).inc

    def count(self, event: RequestFinished) -> None:
        """Count one more."""
        self._inc()
        self._inc_cache()
        self._duration(event.duration_s)
        if event.queued_s:
            self._queue_wait(event.queued_s)
        if event.overhead_s is not None:
            self._overhead(event.overhead_s)
        if self._live:
            self._count_live(event)

    def _count_live(self, event: RequestFinished) -> None:
        """What only an upstream can have caused."""
        if event.first_token_s is not None:
            self._first_token(event.first_token_s)
        if event.inter_token_s is not None:
            self._inter_token(event.inter_token_s)
        if event.completion_tokens:
            self._prompt(event.prompt_tokens)
            self._completion(event.completion_tokens)
        if event.cached_tokens:
            self._cached_tokens(event.cached_tokens)
        if event.reasoning_tokens:
            self._reasoning(event.reasoning_tokens)
