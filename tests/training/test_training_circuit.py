"""The language model's circuit: our own by hand, or a live gateway's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway import Gateway
from gateway.clock import ManualClock
from training import CircuitBreakerConfig, OperationsManager


def test_the_thresholds_may_change_at_any_time(tmp_path: Path) -> None:
    clock = ManualClock()
    ops = OperationsManager(tmp_path, clock=clock)
    ops.on_llm_failure("qwen")
    ops.circuit_breaker_config = CircuitBreakerConfig(
        failure_threshold=2, downshift_duration_s=7.0, normal_ttl_s=60, downshift_ttl_s=5
    )
    assert ops.circuit_breaker.get_current_ttl() == 60
    ops.on_llm_failure("qwen")
    result = ops.on_training_step(1, {})
    assert (result["should_downshift"], result["current_ttl"]) == (True, 5)
    clock.advance(7.0)
    result = ops.on_training_step(2, {})
    assert (result["should_downshift"], result["current_ttl"]) == (False, 60)


def test_a_success_in_between_starts_the_count_again(tmp_path: Path) -> None:
    ops = OperationsManager(tmp_path)
    for call in ("failure", "failure", "success", "failure", "failure"):
        getattr(ops, f"on_llm_{call}")("qwen")
    assert not ops.circuit_breaker.should_use_downshift()


class Model:
    """A client that fails while it is told to."""

    broken = False

    async def __call__(self, prompt: str) -> str:
        if self.broken:
            raise ConnectionError("gone")
        return f"answer to {prompt}"


async def test_a_live_gateway_is_reported_as_it_is(tmp_path: Path) -> None:
    model, answers = Model(), Model()
    gateway: Any = Gateway.wrap({"creative": model, "balanced": answers, "fast": answers})
    async with gateway:
        ops = OperationsManager(tmp_path, gateway=gateway)
        assert (await gateway.generate("one", "creative")).mode == "creative"
        result = ops.on_training_step(1, {})
        assert (result["should_downshift"], result["current_ttl"]) == (False, 3600)
        assert result["events"] == []

        for _ in range(4):  # the gateway sees its own calls
            ops.on_llm_failure("qwen")
        result = ops.on_training_step(2, {})
        assert not result["should_downshift"]
        assert result["events"] == [
            "on_llm_failure('qwen') ignored: the gateway sees its own calls"
        ]

        model.broken = True
        for number in range(4):
            served = await gateway.generate(f"prompt {number}", "creative")
            assert served.degraded
        result = ops.on_training_step(3, {})
        assert (result["should_downshift"], result["current_ttl"]) == (True, 300)
        assert ops.circuit_breaker.should_use_downshift()
        ops.on_llm_success("qwen")
        assert ops.on_training_step(4, {})["should_downshift"]
