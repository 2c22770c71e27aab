"""Faults that come and go: two scripted upstreams, each under a sky of its own."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Final

from gateway.errors import ErrorKind
from gateway.simulator.scripted import FAULTS, Exchange, ScriptedUpstream
from gateway.simulator.scripted.catalogue import plays
from tests.soak.service import EDITIONS, MODES

# Answers of a form of their own, or whose text is not the numbered words a caller checks.
_OTHER: Final = {"two_choices", "renamed_model"}
_GOOD: Final = [
    name
    for name, fault in FAULTS.items()
    if fault.kind is None and fault.text is None and name not in _OTHER
]
_BAD: Final = [name for name, fault in FAULTS.items() if fault.kind is not None]
# These put a target to rest for minutes (behaviour.md, "What counts"): seldom, or little else
# would ever happen, and never where nothing else could answer.
_LASTING: Final = {ErrorKind.BILLING, ErrorKind.AUTH, ErrorKind.MODEL}
_SHARES: Final = (0.1, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Episode:
    """Bad weather.

    Attributes:
        at_s: when it began, seconds since the traffic began.
        lasts_s: seconds.
        upstream: whose.
        fault: what was played; "refuse": no connections taken, those open reset.
        share: of the requests.
    """

    at_s: float
    lasts_s: float
    upstream: str
    fault: str
    share: float


class Sky:
    """Decides what an upstream plays.

    Args:
        name: for the report.
        upstream: plays.
        calm_s: the shortest and longest calm.
        bad_s: the shortest and longest bad weather.
        dice: what comes follows from it.
        lasting: how often faults come that put a target to rest for minutes; others count 1.
    """

    def __init__(
        self,
        name: str,
        upstream: ScriptedUpstream,
        calm_s: tuple[float, float],
        bad_s: tuple[float, float],
        dice: random.Random,
        *,
        lasting: float,
    ) -> None:
        self.episodes: list[Episode] = []
        self._name = name
        self._upstream = upstream
        self._calm_s, self._bad_s = calm_s, bad_s
        self._dice = dice
        self._fault, self._share = "ok", 0.0
        self._weights = [lasting if FAULTS[name].kind in _LASTING else 1.0 for name in _BAD]
        for mode in MODES:
            for edition in EDITIONS:
                upstream.script(f"{mode}-{edition}", [self._play])

    async def run(self) -> None:
        """Weather, until cancelled; calm after that."""
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            while True:
                await asyncio.sleep(self._dice.uniform(*self._calm_s))
                (self._fault,) = self._dice.choices([*_BAD, "refuse"], [*self._weights, 5.0])
                self._share = self._dice.choice(_SHARES)
                lasts_s = self._dice.uniform(*self._bad_s)
                self.episodes.append(
                    Episode(clock() - began, lasts_s, self._name, self._fault, self._share)
                )
                if self._fault == "refuse":
                    await self._upstream.refuse()
                await asyncio.sleep(lasts_s)
                await self.clear()
        finally:
            await self.clear()

    async def clear(self) -> None:
        """Good weather."""
        self._share = 0.0
        await self._upstream.listen()

    async def _play(self, exchange: Exchange) -> None:
        entry = "ok"
        if self._dice.random() < self._share and self._fault in FAULTS:
            entry = self._fault
        elif self._dice.random() < 0.2:
            entry = self._dice.choice(_GOOD)
        await plays(entry, stream=exchange.stream)(exchange)
