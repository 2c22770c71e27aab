"""A real Prometheus scrapes a gateway through an outage and answers what the dashboard asks."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from promql import RULES, dashboard_expressions

from gateway.config import Config
from gateway.events import ConfigReloaded, HTTPFinished
from gateway.gateway import Gateway
from gateway.simulator.clock import run
from gateway.simulator.faults import AnyFault, FaultPlan, Outage, Throttled
from gateway.simulator.upstream import SimulatedProvider
from gateway.telemetry.metrics import Metrics, OperationsMetricsCollector

PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed"),
]
PATIENCE_S = 30.0


class Page:
    """Serves what `Metrics` renders and knows how often it was scraped."""

    def __init__(self) -> None:
        self.text = b""
        self.scraped = threading.Semaphore(0)
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", Metrics.content_type)
                self.end_headers()
                self.wfile.write(page.text)
                page.scraped.release()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def show(self, text: bytes) -> None:
        """Show a new page until it has been scraped: the second scrape from now began after it."""
        self.text = text
        while self.scraped.acquire(blocking=False):
            pass
        for _ in range(2):
            assert self.scraped.acquire(timeout=PATIENCE_S), "nobody scrapes"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class Prometheus:
    """A real one, asked over its API."""

    def __init__(self, folder: Path, port: int) -> None:
        assert PROMETHEUS is not None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        config = {
            "global": {"scrape_interval": "200ms", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {"job_name": "gateway", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
            ],
        }
        file = folder / "prometheus.yml"
        file.write_text(json.dumps(config))
        self.log = (folder / "prometheus.log").open("wb")
        self.process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.address}",
            ],
            stdout=self.log,
            stderr=self.log,
        )

    def ask(self, expression: str) -> list[dict[str, Any]]:
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://{self.address}/api/v1/query?{query}", timeout=10) as r:
            answer = json.load(r)
        assert answer["status"] == "success"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def has_data(self, expression: str) -> bool:
        """Whether it answers with a number; a quantile of nothing is none."""
        return any(math.isfinite(float(found["value"][1])) for found in self.ask(expression))

    def value(self, expression: str) -> float:
        [found] = self.ask(expression)
        return float(found["value"][1])

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        self.log.close()


@pytest.fixture
def page() -> Iterator[Page]:
    page = Page()
    try:
        yield page
    finally:
        page.close()


@pytest.fixture
def prometheus(page: Page, tmp_path: Path) -> Iterator[Prometheus]:
    prometheus = Prometheus(tmp_path, page.port)
    try:
        yield prometheus
    finally:
        prometheus.close()


def training_went_wrong(training: OperationsMetricsCollector) -> None:
    """Everything a training run may report, once."""
    training.record_anomaly("loss_spike", acts=True)
    training.record_rollback("loss_spike")
    training.record_halt()
    training.record_dropped_updates(1)
    training.record_retune("applied")
    training.record_checkpoint_failure()
    training.observe_checkpoint_blocking(0.001)
    training.observe_checkpoint_persist(0.02)
    training.set_training_state(entropy_coef=0.01, lr_scale=0.5)


def through_an_outage(page: Page, prometheus: Prometheus) -> None:
    """A gateway on virtual time; each step of it is shown until it has been scraped."""

    async def scenario() -> None:
        modes = {
            name: {"targets": [{"kind": "simulated", "model": name}], "max_in_flight": 8}
            for name in ("creative", "balanced", "fast")
        }
        loop = asyncio.get_running_loop()
        config = Config.from_dict({"modes": modes})
        async with Gateway(config, clock=loop.time) as gateway:
            month = {"monthly_tokens": {"limit": 1_000, "used": 400}}
            keys = {"team": {"in_flight": 1, **month}}
            registry = CollectorRegistry()
            metrics = Metrics(lambda: {**gateway.status(), "keys": keys}, registry=registry)
            training = OperationsMetricsCollector(registry)
            gateway.listen(metrics)
            asked = 0

            def plan(mode: int, *faults: AnyFault) -> None:
                target = gateway._in_force.pipeline.ladder.rungs[mode].targets[0]
                assert isinstance(target.provider, SimulatedProvider)
                target.provider.plan = FaultPlan(faults)

            async def ask(count: int) -> None:
                nonlocal asked
                asked += count
                prompts = [f"question {asked - n}" for n in range(count)]
                wanted = [gateway.generate(prompt, "creative") for prompt in prompts]
                await asyncio.gather(*wanted, return_exceptions=True)
                await gateway.generate(prompts[0], "creative")  # a hit
                at = loop.time()
                for left in (False, True):
                    metrics(HTTPFinished(at=at, method="POST", route="/v1/chat/completions",
                                         status=200, client_disconnected=left))  # fmt: skip
                metrics(ConfigReloaded(at=at, result="applied"))
                training.record_rl_update(
                    algorithm="ppo", policy_loss=0.1, value_loss=0.2, reward=1.0, entropy=0.01
                )
                training.record_circuit_breaker_downgrade("llm", "creative", "balanced")
                training.set_cache_size("llm", asked)
                training_went_wrong(training)

            def show() -> None:
                metrics.refresh()
                page.show(metrics.render())

            await ask(2)
            show()
            await ask(40)  # more than there is room for at once: some wait
            show()
            plan(0, Outage(0.0, float("inf"), "error500"))
            plan(1, Throttled(0.0, float("inf"), retry_after=30.0))
            for _ in range(3):
                await ask(5)
                show()
            assert gateway.status()["modes"]["creative"]["phase"] == "open"
            assert prometheus.value('gateway_circuit_phase{mode="creative"}') == 5
            assert prometheus.value('gateway_cache_ttl_seconds{mode="creative"}') == 300
            plan(0)
            plan(1)
            await asyncio.sleep(301)  # nobody asks, and the page says so
            show()
            assert prometheus.value('gateway_circuit_phase{mode="creative"}') == 4
            for _ in range(3):
                await ask(5)
                await asyncio.sleep(61)
                show()
            assert prometheus.value('gateway_circuit_phase{mode="creative"}') == 0

    run(scenario)


def test_it_answers_everything_the_dashboard_asks(page: Page, prometheus: Prometheus) -> None:
    through_an_outage(page, prometheus)
    expressions = dashboard_expressions()
    until = time.monotonic() + PATIENCE_S
    silent = set(expressions)
    while silent and time.monotonic() < until:  # the recording rules are evaluated each second
        silent = {where for where in silent if not prometheus.has_data(expressions[where])}
        page.show(page.text)
    assert not silent
    served = {
        (found["metric"]["requested_mode"], found["metric"]["mode"])
        for found in prometheus.ask("sum by (requested_mode, mode) (gateway_requests_total)")
    }
    assert {("creative", "creative"), ("creative", "fast")} <= served
    assert prometheus.value('sum(gateway_downshifts_total{mode="creative"})') == 1
    assert prometheus.value('sum(gateway_recoveries_total{mode="creative"})') == 1
    assert prometheus.value("max_over_time(gateway_target_rest_seconds{mode='balanced'}[1m])") <= 60
    assert prometheus.value("gateway:availability:ratio_rate5m") > 0.5
