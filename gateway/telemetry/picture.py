"""A snapshot as plain data for people: rates, shares and percentiles in place of raw counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from gateway.telemetry import histogram, tally
from gateway.telemetry.histogram import percentiles
from gateway.telemetry.live import MINUTE_S, RECENT_S, STEP_S, STEPS
from gateway.telemetry.sentences import headline, stand_in, with_failures
from gateway.telemetry.snapshot import ModeStanding, Snapshot
from gateway.telemetry.tally import Tally

_SHARES: Final = (0.5, 0.95, 0.99)


def picture(snapshot: Snapshot, history: History | None = None) -> dict[str, Any]:
    """What the dashboard shows. Times are in milliseconds or seconds as their names say.

    `history` and `ten_minutes` end with the last whole step. Lines of the log are in order of time,
    the newest last, and say how long ago they were.

    Args:
        snapshot: what is shown.
        history: remembers what it worked out for the picture before; None is the first one.
    """
    modes = _modes(snapshot)
    tone, sentence = headline(modes)
    history = history or History()
    age_s = snapshot.at - snapshot.since
    return {
        "headline": {"tone": tone, "text": sentence},
        "uptime_s": round(age_s, 1),
        "workers": snapshot.workers,
        "per_s": round(snapshot.recent / min(RECENT_S, max(1.0, age_s)), 2),
        "in_flight": snapshot.in_flight,
        "queued": snapshot.queued,
        "modes": modes,
        "minute": _window(snapshot.minute, min(MINUTE_S, age_s)),
        "ten_minutes": _window(history.whole(snapshot), min(STEP_S * STEPS, age_s)),
        "history": history.series(snapshot),
        "cache": snapshot.store,
        "config": snapshot.config,
        "events": [
            {
                "key": line.key,
                "ago_s": round(max(0.0, snapshot.at - line.at), 1),
                "tone": line.tone,
                "text": with_failures(line.text, line.failures),
                "times": line.times,
            }
            for line in sorted(snapshot.lines.values(), key=lambda line: (line.at, line.key))
        ],
    }


class History:
    """The last ten minutes as series. The past changes no more: worked out once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, _Point]] = {}
        self._whole = (-1, Tally())

    def whole(self, snapshot: Snapshot) -> Tally:
        """All whole steps together; added up once a step."""
        last = int(snapshot.at) // STEP_S
        if self._whole[0] != last:
            spans = [span for step, span in snapshot.history.items() if step < last]
            self._whole = (last, tally.total(spans))
        return self._whole[1]

    def series(self, snapshot: Snapshot) -> dict[str, Any]:
        """Each figure of each step, the oldest first."""
        last = int(snapshot.at) // STEP_S
        steps = range(last - STEPS, last)
        known: dict[int, tuple[int, _Point]] = {}
        for step in steps:
            span = snapshot.history.get(step)
            if span is None:
                continue
            before = self._known.get(step)
            # Counts only grow: as many requests as before are the same ones.
            same = before is not None and before[0] == span.requests
            known[step] = before if before and same else (span.requests, _point(span))
        self._known = known
        points = [known[step][1] if step in known else _SILENCE for step in steps]
        columns = zip(*points, strict=True)
        return {"step_s": STEP_S, **dict(zip(_Point._fields, map(list, columns), strict=True))}


def _modes(snapshot: Snapshot) -> list[dict[str, Any]]:
    ranked = sorted(snapshot.modes.items(), key=lambda item: (item[1].place, item[0]))
    downshifted = {name: {"downshifted": mode.downshifted} for name, mode in ranked}
    return [_mode(name, mode, stand_in(name, downshifted)) for name, mode in ranked]


def _mode(name: str, mode: ModeStanding, instead: str) -> dict[str, Any]:
    count = mode.rating_count
    return {
        "name": name,
        "phase": mode.phase,
        "downshifted": mode.downshifted,
        "stand_in": instead if mode.downshifted else "",
        "until_s": None if mode.until_s is None else round(mode.until_s, 2),
        "ttl_s": mode.ttl_s,
        "cap": mode.cap,
        "limit": mode.limit,
        "in_flight": mode.native + mode.helping,
        "helping": mode.helping,
        "rating": {
            "count": count,
            "mean": round(mode.rating_sum / count / 1000, 2) if count else None,
        },
        "targets": [
            {
                "name": target.name,
                "model": target.model,
                "in_flight": target.in_flight,
                "resting_s": round(target.resting_s, 1),
                "budget_tokens": round(target.budget_tokens, 1),
            }
            for _, target in sorted(mode.targets.items())
        ],
    }


def _window(span: Tally, seconds: float) -> dict[str, Any]:
    answered = span.answered
    return {
        "requests": span.requests,
        "answered": answered,
        "degraded": span.outcomes.get("degraded", 0),
        "stale": span.outcomes.get("stale", 0),
        "failed": span.outcomes.get("failed", 0),
        "refused": span.outcomes.get("refused", 0),
        "invalid": span.outcomes.get("invalid", 0),
        "abandoned": span.outcomes.get("abandoned", 0),
        "turned_away": span.turned_away,
        "cached": span.cached,
        "hit_share": round(span.cached / answered, 4) if answered else None,
        "tokens_per_s": round(span.tokens / max(1.0, seconds), 1),
        "latency_ms": _named(span.duration),
        "first_token_ms": _named(histogram.total(span.first_token.values())),
        "overhead_ms": _named(span.overhead),
        "flow": span.flow,
        "by_mode": {
            mode: {
                "answers": sum(by.get(mode, 0) for by in span.flow.values()),
                "failures": span.failures.get(mode, 0),
                "first_token_ms": _named(span.first_token.get(mode, {})),
            }
            for mode in _seen(span)
        },
    }


def _seen(span: Tally) -> list[str]:
    by = {who for flow in span.flow.values() for who in flow if not who.startswith(":")}
    return sorted(by | span.failures.keys() | span.first_token.keys())


class _Point(NamedTuple):
    """One step of the history."""

    per_s: float
    degraded_per_s: float
    failed_per_s: float
    hit_share: float | None
    tokens_per_s: float
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    first_token_p50_ms: float | None
    first_token_p95_ms: float | None


_SILENCE: Final = _Point(0, 0, 0, None, 0, None, None, None, None)


def _point(span: Tally) -> _Point:
    outcomes, answered = span.outcomes, span.answered
    unanswered = outcomes.get("failed", 0) + outcomes.get("refused", 0)
    latency = percentiles(span.duration, _SHARES[:2])
    first = percentiles(histogram.total(span.first_token.values()), _SHARES[:2])
    return _Point(
        span.requests / STEP_S,
        outcomes.get("degraded", 0) / STEP_S,
        unanswered / STEP_S,
        round(span.cached / answered, 4) if answered else None,
        span.tokens / STEP_S,
        *map(_ms, latency),
        *map(_ms, first),
    )


def _named(counts: Mapping[int, int]) -> dict[str, float | None]:
    p50, p95, p99 = percentiles(counts, _SHARES)
    return {"p50": _ms(p50), "p95": _ms(p95), "p99": _ms(p99)}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds * 1000:.3g}")
