"""Which configuration is in force, by the verdicts of a trial; the pipelines are pretended."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.clock import ManualClock
from gateway.config import Config
from gateway.errors import (
    AdmissionRejected,
    AllModesFailed,
    CircuitOpen,
    ConfigError,
    GatewayError,
    InvalidRequest,
    UpstreamRejected,
)
from gateway.events import ConfigReloaded, Event, EventBus
from gateway.generation import Generation, Served
from gateway.reload import InForce


class Pretended:
    """A pipeline that only counts."""

    class _Cache:
        def __init__(self) -> None:
            self.closed = 0

        async def aclose(self) -> None:
            self.closed += 1

    def __init__(self, config: Config) -> None:
        self.config = config
        self.in_flight = 0
        self.on_idle: Any = None
        self.cache = self._Cache()
        self.retired: list[list[Pretended]] = []
        self.closed = 0

    async def retire(self, others: list[Pretended]) -> None:
        self.retired.append(list(others))

    async def aclose(self) -> None:
        self.closed += 1


def named(name: str) -> Config:
    return Config.from_dict({"modes": {"solo": {"targets": [{"kind": "simulated"}]}}}, source=name)


class Reloading:
    def __init__(self) -> None:
        self.clock = ManualClock(1000.0)
        self.events: list[Event] = []
        self.broken: set[str] = set()
        bus = EventBus()
        bus.listen(self.events.append)
        self.in_force = InForce(named("first"), self._build, bus, self.clock)  # type: ignore[arg-type]

    def _build(self, config: Config, _: Pretended | None) -> Pretended:
        if config.source in self.broken:
            raise ConfigError("gone", file=config.source)
        return Pretended(config)

    @property
    def pipeline(self) -> Any:
        return self.in_force.pipeline

    @property
    def results(self) -> list[tuple[str, str]]:
        return [(e.result, e.detail) for e in self.events if isinstance(e, ConfigReloaded)]

    def hear(self, *ends: object, by: Any = None) -> None:
        for end in ends:
            generation = end if isinstance(end, Generation) else None
            error = end if isinstance(end, BaseException) else None
            self.in_force.hear(by or self.pipeline, generation, error)


def answer(reason: str | None = None) -> Generation:
    mode, degraded = "b" if reason else "a", reason is not None
    served = Served(requested_mode="a", mode=mode, degraded=degraded, reason=reason)
    return Generation(id="gen-1", choices=[], served=served)


WELL, WORSE = answer(), answer("failed")


async def test_a_worse_one_is_taken_back_and_never_returned_to() -> None:
    reloading = Reloading()
    reloading.hear(*[WELL] * 50)
    reloading.in_force.apply(named("second"))
    reloading.hear(*[WORSE] * 4)
    assert reloading.pipeline.config.source == "second"
    reloading.hear(WORSE)
    assert reloading.pipeline.config.source == "first"
    assert reloading.results == [("applied", "second"), ("rolled_back", "first")]
    assert reloading.in_force.status() == {
        "source": "first", "last_reload": "rolled_back", "on_trial": False,
    }  # fmt: skip
    reloading.in_force.apply(named("third"))
    reloading.hear(*[WORSE] * 5)
    assert reloading.pipeline.config.source == "first"


async def test_a_good_one_is_what_a_later_bad_one_falls_back_to() -> None:
    reloading = Reloading()
    reloading.in_force.apply(named("second"))
    reloading.hear(*[WELL] * 200)
    assert not reloading.in_force.status()["on_trial"]
    reloading.in_force.apply(named("third"))
    reloading.hear(*[WORSE] * 5)
    assert reloading.pipeline.config.source == "second"


async def test_silence_keeps_it_and_a_reload_after_the_trial_remembers_that() -> None:
    reloading = Reloading()
    reloading.in_force.apply(named("second"))
    assert reloading.in_force.status()["on_trial"]
    reloading.clock.advance(121.0)
    assert not reloading.in_force.status()["on_trial"]
    reloading.in_force.apply(named("third"))
    reloading.hear(*[WORSE] * 5)
    assert reloading.pipeline.config.source == "second"


async def test_one_replaced_before_its_verdict_is_not_returned_to() -> None:
    reloading = Reloading()
    reloading.in_force.apply(named("second"))
    reloading.in_force.apply(named("third"))
    reloading.hear(*[WORSE] * 5)
    assert reloading.pipeline.config.source == "first"


@pytest.mark.parametrize(
    ("end", "counts"),
    [
        (WORSE, True),
        (answer("circuit_open"), True),
        (answer("saturated"), True),
        (answer("recovering"), False),
        (answer("forced"), False),
        (GatewayError("x"), True),
        (AllModesFailed("x", {"a": GatewayError("y")}), True),
        (CircuitOpen("x", mode="a"), True),
        (AdmissionRejected("x"), True),
        (InvalidRequest("x"), False),
        (UpstreamRejected("x", status=422), False),
        (None, False),
        (ValueError("ours"), False),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_speaks_against_a_configuration(end: object, counts: bool) -> None:
    reloading = Reloading()
    reloading.hear(*[WELL] * 20)
    reloading.in_force.apply(named("second"))
    reloading.hear(*[end] * 10)
    assert (reloading.pipeline.config.source == "first") == counts


async def test_what_was_as_bad_before_speaks_against_nobody() -> None:
    reloading = Reloading()
    reloading.hear(*[WORSE] * 50)
    reloading.in_force.apply(named("second"))
    reloading.hear(*[WORSE] * 200)
    assert reloading.results == [("applied", "second")]


async def test_those_who_began_before_it_say_nothing_about_it() -> None:
    reloading = Reloading()
    reloading.hear(*[WELL] * 20)
    old = reloading.pipeline
    reloading.in_force.apply(named("second"))
    reloading.hear(*[WORSE] * 50, by=old)
    assert reloading.in_force.status()["on_trial"]
    assert reloading.pipeline.config.source == "second"


async def test_one_that_cannot_be_built_changes_nothing() -> None:
    reloading = Reloading()
    pipeline = reloading.pipeline
    reloading.broken.add("second")
    with pytest.raises(ConfigError):
        reloading.in_force.apply(named("second"))
    assert reloading.pipeline is pipeline
    assert reloading.in_force.status()["last_reload"] == "none"
    reloading.hear(*[WORSE] * 10)
    assert reloading.pipeline is pipeline


async def test_if_the_good_one_cannot_be_built_any_more_the_bad_one_stays() -> None:
    reloading = Reloading()
    reloading.in_force.apply(named("second"))
    reloading.broken.add("first")
    reloading.hear(*[WORSE] * 10)
    assert reloading.pipeline.config.source == "second"
    assert reloading.results[-1] == ("not_rolled_back", "first: gone")
    assert reloading.in_force.status()["last_reload"] == "not_rolled_back"


async def test_the_old_one_is_retired_when_its_last_request_ends() -> None:
    reloading = Reloading()
    first = reloading.pipeline
    first.in_flight = 1
    reloading.in_force.apply(named("second"))
    second = reloading.pipeline
    second.in_flight = 1
    reloading.in_force.apply(named("third"))
    assert first.retired == second.retired == []
    second.in_flight = 0
    second.on_idle()
    await _settled(reloading)
    assert second.retired == [[reloading.pipeline, first]]  # the first one still answers
    first.in_flight = 0
    first.on_idle()
    await _settled(reloading)
    assert first.retired == [[reloading.pipeline]]
    assert first.on_idle is second.on_idle is None


async def test_closing_closes_every_one_there_is() -> None:
    reloading = Reloading()
    first = reloading.pipeline
    first.in_flight = 3
    reloading.in_force.apply(named("second"))
    await reloading.in_force.aclose()
    assert (first.cache.closed, len(first.retired)) == (1, 1)
    assert reloading.pipeline.closed == 1


def test_a_swap_without_a_loop_leaves_the_closing_for_later() -> None:
    reloading = Reloading()
    first = reloading.pipeline
    reloading.in_force.apply(named("second"))
    assert first.retired == []
    assert first.on_idle is not None


async def _settled(reloading: Reloading) -> None:
    for task in list(reloading.in_force._closing):
        await task
