"""Spans and metrics for OpenTelemetry: a listener that tells each request as a small tree.

A SERVER span for the request, the child of the caller's own span where it sent a `traceparent`,
and below it a CLIENT span for each upstream attempt. They are made when the events come, with the
times they bear; nothing that was asked or answered is in them. Names are in `genai_names`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gateway.errors import GatewayError
from gateway.events import AttemptFinished, Event, HTTPFinished, RequestFinished
from gateway.telemetry import genai_names as names
from gateway.telemetry.families import METHODS
from gateway.telemetry.lines import PROBES, turned_away

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import Histogram, Meter, MeterProvider
    from opentelemetry.trace import TracerProvider

Attributes = dict[str, str | bool | int | float | list[str]]

_SCOPE = "downshift-gateway"
# Attempts of requests that have not ended, and ended requests whose last attempt may still end.
_MOST_OPEN = 10_000
_MOST_ENDED = 1_000


class Traces:
    """A listener that makes spans and records metrics.

    Args:
        tracer_provider, meter_provider: where they go; None is the process's own, as
            `opentelemetry-instrument` or the application has set it up.
        newest: name the metrics as the newest text of the conventions does, see `genai_names`.
        wall: Unix time in nanoseconds.

    Raises:
        GatewayError: opentelemetry is not installed.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        *,
        newest: bool = False,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        try:
            from opentelemetry import metrics, trace  # noqa: PLC0415
        except ImportError as error:
            raise GatewayError(
                "traces need OpenTelemetry: pip install 'downshift-gateway[otel]'"
            ) from error
        self._trace = trace
        self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
        meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
        self._record = _Recorder(meter, names.NEWEST if newest else names.SHIPPED)
        self._wall = wall
        self._open: OrderedDict[str, list[tuple[int, AttemptFinished]]] = OrderedDict()
        self._ended: OrderedDict[str, Context] = OrderedDict()

    def __call__(self, event: Event) -> None:
        """Make what spans the event completes."""
        if type(event) is AttemptFinished:
            self._attempt(event)
        elif type(event) is RequestFinished:
            self._request(event)
        elif type(event) is HTTPFinished and turned_away(event) and event.route not in PROBES:
            self._refused(event)

    def _attempt(self, event: AttemptFinished) -> None:
        """Keep it until its request ends, for that is its parent.

        A caller who left is told of before its attempt has been stopped; then the parent is known.
        """
        self._record.attempt(event)
        parent = self._ended.get(event.request_id)
        if parent is not None:
            self._client(parent, self._wall(), event, {})
            return
        self._open.setdefault(event.request_id, []).append((self._wall(), event))
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)

    def _request(self, event: RequestFinished) -> None:
        self._record.request(event)
        span = self._tracer.start_span(
            f"{event.operation} {event.requested_mode}",
            context=self._caller(event.trace),
            kind=self._trace.SpanKind.SERVER,
            attributes=_request_attributes(event),
            start_time=self._start(event.duration_s),
        )
        if event.status >= 500:
            span.set_status(self._trace.StatusCode.ERROR, event.error)
        context = self._trace.set_span_in_context(span)
        attempts = self._open.pop(event.request_id, [])
        for number, (end, attempt) in enumerate(attempts, 1):
            answered = number == len(attempts) and attempt.outcome == "success"
            usage = _usage(event) if answered and not event.cached else {}
            self._client(context, end, attempt, usage)
        span.end(self._wall())
        self._ended[event.request_id] = context
        if len(self._ended) > _MOST_ENDED:
            self._ended.popitem(last=False)

    def _client(self, parent: Context, end: int, event: AttemptFinished, usage: Attributes) -> None:
        provider, model = _provider_and_model(event.target)
        attributes: Attributes = {
            names.OPERATION: "chat",
            names.PROVIDER: provider,
            names.REQUEST_MODEL: model,
            names.MODE: event.mode,
            names.OUTCOME: event.outcome,
            names.PROBE: event.probe,
            **usage,
        }
        if event.first_token_s is not None:
            attributes[names.FIRST_CHUNK] = event.first_token_s
        if event.kind:
            attributes[names.ERROR] = event.kind
        span = self._tracer.start_span(
            f"chat {model}",
            context=parent,
            kind=self._trace.SpanKind.CLIENT,
            attributes=attributes,
            start_time=end - _ns(event.duration_s),
        )
        if event.outcome == "failure":
            span.set_status(self._trace.StatusCode.ERROR, event.kind)
        span.end(end)

    def _refused(self, event: HTTPFinished) -> None:
        method = event.method if event.method in METHODS else "_OTHER"
        attributes: Attributes = {
            names.METHOD: method,
            names.STATUS: event.status,
            names.TENANT: event.tenant,
            names.KEY: event.key,
        }
        if event.route:
            attributes[names.ROUTE] = event.route
        if event.error:
            attributes[names.ERROR] = event.error
        span = self._tracer.start_span(
            f"{method} {event.route}".strip(),
            context=self._caller(event.trace),
            kind=self._trace.SpanKind.SERVER,
            attributes=attributes,
            start_time=self._start(event.duration_s),
        )
        if event.status >= 500:
            span.set_status(self._trace.StatusCode.ERROR, event.error)
        span.end(self._wall())

    def _caller(self, traceparent: str) -> Context | None:
        """The caller's span as a parent; None is the present context, an application's own."""
        if not traceparent:
            return None
        trace = self._trace
        remote = trace.SpanContext(
            trace_id=int(traceparent[3:35], 16),
            span_id=int(traceparent[36:52], 16),
            is_remote=True,
            trace_flags=trace.TraceFlags(int(traceparent[53:55], 16)),
        )
        context: Context = trace.set_span_in_context(trace.NonRecordingSpan(remote))
        return context

    def _start(self, duration_s: float) -> int:
        return self._wall() - _ns(duration_s)


class _Recorder:
    """The metrics of the conventions."""

    def __init__(self, meter: Meter, table: names.Names) -> None:
        def histogram(name: str, unit: str, bounds: tuple[float, ...]) -> Histogram:
            return meter.create_histogram(
                name, unit=unit, explicit_bucket_boundaries_advisory=bounds
            )

        self._client_duration = histogram(table.client_duration, "s", names.SECONDS)
        self._client_first = histogram(table.client_first_chunk, "s", names.SECONDS)
        self._server_duration = histogram(table.server_duration, "s", names.SECONDS)
        self._server_first = histogram(table.server_first_token, "s", names.SECONDS)
        self._per_token = histogram(table.server_per_token, "s", names.PER_TOKEN)
        self._tokens: list[tuple[str, Histogram, Attributes]]
        if isinstance(table.tokens, str):
            tokens = histogram(table.tokens, "{token}", names.TOKENS)
            self._tokens = [
                (attribute, tokens, {names.TOKEN_TYPE: kind})
                for attribute, kind in names.TOKEN_TYPES.items()
            ]
        else:
            self._tokens = [
                (attribute, histogram(name, "{token}", names.TOKENS), {})
                for attribute, name in table.tokens.items()
            ]

    def attempt(self, event: AttemptFinished) -> None:
        """One upstream call."""
        provider, model = _provider_and_model(event.target)
        labels: Attributes = {
            names.OPERATION: "chat",
            names.PROVIDER: provider,
            names.REQUEST_MODEL: model,
        }
        if event.first_token_s is not None:
            self._client_first.record(event.first_token_s, labels)
        if event.kind:
            labels[names.ERROR] = event.kind
        self._client_duration.record(event.duration_s, labels)

    def request(self, event: RequestFinished) -> None:
        """One request of a caller."""
        labels: Attributes = {
            names.OPERATION: event.operation,
            names.REQUEST_MODEL: event.requested_mode,
        }
        if event.target:
            labels[names.PROVIDER], _ = _provider_and_model(event.target)
        if event.first_token_s is not None:
            self._server_first.record(event.first_token_s, labels)
        if event.inter_token_s is not None:
            self._per_token.record(event.inter_token_s, labels)
        if not event.cached:
            usage: dict[str, Any] = _usage(event)
            for attribute, histogram, kind in self._tokens:
                if usage.get(attribute):
                    histogram.record(usage[attribute], {**labels, **kind})
        if event.error:
            labels[names.ERROR] = event.error
        self._server_duration.record(event.duration_s, labels)


def _request_attributes(event: RequestFinished) -> Attributes:
    attributes: Attributes = {
        names.OPERATION: event.operation,
        names.REQUEST_MODEL: event.requested_mode,
        names.REQUEST_STREAM: event.stream,
        names.RESPONSE_ID: event.request_id,
        names.STATUS: event.status,
        names.REQUESTED_MODE: event.requested_mode,
        names.MODE: event.mode,
        names.OUTCOME: event.outcome,
        names.DEGRADED: event.degraded,
        names.CACHED: event.cached,
        names.STALE: event.stale,
        names.ATTEMPTS: event.attempts,
        names.QUEUED_S: event.queued_s,
        names.TENANT: event.tenant,
        names.KEY: event.key,
        **_usage(event),
    }
    if event.target:
        attributes[names.PROVIDER], _ = _provider_and_model(event.target)
    known = {
        names.FIRST_CHUNK: event.first_token_s,
        names.OVERHEAD_S: event.overhead_s,
        names.REASON: event.reason,
        names.ERROR: event.error or None,
    }
    attributes |= {name: value for name, value in known.items() if value is not None}
    return attributes


def _usage(event: RequestFinished) -> Attributes:
    """What the answer says of itself."""
    attributes: Attributes = {}
    if event.model:
        attributes[names.RESPONSE_MODEL] = event.model
    if event.finish_reason:
        attributes[names.FINISH_REASONS] = [event.finish_reason]
    if event.completion_tokens:
        attributes[names.INPUT_TOKENS] = event.prompt_tokens
        attributes[names.OUTPUT_TOKENS] = event.completion_tokens
    if event.cached_tokens:
        attributes[names.CACHED_TOKENS] = event.cached_tokens
    if event.reasoning_tokens:
        attributes[names.REASONING_TOKENS] = event.reasoning_tokens
    return attributes


def _provider_and_model(target: str) -> tuple[str, str]:
    """`vllm/Qwen/Qwen3-8B` is Qwen/Qwen3-8B at a vllm."""
    provider, _, model = target.partition("/")
    return provider, model or provider


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
