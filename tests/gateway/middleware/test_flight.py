from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from stage import loop, play, text, timers

from gateway.errors import DeadlineExceeded, GatewayError, UpstreamUnavailable
from gateway.generation import Chunk, Generation, GenerationRequest, Served
from gateway.middleware.base import Answer
from gateway.middleware.flight import Flight, Key, Passenger, own_copy


class Slow(Answer):
    """An answer that gives one chunk a second, then ends or breaks."""

    def __init__(self, words: list[str], error: BaseException | None = None) -> None:
        super().__init__(Served(requested_mode="creative", mode="creative"))
        self.words = list(words)
        self.said: list[str] = []
        self.error = error
        self.closed = 0

    async def read(self) -> list[Chunk]:
        if not self.words:
            if self.error is not None:
                raise self.error
            return []
        await asyncio.sleep(1.0)
        self.said.append(self.words.pop(0))
        return [text(self.said[-1])]

    async def finish(self) -> Generation:
        while await self.read():
            pass
        message = {"content": "".join(self.said), "annotations": []}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return Generation(id="gen-0", choices=[choice], served=self.served, duration_s=99.0)

    def close(self) -> None:
        self.closed += 1


class Airport:
    """Starts one flight and notes what becomes of it."""

    def __init__(
        self, answer: Slow, *, buffered: bool = True, opens_after: float = 1.0, keeps_s: float = 0.0
    ) -> None:
        self.answer = answer
        self.kept: list[Generation] = []
        self.stored = 0
        self.gone = 0
        self.asked = 0
        self._opens_after = opens_after
        self._keeps_s = keeps_s
        self.flight = Flight(
            (b"asked", "so"),
            self.request(0, buffered=buffered),
            self._call,
            self._keep,
            self._leaves,
            loop().time,
        )

    def request(self, number: int, **more: Any) -> GenerationRequest:
        more = {"deadline": 100.0, "started": loop().time(), **more}
        return GenerationRequest(id=f"gen-{number}", mode="creative", messages=[], **more)

    def board(self, number: int, **more: Any) -> Passenger:
        more = {"buffered": self.flight.request.buffered, **more}
        return self.flight.board(self.request(number, **more))

    async def _call(self, _: GenerationRequest) -> Answer:
        self.asked += 1
        await asyncio.sleep(self._opens_after)
        return self.answer

    def _keep(
        self, _key: Key, _request: GenerationRequest, generation: Generation
    ) -> Awaitable[None] | None:
        self.kept.append(generation)
        return self._store()

    async def _store(self) -> None:
        await asyncio.sleep(self._keeps_s)
        self.stored += 1

    def _leaves(self, _: Flight) -> None:
        self.gone += 1


async def ride(passenger: Passenger) -> Generation:
    await passenger.opened()
    try:
        return await passenger.finish()
    finally:
        passenger.close()


def test_one_call_for_everyone_and_each_gets_an_answer_of_its_own() -> None:
    async def scenario() -> None:
        airport = Airport(Slow(["a", "b"]))
        first = asyncio.ensure_future(ride(airport.board(1)))
        await asyncio.sleep(1.5)
        late = asyncio.ensure_future(ride(airport.board(2)))
        one, two = await first, await late
        assert (airport.asked, len(airport.kept), airport.answer.closed) == (1, 1, 1)
        assert (one.text, two.text) == ("ab", "ab")
        assert (one.id, two.id) == ("gen-1", "gen-2")
        assert (one.duration_s, two.duration_s) == (3.0, 1.5)
        one.message["content"] = "changed"
        one.message["annotations"].append("x")
        assert two.message == {"content": "ab", "annotations": []} == airport.kept[0].message
        await asyncio.sleep(0)
        assert airport.stored == 1

    play(scenario)


def test_a_stream_is_read_by_each_at_its_own_pace() -> None:
    async def scenario() -> None:
        airport = Airport(Slow(["a", "b", "c"]), buffered=False)
        quick, slow = airport.board(1), airport.board(2)

        async def listen(passenger: Passenger, pause: float) -> list[str]:
            await passenger.opened()
            heard = []
            while chunks := await passenger.read():
                heard.append("".join(chunk.text for chunk in chunks))
                await asyncio.sleep(pause)
            passenger.close()
            return heard

        first, second = await asyncio.gather(listen(quick, 0.0), listen(slow, 5.0))
        assert (first, second) == (["a", "b", "c"], ["a", "bc"])
        assert airport.flight.ended

        joined = airport.board(3)  # nobody does once it is gone, but the log is still whole
        assert await listen(joined, 0.0) == ["abc"]

    play(scenario)


def test_the_commit_point_is_the_first_chunk_for_a_stream_and_the_end_for_a_whole() -> None:
    async def scenario() -> None:
        streaming = Airport(Slow(["a", "b"]), buffered=False).board(1)
        await streaming.opened()
        assert loop().time() == 2.0
        assert streaming.served.mode == "creative"
        await ride_on(streaming)
        whole = Airport(Slow(["a", "b"])).board(2)
        await whole.opened()
        assert loop().time() == 3.0 + 3.0
        await ride_on(whole)

    async def ride_on(passenger: Passenger) -> None:
        await passenger.finish()
        passenger.close()

    play(scenario)


def test_the_last_to_leave_cancels_it_and_not_before() -> None:
    async def scenario() -> None:
        airport = Airport(Slow(["a"] * 50), buffered=False)
        riders = [airport.board(number) for number in range(3)]
        for rider in riders:
            await rider.opened()
        for rider in riders[:-1]:
            rider.close()
            rider.close()
        await asyncio.sleep(1.0)
        assert not airport.flight.ended
        riders[-1].close()
        assert airport.gone == 1  # at once: whoever asks now begins anew
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert airport.flight.ended
        assert (airport.answer.closed, len(airport.kept)) == (1, 0)
        assert timers() <= 1

    play(scenario)


@pytest.mark.parametrize("buffered", [True, False])
def test_a_failure_reaches_everyone_and_is_not_kept(buffered: bool) -> None:
    async def scenario() -> None:
        broken = UpstreamUnavailable("broke")
        airport = Airport(Slow(["a"], broken), buffered=buffered)
        rides = [asyncio.ensure_future(ride(airport.board(number))) for number in range(3)]
        ends = await asyncio.gather(*rides, return_exceptions=True)
        assert ends == [broken] * 3
        assert (len(airport.kept), airport.answer.closed) == (0, 1)
        assert timers() == 0

    play(scenario)


def test_each_has_its_own_deadline_and_the_flight_the_latest() -> None:
    async def scenario() -> None:
        airport = Airport(Slow(["a"] * 5), buffered=False)
        hurried = asyncio.ensure_future(ride(airport.board(1, deadline=2.5)))
        patient = asyncio.ensure_future(ride(airport.board(2, deadline=30.0)))
        assert airport.flight.request.deadline == 100.0
        with pytest.raises(DeadlineExceeded) as late:
            await hurried
        assert loop().time() == pytest.approx(2.5, abs=0.05)
        assert late.value.partial == "a"
        assert (await patient).text == "aaaaa"

    play(scenario)


def test_everyone_is_told_before_it_is_kept() -> None:
    async def scenario() -> None:
        airport = Airport(Slow(["a"]), keeps_s=5.0)
        await ride(airport.board(1))
        assert (loop().time(), airport.stored) == (2.0, 0)
        await asyncio.sleep(5.0)
        assert airport.stored == 1

    play(scenario)


@pytest.mark.parametrize("after", [0.0, 0.5, 1.5])
def test_aborting_tells_everyone_at_once(after: float) -> None:
    async def scenario() -> None:
        airport = Airport(Slow(["a"] * 9))
        rides = [asyncio.ensure_future(ride(airport.board(number))) for number in range(3)]
        await asyncio.sleep(after)
        await airport.flight.abort()
        assert airport.flight.ended
        ends = await asyncio.gather(*rides, return_exceptions=True)
        assert loop().time() == after
        assert all(isinstance(end, GatewayError) for end in ends)
        assert airport.answer.closed == (1 if after > 1 else 0)
        assert timers() == 0

    play(scenario)


def test_a_cancelled_rider_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        airport = Airport(Slow(["a"] * 9))
        stays = asyncio.ensure_future(ride(airport.board(0)))
        await asyncio.sleep(0)
        before = timers()
        for number in range(50):
            rider = asyncio.ensure_future(ride(airport.board(number)))
            await asyncio.sleep(0)
            rider.cancel()
            await asyncio.wait([rider])
        assert (airport.flight.passengers, len(airport.flight._sleepers)) == (1, 1)
        assert timers() == before
        assert (await stays).text == "a" * 9

    play(scenario)


def test_an_answer_is_told_once_how_it_ended() -> None:
    async def scenario() -> None:
        airport = Airport(Slow(["a"]), buffered=False)
        told: list[tuple[Generation | None, BaseException | None]] = []
        passenger = airport.board(1)
        await passenger.opened()
        passenger.when_done(lambda *end: told.append(end))
        while await passenger.read():
            pass
        generation = await passenger.finish()
        passenger.close()
        assert told == [(generation, None)]

    play(scenario)


def test_own_copy_reaches_down_to_the_last_list() -> None:
    json: dict[str, Any] = {"a": [1, {"b": ["c"]}], "d": None, "e": "x", "f": 1.5, "g": {}, "h": []}
    mine = own_copy(json)
    assert mine == json
    mine["a"][1]["b"].append("new")
    mine["g"]["new"] = 1
    mine["h"].append(1)
    assert json == {"a": [1, {"b": ["c"]}], "d": None, "e": "x", "f": 1.5, "g": {}, "h": []}
