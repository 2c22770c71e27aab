"""The moments at which the invariants are asked, each with all that a rule may want to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from gateway.detectors.failures import Outcome
from gateway.errors import GatewayError
from gateway.generation import Served
from gateway.policies.downshift import Rung, Target
from gateway.policies.phases import Permit
from tests.simulation.model import ModeModel
from tests.simulation.schedule import Ask

M = TypeVar("M")
Rule = Callable[[M], str | None]


@dataclass(frozen=True, slots=True)
class Invariant(Generic[M]):
    """A rule, its name and where it stands in the contract."""

    name: str
    source: str
    rule: Rule[M]


class Called(msgspec.Struct):
    """An attempt reaches an upstream; `earlier` are its request's calls, by (mode, domain)."""

    now: float
    model: ModeModel
    rung: Rung
    target: Target
    permit: Permit | None
    epoch: int
    earlier: list[tuple[str, str]]


class Admitted(msgspec.Struct):
    """A circuit was asked for a permit. What it was before, and what came of it.

    `held` and `lease_live` say how it stood; `all_down` that no mode was there, `tried_s` how long
    ago the panic rule last had a trial.
    """

    now: float
    model: ModeModel
    limit: int
    state: str
    epoch: int
    held: bool
    lease_live: bool
    ramping: bool
    trial: bool
    all_down: bool
    tried_s: float
    permit: Permit | None
    in_flight: int


class Settled(msgspec.Struct):
    """A permit came back. `before` and `after` are (state, epoch, opened) of its mode's circuit;
    `stale` says that it was of an earlier epoch.
    """

    now: float
    model: ModeModel
    permit: Permit
    outcome: Outcome
    again: bool
    stale: bool
    lease_over: bool
    must_open: bool
    before: tuple[str, int, float | None]
    after: tuple[str, int, float | None]
    freed: int
    others_moved: bool


class Turned(msgspec.Struct):
    """A circuit changed state. `ttl_s` is what `status()` says is in force since."""

    now: float
    model: ModeModel
    old: str
    new: str
    cause: str
    epoch: int
    trial: bool
    downshifted: bool
    ttl_s: float


class Answered(msgspec.Struct):
    """A caller has an answer. `text` is what it read; `whole` what that mode's model says."""

    now: float
    ask: Ask
    deadline_s: float
    took_s: float
    served: Served
    text: str
    whole: str
    model_name: str
    finish_reason: str | None
    stand_in_at: bool
    modes: tuple[str, ...]
    ttl_s: float
    degraded_ttl_s: float
    stale_s: float


class Failed(msgspec.Struct):
    """A caller got an error. `text` is what it had read of a stream before."""

    now: float
    ask: Ask
    deadline_s: float
    took_s: float
    error: GatewayError
    text: str


class Told(msgspec.Struct):
    """An event was told; how often its request had been told before."""

    event: Any
    times: int
