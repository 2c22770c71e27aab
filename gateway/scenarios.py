"""Scenarios: what goes wrong upstream, when, and who asks meanwhile. Data; `simulate` plays them.

Times are seconds from the beginning. A scenario of your own is one more `Scenario`:

    Scenario(
        name="slow-morning",
        story="creative takes ten times as long for a quarter of an hour",
        faults={"creative": (Latency(60, 960, factor=10),)},
    )
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.config import Config
from gateway.errors import InvalidRequest
from gateway.simulator.faults import AnyFault, Brownout, ColdCapacity, Flapping, Outage
from gateway.simulator.service import Service

# Four tokens, slowly: what a simulation costs is its tokens, what load it makes is their time.
_LADDER = {
    "creative": Service(slots=16, first_token_s=1.0, tokens=4, tokens_per_s=0.75),
    "balanced": Service(slots=24, first_token_s=0.5, tokens=4, tokens_per_s=2.0),
    "fast": Service(slots=32, first_token_s=0.2, tokens=4, tokens_per_s=5.0),
}
_SMALL_CREATIVE = Service(slots=8, queue=4, first_token_s=1.0, tokens=4, tokens_per_s=0.75)


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One story to play.

    Attributes:
        name: what the command line calls it.
        story: one sentence for people.
        faults: what goes wrong, by mode.
        ladder: how each mode's upstream serves while nothing is wrong, best mode first.
        demand: which share of the requests asks for which mode; adds up to 1.
        requests_per_s: of all modes together, arriving independently of each other.
        popular: share of requests that ask one of `popular_prompts` questions, 0..1: what a cache
            can answer. All other questions are asked once.
        popular_prompts: how many such questions there are in each mode.
        minutes: how long it plays.
        tables: further tables as in config.toml, such as `{"circuit": {"early_probe_s": 10}}`.
    """

    name: str
    story: str
    faults: Mapping[str, tuple[AnyFault, ...]]
    ladder: Mapping[str, Service] = msgspec.field(default_factory=lambda: _LADDER)
    demand: Mapping[str, float] = msgspec.field(
        default_factory=lambda: {"creative": 0.6, "balanced": 0.25, "fast": 0.15}
    )
    requests_per_s: float = 1.0
    popular: float = 0.2
    popular_prompts: int = 20
    minutes: float = 20.0
    tables: Mapping[str, Any] = {}

    def config(self, seed: int) -> Config:
        """The configuration of the gateway that meets these upstreams.

        Args:
            seed: decides what is left to chance upstream.

        Raises:
            ConfigError: `tables` holds something config.toml does not know.
        """
        modes = {
            mode: {
                "max_in_flight": service.slots,
                "targets": [
                    {
                        "kind": "simulated",
                        "model": f"simulated-{mode}",
                        "options": {
                            **msgspec.to_builtins(service),
                            "seed": seed * len(self.ladder) + index,
                            "faults": msgspec.to_builtins(self.faults.get(mode, ())),
                        },
                    }
                ],
            }
            for index, (mode, service) in enumerate(self.ladder.items())
        }
        return Config.from_dict({**self.tables, "modes": modes})


SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            name="outage",
            story="creative's upstream refuses every connection for eight minutes",
            faults={"creative": (Outage(120, 600, "refuse"),)},
        ),
        Scenario(
            name="brownout",
            story="six of ten calls to creative fail with a 500 for eight minutes",
            faults={"creative": (Brownout(120, 600, share=0.6),)},
        ),
        Scenario(
            name="flapping",
            story="creative comes and goes every twenty seconds for ten minutes",
            faults={"creative": (Flapping(120, 720, up_s=20, down_s=20),)},
        ),
        Scenario(
            name="cold-recovery",
            story="creative falls silent for five minutes, then returns at a tenth of its capacity",
            faults={"creative": (Outage(120, 420, "silent"), ColdCapacity(420, 900))},
            ladder={**_LADDER, "creative": _SMALL_CREATIVE},
        ),
        Scenario(
            name="total",
            story="every upstream is gone for three minutes",
            faults={mode: (Outage(120, 300, "refuse"),) for mode in _LADDER},
        ),
    )
}
"""The scenarios of `gateway simulate`, by name."""


def scenario(name: str) -> Scenario:
    """One of `SCENARIOS`.

    Raises:
        InvalidRequest: no such scenario; the message lists those there are.
    """
    found = SCENARIOS.get(name)
    if found is None:
        raise InvalidRequest(
            f"unknown scenario {name!r}; there are {', '.join(SCENARIOS)}", param="scenario"
        )
    return found
