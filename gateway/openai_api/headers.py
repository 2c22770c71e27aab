"""What headers say: how a caller wants to be answered, and who answered."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.generation import CacheControl, Served

# A client that gives up after n seconds is answered a little before that.
_MARGIN_S = 0.25


def served_headers(served: Served, generation_id: str) -> list[tuple[str, str]]:
    """Who answered, for people who only see headers."""
    return [
        ("x-gateway-id", generation_id),
        ("x-gateway-mode", served.mode),
        ("x-gateway-requested-mode", served.requested_mode),
        ("x-gateway-degraded", (served.reason or "yes") if served.degraded else "false"),
        ("x-gateway-cache", "stale" if served.stale else "hit" if served.cached else "miss"),
        ("x-gateway-attempts", str(served.attempts)),
    ]


def cache_control(header: str) -> CacheControl:
    """The request directives of a `Cache-Control` header (RFC 9111, 5.2.1); unknown ones pass."""
    directives = dict(
        part.strip().lower().partition("=")[::2] for part in header.split(",") if part.strip()
    )
    age = directives.get("max-age", "")
    return CacheControl(
        read="no-cache" not in directives,
        store="no-store" not in directives,
        max_age_s=float(age) if age.isdigit() else None,
        stale_if_error=not directives.keys() & {"no-cache", "no-store"},
    )


def patience_s(headers: Mapping[str, str]) -> float | None:
    """How long the client says it will wait for a whole answer; None if it does not say.

    OpenAI's SDKs send their own timeout in seconds, unasked.
    """
    said = headers.get("x-stainless-read-timeout") or headers.get("x-stainless-timeout")
    try:
        seconds = float(said) if said else 0.0
    except ValueError:
        return None
    return seconds - _MARGIN_S if 2 * _MARGIN_S < seconds < 1e6 else None
