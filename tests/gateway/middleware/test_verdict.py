from __future__ import annotations

from typing import cast

import pytest
from stage import ScriptedProvider, Stage, play

from gateway.detectors.failures import Outcome
from gateway.errors import ErrorKind, UpstreamError, UpstreamThrottled, UpstreamTimeout
from gateway.middleware.attempt import Attempt
from gateway.middleware.verdict import prove, too_slow, verdict
from gateway.policies.downshift import Rung, Visit
from gateway.policies.phases import CircuitOptions, Phase


class Fake:
    """An attempt as far as a verdict looks at it."""

    def __init__(self, silence: float, *, token: bool = False, started: float = 0.0) -> None:
        self._silence = silence
        self.started = started
        self.first_token_at: float | None = 0.0 if token else None
        self.received = 0

    def silence(self) -> float:
        return self._silence


def a_rung(normal_s: float | None = None, *, streams: bool = True, slow_s: float = 10.0) -> Rung:
    stage = Stage(
        {"creative": ScriptedProvider(streams=streams), "fast": ScriptedProvider()},
        options=CircuitOptions(slow_s=slow_s),
    )
    for _ in range(40 if normal_s else 0):
        stage.latency.hear("creative", normal_s or 0.0)
    return stage.rung("creative")


def says(error: UpstreamError, attempt: Fake, rung: Rung) -> Outcome:
    return verdict(error, cast(Attempt, attempt), rung)


def late(phase: str) -> UpstreamTimeout:
    return UpstreamTimeout("late", phase=phase)


@pytest.mark.parametrize(
    ("phase", "silence", "token", "outcome"),
    [
        ("first_token", 15.0, False, Outcome.FAILURE),  # as patient as the mode allows
        ("first_token", 14.9999999, False, Outcome.FAILURE),
        ("first_token", 10.0, False, Outcome.FAILURE),  # slow_s
        ("first_token", 9.9999999, False, Outcome.FAILURE),
        ("first_token", 9.9, False, Outcome.IGNORED),  # the caller was in a hurry
        ("total", 9.9, False, Outcome.IGNORED),
        ("total", 11.0, False, Outcome.FAILURE),
        ("stall", 20.0, True, Outcome.FAILURE),
        ("stall", 10.0, True, Outcome.FAILURE),
        ("stall", 5.0, True, Outcome.IGNORED),
        ("total", 0.02, True, Outcome.IGNORED),  # it flowed until the deadline
        ("total", 12.0, True, Outcome.FAILURE),
        ("connect", 3.0, False, Outcome.FAILURE),  # the transport's own clocks are never hurried
        ("headers", 60.0, False, Outcome.FAILURE),
    ],
)
def test_whose_fault_a_timeout_is(
    phase: str, silence: float, token: bool, outcome: Outcome
) -> None:
    async def scenario() -> None:
        assert says(late(phase), Fake(silence, token=token), a_rung()) is outcome

    play(scenario)


def test_what_is_normal_for_the_mode_decides_sooner() -> None:
    async def scenario() -> None:
        rung = a_rung(normal_s=0.5)
        assert says(late("first_token"), Fake(0.9), rung) is Outcome.IGNORED
        assert says(late("first_token"), Fake(4.0), rung) is Outcome.FAILURE
        assert not too_slow(cast(Attempt, Fake(0.9)), rung)
        assert too_slow(cast(Attempt, Fake(4.0)), rung)
        # Between tokens it is another matter: there only slow_s counts.
        assert not too_slow(cast(Attempt, Fake(4.0, token=True)), rung)

    play(scenario)


def test_other_errors_are_what_the_table_says() -> None:
    async def scenario() -> None:
        rung = a_rung()
        broken = UpstreamError("x", kind=ErrorKind.INTERRUPTED)
        assert says(broken, Fake(0.0, token=True), rung) is Outcome.FAILURE
        assert says(UpstreamThrottled("x"), Fake(0.0), rung) is Outcome.IGNORED

    play(scenario)


def test_one_hurried_caller_after_the_other_is_long_enough_in_the_end() -> None:
    async def scenario() -> None:
        rung = a_rung()
        clock = [0.0]
        rung.circuit._clock = lambda: clock[0]
        outcomes = []
        for number in range(5):
            clock[0] = 100.0 * number + 3.0
            outcomes.append(says(late("total"), Fake(3.0, started=100.0 * number), rung))
        assert outcomes == [Outcome.IGNORED] * 3 + [Outcome.FAILURE] * 2
        # A token begins it anew.
        permit = rung.circuit.admit()
        assert permit is not None
        rung.circuit.first_token(permit)
        clock[0] = 603.0
        assert says(late("total"), Fake(3.0, started=600.0), rung) is Outcome.IGNORED

    play(scenario)


def test_hurried_callers_who_waited_together_count_once() -> None:
    async def scenario() -> None:
        rung = a_rung()
        clock = [3.0]
        rung.circuit._clock = lambda: clock[0]
        outcomes = {says(late("total"), Fake(3.0, started=0.0), rung) for _ in range(50)}
        assert outcomes == {Outcome.IGNORED}

    play(scenario)


def test_without_the_slow_rule_a_hurry_says_nothing() -> None:
    async def scenario() -> None:
        rung = a_rung(slow_s=0.0)
        for started in range(0, 100, 5):
            attempt = Fake(5.0, started=float(started))
            assert says(late("total"), attempt, rung) is Outcome.IGNORED
        assert not too_slow(cast(Attempt, Fake(100.0, token=True)), rung)

    play(scenario)


@pytest.mark.parametrize(
    ("since", "received", "lease_s", "proven"),
    [
        (4.9, 5, 30.0, False),
        (5.0, 5, 30.0, True),
        (0.1, 64, 30.0, True),
        (0.1, 63, 30.0, False),
        (1.5, 2, 3.0, True),  # half of a short lease
        (1.4, 2, 3.0, False),
    ],
)
def test_when_a_probe_has_shown_enough(
    since: float, received: int, lease_s: float, proven: bool
) -> None:
    async def scenario() -> None:
        stage = Stage({"creative": ScriptedProvider()}, options=CircuitOptions())
        circuit = stage.rung("creative").circuit
        for _ in range(3):
            permit = circuit.admit()
            assert permit is not None
            circuit.settle(permit, Outcome.FAILURE)
        probe = circuit.admit_trial(lease_s=lease_s)
        assert probe is not None
        visit = Visit(stage.rung("creative"), probe, native=True)
        attempt = Fake(0.0, token=True)
        attempt.received = received
        prove(visit, cast(Attempt, attempt), since)
        assert (circuit.phase() is Phase.RECOVERING) == proven
        prove(visit, cast(Attempt, attempt), since)  # twice is once

    play(scenario)


def test_ordinary_visits_and_silent_probes_prove_nothing() -> None:
    async def scenario() -> None:
        stage = Stage({"creative": ScriptedProvider()})
        rung = stage.rung("creative")
        permit = rung.circuit.admit()
        assert permit is not None
        prove(Visit(rung, permit, native=True), cast(Attempt, Fake(0.0, token=True)), 100.0)
        assert not permit.settled

    play(scenario)
