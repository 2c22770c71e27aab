"""What happened in some span of time, in whole numbers: tallies of spans and of workers add up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from gateway.events import RequestFinished
from gateway.telemetry import histogram
from gateway.telemetry.histogram import Counts, bucket

CACHE: Final = ":cache"
FAILED: Final = ":failed"
REFUSED: Final = ":refused"
"""Who answers when no mode does. The colon keeps them apart from modes' names."""

_K = TypeVar("_K")
_NOBODY: Final = {"failed": FAILED, "refused": REFUSED}
_ANSWERED: Final = frozenset({"ok", "degraded", "stale"})


def _none() -> defaultdict[Any, int]:
    """Counts in which what is not there is 0: to count one more is to add to it."""
    return defaultdict(int)


def _none_of_any() -> defaultdict[Any, Any]:
    return defaultdict(_none)


class Tally(msgspec.Struct):
    """Counts of one span of time.

    Attributes:
        requests: requests that ended.
        outcomes: by `RequestFinished.outcome`.
        flow: mode asked for -> who answered (a mode, `CACHE`, `FAILED`, `REFUSED`) -> requests. A
            caller's mistake or leaving is nobody's answer and is not in it.
        cached: answers for which no upstream was asked.
        tokens: completion tokens that upstreams made.
        turned_away: HTTP requests that never reached the pipeline.
        failures: failed upstream attempts by mode.
        duration: histogram of whole answers, as callers waited, those from the cache too.
        first_token: histograms of the time to the first token by the mode that answered, the cache
            left out.
        overhead: histogram of our own share of the way.
    """

    requests: int = 0
    outcomes: dict[str, int] = msgspec.field(default_factory=_none)
    flow: dict[str, dict[str, int]] = msgspec.field(default_factory=_none_of_any)
    cached: int = 0
    tokens: int = 0
    turned_away: int = 0
    failures: dict[str, int] = msgspec.field(default_factory=_none)
    duration: Counts = msgspec.field(default_factory=_none)
    first_token: dict[str, Counts] = msgspec.field(default_factory=_none_of_any)
    overhead: Counts = msgspec.field(default_factory=_none)

    def request(self, event: RequestFinished) -> None:
        """Count one request. On the path of every request: one to three microseconds."""
        outcome = event.outcome
        self.requests += 1
        self.outcomes[outcome] += 1
        cached = event.cached or event.stale
        answered = outcome in _ANSWERED
        if answered:
            self.flow[event.requested_mode][CACHE if cached else event.mode] += 1
            self.duration[bucket(event.duration_s)] += 1
        elif outcome in _NOBODY:
            self.flow[event.requested_mode][_NOBODY[outcome]] += 1
        if cached:
            self.cached += answered
            return
        self.tokens += event.completion_tokens
        if answered and event.first_token_s is not None:
            self.first_token[event.mode][bucket(event.first_token_s)] += 1
        if event.overhead_s is not None:
            self.overhead[bucket(event.overhead_s)] += 1

    def failure(self, mode: str) -> None:
        """Count one failed upstream attempt."""
        self.failures[mode] += 1

    def take(self, other: Tally) -> None:
        """Add another span's counts."""
        self.requests += other.requests
        self.cached += other.cached
        self.tokens += other.tokens
        self.turned_away += other.turned_away
        _add(self.outcomes, other.outcomes)
        _add(self.failures, other.failures)
        histogram.add(self.duration, other.duration)
        histogram.add(self.overhead, other.overhead)
        for asked, flow in other.flow.items():
            _add(self.flow[asked], flow)
        for mode, first in other.first_token.items():
            histogram.add(self.first_token[mode], first)

    @property
    def answered(self) -> int:
        """Requests that got an answer, from whomever."""
        return sum(self.outcomes.get(name, 0) for name in _ANSWERED)


def total(tallies: Iterable[Tally]) -> Tally:
    """Several tallies as one."""
    together = Tally()
    for tally in tallies:
        together.take(tally)
    return together


def _add(into: dict[_K, int], counts: Mapping[_K, int]) -> None:
    for name, count in counts.items():
        into[name] = into.get(name, 0) + count
