"""aiobreaker holds the states: unmodified, on our clock, deaf to its listeners' faults (B11)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, tzinfo

import aiobreaker
import pytest

from gateway.clock import ManualClock
from gateway.detectors.failures import Outcome
from gateway.policies.breaker import Breaker, State
from gateway.policies.circuit import Circuit
from gateway.policies.phases import CircuitOptions, Phase

# Driven by hand, aiobreaker 1.2 asks `datetime.utcnow`, which Python 3.12 would rather it did not.
pytestmark = pytest.mark.filterwarnings("ignore:.*utcnow:DeprecationWarning")

HOOKS = ("before_call", "failure", "success", "state_change")


class Listener(aiobreaker.CircuitBreakerListener):  # type: ignore[misc]
    """Raises at the hooks it is told to."""

    def __init__(self, *raises: str) -> None:
        self.raises = raises
        self.heard: list[str] = []

    def _hear(self, hook: str) -> None:
        self.heard.append(hook)
        if hook in self.raises:
            raise RuntimeError(f"a listener's fault in {hook}")

    def before_call(self, *_: object, **__: object) -> None:
        self._hear("before_call")

    def failure(self, *_: object) -> None:
        self._hear("failure")

    def success(self, *_: object) -> None:
        self._hear("success")

    def state_change(self, *_: object) -> None:
        self._hear("state_change")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


@pytest.fixture
def turns() -> list[tuple[State, State]]:
    return []


@pytest.fixture
def breaker(clock: ManualClock, turns: list[tuple[State, State]]) -> Breaker:
    breaker = Breaker("creative", clock, lambda old, new: turns.append((old, new)))
    breaker.configure(fail_max=3, window_s=60.0, hold_s=300.0)
    return breaker


@pytest.mark.parametrize("hold_s", [0.0, 300.0, 1e15, 1e308])
def test_a_hold_however_long_holds(clock: ManualClock, hold_s: float) -> None:
    circuit = Circuit("creative", CircuitOptions(break_duration_s=hold_s), clock)
    for _ in range(3):
        permit = circuit.admit()
        assert permit is not None
        circuit.settle(permit, Outcome.FAILURE)
    clock.advance(299.0)
    assert circuit.phase() is (Phase.OPEN if hold_s else Phase.PROBE_DUE)
    clock.advance(1.0)
    assert circuit.phase() is (Phase.OPEN if hold_s > 300.0 else Phase.PROBE_DUE)


def test_it_is_an_unmodified_circuit_breaker_of_three_failures_and_five_minutes() -> None:
    breaker = Circuit("creative", CircuitOptions(), time.monotonic).breaker
    assert type(breaker) is aiobreaker.CircuitBreaker
    plain = aiobreaker.CircuitBreaker()
    assert vars(breaker).keys() == vars(plain).keys()
    assert not [name for name, value in vars(breaker).items() if callable(value)]
    assert breaker.fail_max == 3
    assert breaker.timeout_duration == timedelta(minutes=5)
    assert breaker.excluded_exceptions == ()


def test_three_failures_open_it_and_are_seen_by_its_listeners(
    breaker: Breaker, turns: list[tuple[State, State]]
) -> None:
    listener = Listener()
    breaker.aiobreaker.add_listener(listener)
    breaker.failure()
    assert breaker.aiobreaker.fail_counter == 1
    breaker.failure()
    breaker.failure()
    assert turns == [(State.CLOSED, State.OPEN)]
    assert breaker.aiobreaker.current_state is State.OPEN
    assert listener.heard.count("failure") == 3
    assert listener.heard.count("state_change") == 1


def test_a_success_resets_the_count_and_closes_a_half_open_breaker(breaker: Breaker) -> None:
    breaker.failure()
    breaker.failure()
    breaker.success()
    assert breaker.aiobreaker.fail_counter == 0
    breaker.open()
    breaker.half_open()
    breaker.success()
    assert breaker.states.state is State.CLOSED
    assert breaker.states.epoch == 3


def test_a_failure_may_have_happened_earlier(breaker: Breaker, clock: ManualClock) -> None:
    breaker.open()
    breaker.half_open()
    clock.advance(100.0)
    breaker.failure(at=1030.0)
    assert (breaker.states.state, breaker.states.opened) == (State.OPEN, 1030.0)
    breaker.half_open()
    breaker.failure()
    assert breaker.states.opened == 1100.0


def run(breaker: Breaker, clock: ManualClock, after_each: Callable[[], None]) -> list[object]:
    """Open, probe in vain, probe well, and open again: what can be seen after each step."""
    does = {
        "F": breaker.failure,
        "S": breaker.success,
        "H": breaker.half_open,
        "O": breaker.open,
    }
    seen: list[object] = []
    for step in "FFSFFFHFHSFFOHSFSFFF":
        does[step]()
        states = breaker.states
        seen.append((states.state, states.epoch, states.opened, states.counter))
        clock.advance(1.0)
        after_each()
    return seen


@pytest.mark.parametrize("hook", [*HOOKS, "each in turn", "all"])
def test_a_listener_that_raises_changes_nothing(hook: str) -> None:
    traces = []
    for sabotaged in (False, True):
        clock = ManualClock()
        turns: list[tuple[State, State]] = []
        breaker = Breaker("creative", clock, lambda old, new, to=turns: to.append((old, new)))  # type: ignore[misc]
        breaker.configure(fail_max=3, window_s=60.0, hold_s=300.0)
        listener = Listener()
        breaker.aiobreaker.add_listener(listener)
        if sabotaged:
            listener.raises = {"all": HOOKS, "each in turn": HOOKS[:1]}.get(hook, (hook,))

        def next_hook(listener: Listener = listener) -> None:
            if listener.raises and hook == "each in turn":
                listener.raises = (HOOKS[(HOOKS.index(listener.raises[0]) + 1) % len(HOOKS)],)

        traces.append((run(breaker, clock, next_hook), turns))
    assert traces[0] == traces[1]


def test_failures_count_although_its_listeners_never_let_it_catch_up(breaker: Breaker) -> None:
    listener = Listener()
    breaker.aiobreaker.add_listener(listener)
    breaker.open()
    listener.raises = ("state_change",)  # from here on aiobreaker itself believes it is open
    breaker.half_open()
    breaker.success()
    assert breaker.states.state is State.CLOSED
    for count in (1, 2):
        breaker.failure()
        assert breaker.aiobreaker.fail_counter == count
    breaker.failure()
    assert breaker.states.state is State.OPEN


# -- driven by hand, under any wall clock -------------------------------------------------------


class WallClock(datetime):
    """A wall clock that can be put wrong."""

    offset = timedelta(0)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + cls.offset

    @classmethod
    def utcnow(cls) -> datetime:  # type: ignore[override]
        return datetime.utcnow() + cls.offset


@pytest.fixture(params=[-3600.0, 0.0, 3600.0])
def wall_step(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], None]]:
    for module in ("aiobreaker.circuitbreaker", "aiobreaker.state", "gateway.policies.breaker"):
        monkeypatch.setattr(f"{module}.datetime", WallClock)

    def step() -> None:
        WallClock.offset = timedelta(seconds=request.param)

    yield step
    WallClock.offset = timedelta(0)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "America/Los_Angeles"])
def test_used_directly_it_holds_for_300_seconds_of_our_clock(
    breaker: Breaker,
    clock: ManualClock,
    wall_step: Callable[[], None],
    zone: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        breaker.aiobreaker.open()
        wall_step()
        clock.advance(299.0)
        with pytest.raises(aiobreaker.CircuitBreakerError):
            breaker.aiobreaker.call(lambda: "let through")
        clock.advance(1.001)
        assert breaker.aiobreaker.call(lambda: "let through") == "let through"
        assert breaker.states.state is State.CLOSED
    finally:
        monkeypatch.undo()
        time.tzset()


def test_calls_made_through_it_directly_are_seen_by_the_circuit(clock: ManualClock) -> None:
    circuit = Circuit("creative", CircuitOptions(), clock)

    def fails() -> None:
        raise OSError("refused")

    for _ in range(2):
        with pytest.raises(OSError, match="refused"):
            circuit.breaker.call(fails)
    with pytest.raises(aiobreaker.CircuitBreakerError):
        circuit.breaker.call(fails)
    assert (circuit.phase(), circuit.until(), circuit.epoch) == (Phase.OPEN, 300.0, 1)
