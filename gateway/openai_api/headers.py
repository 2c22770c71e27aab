"""What headers say: how a caller wants to be answered, and who answered. Never raises."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote

from gateway.generation import CacheControl, Served

Headers = list[tuple[str, str]]

# A client that gives up after n seconds is answered a little before that.
_MARGIN_S = 0.25
_CACHE = "downshift-gateway"


def served_headers(
    served: Served,
    generation_id: str,
    *,
    cache: CacheControl | None = None,
    overhead_s: float | None = None,
) -> Headers:
    """Who answered, for people who only see headers.

    Args:
        served: who answers.
        generation_id: what `feedback` refers to.
        cache: what the request allowed the cache.
        overhead_s: our own share of the time so far, None if nobody knows.
    """
    headers = [
        ("x-gateway-id", generation_id),
        ("x-gateway-mode", latin(served.mode)),
        ("x-gateway-requested-mode", latin(served.requested_mode)),
        ("x-gateway-degraded", latin(served.reason or "yes") if served.degraded else "false"),
        ("x-gateway-cache", "stale" if served.stale else "hit" if served.cached else "miss"),
        ("cache-status", _cache_status(served, cache)),
        ("x-gateway-attempts", str(served.attempts)),
    ]
    if served.cached:
        headers.append(("age", str(int(served.age_s))))
    if overhead_s is not None:
        headers.append(("x-gateway-overhead-ms", f"{overhead_s * 1000:.3f}"))
    return headers


def overhead_s(served: Served, elapsed_s: float | None) -> float | None:
    """Our own share of `elapsed_s` seconds since the door; None if it cannot be told.

    Who joined a call that was under way already spent less time than that call did.
    """
    if elapsed_s is None:
        return None
    if served.cached:
        return elapsed_s
    own = elapsed_s - served.queued_s - served.upstream_s
    return max(0.0, own) if own > -1e-9 else None


def cache_control(header: str) -> CacheControl:
    """The request directives of a `Cache-Control` header (RFC 9111, 5.2.1); unknown ones pass."""
    if not header:
        return ANY_CACHE
    directives = {
        name.strip(): value.strip().strip('"')
        for name, _, value in (part.partition("=") for part in header.lower().split(","))
    }
    age = directives.get("max-age", "")
    return CacheControl(
        read="no-cache" not in directives,
        store="no-store" not in directives,
        max_age_s=float(age[:12]) if age.isascii() and age.isdigit() else None,
        stale_if_error=not directives.keys() & {"no-cache", "no-store"},
    )


ANY_CACHE = CacheControl()
"""What a request that says nothing of the cache may do with it."""


def allows_degrade(headers: Mapping[str, str]) -> bool:
    """False if `x-gateway-allow-degrade` says so, in any of the usual words."""
    if "x-gateway-allow-degrade" not in headers:
        return True
    said = headers["x-gateway-allow-degrade"].strip().lower()
    return said not in ("false", "0", "no", "off")


def on_interrupt(headers: Mapping[str, str]) -> str:
    """What a stream does that breaks after its first token, see `Gateway.stream`: "continue" if
    `x-gateway-on-interrupt` says so, else "error".
    """
    said = headers.get("x-gateway-on-interrupt", "")
    return "continue" if said.strip().lower() == "continue" else "error"


def was_retried(headers: Mapping[str, str]) -> bool:
    """Whether the client says that it has asked this before (OpenAI's SDKs count)."""
    said = headers.get("x-stainless-retry-count", "0")
    if said == "0":
        return False
    said = said.strip()
    return said.isascii() and said.isdigit() and int(said[:9]) > 0


def patience_s(headers: Mapping[str, str]) -> float | None:
    """How long the client says it will wait for a whole answer; None if it does not say.

    OpenAI's SDKs send their own timeout in seconds, unasked.
    """
    said = headers.get("x-stainless-read-timeout") or headers.get("x-stainless-timeout")
    if not said:
        return None
    try:
        seconds = float(said)
    except ValueError:
        return None
    return seconds - _MARGIN_S if 2 * _MARGIN_S < seconds < 1e6 else None


def _cache_status(served: Served, cache: CacheControl | None) -> str:
    """RFC 9211: was it the cache that answered, and if not, why not."""
    if served.stale:
        return f"{_CACHE}; hit; detail=stale-if-error"
    if served.cached:
        return f"{_CACHE}; hit; ttl={int(served.ttl_s - served.age_s)}"
    asked = cache is not None and not cache.read
    stored = f"; stored; ttl={int(served.ttl_s)}" if served.ttl_s > 0 else ""
    return f"{_CACHE}; fwd={'request' if asked else 'miss'}{stored}"


@lru_cache(maxsize=256)
def latin(name: str) -> str:
    """A configured name, or one of our reasons, as a header may carry it."""
    return name if name.isascii() and name.isprintable() else quote(name)
