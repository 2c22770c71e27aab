"""A configuration brought to life, and what the next one takes over from it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.config import Config
from gateway.detectors.latency import LatencyDetector
from gateway.errors import ConfigError
from gateway.events import CircuitChanged, Event, EventBus
from gateway.generation import GenerationRequest
from gateway.pipeline import Pipeline
from gateway.simulator.clock import run
from gateway.stores.memory import MemoryStore


def config(modes: dict[str, dict[str, Any]] | None = None, **tables: Any) -> Config:
    built = {}
    for name, given in (modes or {"creative": {}, "fast": {}}).items():
        table = dict(given)
        target = {"kind": "simulated", "model": name, **table.pop("target", {})}
        built[name] = {"targets": [target], **table}
    return Config.from_dict({"modes": built, **tables})


class Built:
    """Pipelines, one after the other."""

    def __init__(self, first: Config, now: Any = None) -> None:
        self.events: list[Event] = []
        self.ended: list[Pipeline] = []
        self._bus = EventBus()
        self._bus.listen(self.events.append)
        self._clock = now or (lambda: 100.0)
        self._latency = LatencyDetector()
        self.pipeline = self.build(first)

    def build(self, wanted: Config, before: Pipeline | None = None) -> Pipeline:
        return Pipeline(wanted, self._clock, self._bus, self._latency, self._end, before)

    def _end(self, by: Pipeline, *_: object) -> None:
        self.ended.append(by)

    def then(self, wanted: Config) -> Pipeline:
        self.pipeline = self.build(wanted, self.pipeline)
        return self.pipeline


def test_the_layers_in_their_order() -> None:
    async def main() -> None:
        built = Built(config(), asyncio.get_running_loop().time)
        request = GenerationRequest(
            id="gen-1", mode="creative", messages=[{"role": "user", "content": "hello"}]
        )
        answer = await built.pipeline.answer(request)
        assert built.pipeline.in_flight == 1
        assert request.deadline == 180.0  # the deadline layer has seen it
        await answer.finish()
        assert built.pipeline.in_flight == 0
        assert built.ended == [built.pipeline]
        await built.pipeline.aclose()

    run(main)


def test_the_lowest_mode_holds_briefly_and_the_others_long() -> None:
    rungs = Built(config({"a": {}, "b": {}, "c": {}})).pipeline.ladder.rungs
    assert [rung.circuit.options.break_duration_s for rung in rungs] == [300.0, 300.0, 5.0]
    assert rungs[2].circuit.options.break_growth == 2.0


def test_targets_that_fail_together_share_a_purse() -> None:
    def domain(url: str) -> dict[str, Any]:
        return {"target": {"base_url": url}}

    rungs = Built(config({"a": domain("x"), "b": domain("x"), "c": domain("y")})).pipeline.ladder
    a, b, c = (rung.targets[0].budget for rung in rungs)
    assert a is b
    assert a is not c


def test_two_modes_with_the_same_target_share_its_provider() -> None:
    same = {"target": {"model": "one"}}
    a, b = Built(config({"a": same, "b": same})).pipeline.ladder.rungs
    assert a.targets[0].provider is b.targets[0].provider
    assert a.targets[0] is not b.targets[0]


def test_what_changes_the_answers_changes_a_modes_identity() -> None:
    def identity(**mode: Any) -> bytes:
        return Built(config({"a": mode, "b": {}})).pipeline.ladder.rungs[0].identity

    usual = identity()
    assert usual == identity(max_in_flight=3, deadline_s=5)
    others = [
        identity(temperature=0.5),
        identity(thinking=True),
        identity(thinking=False),
        identity(target={"model": "other"}),
        identity(target={"options": {"seed": 5}}),
    ]
    assert len({usual, *others}) == 6


def test_the_next_one_takes_over_what_it_can() -> None:
    built = Built(config())
    before = built.pipeline
    after = built.then(config({"creative": {"max_in_flight": 9}, "other": {}, "fast": {}}))
    for name in ("creative", "fast"):
        old, new = (p.ladder.rungs[p.modes.index(name)] for p in (before, after))
        assert old.circuit is new.circuit
        assert old.limit is new.limit
        assert old.targets[0] is new.targets[0]
    assert after.store is before.store
    assert after.admission.line is before.admission.line
    assert after.clients is before.clients
    assert after.ladder.rungs[0].limit.current == 9


def test_another_target_is_another_provider_and_another_store_is_another_store() -> None:
    built = Built(config())
    before = built.pipeline
    before.ladder.rungs[0].targets[0].resting_until = 500.0
    after = built.then(
        config({"creative": {"target": {"model": "new"}}, "fast": {}}, cache={"max_bytes": 1000})
    )
    assert after.ladder.rungs[0].targets[0].provider.model == "new"
    assert after.ladder.rungs[0].targets[0].resting_until < 100.0
    assert after.store is not before.store
    assert isinstance(after.store, MemoryStore)


def test_options_of_circuits_and_budgets_are_in_force_at_once() -> None:
    built = Built(config())
    circuit = built.pipeline.ladder.rungs[0].circuit
    budget = built.pipeline.ladder.rungs[0].targets[0].budget
    budget.failed()
    built.then(config(circuit={"failure_threshold": 1}, budget={"tokens": 20.0}))
    assert circuit.options.failure_threshold == 1
    assert budget.tokens == 18.0


@pytest.mark.parametrize("position", [0, 1])
def test_a_target_that_cannot_be_built_names_its_table(position: int) -> None:
    modes: dict[str, dict[str, Any]] = {"creative": {}, "fast": {}}
    modes[list(modes)[position]] = {"target": {"options": {"slotz": 1}}}
    with pytest.raises(ConfigError) as error:
        Built(config(modes))
    assert error.value.table == f"modes.{list(modes)[position]}.targets[0]"
    assert error.value.key == "options"
    assert "slotz" in str(error.value)


def test_circuits_tell_what_happened_to_them() -> None:
    built = Built(config())
    built.pipeline.ladder.rungs[0].circuit.force("open")
    [event] = built.events
    assert isinstance(event, CircuitChanged)
    assert (event.mode, event.old, event.new, event.at) == (
        "creative", "closed", "forced_open", 100.0,
    )  # fmt: skip


class Closing:
    """A provider that notes that it was closed."""

    def __init__(self, inner: Any) -> None:
        self.__dict__.update(inner.__dict__)
        self.closed = 0

    async def aclose(self) -> None:
        self.closed += 1


async def test_retiring_closes_what_nobody_else_uses_and_each_once() -> None:
    same = {"target": {"model": "one"}}
    built = Built(config({"a": same, "b": same, "c": {}}))
    old = built.pipeline
    old.providers = [(options, Closing(provider)) for options, provider in old.providers]  # type: ignore[misc]
    shared, _, own = (provider for _, provider in old.providers)
    old.providers[1] = (old.providers[1][0], shared)
    new = built.build(config({"c": {}}), old)
    assert [provider for _, provider in new.providers] == [own]
    await old.retire([new])
    assert (shared.closed, own.closed) == (1, 0)  # type: ignore[attr-defined]
