"""How each request of a world ended, whoever was asked: what policies are compared by."""

from __future__ import annotations

import msgspec

CANCELLED = "cancelled"


class Outcome(msgspec.Struct, array_like=True):
    """One request's end.

    Attributes:
        number: which ask of the schedule.
        mode: who answered, "" if nobody did.
        took_s: from the ask to its end, seconds.
        error: why there is no answer, or "".
        cached: whether a kept answer was given.
    """

    number: int
    mode: str
    took_s: float
    error: str = ""
    cached: bool = False
