"""How long a stored answer is fresh, judged when it is read (B19).

An entry keeps its own age; only the question changes. A mode's own answers are fresh for
`ttl_s`. While the mode is downshifted, a lower mode's answer may stand in for it, fresh for
`degraded_ttl_s`. So nothing is rewritten on a downshift, nothing expires in a mass, and on
recovery stand-ins vanish at once. Terms after RFC 9111 and, for stale-if-error, RFC 5861.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """What is kept and how long it is fresh: `[cache]`.

    Attributes:
        enabled: False asks upstream every time; identical requests in flight still share.
        ttl_s: freshness lifetime of a mode's own answers, seconds. Default 3600.
        degraded_ttl_s: freshness lifetime of a stand-in while downshifted, seconds. Default 300.
        stale_if_error_s: how long past its lifetime an answer may be served, marked, when
            upstream fails, seconds. Default 3600.
        max_bytes: memory bound. Default 64 MiB.
        path: "" keeps answers in memory; a `valkey://` or `redis://` address shares them.
    """

    enabled: bool = True
    ttl_s: float = 3600.0
    degraded_ttl_s: float = 300.0
    stale_if_error_s: float = 3600.0
    max_bytes: int = 67_108_864
    path: str = ""

    @property
    def lifetime_s(self) -> float:
        """How long an entry is kept: its freshness and the stale window behind it."""
        return max(self.ttl_s, self.degraded_ttl_s) + self.stale_if_error_s

    def ttl(self, *, downshifted: bool) -> float:
        """The lifetime in force for a mode: 3600 s normally, 300 s while it is downshifted."""
        return self.degraded_ttl_s if downshifted else self.ttl_s

    def fresh(self, age_s: float, *, native: bool, max_age_s: float | None = None) -> bool:
        """Whether an entry of this age may be served as fresh.

        Args:
            age_s: seconds since it was stored.
            native: whether the requested mode itself made it.
            max_age_s: the caller's own bound, None for none.
        """
        lifetime = self.ttl_s if native else self.degraded_ttl_s
        return age_s < (lifetime if max_age_s is None else min(lifetime, max_age_s))

    def usable_stale(self, age_s: float) -> bool:
        """Whether a native entry may stand in for an error."""
        return age_s < self.ttl_s + self.stale_if_error_s
