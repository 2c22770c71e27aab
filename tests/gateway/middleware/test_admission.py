from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from stage import ScriptedProvider, Stage, loop, play, timers

from gateway.errors import AdmissionRejected
from gateway.generation import GenerationRequest, Served
from gateway.middleware.admission import Admission, AdmissionOptions, Line
from gateway.middleware.base import Answer


class Rooms:
    """So many slots, and a line for them."""

    def __init__(self, slots: int) -> None:
        self.line = Line(loop().time)
        self.free = slots
        self.order: list[str] = []

    def fits(self) -> bool:
        return self.free > 0

    async def visit(
        self, name: str, *, priority: int = 1, stays: float = 1.0, patience: float = 100.0
    ) -> bool:
        if not self.fits() and not await self.line.wait(priority, "slot", self.fits, patience):
            return False
        self.free -= 1
        self.order.append(name)
        try:
            await asyncio.sleep(stays)
        finally:
            self.free += 1
            self.line.left()
        return True

    def come(self, name: str, **how: float) -> asyncio.Task[bool]:
        return asyncio.ensure_future(self.visit(name, **how))  # type: ignore[arg-type]


def test_first_come_first_served_within_a_priority() -> None:
    async def scenario() -> None:
        rooms = Rooms(1)
        visits = []
        for name, priority in (("a", 1), ("b", 1), ("c", 2), ("d", 0), ("e", 1)):
            visits.append(rooms.come(name, priority=priority))
            await asyncio.sleep(0)
        assert len(rooms.line) == 4
        assert await asyncio.gather(*visits) == [True] * 5
        assert rooms.order == ["a", "d", "b", "e", "c"]
        assert len(rooms.line) == 0

    play(scenario)


def test_as_many_are_called_as_there_is_room_for() -> None:
    async def scenario() -> None:
        rooms = Rooms(1)
        visits = [rooms.come(str(number)) for number in range(7)]
        await asyncio.sleep(0.5)
        rooms.free += 3  # not because somebody left: the limit was raised
        rooms.line.wake()
        await asyncio.sleep(0.1)
        assert len(rooms.line) == 3
        await asyncio.gather(*visits)

    play(scenario)


def test_who_was_called_in_vain_keeps_its_place_and_its_patience() -> None:
    async def scenario() -> None:
        rooms = Rooms(0)
        first, second = rooms.come("first"), rooms.come("second", patience=2.0)
        for _ in range(5):
            await asyncio.sleep(0.3)
            rooms.free += 1
            rooms.line.left()
            rooms.free -= 1  # a newcomer was quicker, in the very same turn
        await asyncio.sleep(0.1)
        assert len(rooms.line) == 2
        assert await second is False
        assert loop().time() == pytest.approx(2.0)
        rooms.free += 1
        rooms.line.left()
        assert await first is True
        assert len(rooms.line) == 0

    play(scenario)


@pytest.mark.parametrize("seed", range(10))
def test_many_waiters_in_any_interleaving(seed: int) -> None:
    async def scenario() -> None:
        rooms = Rooms(3)
        visits = [rooms.come(str(number), stays=0.1 + number % 4) for number in range(30)]
        for victim in visits[5::7]:
            loop().call_later(1.7, victim.cancel)
        await asyncio.gather(*visits, return_exceptions=True)
        assert rooms.free == 3
        assert len(rooms.line) == 0
        assert timers() == 0

    play(scenario, seed=seed)


def test_a_cancelled_waiter_passes_its_call_on() -> None:
    async def scenario() -> None:
        rooms = Rooms(1)
        holder = rooms.come("holder")
        await asyncio.sleep(0)
        called, behind = rooms.come("called"), rooms.come("behind")
        await asyncio.sleep(0)

        def cancel(_: object) -> None:
            called.cancel()  # in the very turn in which it was called

        holder.add_done_callback(cancel)
        assert await asyncio.wait_for(behind, 10.0)
        assert called.cancelled()
        assert loop().time() == 2.0

    play(scenario)


def test_the_expected_wait_follows_the_pace() -> None:
    async def scenario() -> None:
        line = Line(loop().time)
        assert line.expected_wait_s() == 0.0  # unknown: try it
        for _ in range(20):
            line.left()
        assert line.expected_wait_s() == 0.5
        await asyncio.sleep(11.0)
        assert line.expected_wait_s() == 0.0

    play(scenario)


# -- the layer over it -----------------------------------------------------------------------------


class Passed(Answer):
    async def read(self) -> list[object]:  # type: ignore[override]
        return []

    async def finish(self) -> object:  # type: ignore[override]
        return None

    def close(self) -> None:
        """Nothing to let go."""


async def passes(request: GenerationRequest) -> Answer:
    return Passed(Served(requested_mode=request.mode, mode=request.mode))


def fill(stage: Stage, mode: str, count: int) -> Callable[[], None]:
    """Take slots of a mode; the result gives one of them back."""
    rung = stage.rung(mode)
    visits = [rung.enter(native=True) for _ in range(count)]
    return lambda: visits.pop().leave()  # type: ignore[union-attr]


def test_it_waits_only_if_a_slot_is_all_that_is_missing() -> None:
    async def scenario() -> None:
        one = {"max_in_flight": 1}
        stage = Stage(
            {"creative": ScriptedProvider(name="c"), "fast": ScriptedProvider(name="f")},
            mode_options={"creative": one, "fast": one},
        )
        admission = Admission(stage.ladder, AdmissionOptions(), stage.clock)
        fill(stage, "creative", 1)
        await admission(stage.request(), passes)  # fast is free
        leave = fill(stage, "fast", 1)
        waiting = asyncio.ensure_future(admission(stage.request(), passes))
        await asyncio.sleep(1.0)
        assert (admission.queued, waiting.done()) == (1, False)
        assert stage.rung("creative").limit.native_waiting == 1
        leave()
        assert (await waiting).served.mode == "creative"
        assert stage.rung("creative").limit.native_waiting == 0
        fill(stage, "fast", 1)
        stage.rung("creative").circuit.force("open")
        stage.rung("fast").circuit.force("open")
        await admission(stage.request(), passes)  # nothing is well: no reason to wait

    play(scenario)


def test_a_request_knows_how_long_it_has_waited_however_that_ended() -> None:
    async def scenario() -> None:
        stage = Stage({"solo": ScriptedProvider()}, mode_options={"solo": {"max_in_flight": 1}})
        admission = Admission(stage.ladder, AdmissionOptions(max_wait_s=3.0), stage.clock)
        requests = [stage.request("solo") for _ in range(4)]
        await admission(requests[0], passes)
        leave = fill(stage, "solo", 1)
        waits = [asyncio.ensure_future(admission(request, passes)) for request in requests[1:]]
        await asyncio.sleep(1.0)
        waits[1].cancel()
        await asyncio.sleep(0.5)
        leave()
        await waits[0]
        fill(stage, "solo", 1)
        with pytest.raises(AdmissionRejected):
            await waits[2]
        assert [request.queued_s for request in requests] == [0.0, 1.5, 1.0, 3.0]

    play(scenario)


def test_its_refusals_are_typed_and_say_when_to_come_back() -> None:
    async def scenario() -> None:
        stage = Stage({"solo": ScriptedProvider()}, mode_options={"solo": {"max_in_flight": 1}})
        options = AdmissionOptions(max_queue=1, max_wait_s=3.0)
        admission = Admission(stage.ladder, options, stage.clock)
        leave = fill(stage, "solo", 1)
        waiting = asyncio.ensure_future(admission(stage.request("solo"), passes))
        await asyncio.sleep(0)
        with pytest.raises(AdmissionRejected) as full:
            await admission(stage.request("solo"), passes)
        assert full.value.retry_after == 1.0
        with pytest.raises(AdmissionRejected):
            await waiting
        assert loop().time() == 3.0
        hurried = asyncio.ensure_future(admission(stage.request("solo", deadline=4.0), passes))
        with pytest.raises(AdmissionRejected):
            await hurried
        assert loop().time() == 3.5  # half of what it had
        leave()
        await admission(stage.request("solo"), passes)

    play(scenario)


def test_a_mode_that_healed_meanwhile_lets_waiters_in_with_the_next_request() -> None:
    async def scenario() -> None:
        stage = Stage(
            {"creative": ScriptedProvider(name="c"), "fast": ScriptedProvider(name="f")},
            mode_options={"fast": {"max_in_flight": 1}},
        )
        admission = Admission(stage.ladder, AdmissionOptions(), stage.clock)
        stage.rung("creative").circuit.force("open")
        fill(stage, "fast", 1)
        waiting = asyncio.ensure_future(admission(stage.request(), passes))
        await asyncio.sleep(1.0)
        assert admission.queued == 1
        stage.rung("creative").circuit.force("closed")
        await admission(stage.request(), passes)
        await waiting
        assert loop().time() == 1.0

    play(scenario)
