"""Rules of the books: nothing is lost, nothing is told twice, and in the end nothing is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.detectors.failures import Outcome
from gateway.events import AttemptFinished, RequestFinished, TargetResting
from tests.simulation.model import TINY_S
from tests.simulation.moments import Invariant, Told

if TYPE_CHECKING:
    from tests.simulation.watch import Watch

# -- an event is told -----------------------------------------------------------------------------

_FAILURES = frozenset({"connect", "server", "interrupted", "malformed", "empty"})
_IGNORED = frozenset({"rate", "burst", "tokens", "overloaded", "loading"})


def _what_counts(m: Told) -> str | None:
    """behaviour.md's table: what the simulator's upstreams can do, and how it must be taken."""
    if not isinstance(m.event, AttemptFinished):
        return None
    kind, outcome = m.event.kind, m.event.outcome
    bad = (kind in _FAILURES and outcome != Outcome.FAILURE) or (
        kind in _IGNORED and outcome != Outcome.IGNORED
    )
    return f"{kind} was taken for {outcome}" if bad else None


def _told_once(m: Told) -> str | None:
    again = isinstance(m.event, RequestFinished) and m.times > 0
    return f"{m.event.request_id} was told to end twice" if again else None


def _rests_are_bounded(m: Told) -> str | None:
    if not isinstance(m.event, TargetResting):
        return None
    fits = 1.0 <= m.event.for_s <= 60.0
    return None if fits else f"{m.event.kind}: a rest of {m.event.for_s:g} s"


AT_EVENT: list[Invariant[Told]] = [
    Invariant("what counts", "table", _what_counts),
    Invariant("each end is told once", "P1", _told_once),
    Invariant("rests are 1 to 60 s", "table", _rests_are_bounded),
]


# -- at every event, and when all is over ---------------------------------------------------------


def _nothing_is_negative(w: Watch) -> str | None:
    for rung in w.rungs:
        circuit, limit = rung.circuit, rung.limit
        # A probe that streams well is settled before it gives its slot back.
        if not 0 <= circuit.in_flight <= limit.in_flight:
            return f"{rung.name}: {circuit.in_flight} permits, {limit.in_flight} slots"
        if limit.native < 0 or limit.downshifted < 0 or limit.native_waiting < 0:
            return f"{rung.name}: slots {limit.native}, {limit.downshifted}"
    return None


def _permits_are_conserved(w: Watch) -> str | None:
    for rung in w.rungs:
        model = w.models[rung.name]
        if rung.circuit.in_flight != model.issued - model.settled:
            out = model.issued - model.settled
            return f"{rung.name}: {rung.circuit.in_flight} in flight, {out} permits out"
    return None


def _calls_are_conserved(w: Watch) -> str | None:
    for upstream in w.upstreams:
        stats = upstream.stats
        ended = stats.completed + stats.cancelled + stats.failed
        if stats.started != ended + stats.in_flight or stats.in_flight < 0:
            return f"{upstream.name}: {stats}"
    return None


def _purses_are_in_bounds(w: Watch) -> str | None:
    for rung in w.rungs:
        for target in rung.targets:
            if not -TINY_S <= target.budget.tokens <= 10.0 + TINY_S:
                return f"{rung.name}: {target.budget.tokens} tokens"
    return None


ALWAYS: list[Invariant[Watch]] = [
    Invariant("nothing is negative", "P1", _nothing_is_negative),
    Invariant("permits are conserved", "B10 P1", _permits_are_conserved),
    Invariant("upstream calls are conserved", "B17", _calls_are_conserved),
    Invariant("purses are in bounds", "B8", _purses_are_in_bounds),
]


def _permits_and_slots_are_back(w: Watch) -> str | None:
    for rung in w.rungs:
        limit = rung.limit
        left = rung.circuit.in_flight, limit.native, limit.downshifted, limit.native_waiting
        waiting = len(rung.circuit._waiting) + len(w.models[rung.name].permits)
        if any(left) or waiting or any(target.in_flight for target in rung.targets):
            return f"{rung.name}: {left}, {waiting} waiting"
    return None


def _upstreams_are_left(w: Watch) -> str | None:
    for upstream in w.upstreams:
        if upstream.stats.in_flight or upstream.slots._busy or upstream.slots.queued:
            return (
                f"{upstream.name}: {upstream.stats.in_flight} calls, {upstream.slots._busy} slots"
            )
    return None


def _queues_are_empty(w: Watch) -> str | None:
    pipeline = w.pipeline
    left = (
        pipeline.in_flight,
        pipeline.admission.queued,
        len(pipeline.cache._flights),
        sum(map(len, pipeline.gearbox._watch._waiting.values())),
        len(w.gateway._in_force._leaving),
        len(w.gateway._in_force._closing),
    )
    return f"left: {left}" if any(left) else None


def _every_request_was_told(w: Watch) -> str | None:
    return None if len(w.told) == w.asked else f"{w.asked} asked, {len(w.told)} told"


def _every_attempt_was_told(w: Watch) -> str | None:
    calls = sum(upstream.stats.started for upstream in w.upstreams)
    return None if calls == w.attempts else f"{calls} calls, {w.attempts} attempts told"


def _no_listener_failed(w: Watch) -> str | None:
    faults = w.gateway.status()["listener_faults"]
    return f"{faults} listeners failed" if faults else None


def _dead_domains_are_spared(w: Watch) -> str | None:
    """Calls into an upstream that is all gone for a minute or more: 1.1 times the requests that
    might have used it, and a burst.
    """
    for mode, outage in w.long_outages():
        calls = sum(outage.start <= at < outage.end for at in w.calls_at[mode])
        allowed = w.modes[: w.modes.index(mode) + 1]
        asks = w.schedule.asks
        asked = sum(outage.start <= a.at < outage.end and a.mode in allowed for a in asks)
        if calls > 1.1 * asked + 5:
            length_s = outage.end - outage.start
            return f"{calls} calls to {mode}, gone for {length_s:.0f} s, {asked} asked"
    return None


AT_REST: list[Invariant[Watch]] = [
    Invariant("permits and slots are back", "B17 P1", _permits_and_slots_are_back),
    Invariant("upstreams are left", "B17", _upstreams_are_left),
    Invariant("queues are empty", "B17", _queues_are_empty),
    Invariant("every request was told", "P1", _every_request_was_told),
    Invariant("every attempt was told", "P1", _every_attempt_was_told),
    Invariant("no listener failed", "B12", _no_listener_failed),
    Invariant("dead domains are spared", "B8 P11", _dead_domains_are_spared),
]
