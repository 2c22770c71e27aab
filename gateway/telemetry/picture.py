"""A snapshot as plain data for people: rates, shares and percentiles in place of raw counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.telemetry import histogram, tally
from gateway.telemetry.histogram import percentiles
from gateway.telemetry.live import MINUTE_S, RECENT_S, STEP_S, STEPS
from gateway.telemetry.sentences import headline, stand_in
from gateway.telemetry.snapshot import ModeStanding, Snapshot
from gateway.telemetry.tally import Tally

_SHARES = (0.5, 0.95, 0.99)


def picture(snapshot: Snapshot) -> dict[str, Any]:
    """What the dashboard shows. Times are in milliseconds or seconds as their names say.

    `history` ends with the last whole step. Lines of the log are in order of time, the newest
    last, and say how long ago they were.
    """
    modes = _modes(snapshot)
    tone, sentence = headline(modes)
    ten_minutes = tally.total(snapshot.history.values())
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
        "ten_minutes": _window(ten_minutes, min(STEP_S * STEPS, age_s)),
        "history": _history(snapshot),
        "cache": snapshot.store,
        "config": snapshot.config,
        "events": [
            {
                "key": line.key,
                "ago_s": round(max(0.0, snapshot.at - line.at), 1),
                "tone": line.tone,
                "text": line.text,
                "times": line.times,
            }
            for line in sorted(snapshot.lines.values(), key=lambda line: (line.at, line.key))
        ],
    }


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


def _history(snapshot: Snapshot) -> dict[str, Any]:
    last = int(snapshot.at) // STEP_S
    spans = [snapshot.history.get(step) for step in range(last - STEPS, last)]
    return {
        "step_s": STEP_S,
        "per_s": [span.requests / STEP_S if span else 0 for span in spans],
        "degraded_per_s": [
            span.outcomes.get("degraded", 0) / STEP_S if span else 0 for span in spans
        ],
        "failed_per_s": [_unanswered(span) / STEP_S if span else 0 for span in spans],
        "hit_share": [_hits(span) for span in spans],
        "latency_ms": _series([span.duration if span else {} for span in spans]),
        "first_token_ms": _series(
            [histogram.total(span.first_token.values()) if span else {} for span in spans]
        ),
        "tokens_per_s": [span.tokens / STEP_S if span else 0 for span in spans],
    }


def _series(histograms: Sequence[Mapping[int, int]]) -> dict[str, list[float | None]]:
    pairs = [percentiles(counts, (0.5, 0.95)) if counts else [None, None] for counts in histograms]
    return {"p50": [_ms(pair[0]) for pair in pairs], "p95": [_ms(pair[1]) for pair in pairs]}


def _unanswered(span: Tally) -> int:
    return span.outcomes.get("failed", 0) + span.outcomes.get("refused", 0)


def _hits(span: Tally | None) -> float | None:
    answered = span.answered if span else 0
    return round(span.cached / answered, 4) if span and answered else None


def _named(counts: Mapping[int, int]) -> dict[str, float | None]:
    p50, p95, p99 = percentiles(counts, _SHARES)
    return {"p50": _ms(p50), "p95": _ms(p95), "p99": _ms(p99)}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds * 1000:.3g}")
