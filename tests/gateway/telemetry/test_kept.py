"""Counting in plain numbers gives the page that prometheus_client's own counters give."""

from __future__ import annotations

import random
import subprocess
import sys

import prometheus_client as prometheus
import pytest
from occasions import request

from gateway.events import RequestFinished
from gateway.telemetry.families import COUNTED, Counted, labelled, made_in
from gateway.telemetry.kept import Kept


def page(registry: prometheus.CollectorRegistry) -> list[str]:
    text = prometheus.generate_latest(registry).decode()
    return [line for line in text.splitlines() if "_created" not in line]  # when, not what


def events() -> list[RequestFinished]:
    chance = random.Random(7)
    edges = [0.005, 0.00005, 1.0, 600.0, 0.0]  # on a bound: at or below it

    def seconds() -> float:
        return chance.choice(edges) if chance.random() < 0.3 else chance.expovariate(2.0)

    return [
        request(
            mode=chance.choice(["creative", "fast", ""]),
            outcome=chance.choice(["ok", "degraded", "failed"]),
            cached=chance.random() < 0.2,
            duration_s=seconds(),
            queued_s=seconds(),
            overhead_s=seconds(),
            inter_token_s=seconds(),
            first_token_s=seconds(),
            cached_tokens=chance.randrange(3),
            reasoning_tokens=chance.randrange(3),
        )
        for _ in range(300)
    ]


def test_the_same_page_from_the_same_events() -> None:
    kept, theirs, ours = Kept(), prometheus.CollectorRegistry(), prometheus.CollectorRegistry()
    ours.register(kept)
    of = labelled(made_in(theirs, prometheus))
    for event in events():
        Counted(of, event).count(event)
        Counted(kept, event).count(event)
    kept("operations_rl_reward", "ppo").set(-1.5)
    of("operations_rl_reward", "ppo").set(-1.5)
    assert sorted(page(ours)) == sorted(page(theirs))


def test_the_same_labels_are_the_same_counter() -> None:
    kept = Kept()
    kept("gateway_recoveries_total", "fast").inc()
    kept("gateway_recoveries_total", "fast").inc(2)
    kept("gateway_recoveries_total", "creative").inc()
    assert kept("gateway_recoveries_total", "fast").value == 3


def test_nobody_else_takes_one_of_its_names() -> None:
    registry = prometheus.CollectorRegistry()
    registry.register(Kept())
    name = next(name for name, row in COUNTED.items() if row.kind == "Gauge")
    with pytest.raises(ValueError, match="Duplicated"):
        prometheus.Gauge(name, "another", registry=registry)


def test_a_service_loads_prometheus_client_with_the_first_scrape() -> None:
    code = """
import sys
from gateway.telemetry.metrics import Metrics, OperationsMetricsCollector
metrics = Metrics(at_once=False)
assert "prometheus_client" not in sys.modules
OperationsMetricsCollector().record_halt()
page = Metrics(at_once=False).render() or metrics.render()
assert b"operations_halts_total 1.0" in page and b"gateway_requests_total" in page
from prometheus_client import REGISTRY
assert REGISTRY.get_sample_value("operations_halts_total") == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)
