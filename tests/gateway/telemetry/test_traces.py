"""Spans and metrics by the real OpenTelemetry SDK, kept in memory."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from occasions import TRACE, attempt, http, request
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gateway.config import Config
from gateway.events import ConfigReloaded, Event
from gateway.gateway import Gateway
from gateway.simulator.clock import run
from gateway.telemetry.traces import Traces


class Backend:
    """Where traces and metrics end up, and a clock on the wall."""

    def __init__(self, *, newest: bool = False) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.now_s = 1_000.0
        self.listen = Traces(
            self.tracer_provider,
            MeterProvider([self.reader]),
            newest=newest,
            wall=lambda: int(self.now_s * 1e9),
        )

    def tell(self, *events: Event) -> None:
        for event in events:
            self.listen(event)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.kind.value)

    def metrics(self) -> dict[str, list[Any]]:
        data = self.reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


def parent(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def own(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def test_a_request_and_its_attempts_are_a_tree_under_the_callers_span() -> None:
    backend = Backend()
    backend.now_s = 1_001.0
    backend.tell(attempt(outcome="failure", kind="server", duration_s=0.5, probe=True))
    backend.now_s = 1_002.0
    backend.tell(attempt(mode="fast", target="dashscope/qwen-flash", first_token_s=0.25))
    backend.tell(
        request(
            mode="fast", model="qwen-flash-1", target="dashscope/qwen-flash", degraded=True,
            reason="failed", outcome="degraded", attempts=2, duration_s=1.75, trace=TRACE,
            stream=True, cached_tokens=2, reasoning_tokens=1, overhead_s=0.01, key="team",
        )
    )  # fmt: skip
    server, failed, answered = backend.spans
    assert server.kind is SpanKind.SERVER
    assert failed.kind is answered.kind is SpanKind.CLIENT
    assert (server.name, failed.name, answered.name) == (
        "chat creative", "chat qwen", "chat qwen-flash",
    )  # fmt: skip
    assert {f"{span.context.trace_id:032x}" for span in backend.spans if span.context} == {
        TRACE[3:35]
    }
    assert f"{parent(server):016x}" == TRACE[36:52]
    assert parent(failed) == parent(answered) == own(server)
    times = [(span.start_time, span.end_time) for span in backend.spans]
    assert times == [
        (1_000_250_000_000, 1_002_000_000_000),
        (1_000_500_000_000, 1_001_000_000_000),
        (1_001_250_000_000, 1_002_000_000_000),
    ]
    assert dict(server.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "dashscope",
        "gen_ai.request.model": "creative",
        "gen_ai.request.stream": True,
        "gen_ai.response.id": "gen-1",
        "gen_ai.response.model": "qwen-flash-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.usage.reasoning.output_tokens": 1,
        "http.response.status_code": 200,
        "gateway.requested_mode": "creative",
        "gateway.mode": "fast",
        "gateway.outcome": "degraded",
        "gateway.degraded": True,
        "gateway.reason": "failed",
        "gateway.cached": False,
        "gateway.stale": False,
        "gateway.attempts": 2,
        "gateway.queued_s": 0.0,
        "gateway.overhead_s": 0.01,
        "gateway.tenant": "acme",
        "gateway.key": "team",
    }
    assert dict(failed.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "qwen",
        "gateway.mode": "creative",
        "gateway.outcome": "failure",
        "gateway.probe": True,
        "error.type": "server",
    }
    assert answered.attributes
    assert answered.attributes["gen_ai.usage.output_tokens"] == 4
    assert answered.attributes["gen_ai.response.model"] == "qwen-flash-1"
    assert [span.status.status_code for span in backend.spans] == [
        StatusCode.UNSET, StatusCode.ERROR, StatusCode.UNSET,
    ]  # fmt: skip


def test_without_a_callers_span_it_is_the_applications_child_or_a_root() -> None:
    backend = Backend()
    backend.tell(request())
    with backend.tracer_provider.get_tracer("app").start_as_current_span("work") as work:
        backend.tell(request(request_id="gen-2"))
    [work_span] = [span for span in backend.spans if span.name == "work"]
    root, child = [span for span in backend.spans if span.kind is SpanKind.SERVER]
    assert (parent(root), parent(child)) == (None, own(work_span))
    assert work.get_span_context().span_id == own(work_span)


def test_an_unsampled_callers_request_is_not_recorded() -> None:
    backend = Backend()
    backend.tell(attempt(), request(trace=TRACE[:-1] + "0"))
    assert backend.spans == []


def test_an_attempt_that_ends_after_its_caller_left_finds_its_parent() -> None:
    backend = Backend()
    backend.tell(request(outcome="abandoned", error="abandoned", status=499))
    backend.tell(attempt(outcome="ignored", kind="cancelled"))
    server, late = backend.spans
    assert parent(late) == own(server)
    assert server.status.status_code is late.status.status_code is StatusCode.UNSET
    assert late.attributes
    assert late.attributes["error.type"] == "cancelled"


def test_what_is_remembered_is_bounded() -> None:
    backend = Backend()
    for number in range(11_000):
        backend.tell(attempt(request_id=f"never-{number}"))
    for number in range(1_100):
        backend.tell(request(request_id=f"gen-{number}"))
    assert (len(backend.listen._open), len(backend.listen._ended)) == (10_000, 1_000)


def test_a_failed_request_is_an_error_and_a_callers_mistake_is_not() -> None:
    backend = Backend()
    backend.tell(
        request(mode="", target="", model="", outcome="failed", error="all_modes_failed",
                status=503, first_token_s=None, finish_reason=None, completion_tokens=0),
        request(outcome="invalid", error="invalid_request", status=400),
    )  # fmt: skip
    failed, mistaken = backend.spans
    assert failed.status.status_code is StatusCode.ERROR
    assert mistaken.status.status_code is StatusCode.UNSET
    assert failed.attributes
    assert failed.attributes["error.type"] == "all_modes_failed"
    assert "gen_ai.provider.name" not in failed.attributes


def test_only_http_requests_that_never_reached_the_pipeline_have_a_span_of_their_own() -> None:
    backend = Backend()
    backend.tell(
        http(generation_id="gen-1"),
        http(route="/v1/models", method="GET", refused=True),
        http(route="/metrics", method="GET", status=401, refused=True),
        http(method="EVIL", route="", status=404, refused=True),
        http(status=401, error="invalid_api_key", refused=True, trace=TRACE, duration_s=0.5),
        ConfigReloaded(at=1.0, result="applied"),
    )
    lost, refused = backend.spans
    assert lost.name == "_OTHER"
    assert refused.name == "POST /v1/chat/completions"
    assert f"{parent(refused):016x}" == TRACE[36:52]
    assert dict(refused.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 401,
        "error.type": "invalid_api_key",
        "gateway.tenant": "",
        "gateway.key": "",
    }


def test_the_metrics_that_libraries_ship() -> None:
    backend = Backend()
    backend.tell(
        attempt(first_token_s=0.5),
        attempt(outcome="failure", kind="timeout"),
        request(inter_token_s=0.02, cached_tokens=2),
        request(cached=True),
    )
    found = backend.metrics()
    assert set(found) == {
        "gen_ai.client.operation.duration",
        "gen_ai.client.operation.time_to_first_chunk",
        "gen_ai.client.token.usage",
        "gen_ai.server.request.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
    }
    tokens = {
        point.attributes["gen_ai.token.type"]: point.sum
        for point in found["gen_ai.client.token.usage"]
    }
    assert tokens == {"input": 3, "output": 4}  # the hit used none
    [well, failed] = found["gen_ai.client.operation.duration"]
    assert "error.type" not in well.attributes
    assert failed.attributes["error.type"] == "timeout"
    assert well.explicit_bounds[:3] == (0.01, 0.02, 0.04)
    assert well.explicit_bounds[-1] == 81.92


def test_the_newest_names() -> None:
    backend = Backend(newest=True)
    backend.tell(attempt(first_token_s=0.5), request(reasoning_tokens=1))
    found = backend.metrics()
    assert {
        "gen_ai.client.inference.duration",
        "gen_ai.client.inference.time_to_first_chunk",
    } <= set(found)
    used = "gen_ai.client.inference.usage"
    assert found[f"{used}.reasoning.output_tokens"][0].sum == 1
    assert found[f"{used}.output_tokens"][0].sum == 4
    assert "gen_ai.client.token.usage" not in found


def test_the_names_are_those_of_the_conventions() -> None:
    from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
    from opentelemetry.semconv._incubating.metrics import gen_ai_metrics

    from gateway.telemetry import genai_names as names

    modules = gen_ai_attributes, gen_ai_metrics
    said = [value for module in modules for value in vars(module).values()]
    known = {value for value in said if isinstance(value, str)}
    ours = {value for value in vars(names).values() if isinstance(value, str)}
    ours |= {
        getattr(names.SHIPPED, field)
        for field in names.Names.__slots__
        if isinstance(getattr(names.SHIPPED, field), str)
    }
    assert {name for name in ours if name.startswith("gen_ai.")} <= known


def test_a_real_request_leaves_a_tree_and_no_content() -> None:
    backend = Backend()

    async def scenario() -> str:
        tables = {
            "modes": {mode: {"targets": [{"kind": "simulated"}]} for mode in ("creative", "fast")}
        }
        clock = asyncio.get_running_loop().time
        listeners = [backend.listen]
        async with Gateway(Config.from_dict(tables), clock=clock, listeners=listeners) as gateway:
            answer = await gateway.generate("my private question", "creative", trace=TRACE)
            return answer.text

    text = run(scenario)
    server, client = backend.spans
    assert parent(client) == own(server)
    assert f"{parent(server):016x}" == TRACE[36:52]
    said = " ".join(span.to_json() for span in backend.spans)
    assert "private" not in said
    assert text.split()[0] not in said


def test_without_the_library_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["opentelemetry"] = None
from gateway.errors import GatewayError
from gateway.telemetry.traces import Traces
try:
    Traces()
except GatewayError as error:
    print(error)
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "pip install 'downshift-gateway[otel]'" in result.stdout


def test_a_process_without_any_backend_loses_nothing_but_its_spans() -> None:
    listen = Traces()
    for event in (attempt(), request(), http(refused=True, status=404)):
        listen(event)


@pytest.mark.parametrize("target", ["vllm/Qwen/Qwen3-8B", "lone"])
def test_a_target_is_a_provider_and_a_model(target: str) -> None:
    backend = Backend()
    backend.tell(attempt(target=target), request())
    client = backend.spans[1]
    assert client.attributes
    assert client.attributes["gen_ai.request.model"] == target.partition("/")[2] or target
