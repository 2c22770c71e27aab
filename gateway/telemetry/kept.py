"""Counters of one process in plain numbers; prometheus_client sees them when somebody scrapes.

Its own children take a lock and check their arguments on each call: with a dozen metrics a request
that was a tenth of all the service does. Here a count is an addition and an observation a search
among a dozen bounds. Only the gateway's loop counts, so the thread that renders needs no lock: it
reads each number once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gateway.telemetry.families import COUNTED

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


class Number:
    """A counter or a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add to it."""
        self.value += amount

    def set(self, value: float) -> None:
        """Put another value in its place."""
        self.value = value


class Bins:
    """A histogram: how many values lie at or below each bound and above the one before."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """Bounds as the page writes them, each with what lies at or below it; and the sum."""
        from prometheus_client.utils import floatToGoString  # noqa: PLC0415

        total, found = 0, []
        for bound, count in zip((*self._bounds, float("inf")), self._counts.copy(), strict=True):
            total += count
            found.append((floatToGoString(bound), float(total)))  # type: ignore[no-untyped-call]
        return found, self._sum


class Kept:
    """Every metric of the table; called with a name and label values it gives what counts them.

    A collector of prometheus_client's, too.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, dict[tuple[str, ...], Number]] = {}
        self._bins: dict[str, dict[tuple[str, ...], Bins]] = {}
        for name, row in COUNTED.items():
            if row.kind == "Histogram":
                self._bins[name] = {}
            else:
                self._numbers[name] = {}
            if not row.labels:
                self(name)  # what has no labels is there before anything happened

    def __call__(self, name: str, *labels: str) -> Any:
        """The `Number` or `Bins` of a metric, the same for the same labels."""
        numbers = self._numbers.get(name)
        if numbers is not None:
            number = numbers.get(labels)
            if number is None:
                number = numbers[labels] = Number()
            return number
        bins = self._bins[name]
        found = bins.get(labels)
        if found is None:
            found = bins[labels] = Bins(COUNTED[name].buckets)
        return found

    def collect(self) -> Iterator[Metric]:
        """Every metric of the table, as families."""
        for family, name in zip(self.describe(), COUNTED, strict=True):
            if name in self._bins:
                for labels, bins in list(self._bins[name].items()):
                    buckets, total = bins.read()
                    family.add_metric(labels, buckets, total)
            else:
                for labels, number in list(self._numbers[name].items()):
                    family.add_metric(labels, number.value)
            yield family

    def describe(self) -> Iterator[Any]:
        """The same without figures: nobody else's metric may take one of the names."""
        from prometheus_client import core  # noqa: PLC0415

        for name, row in COUNTED.items():
            make: Any = getattr(core, f"{row.kind}MetricFamily")
            yield make(name, row.help, labels=row.labels)
