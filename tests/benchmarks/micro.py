"""Small things every request or every look does: hit, status, admission, key."""

from __future__ import annotations

import time

from gateway.detectors.failures import Outcome
from gateway.gateway import Gateway
from gateway.policies.circuit import Circuit
from gateway.policies.downshift import Ladder, Visit
from gateway.policies.phases import CircuitOptions
from gateway.validation import build_request
from tests.benchmarks.calls import Callers
from tests.benchmarks.measure import Series, Subject, interleave, timed
from tests.benchmarks.report import Goal, Section, number, spread

_HIT = Goal("cache hit, library, end to end", "≤ 15 µs", 15, "dict 0.14 µs")
_ADMISSION = Goal("admission decision", "≤ 50 µs", 50)
_MANY = 512
_PROMPT = "Name three woody perfume notes. " * 16  # some 500 bytes, as a short chat has


async def measure(callers: Callers, *, quick: bool) -> list[Section]:
    """Everything here, each on its own."""
    gateway = callers.gateway(stream=False)
    section = Section("Small things", ("what", "CPU µs", "spread"))
    times = 2000 if quick else 5000

    def add(name: str, series: Series) -> Series:
        section.rows.append([name, number(series.cpu), spread(series)])
        return series

    await gateway.generate(_PROMPT, "creative", temperature=0.2)
    hits = await interleave(
        [Subject("hit", lambda _: gateway.generate(_PROMPT, "creative", temperature=0.2), times)],
        rounds=3 if quick else 5,
        concurrency=1,
    )
    section.judge(_HIT, add("cache hit, `generate` to its return", hits["hit"]))
    add("`status()`, three modes", timed(gateway.status, times // 10))
    section.judge(_ADMISSION, add("admission: a mode entered and left", _enter(gateway, times)))
    add("circuit: admit + first_token + settle", _circuit(times))
    add(f"the same with {_MANY} others waiting", _circuit(times, waiting=_MANY))
    add(f"circuit: sweep over {_MANY} waiting", _sweep(times // 50))
    add("circuit: refusal by an open mode", _refused(times))
    add("cache key of a 500-byte question", _key(gateway, times))
    add("request built from a prompt", timed(_build, times))
    return [section]


def _ladder(gateway: Gateway) -> Ladder:
    return gateway._in_force.pipeline.ladder


def _enter(gateway: Gateway, times: int) -> Series:
    rung = _ladder(gateway).rungs[0]

    def visit() -> None:
        entry = rung.enter(native=True)
        assert isinstance(entry, Visit)
        rung.circuit.first_token(entry.permit)
        entry.outcome = Outcome.SUCCESS
        entry.leave()

    return timed(visit, times)


def _circuit(times: int, *, waiting: int = 0) -> Series:
    circuit = Circuit("creative", CircuitOptions(), time.monotonic)
    for _ in range(waiting):
        circuit.admit()

    def visit() -> None:
        permit = circuit.admit()
        assert permit is not None
        circuit.first_token(permit)
        circuit.settle(permit, Outcome.SUCCESS)

    return timed(visit, times)


def _sweep(times: int) -> Series:
    # The clock stands, or they would be overdue before the measuring ends, and open the circuit.
    circuit = Circuit("creative", CircuitOptions(), lambda: 0.0)
    for _ in range(_MANY):
        circuit.admit()
    return timed(circuit.sweep, times)


def _refused(times: int) -> Series:
    circuit = Circuit("creative", CircuitOptions(), time.monotonic)
    for _ in range(3):
        permit = circuit.admit()
        assert permit is not None
        circuit.settle(permit, Outcome.FAILURE)
    return timed(circuit.admit, times)


def _key(gateway: Gateway, times: int) -> Series:
    cache = gateway._in_force.pipeline.cache
    request = build_request(_PROMPT, mode="creative", now=0.0, params={"temperature": 0.2})
    return timed(lambda: cache._question(request), times)


def _build() -> object:
    return build_request(_PROMPT, mode="creative", now=0.0, params={"temperature": 0.2})
