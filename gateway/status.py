"""How things stand, as plain data: pure reading, nothing is moved by looking (B12)."""

from __future__ import annotations

from typing import Any

from gateway.detectors.latency import LatencyDetector
from gateway.detectors.quality import QualityDetector
from gateway.pipeline import Pipeline
from gateway.policies.downshift import Rung


def status_of(
    pipeline: Pipeline, latency: LatencyDetector, quality: QualityDetector
) -> dict[str, Any]:
    """Describe every mode, the cache, the keys (by name, never by hash) and the queue."""
    return {
        "modes": {
            rung.name: {
                **_mode(rung, pipeline),
                "first_token": latency.normal(rung.name),
                "rating": quality.normal(rung.name),
            }
            for rung in pipeline.ladder
        },
        "cache": {"enabled": pipeline.config.cache.enabled, **pipeline.store.stats()},
        "keys": pipeline.accounts.status(),
        "queued": pipeline.admission.queued,
        "in_flight": pipeline.in_flight,
    }


def _mode(rung: Rung, pipeline: Pipeline) -> dict[str, Any]:
    circuit, limit = rung.circuit, rung.limit
    downshifted = rung.downshifted
    return {
        "phase": str(circuit.phase()),
        "downshifted": downshifted,
        "epoch": circuit.epoch,
        "until_s": rung.until(),
        "ttl_s": pipeline.config.cache.ttl(downshifted=downshifted),
        "cap": circuit.cap(),
        "limit": limit.current,
        "in_flight": {"native": limit.native, "downshifted": limit.downshifted},
        "late_outcomes": circuit.late,
        "targets": [
            {
                "name": target.provider.name,
                "model": target.provider.model,
                "in_flight": target.in_flight,
                "resting_s": max(0.0, target.resting_until - rung.now()),
                "budget_tokens": round(target.budget.tokens, 3),
            }
            for target in rung.targets
        ],
    }
