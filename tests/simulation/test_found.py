"""What the simulation found in the gateway, each as small as it can be said."""

from __future__ import annotations

from gateway.clock import ManualClock
from gateway.detectors.failures import Outcome
from gateway.policies.circuit import Circuit
from gateway.policies.phases import CircuitOptions


def test_a_ramp_that_failed_once_follows_a_limit_that_shrinks() -> None:
    """Seed 55 with early_probe_s = 10: a failure half-way had kept a cap of 20 for a limit of 14,
    so that the ramp held nobody back (B6).
    """
    clock, limit = ManualClock(), [512]
    circuit = Circuit("creative", CircuitOptions(), clock, limit=lambda: limit[0])
    for _ in range(3):
        permit = circuit.admit()
        assert permit is not None
        circuit.settle(permit, Outcome.FAILURE)
    clock.advance(300.0)
    probe = circuit.admit()
    assert probe is not None
    circuit.settle(probe, Outcome.SUCCESS)
    clock.advance(4.5)
    permit = circuit.admit()
    assert permit is not None
    circuit.settle(permit, Outcome.FAILURE)
    assert circuit.cap() == 20
    limit[0] = 14
    assert circuit.cap() == 1
    clock.advance(30.0)
    assert circuit.cap() == 8
    clock.advance(30.0)
    assert circuit.cap() == 14
