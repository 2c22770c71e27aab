"""All scenarios, in the order of the scorecard, and those that a black box cannot show."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from gateway.errors import ConfigError
from gateway.faultlab import breaker, cache, clients, operations, resilience, wire
from gateway.faultlab.scenario import Elsewhere, Run, Scenario

GROUPS: Final[dict[str, list[Scenario]]] = {
    "resilience": resilience.RESILIENCE,
    "breaker": breaker.BREAKER,
    "cache": cache.CACHE,
    "clients": clients.CLIENTS,
    "operations": operations.OPERATIONS,
    "wire": wire.WIRE,
}

SCENARIOS: Final[list[Scenario]] = [
    replace(scenario, group=group) for group, scenarios in GROUPS.items() for scenario in scenarios
]

ELSEWHERE: Final[list[Elsewhere]] = [
    *breaker.ELSEWHERE,
    *cache.ELSEWHERE,
    *clients.ELSEWHERE,
    *operations.ELSEWHERE,
    *wire.ELSEWHERE,
]


def runs(only: Collection[str] = ()) -> list[Run]:
    """Every scenario in each of its forms.

    Args:
        only: numbers (`8`), runs (`8-stream`) or groups (`cache`); none means all.

    Raises:
        ConfigError: one of them is none.
    """
    everything = [Run(scenario, form) for scenario in SCENARIOS for form in scenario.forms]
    if not only:
        return everything
    names = {name: set(_names(name)) for name in only}
    for name, meant in names.items():
        if not any(meant & _known(run) for run in everything):
            raise ConfigError(
                f"no scenario or group {name!r}; `gateway faultlab --list` shows them"
            )
    wanted = set().union(*names.values())
    return [run for run in everything if wanted & _known(run)]


def _names(name: str) -> tuple[str, ...]:
    return (name, name.removeprefix("s")) if name[1:2].isdigit() else (name,)


def _known(run: Run) -> set[str]:
    scenario = run.scenario
    number = scenario.id.rstrip("abc")  # 17 means 17a, 17b and 17c
    return {scenario.id, number, f"{scenario.id}-{run.form}", run.form, scenario.group}
