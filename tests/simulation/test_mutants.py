"""The invariants are awake: break the gateway on purpose, and one of them says so."""

from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec import structs

from gateway.detectors import failures
from gateway.detectors.failures import Judgement, Outcome, Then
from gateway.errors import ErrorKind
from gateway.generation import Chunk, Served
from gateway.middleware.attempt import Attempt
from gateway.middleware.deadline import Deadline
from gateway.middleware.walk import Walk
from gateway.policies.budget import RetryBudget
from gateway.policies.circuit import Circuit
from gateway.policies.downshift import Rung
from gateway.policies.limit import Limit
from gateway.policies.machine import StateMachine
from gateway.policies.phases import Permit, Phase
from gateway.policies.standing import Standing
from gateway.policies.ttl import CacheOptions
from gateway.simulator.faults import AnyFault, CutStream, Outage, Stall, Throttled
from gateway.simulator.service import Service
from gateway.simulator.upstream import SimulatedReply
from tests.simulation.schedule import MODES, Ask, Schedule, schedule
from tests.simulation.world import play

Patch = pytest.MonkeyPatch


# All that the rules are about happens here, and little else.
FAULTS: dict[str, tuple[AnyFault, ...]] = {
    "creative": (
        Outage(100.0, 250.0, "error500"),
        Outage(450.0, 470.0, "reset"),
        Outage(800.0, 900.0, "silent"),
    ),
    "balanced": (Outage(450.0, 470.0, "reset"), Throttled(950.0, 990.0, 5.0)),
    "fast": (
        Outage(450.0, 470.0, "reset"),
        CutStream(550.0, 700.0, 0.5, 2),
        Stall(1000.0, 1001.0, 1.0, 1),
        Outage(1001.0, 1004.0, "error500"),
    ),
}


def crowd(*times: float, mode: str, stream: bool = False, hurry: bool = False) -> list[Ask]:
    """One request at each of these times."""
    deadline_s = 4.0 if hurry else None
    return [
        Ask(at, mode, f"crowd {at} {n}", True, stream, deadline_s, None, True)
        for n, at in enumerate(times)
    ]


def a_world() -> Schedule:
    """Some 350 requests. Crowds meet the recovery from the first outage, the silence, and the
    lowest mode's short outage, at which other answers of it are still under way.
    """
    world = schedule(1, 200)
    asks = [
        *world.asks,
        *crowd(*[100.1] * 6, mode="creative"),
        *crowd(*[403.0 + n / 20 for n in range(100)], mode="creative"),
        *crowd(*[455.0] * 4, *range(560, 570), mode="fast"),
        *crowd(*[800.5] * 10, mode="creative"),
        *crowd(*[800.5] * 10, mode="creative", hurry=True),
        *crowd(*range(955, 965), mode="balanced"),
        *crowd(*[1000.5] * 5, mode="fast", stream=True),
        *crowd(*[1002.0] * 5, *range(1010, 1020), mode="fast"),
    ]
    services = dict.fromkeys(MODES, Service(tokens=3, tokens_per_s=1.0))
    return structs.replace(
        world,
        horizon_s=1400.0,
        faults=FAULTS,
        asks=sorted(asks, key=lambda ask: ask.at),
        reloads=[],
        services=services,
    )


def broken() -> set[str]:
    """Which invariants do not hold there."""
    return {found.invariant for found in play(a_world()).broken}


def test_a_gateway_that_is_whole_breaks_none() -> None:
    assert not broken()


def test_a_circuit_that_admits_two_probes(monkeypatch: Patch) -> None:
    def issue(self: Circuit, slow_s: float, lease_s: float) -> Permit:
        standing, now = self._machine.standing, self._clock()
        opens = standing.state is Phase.OPEN
        self._probe = Permit(standing.epoch + opens, now, slow_s, now + lease_s)
        self._machine.lease(now + lease_s, self._worker)
        return self._issue(self._probe)

    monkeypatch.setattr(Circuit, "_issue_probe", issue)
    assert "one lease" in broken()


def test_a_flag_that_lies(monkeypatch: Patch) -> None:
    tell = Walk.served

    def lie(self: Walk) -> Served:
        served = tell(self)
        served.degraded, served.reason = False, None
        return served

    monkeypatch.setattr(Walk, "served", lie)
    assert "flags are true" in broken()


def test_a_hold_that_ends_early(monkeypatch: Patch) -> None:
    hold_s = Standing.hold_s
    monkeypatch.setattr(Standing, "hold_s", lambda *args: 0.5 * hold_s(*args))
    assert "the hold is respected" in broken()


def test_a_hold_that_never_ends(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Standing, "hold_s", lambda *_: 1e6)
    assert {"the hold ends", "what is healed comes back"} <= broken()


def test_two_failures_that_open(monkeypatch: Patch) -> None:
    failed = StateMachine.failed

    def hasty(self: StateMachine, cause: str) -> None:
        self.breaker.aiobreaker.fail_max = 2
        failed(self, cause)

    monkeypatch.setattr(StateMachine, "failed", hasty)
    assert "outcomes move it as written" in broken()


def test_late_outcomes_that_count(monkeypatch: Patch) -> None:
    settle = Circuit.settle

    def credulous(self: Circuit, permit: Permit, outcome: Outcome, cause: str = "") -> None:
        if not permit.settled:
            permit.epoch = self.epoch
        settle(self, permit, outcome, cause)

    monkeypatch.setattr(Circuit, "settle", credulous)
    assert "stale outcomes change nothing" in broken()


def test_a_throttle_that_counts_as_a_failure(monkeypatch: Patch) -> None:
    counted = Judgement(Outcome.FAILURE, Then.WALK, cool_s=5.0)
    monkeypatch.setitem(failures._RULES, ErrorKind.RATE, counted)
    assert "what counts" in broken()


def test_a_target_that_is_not_left_to_rest(monkeypatch: Patch) -> None:
    pick = Rung.pick

    def restless(self: Rung, **options: Any) -> Any:
        for target in self.targets:
            target.resting_until = -math.inf
        return pick(self, **options)

    monkeypatch.setattr(Rung, "pick", restless)
    assert "a resting target is left alone" in broken()


def test_second_attempts_without_a_budget(monkeypatch: Patch) -> None:
    monkeypatch.setattr(RetryBudget, "allows_retry", lambda *_: True)
    assert "second attempts are in the budget" in broken()


def test_a_slot_that_is_not_given_back(monkeypatch: Patch) -> None:
    leave, left = Limit.leave, []

    def forgetful(self: Limit, *, native: bool) -> None:
        left.append(native)
        if len(left) % 97:
            leave(self, native=native)

    monkeypatch.setattr(Limit, "leave", forgetful)
    assert "permits and slots are back" in broken()


def test_an_upstream_that_is_not_let_go(monkeypatch: Patch) -> None:
    def close(self: Attempt) -> None:
        if self._timer is not None:
            self._timer.cancel()

    monkeypatch.setattr(Attempt, "close", close)
    assert "upstreams are left" in broken()


def test_a_timer_that_stays(monkeypatch: Patch) -> None:
    def close(self: Attempt) -> None:
        if self._reply is not None:
            self._reply.close()

    monkeypatch.setattr(Attempt, "close", close)
    assert "no task and no timer is left" in broken()


def test_a_truncated_answer_that_looks_whole(monkeypatch: Patch) -> None:
    read = SimulatedReply.read

    async def swallow(self: SimulatedReply) -> list[Chunk]:
        try:
            return await read(self)
        except Exception:
            if not self._sent:
                raise
            return []  # as if it had ended there

    monkeypatch.setattr(SimulatedReply, "read", swallow)
    assert "no truncated success" in broken()


def test_a_lifetime_that_is_not_shortened(monkeypatch: Patch) -> None:
    monkeypatch.setattr(CacheOptions, "ttl", lambda self, *, downshifted: self.ttl_s)
    assert {"TTL 300 only when degraded", "the TTL follows the phase"} <= broken()


def test_a_deadline_that_is_not_held(monkeypatch: Patch) -> None:
    async def lax(self: Deadline, request: Any, call_next: Any) -> Any:
        request.deadline = request.started + 180.0
        return await call_next(request)

    monkeypatch.setattr(Deadline, "__call__", lax)
    assert "the deadline is held" in broken()


def test_a_ramp_that_lets_everybody_in(monkeypatch: Patch) -> None:
    monkeypatch.setattr(StateMachine, "cap", lambda self, _: self._limit())
    assert "the ramp holds back" in broken()
