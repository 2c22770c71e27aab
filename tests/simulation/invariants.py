"""What must never happen: small named rules, each a function of one moment.

A rule returns None if all is well, else what is wrong. Each says which rule of the contract it
holds up (`B...`), or which point of its list of what must hold under test (`P...`). `watch.py`
brings about the moments and asks every rule at each.
"""

from __future__ import annotations

from typing import Any

from tests.simulation.accounts import ALWAYS, AT_EVENT, AT_REST
from tests.simulation.callers import AT_ANSWER, AT_ERROR
from tests.simulation.circuits import AT_ADMISSION, AT_CALL, AT_SETTLEMENT, AT_TRANSITION
from tests.simulation.moments import Invariant

__all__ = [
    "ALWAYS",
    "AT_ADMISSION",
    "AT_ANSWER",
    "AT_CALL",
    "AT_ERROR",
    "AT_EVENT",
    "AT_REST",
    "AT_SETTLEMENT",
    "AT_TRANSITION",
    "EVERYTHING",
]

EVERYTHING: list[Invariant[Any]] = [
    *AT_CALL,
    *AT_ADMISSION,
    *AT_SETTLEMENT,
    *AT_TRANSITION,
    *AT_ANSWER,
    *AT_ERROR,
    *AT_EVENT,
    *ALWAYS,
    *AT_REST,
]
"""All but two, which `world.py` holds: what is healed comes back, no task or timer is left."""
