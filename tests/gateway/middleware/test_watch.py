from __future__ import annotations

from typing import Any, cast

import pytest
from stage import ScriptedProvider, Stage, loop, play, timers

from gateway.middleware.attempt import Attempt
from gateway.middleware.watch import OverdueWatch
from gateway.policies.phases import CircuitOptions, Permit, Phase


class Waiting:
    """An attempt that waits, as far as the watch can see."""

    def __init__(self) -> None:
        self.gave_up_at: float | None = None
        self.late = False

    def give_up(self, *, late: bool) -> None:
        self.gave_up_at, self.late = loop().time(), late


class Watched:
    """One mode under watch."""

    def __init__(self, jump: list[float] | None = None, **options: Any) -> None:
        clock = (lambda: loop().time() + sum(jump)) if jump is not None else None
        circuit = CircuitOptions(**{"slow_s": 10.0, **options})
        self.stage = Stage({"creative": ScriptedProvider()}, options=circuit, clock=clock)
        self.rung = self.stage.rung("creative")
        self.watch = OverdueWatch(self.stage.clock)
        self.permits: dict[Waiting, Permit] = {}

    def wait(self) -> Waiting:
        permit = self.rung.circuit.admit()
        assert permit is not None
        waiting = Waiting()
        self.permits[waiting] = permit
        self.watch.start(self.rung, permit, cast(Attempt, waiting))
        return waiting

    def answered(self, waiting: Waiting) -> None:
        self.rung.circuit.first_token(self.permits[waiting])
        self.watch.stop(self.rung, cast(Attempt, waiting))


async def until(at: float) -> None:
    future = loop().create_future()
    loop().call_at(at, future.set_result, None)
    await future


def test_three_overdue_open_and_all_who_wait_too_long_give_up_at_once() -> None:
    async def scenario() -> None:
        watched = Watched()
        old = [watched.wait() for _ in range(5)]
        await until(4.0)
        young = [watched.wait() for _ in range(2)]
        await until(9.9)
        assert watched.rung.circuit.phase() is Phase.CLOSED
        await until(10.1)
        assert watched.rung.circuit.phase() is Phase.OPEN
        assert [one.gave_up_at for one in old] == [10.0] * 5
        assert [one.late for one in old] == [False] * 3 + [True] * 2  # three told us all there is
        assert [one.gave_up_at for one in young] == [None, None]
        await until(14.1)
        assert [one.gave_up_at for one in young] == [14.0, 14.0]
        assert all(one.late for one in young)
        for one in (*old, *young):
            watched.watch.stop(watched.rung, cast(Attempt, one))
        assert timers() == 0

    play(scenario)


def test_two_overdue_do_not_open_and_nobody_is_disturbed() -> None:
    async def scenario() -> None:
        watched = Watched()
        waiting = [watched.wait() for _ in range(2)]
        await until(60.0)
        assert watched.rung.circuit.phase() is Phase.CLOSED
        assert [one.gave_up_at for one in waiting] == [None, None]
        waiting.append(watched.wait())
        await until(70.1)
        assert watched.rung.circuit.phase() is Phase.OPEN

    play(scenario)


def test_a_token_meanwhile_forgives_those_who_began_before_it() -> None:
    async def scenario() -> None:
        watched = Watched()
        hanging = [watched.wait() for _ in range(4)]
        await until(5.0)
        watched.answered(watched.wait())
        await until(30.0)
        assert watched.rung.circuit.phase() is Phase.CLOSED
        assert all(one.gave_up_at is None for one in hanging)

    play(scenario)


def test_those_who_have_stopped_waiting_are_left_alone() -> None:
    async def scenario() -> None:
        watched = Watched()
        waiting = [watched.wait() for _ in range(3)]
        for one in waiting:
            watched.watch.stop(watched.rung, cast(Attempt, one))
        await until(20.0)
        assert all(one.gave_up_at is None for one in waiting)
        assert timers() == 0

    play(scenario)


def test_a_threshold_of_zero_is_not_watched() -> None:
    async def scenario() -> None:
        watched = Watched(slow_s=0.0)
        waiting = [watched.wait() for _ in range(5)]
        assert timers() == 0
        await until(1000.0)
        assert all(one.gave_up_at is None for one in waiting)

    play(scenario)


def test_probes_have_their_own_limit() -> None:
    async def scenario() -> None:
        watched = Watched(break_duration_s=50.0, probe_lease_s=30.0)
        for _ in range(3):
            watched.wait()
        await until(61.0)
        probe = watched.wait()
        assert watched.permits[probe].probe
        await until(75.0)
        assert probe.gave_up_at is None

    play(scenario)


@pytest.mark.parametrize("answered", [False, True])
def test_our_own_stall_opens_nothing_before_what_arrived_is_read(answered: bool) -> None:
    async def scenario() -> None:
        jump = [0.0]
        watched = Watched(jump)
        waiting = [watched.wait() for _ in range(4)]
        await until(9.0)
        jump.append(30.0)  # the process slept
        await until(10.05)
        assert watched.rung.circuit.phase() is Phase.CLOSED
        if answered:
            for one in waiting:
                watched.answered(one)
        await until(10.2)
        assert (watched.rung.circuit.phase() is Phase.OPEN) == (not answered)

    play(scenario)


def test_closing_stops_the_timers() -> None:
    async def scenario() -> None:
        watched = Watched()
        watched.wait()
        assert timers() == 1
        watched.watch.close()
        watched.watch.close()
        assert timers() == 0

    play(scenario)
