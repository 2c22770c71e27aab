"""Circuits of several workers over one file are one circuit: the same rules, the same reference.

The machine of `test_circuit_machine` drives two or three circuits as if they were one: each step is
taken by another of them, and after each all must stand as the single reference does.

    CIRCUIT_EXAMPLES=5000 pytest tests/properties/test_workers_machine.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import aiobreaker
import pytest
import test_circuit_machine as single
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from gateway.clock import ManualClock
from gateway.detectors.failures import Outcome
from gateway.policies.circuit import Circuit
from gateway.policies.phases import CircuitOptions, Permit, Phase, Transition
from gateway.stores.cell import Cell
from gateway.stores.shared import SharedStore


class Crew:
    """Several workers' circuits, in the clothes of one.

    Attributes:
        turn: whose the next step is.
        away: whether the others look up only when they act themselves.
    """

    def __init__(
        self,
        number: int,
        options: CircuitOptions,
        clock: ManualClock,
        path: Path,
        limit: Callable[[], int],
        on_change: Callable[[Transition], None],
    ) -> None:
        self.stores = [SharedStore(path, clock=clock) for _ in range(number)]
        self.circuits = [
            Circuit(
                "creative",
                options,
                clock,
                limit=limit,
                on_change=on_change,
                agreement=Cell(store, "creative"),
            )
            for store in self.stores
        ]
        self.turn = 0
        self.away = False
        self.whose: dict[int, Circuit] = {}

    @property
    def acting(self) -> Circuit:
        return self.circuits[self.turn % len(self.circuits)]

    def settled(self, circuit: Circuit) -> None:
        """Make known what a worker would tell within a second."""
        circuit._in_turn(lambda: None)

    def admit(self, slow_s: float | None = None) -> Permit | None:
        return self.owned(self.acting, self.acting.admit(slow_s))

    def admit_trial(self) -> Permit | None:
        return self.owned(self.acting, self.acting.admit_trial())

    def owned(self, circuit: Circuit, permit: Permit | None) -> Permit | None:
        if permit is not None:
            self.whose[id(permit)] = circuit
        return permit

    def first_token(self, permit: Permit) -> None:
        circuit = self.whose[id(permit)]
        circuit.first_token(permit)
        self.settled(circuit)

    def settle(self, permit: Permit, outcome: Outcome, cause: str = "") -> None:
        circuit = self.whose[id(permit)]
        circuit.settle(permit, outcome, cause)
        self.settled(circuit)

    def sweep(self) -> bool:
        return [circuit.sweep() for circuit in self.circuits][-1]

    def force(self, how: str) -> None:
        self.acting.force(how)

    @property
    def breaker(self) -> aiobreaker.CircuitBreaker:
        self.acting.look()
        return self.acting.breaker

    @property
    def options(self) -> CircuitOptions:
        return self.acting.options

    @options.setter
    def options(self, options: CircuitOptions) -> None:
        for circuit in self.circuits:
            circuit.options = options

    # -- all say the same

    def said(self, question: Callable[[Circuit], object]) -> object:
        answers = []
        for circuit in [self.acting] if self.away else self.circuits:
            circuit.look()
            answers.append(question(circuit))
        assert all(answer == answers[0] for answer in answers), answers
        return answers[0]

    def phase(self) -> Phase:
        phase = self.said(Circuit.phase)
        assert isinstance(phase, Phase)
        return phase

    def until(self) -> object:
        return self.said(Circuit.until)

    def cap(self) -> object:
        return self.said(Circuit.cap)

    def hold_s(self) -> object:
        return self.said(Circuit.hold_s)

    @property
    def opened(self) -> object:
        return self.said(lambda circuit: circuit.opened)

    @property
    def epoch(self) -> object:
        return self.said(lambda circuit: circuit.epoch)

    @property
    def in_flight(self) -> int:
        return sum(circuit.in_flight for circuit in self.circuits)

    @property
    def late(self) -> int:
        return sum(circuit.late for circuit in self.circuits)


class WorkersMachine(single.CircuitMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()

    @initialize(
        options=st.just(CircuitOptions()) | single.option_sets(),
        limit=st.integers(1, 12),
        number=st.integers(2, 3),
    )
    def build(self, options: CircuitOptions, limit: int, number: int) -> None:
        # In-flight limits are each worker's own, and so is what the ramp makes of them.
        options = replace(options, ramp_s=0.0)
        self.limit = limit
        self.model = single.Reference(options, limit)
        self.crew = Crew(
            number,
            options,
            self.clock,
            Path(self.folder.name) / "shared.sqlite",
            lambda: self.limit,
            self.listener.on_change,
        )
        self.circuit = self.crew  # type: ignore[assignment]
        for circuit in self.crew.circuits:
            circuit.breaker.add_listener(self.listener)

    @rule(options=single.option_sets())
    def reload(self, options: CircuitOptions) -> None:
        options = replace(options, ramp_s=0.0, break_duration_s=self.model.options.break_duration_s)
        self.circuit.options = options
        self.model.reload(options)

    @rule(number=st.integers(0, 2))
    def another_worker_acts(self, number: int) -> None:
        self.crew.turn = number

    @rule(away=st.booleans())
    def the_others_look_away(self, away: bool) -> None:
        self.crew.away = away

    @invariant()
    def nobody_is_alone(self) -> None:
        if hasattr(self, "crew"):
            assert all(store.shared and store.life == 1 for store in self.crew.stores)

    def teardown(self) -> None:
        try:
            if hasattr(self, "crew"):
                self.crew.away = False
            super().teardown()
        finally:
            if hasattr(self, "crew"):
                for store in self.crew.stores:
                    store.close()
            self.folder.cleanup()


pytestmark = pytest.mark.filterwarnings("ignore:.*utcnow:DeprecationWarning")

EXAMPLES = int(os.environ.get("CIRCUIT_EXAMPLES", "0"))
WorkersMachine.TestCase.settings = settings(
    max_examples=EXAMPLES or 25,
    stateful_step_count=40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


TestWorkers = WorkersMachine.TestCase
