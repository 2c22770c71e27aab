"""What happened in some span of time, in whole numbers: tallies of spans and of workers add up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

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
    outcomes: dict[str, int] = {}
    flow: dict[str, dict[str, int]] = {}
    cached: int = 0
    tokens: int = 0
    turned_away: int = 0
    failures: dict[str, int] = {}
    duration: Counts = {}
    first_token: dict[str, Counts] = {}
    overhead: Counts = {}

    def request(self, event: RequestFinished) -> None:
        """Count one request. On the path of every request: one to three microseconds."""
        outcome = event.outcome
        self.requests += 1
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        cached = event.cached or event.stale
        answered = outcome in ("ok", "degraded", "stale")
        if answered:
            by = CACHE if cached else event.mode
            index = bucket(event.duration_s)
            self.duration[index] = self.duration.get(index, 0) + 1
        else:
            by = _NOBODY.get(outcome, "")
        if by:
            flow = self.flow.get(event.requested_mode)
            if flow is None:
                flow = self.flow[event.requested_mode] = {}
            flow[by] = flow.get(by, 0) + 1
        if cached:
            self.cached += answered
            return
        self.tokens += event.completion_tokens
        if answered and event.first_token_s is not None:
            first = self.first_token.get(event.mode)
            if first is None:
                first = self.first_token[event.mode] = {}
            index = bucket(event.first_token_s)
            first[index] = first.get(index, 0) + 1
        if event.overhead_s is not None:
            index = bucket(event.overhead_s)
            self.overhead[index] = self.overhead.get(index, 0) + 1

    def failure(self, mode: str) -> None:
        """Count one failed upstream attempt."""
        self.failures[mode] = self.failures.get(mode, 0) + 1

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
            _add(self.flow.setdefault(asked, {}), flow)
        for mode, first in other.first_token.items():
            histogram.add(self.first_token.setdefault(mode, {}), first)

    @property
    def answered(self) -> int:
        """Requests that got an answer, from whomever."""
        return sum(self.outcomes.get(name, 0) for name in ("ok", "degraded", "stale"))


def total(tallies: Iterable[Tally]) -> Tally:
    """Several tallies as one."""
    together = Tally()
    for tally in tallies:
        together.take(tally)
    return together


def _add(into: dict[_K, int], counts: Mapping[_K, int]) -> None:
    for name, count in counts.items():
        into[name] = into.get(name, 0) + count
