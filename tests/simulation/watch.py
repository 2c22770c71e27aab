"""Looks on: every permit, every call, every event and every answer of one gateway.

The pipeline under test is the real one; here are only ears at four doors of it (`Circuit.admit`,
`admit_trial` and `settle`, `Provider.open`) and at its events. What is heard is told to a model of
each mode, and to every invariant.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from gateway.detectors.failures import Outcome
from gateway.events import AttemptFinished, CircuitChanged, Event, RequestFinished, TargetResting
from gateway.gateway import Gateway
from gateway.pipeline import Pipeline
from gateway.policies.circuit import Circuit
from gateway.policies.downshift import Rung, Target
from gateway.policies.phases import Permit
from gateway.providers.base import Call
from gateway.simulator.faults import Outage
from gateway.simulator.upstream import SimulatedProvider, SimulatedReply
from tests.simulation import invariants as rules
from tests.simulation import moments
from tests.simulation.model import CLOSED, OPEN, PROBING, ModeModel
from tests.simulation.schedule import MODES, Schedule

_STATES = {"closed": CLOSED, "recovering": CLOSED, "open": OPEN, "probing": PROBING}
_LONG_S = 60.0


class Broken(NamedTuple):
    """An invariant that did not hold."""

    invariant: str
    source: str
    at: float
    what: str


class Watch:
    """Watches one gateway in one world.

    Args:
        gateway: the real one, not yet asked anything.
        schedule: the world.

    Attributes:
        broken: what did not hold, the first of each kind.
        checks: how many questions the invariants have been asked.
        models: by mode.
        attempts: how many were told.
        told: how often the end of each request was told.
        asked: how many requests began.
        calls_at: when calls reached each mode's upstream.
    """

    def __init__(self, gateway: Gateway, schedule: Schedule) -> None:
        self.gateway = gateway
        self.schedule = schedule
        self.modes = MODES
        self.broken: dict[str, Broken] = {}
        self.checks = 0
        self.attempts = self.asked = 0
        self.told: Counter[str] = Counter()
        self.calls_at: dict[str, list[float]] = {mode: [] for mode in MODES}
        self._clock = asyncio.get_running_loop().time
        self._calls: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        self._digest = hashlib.blake2b(digest_size=16)
        self._tried = float("-inf")
        self._trial = False
        self.models = {
            rung.name: ModeModel(rung.name, rung.circuit.options) for rung in self.pipeline.ladder
        }
        for rung in self.pipeline.ladder:
            self._listen_at(rung)
        self.look_again()
        gateway.listen(self._hear)

    @property
    def pipeline(self) -> Pipeline:
        return self.gateway._in_force.pipeline

    @property
    def digest(self) -> str:
        """What everything that was told comes to."""
        return self._digest.hexdigest()

    def note(self, record: object) -> None:
        """Let a record count in the digest."""
        self._digest.update(msgspec.json.encode(record))

    def look_again(self) -> None:
        """After a reload there are new rungs, over the same circuits and upstreams."""
        self.rungs: list[Rung] = list(self.pipeline.ladder)
        self.upstreams: list[SimulatedProvider] = []
        for rung in self.rungs:
            for target in rung.targets:
                provider = target.provider
                assert isinstance(provider, SimulatedProvider)
                self.upstreams.append(provider)
                if not hasattr(provider, "watched"):
                    provider.watched = True  # type: ignore[attr-defined]
                    provider._origin = 0.0
                    self._listen_to_calls(rung.name, provider)

    def check(self, invariants: Iterable[moments.Invariant[Any]], moment: object) -> None:
        """Ask every one of these rules about a moment."""
        for invariant in invariants:
            what = invariant.rule(moment)
            self.checks += 1
            if what is not None:
                self.breaks(invariant.name, invariant.source, what)

    def breaks(self, name: str, source: str, what: str) -> None:
        """Note that an invariant does not hold; the first time of each is enough."""
        self.broken.setdefault(name, Broken(name, source, self._clock(), what))

    def long_outages(self) -> Iterator[tuple[str, Outage]]:
        """Outages of a minute or more that nothing else overlaps in the same mode."""
        for mode, faults in self.schedule.faults.items():
            for fault in faults:
                if isinstance(fault, Outage) and fault.end - fault.start >= _LONG_S:
                    others = [other for other in faults if other is not fault]
                    if all(o.end <= fault.start or o.start >= fault.end for o in others):
                        yield mode, fault

    # -- the doors ------------------------------------------------------------------------------

    def _listen_at(self, rung: Rung) -> None:
        circuit = rung.circuit
        admit, trial, settle = circuit.admit, circuit.admit_trial, circuit.settle
        model = self.models[rung.name]

        def admitted(slow_s: float | None = None, lease_s: float | None = None) -> Permit | None:
            return self._admitted(model, circuit, lambda: admit(slow_s, lease_s), trial=False)

        def tried(slow_s: float | None = None, lease_s: float | None = None) -> Permit | None:
            return self._admitted(model, circuit, lambda: trial(slow_s, lease_s), trial=True)

        def settled(permit: Permit, outcome: Outcome, cause: str = "") -> None:
            self._settled(model, circuit, permit, outcome, lambda: settle(permit, outcome, cause))

        circuit.admit = admitted  # type: ignore[method-assign]
        circuit.admit_trial = tried  # type: ignore[method-assign]
        circuit.settle = settled  # type: ignore[method-assign]

    def _admitted(
        self,
        model: ModeModel,
        circuit: Circuit,
        admit: Callable[[], Permit | None],
        *,
        trial: bool,
    ) -> Permit | None:
        now = self._clock()
        live = model.state is PROBING and model.probe is not None and not model.lease_over(now)
        moment = moments.Admitted(
            now,
            model,
            limit=self.rungs[MODES.index(model.name)].limit.current,
            state=model.state,
            epoch=model.epoch,
            held=model.held(now),
            lease_live=live,
            ramping=model.ramping(now),
            trial=trial,
            all_down=all(other.state is not CLOSED for other in self.models.values()),
            tried_s=now - self._tried,
            permit=None,
            in_flight=0,
        )
        self._trial = trial
        moment.permit, moment.in_flight = admit(), circuit.in_flight
        self._trial = False
        if moment.permit is not None:
            model.issue(moment.permit)
            if trial:
                self._tried = now
        self.check(rules.AT_ADMISSION, moment)
        return moment.permit

    def _settled(
        self,
        model: ModeModel,
        circuit: Circuit,
        permit: Permit,
        outcome: Outcome,
        settle: Callable[[], None],
    ) -> None:
        now, again, in_flight = self._clock(), permit.settled, circuit.in_flight
        lease_over, stale = model.lease_over(now), permit.epoch != model.epoch
        before = model.state, model.epoch, circuit.opened
        others = [m.epoch for m in self.models.values() if m is not model]
        must_open = False
        if not again:
            model.settle(permit, outcome, now, counts=not stale and not lease_over)
            must_open = outcome is Outcome.FAILURE and model.must_open(now)
        settle()
        moment = moments.Settled(
            now,
            model,
            permit,
            outcome,
            again,
            stale,
            lease_over,
            must_open,
            before,
            after=(model.state, model.epoch, circuit.opened),
            freed=in_flight - circuit.in_flight,
            others_moved=others != [m.epoch for m in self.models.values() if m is not model],
        )
        self.check(rules.AT_SETTLEMENT, moment)

    def _listen_to_calls(self, mode: str, provider: SimulatedProvider) -> None:
        reach, model = provider.open, self.models[mode]

        async def called(call: Call) -> SimulatedReply:
            rung, target = self._rung_of(mode, provider)
            earlier = self._calls[call.request_id]
            moment = moments.Called(
                self._clock(),
                model,
                rung,
                target,
                model.claim(call.request_id),
                rung.circuit.epoch,
                earlier,
            )
            self.calls_at[mode].append(moment.now)
            if any(known == mode for known, _ in earlier):
                model.rests_until = moment.now  # it waited as long as it was told (B7)
            self.check(rules.AT_CALL, moment)
            earlier.append((mode, provider.domain))
            return await reach(call)

        provider.open = called  # type: ignore[method-assign]

    def _rung_of(self, mode: str, provider: SimulatedProvider) -> tuple[Rung, Target]:
        rung = self.rungs[MODES.index(mode)]
        return rung, next(target for target in rung.targets if target.provider is provider)

    # -- what is told ---------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        self.note(event)
        if isinstance(event, CircuitChanged):
            self._turned(event)
        times = 0
        if isinstance(event, AttemptFinished):
            self.attempts += 1
        elif isinstance(event, TargetResting):
            self.models[event.mode].rests_until = event.at + event.for_s
        elif isinstance(event, RequestFinished):
            times = self.told[event.request_id]
            self.told[event.request_id] += 1
            self._calls.pop(event.request_id, None)
        self.check(rules.AT_EVENT, moments.Told(event, times))
        if not isinstance(event, CircuitChanged):  # it is told between two steps
            self.check(rules.ALWAYS, self)

    def _turned(self, event: CircuitChanged) -> None:
        model, new = self.models[event.mode], _STATES.get(event.new, event.new)
        rung = self.rungs[MODES.index(event.mode)]
        status = self.gateway.status()["modes"][event.mode]
        moment = moments.Turned(
            event.at,
            model,
            _STATES.get(event.old, event.old),
            new,
            event.cause,
            event.epoch,
            self._trial,
            downshifted=new is not CLOSED or rung.resting_s() > 0,
            ttl_s=status["ttl_s"],
        )
        self.check(rules.AT_TRANSITION, moment)
        model.turn(new, event.at, event.epoch, event.cause)
