"""When a second attempt at the same place is worth it (behaviour.md, B7 and B8)."""

from __future__ import annotations

QUICK_S = 1.0
"""A failure within this many seconds is quick enough to try the same place once more."""

SAME_PLACE_ABOVE = 0.75
"""How full the purse of a failure domain must be for that."""

DOUBT_S = 10.0
"""A target that failed comes last among its like for this many seconds."""

# A Retry-After is waited for once if it is this short, and takes this share of what time is left.
_SHORT_WAIT_S = 2.0
_SHORT_WAIT_SHARE = 0.1


def worth_waiting(retry_after: float | None, left_s: float) -> bool:
    """Whether a Retry-After is short enough to wait for, with `left_s` until the deadline."""
    return retry_after is not None and 0 <= retry_after <= min(
        _SHORT_WAIT_S, _SHORT_WAIT_SHARE * left_s
    )
