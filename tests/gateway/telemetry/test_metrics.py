"""Metrics: what is counted, how things stand, and several real processes on one page."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from occasions import attempt, changed, http, request
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from gateway.config import Config
from gateway.events import ConfigReloaded, TargetResting
from gateway.gateway import Gateway
from gateway.policies.phases import Phase
from gateway.simulator.clock import run
from gateway.telemetry.families import DOWNSHIFTED
from gateway.telemetry.metrics import Metrics, OperationsMetricsCollector
from gateway.telemetry.state import GAUGES, PHASES, combined, samples_of

Page = Callable[..., float | None]


def page(text: bytes) -> Page:
    """Look a sample up by name and labels; None if it is not there."""
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }

    def value(name: str, **labels: str) -> float | None:
        return found.get((f"gateway_{name}", tuple(sorted(labels.items()))))

    return value


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(registry=CollectorRegistry())


def seen(metrics: Metrics, *events: Any) -> Page:
    for event in events:
        metrics(event)
    return page(metrics.render())


def test_requests_by_who_asked_who_answered_and_how_it_ended(metrics: Metrics) -> None:
    value = seen(
        metrics,
        request(),
        request(),
        request(mode="fast", degraded=True, reason="circuit_open", outcome="degraded"),
        request(mode="", outcome="failed", error="all_modes_failed", first_token_s=None),
    )
    assert value("requests_total", requested_mode="creative", mode="creative", outcome="ok") == 2
    assert value("requests_total", requested_mode="creative", mode="fast", outcome="degraded") == 1
    assert value("requests_total", requested_mode="creative", mode="none", outcome="failed") == 1
    assert value("degraded_requests_total", requested_mode="creative", mode="fast",
                 reason="circuit_open") == 1  # fmt: skip
    assert value("time_to_first_token_seconds_count", mode="fast") == 1
    assert value("time_to_first_token_seconds_count", mode="none") is None


def test_where_the_time_went(metrics: Metrics) -> None:
    value = seen(
        metrics,
        request(duration_s=0.3, queued_s=0.1, overhead_s=0.0004, inter_token_s=0.02),
        request(duration_s=0.5),
    )
    assert value("request_duration_seconds_sum", requested_mode="creative", outcome="ok") == 0.8
    assert value("request_duration_seconds_bucket", requested_mode="creative", outcome="ok",
                 le="0.25") == 0  # fmt: skip
    assert value("queue_wait_seconds_count", requested_mode="creative") == 1
    assert value("queue_wait_seconds_sum", requested_mode="creative") == 0.1
    assert value("overhead_seconds_bucket", cache="miss", le="0.00025") == 0
    assert value("overhead_seconds_bucket", cache="miss", le="0.0005") == 1
    assert value("overhead_seconds_count", cache="miss") == 1
    assert value("inter_token_seconds_sum", mode="creative") == 0.02


def test_a_hit_costs_no_tokens_and_says_nothing_of_the_upstream(metrics: Metrics) -> None:
    hit = request(cached=True, attempts=0, first_token_s=0.001, overhead_s=0.001)
    stale = request(cached=True, stale=True, outcome="stale")
    live = request(cached_tokens=2, reasoning_tokens=1)
    value = seen(metrics, live, hit, hit, stale)
    for result, count in (("hit", 2), ("stale", 1), ("miss", 1)):
        assert value("cache_requests_total", requested_mode="creative", result=result) == count
    assert value("tokens_total", mode="creative", direction="prompt") == 3
    assert value("tokens_total", mode="creative", direction="completion") == 4
    assert value("cached_prompt_tokens_total", mode="creative") == 2
    assert value("reasoning_tokens_total", mode="creative") == 1
    assert value("time_to_first_token_seconds_count", mode="creative") == 1
    assert value("overhead_seconds_count", cache="hit") == 2


def test_attempts_by_class(metrics: Metrics) -> None:
    failed = attempt(outcome="failure", kind="timeout")
    value = seen(metrics, attempt(), failed, failed)
    labels = {"mode": "creative", "target": "vllm/qwen"}
    assert value("attempts_total", **labels, outcome="success", error_class="none") == 1
    assert value("attempts_total", **labels, outcome="failure", error_class="timeout") == 2


def test_a_relapse_is_neither_a_downshift_nor_a_recovery(metrics: Metrics) -> None:
    value = seen(
        metrics,
        changed("closed", "open"),
        changed("open", "probing"),
        changed("probing", "open"),
        changed("open", "probing"),
        changed("probing", "closed"),
        changed("closed", "forced_open"),
        changed("forced_open", "closed"),
        changed("closed", "forced_closed"),
    )
    assert value("downshifts_total", mode="creative", cause="server") == 2
    assert value("recoveries_total", mode="creative") == 2


def test_targets_at_rest_and_reloads(metrics: Metrics) -> None:
    rest = TargetResting(at=1.0, mode="fast", target="t", kind="auth", for_s=300.0, alarm=True)
    value = seen(metrics, rest, ConfigReloaded(at=1.0, result="applied"),
                 ConfigReloaded(at=1.0, result="refused"))  # fmt: skip
    assert value("target_rests_total", mode="fast", target="t", error_class="auth", alarm="true")
    assert value("config_reloads_total", result="applied") == 1
    assert value("config_reloads_total", result="refused") == 1


def test_http_requests_by_route_and_no_label_in_a_callers_words(metrics: Metrics) -> None:
    value = seen(
        metrics,
        http(duration_s=0.2),
        http(client_disconnected=True, status=499),
        http(method="EVIL", route="", status=404, refused=True),
    )
    chat = "/v1/chat/completions"
    assert value("http_requests_total", method="POST", route=chat, status="200") == 1
    assert value("http_requests_total", method="other", route="unmatched", status="404") == 1
    assert value("http_request_duration_seconds_count", route=chat) == 2
    assert value("http_disconnects_total", route=chat) == 1


def test_no_label_names_a_user_a_request_or_a_model_as_an_upstream_calls_it(
    metrics: Metrics,
) -> None:
    events = [
        request(request_id=f"gen-{n}", tenant=f"tenant-{n}", model=f"model-{n}", key=f"key-{n}")
        for n in range(50)
    ]
    metrics(events[0])
    lines = len(metrics.render().splitlines())
    for event in events:
        metrics(event)
    text = metrics.render()
    assert len(text.splitlines()) == lines
    assert not any(word in text for word in (b"gen-", b"tenant-", b"model-", b"key-"))


# -- how things stand -----------------------------------------------------------------------------

TABLES: dict[str, Any] = {
    "modes": {
        mode: {"targets": [{"kind": "simulated"}, {"kind": "simulated", "model": mode}]}
        for mode in ("creative", "fast")
    }
}


def test_the_phases_are_those_of_a_circuit() -> None:
    assert set(PHASES) == set(Phase)
    assert {phase for phase in Phase if phase.downshifted} == DOWNSHIFTED
    worst = PHASES.index(Phase.PROBING)
    assert all((PHASES.index(phase) >= worst) is phase.downshifted for phase in Phase)


def test_state_needs_no_traffic() -> None:
    async def scenario() -> None:
        clock = asyncio.get_running_loop().time
        async with Gateway(Config.from_dict(TABLES), clock=clock) as gateway:
            metrics = Metrics(gateway.status, registry=CollectorRegistry())

            def now() -> Page:
                metrics.refresh()
                return page(metrics.render())

            await gateway.generate("hello", "creative")
            value = now()
            assert value("circuit_phase", mode="creative") == 0
            assert value("cache_ttl_seconds", mode="creative") == 3600
            assert value("retry_budget_tokens", mode="fast", target="simulated/fast") == 10
            assert value("cache_entries") == 1
            circuit = gateway._in_force.pipeline.ladder.rungs[0].circuit
            circuit.breaker.open()
            value = now()
            assert value("circuit_phase", mode="creative") == PHASES.index("open")
            assert value("cache_ttl_seconds", mode="creative") == 300
            assert value("mode_downshifted", mode="creative") == 1
            assert (value("mode_hold_seconds", mode="creative") or 0) > 299
            await asyncio.sleep(301)  # nobody asks for anything
            assert now()("circuit_phase", mode="creative") == PHASES.index("probe_due")
            assert value("workers") == 1

    run(scenario)


def test_every_gauge_of_the_table_has_a_sample_of_a_real_status() -> None:
    async def scenario() -> dict[str, Any]:
        async with Gateway(Config.from_dict(TABLES)) as gateway:
            return gateway.status()

    status = run(scenario)
    month = {"monthly_tokens": {"limit": 1_000, "used": 400}}
    status["keys"] = {"team": {"in_flight": 2, **month}, "free": {"in_flight": 0}}
    samples = list(samples_of(status))
    assert {name for name, *_ in samples} == set(GAUGES) - {"gateway_config_reload_success"}
    assert all(len(labels) == len(GAUGES[name].labels) for name, labels, _ in samples)
    assert len({sample[:2] for sample in samples}) == len(samples)
    assert ("gateway_key_tokens_left", ("team",), 600) in samples


def test_two_targets_of_one_name_are_told_apart() -> None:
    async def scenario() -> dict[str, Any]:
        async with Gateway(Config.from_dict(TABLES)) as gateway:
            return gateway.status()

    status = run(scenario)
    target = status["modes"]["fast"]["targets"][0]
    status["modes"]["fast"]["targets"] = [target, {**target, "budget_tokens": 1.0}]
    budgets = combined([samples_of(status)])["gateway_retry_budget_tokens"]
    assert budgets["fast", target["name"]] == 10.0
    assert budgets["fast", f"{target['name']}#2"] == 1.0


def test_workers_are_combined_as_each_metric_needs_it() -> None:
    each = [
        [
            ("gateway_circuit_phase", ("creative",), phase),
            ("gateway_cache_ttl_seconds", ("creative",), ttl),
            ("gateway_queue_depth", (), 2),
        ]
        for phase, ttl in ((0, 3600.0), (5, 300.0))
    ]
    found = combined(each)
    assert found["gateway_circuit_phase"] == {("creative",): 5}
    assert found["gateway_cache_ttl_seconds"] == {("creative",): 300}
    assert found["gateway_queue_depth"] == {(): 4}


def test_a_refused_reload_shows_until_one_is_applied() -> None:
    async def scenario() -> None:
        async with Gateway(Config.from_dict(TABLES)) as gateway:
            metrics = Metrics(gateway.status, registry=CollectorRegistry())
            for result, good in (
                ("applied", 1),
                ("refused", 0),
                ("applied", 1),
                ("rolled_back", 0),
            ):
                value = seen(metrics, ConfigReloaded(at=1.0, result=result))
                assert value("config_reload_success") == good

    run(scenario)


def test_a_page_that_nobody_refreshed_refreshes_itself_at_most_once_a_second() -> None:
    asked = []

    async def scenario() -> None:
        async with Gateway(Config.from_dict(TABLES)) as gateway:

            def status() -> dict[str, Any]:
                asked.append(1)
                return gateway.status()

            metrics = Metrics(status, registry=CollectorRegistry())
            metrics.render()
            metrics.render()
            metrics.refresh()

    run(scenario)
    assert len(asked) == 2


# -- the process's own registry -------------------------------------------------------------------


def test_two_for_one_registry_count_into_the_same_metrics() -> None:
    registry = CollectorRegistry()
    first, second = Metrics(registry=registry), Metrics(registry=registry)
    first(request())
    value = seen(second, request())
    assert value("requests_total", requested_mode="creative", mode="creative", outcome="ok") == 2


def test_the_owners_collector_counts_beside_the_gateway() -> None:
    def of(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(f"operations_{name}", labels) or 0.0

    before = of("rl_updates_total", algorithm="ppo")
    for collector in (OperationsMetricsCollector(), OperationsMetricsCollector()):
        collector.record_rl_update(
            algorithm="ppo", policy_loss=0.5, value_loss=1.5, reward=-2.0, entropy=0.01
        )
        collector.record_circuit_breaker_downgrade("llm", "creative", "balanced")
        collector.set_cache_size("llm", 7)
    assert of("rl_updates_total", algorithm="ppo") == before + 2
    assert of("rl_reward", algorithm="ppo") == -2.0
    assert of("rl_entropy", algorithm="ppo") == 0.01
    labels = {"service": "llm", "from_mode": "creative", "to_mode": "balanced"}
    assert of("circuit_breaker_downgrades_total", **labels) >= 2
    assert of("cache_size", cache="llm") == 7
    assert b"operations_rl_policy_loss" in Metrics().render()


def test_without_the_library_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["prometheus_client"] = None
from gateway.errors import GatewayError
from gateway.telemetry.metrics import Metrics, OperationsMetricsCollector
for make in Metrics, OperationsMetricsCollector:
    try:
        make()
    except GatewayError as error:
        print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.count("pip install 'downshift-gateway[server]'") == 2


def test_the_first_scrapes_may_come_at_once() -> None:
    """A server renders each in a thread of its own."""
    code = """
import threading
from gateway.telemetry import metrics
page, make = metrics.Metrics(at_once=False), metrics._made_in
other = threading.Thread(target=page.render)
def made_in(registry):
    metrics._made_in = make
    other.start()
    other.join(0.3)  # has it come through meanwhile?
    return make(registry)
metrics._made_in = made_in
assert b"gateway_requests_total" in page.render()
other.join()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# -- several workers ------------------------------------------------------------------------------

WORKER = """
import json, sys
from occasions import request
from gateway.telemetry.metrics import Metrics, OperationsMetricsCollector
metrics = Metrics(lambda: json.loads(sys.argv[1]))
for line in sys.stdin:
    match line.split():
        case ["count", n]:
            for _ in range(int(n)):
                metrics(request(duration_s=0.3))
        case ["refresh"]:
            metrics.refresh()
        case ["reward", value]:
            OperationsMetricsCollector().record_rl_update(
                algorithm="ppo", policy_loss=0, value_loss=0, reward=float(value), entropy=0)
        case ["page"]:
            print(json.dumps(metrics.render().decode()), flush=True)
            continue
    print("null", flush=True)
"""


class Worker:
    """A real process that counts and renders as it is told to."""

    def __init__(self, folder: Path, status: dict[str, Any]) -> None:
        here = Path(__file__).parent
        path = os.pathsep.join([str(here), str(here.parents[2])])
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, json.dumps(status)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": path},
        )

    def do(self, line: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def page(self) -> Page:
        return page(self.do("page").encode())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Worker, Worker]]:
    from gateway.telemetry.worker_metrics import prepare_workers

    async def scenario() -> dict[str, Any]:
        async with Gateway(Config.from_dict(TABLES)) as gateway:
            return gateway.status()

    status = run(scenario)
    (tmp_path / "counter_1.db").write_bytes(b"of an earlier run")
    (tmp_path / "state_1.json").write_bytes(b"too")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    prepare_workers(tmp_path)
    pair = Worker(tmp_path, {**status, "queued": 1}), Worker(tmp_path, {**status, "queued": 4})
    try:
        yield pair
    finally:
        for worker in pair:
            worker.kill()


def test_any_workers_page_is_everybodys(workers: tuple[Worker, Worker]) -> None:
    from gateway.telemetry.worker_metrics import forget_worker

    one, two = workers
    one.do("count 3")
    two.do("count 4")
    two.do("reward 1")
    one.do("reward 2")
    two.do("refresh")
    labels = {"requested_mode": "creative", "mode": "creative", "outcome": "ok"}
    value = one.page()
    assert value("requests_total", **labels) == 7
    assert value("request_duration_seconds_bucket", requested_mode="creative", outcome="ok",
                 le="0.5") == 7  # fmt: skip
    assert (value("queue_depth"), value("workers")) == (5, 2)
    assert two.page()("requests_total", **labels) == 7
    assert 'operations_rl_reward{algorithm="ppo"} 2.0' in two.do("page")
    two.kill()
    assert one.page()("workers") == 2  # nobody has told it yet
    forget_worker(two.process.pid)
    forget_worker(two.process.pid)
    value = one.page()
    assert value("requests_total", **labels) == 7  # what happened has happened
    assert value("request_duration_seconds_bucket", requested_mode="creative", outcome="ok",
                 le="0.5") == 7  # fmt: skip
    assert 'operations_rl_reward{algorithm="ppo"} 2.0' in one.do("page")  # the later one
    assert (value("queue_depth"), value("workers")) == (1, 1)


def test_workers_that_come_and_go_do_not_pile_up(
    workers: tuple[Worker, Worker], tmp_path: Path
) -> None:
    from gateway.telemetry.worker_metrics import forget_worker

    one, two = workers
    one.do("count 1")
    two.kill()
    forget_worker(two.process.pid)
    sizes = set()
    for _ in range(3):
        other = Worker(tmp_path, {})
        other.do("count 2")
        other.kill()
        forget_worker(other.process.pid)
        sizes.add(len(list(tmp_path.iterdir())))
    assert len(sizes) == 1
    labels = {"requested_mode": "creative", "mode": "creative", "outcome": "ok"}
    assert one.page()("requests_total", **labels) == 7


def test_a_worker_killed_while_it_made_a_file_harms_nobody(
    workers: tuple[Worker, Worker], tmp_path: Path
) -> None:
    from gateway.telemetry.worker_metrics import forget_worker

    one, _ = workers
    one.do("count 1")
    (tmp_path / "counter_1.db").write_bytes(b"")
    (tmp_path / "histogram_1.db").write_bytes(b"\xff\x00\x00\x00\0\0\0\0\xff\xff\xff\x00")
    forget_worker(1)
    labels = {"requested_mode": "creative", "mode": "creative", "outcome": "ok"}
    assert one.page()("requests_total", **labels) == 1


def test_a_process_that_imported_the_library_too_early_is_told_so(tmp_path: Path) -> None:
    code = """
import os, sys, pathlib, prometheus_client
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.worker_metrics import prepare_workers
prepare_workers(pathlib.Path(sys.argv[1]))
try:
    Metrics()
except Exception as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "must be set before prometheus_client is imported" in result.stdout


def test_who_never_had_workers_has_none_to_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.telemetry.worker_metrics import forget_worker

    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    forget_worker(1)
