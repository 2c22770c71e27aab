"""Corners where two rules meet: a call nobody takes up, a hurried leader, half a tool call."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from stage import ScriptedProvider, Stage, Step, finish, loop, play, text

from gateway.clock import ManualClock
from gateway.detectors.failures import Outcome
from gateway.errors import DeadlineExceeded, ErrorKind, GatewayError, StreamInterrupted
from gateway.errors import UpstreamUnavailable as Unavailable
from gateway.generation import Choice, Chunk, Delta, Generation
from gateway.middleware.admission import Line
from gateway.middleware.response_cache import ResponseCache
from gateway.policies.circuit import Circuit
from gateway.policies.phases import CircuitOptions, Phase, Transition
from gateway.policies.ttl import CacheOptions
from gateway.stores.base import Entry
from gateway.stores.memory import MemoryStore

CUT = Unavailable("cut", kind=ErrorKind.INTERRUPTED)
CALL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"ci'}}


class Front:
    """The cache in front of a gearbox."""

    def __init__(self, stage: Stage, store: MemoryStore | None = None) -> None:
        self.stage = stage
        self.layer = ResponseCache(
            store or MemoryStore(clock=stage.clock), CacheOptions(), stage.ladder, stage.clock
        )

    async def ask(self, deadline_s: float, **more: Any) -> Generation:
        deadline = self.stage.clock() + deadline_s
        answer = await self.layer(self.stage.request(deadline=deadline, **more), self.stage.gearbox)
        try:
            return await answer.finish()
        finally:
            answer.close()

    def asking(self, deadline_s: float, **more: Any) -> asyncio.Task[Generation]:
        return asyncio.ensure_future(self.ask(deadline_s, **more))


@pytest.mark.parametrize("after", [0, 1])
def test_b23_a_call_to_somebody_who_has_just_left_goes_to_the_next(after: int) -> None:
    async def scenario() -> None:
        line, free = Line(loop().time), 0

        async def wait() -> float:
            assert await line.wait(1, "slot", lambda: free > 0, 100.0)
            return loop().time()

        called, behind = asyncio.ensure_future(wait()), asyncio.ensure_future(wait())
        await asyncio.sleep(1.0)
        free = 1
        if after:
            called.cancel()
        line.left()
        called.cancel()
        assert await behind == 1.0
        assert called.cancelled()

    play(scenario)


def test_b1_a_patient_caller_is_not_given_up_in_the_hurry_of_the_leader() -> None:
    async def scenario() -> None:
        front = Front(Stage({"creative": ScriptedProvider([3.0, "well", finish()])}))
        hurried = front.asking(1.0, id="gen-h")
        await asyncio.sleep(0.1)
        patient = [front.asking(60.0, id=f"gen-{number}") for number in range(3)]
        with pytest.raises(DeadlineExceeded):
            await hurried
        assert [answer.text for answer in await asyncio.gather(*patient)] == ["well"] * 3
        assert loop().time() == pytest.approx(3.1)
        assert not front.layer._flights
        front.stage.at_rest()

    play(scenario)


def test_b21_a_flight_that_streams_takes_on_whoever_comes() -> None:
    async def scenario() -> None:
        provider = ScriptedProvider(["a", 1.0, "b", 1.0, "c", finish()])
        front = Front(Stage({"creative": provider}))
        first = front.asking(5.0, buffered=False, id="gen-1")
        await asyncio.sleep(0.5)
        second = front.asking(60.0, buffered=False, id="gen-2")
        assert {(await first).text, (await second).text} == {"abc"}
        assert len(provider.calls) == 1

    play(scenario)


def test_closing_stops_a_flight_that_others_did_not_board() -> None:
    async def scenario() -> None:
        front = Front(Stage({"creative": ScriptedProvider([1e9])}))
        asking = [front.asking(10.0)]
        await asyncio.sleep(0.1)
        asking.append(front.asking(100.0))
        await asyncio.sleep(0.1)
        await front.layer.aclose()
        ends = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(end, GatewayError) for end in ends)
        assert loop().time() == pytest.approx(0.2)
        front.stage.at_rest()
        front.stage.gearbox.close()

    play(scenario)


class Distant(MemoryStore):
    """A store that takes its time before it says that it has nothing."""

    async def get(self, key: bytes) -> Entry | None:
        await asyncio.sleep(0.05)
        return await super().get(key)


@pytest.mark.parametrize("deadline_s", [0.03, 0.12, 0.2, 1.0])
def test_b1_a_slow_store_takes_nobody_past_its_deadline(deadline_s: float) -> None:
    async def scenario() -> None:
        modes = {name: ScriptedProvider([1e9], name=name) for name in ("creative", "mid", "fast")}
        stage = Stage(modes)
        for rung in stage.ladder:
            rung.circuit.force("open")
        stage.rung("fast").circuit.force("auto")
        front = Front(stage, Distant(clock=stage.clock))
        with pytest.raises(GatewayError):
            await front.ask(deadline_s)
        assert loop().time() <= deadline_s + 0.05
        stage.gearbox.close()

    play(scenario)


def test_b20_a_slow_store_that_answers_in_time_still_serves_stale() -> None:
    async def scenario() -> None:
        stage = Stage({"creative": ScriptedProvider(["old", finish()], [Unavailable("down")])})
        front = Front(stage, Distant(clock=stage.clock))
        assert (await front.ask(10.0)).text == "old"
        await asyncio.sleep(4000.0)
        again = await front.ask(10.0)
        assert (again.text, again.served.stale) == ("old", True)

    play(scenario)


@pytest.mark.parametrize(
    "begun",
    [
        [Chunk([Choice(Delta(reasoning_content="half a thought"))])],
        [Chunk([Choice(Delta(tool_calls=[CALL]))])],
        [text("I look it up"), Chunk([Choice(Delta(tool_calls=[CALL]))])],
        [Chunk([Choice(Delta(function_call={"name": "f", "arguments": "{"}))])],
        [text("zero"), Chunk([Choice(Delta(content="one"), index=1)])],
        [Chunk([Choice(Delta(refusal="I ca"))])],
        [text("all of it"), finish()],
    ],
)
def test_b15_only_a_text_that_stands_alone_is_continued(begun: list[Chunk]) -> None:
    async def scenario() -> None:
        lower = ScriptedProvider(["anew", finish()], name="b")
        steps: list[Step] = [begun, CUT]
        stage = Stage({"creative": ScriptedProvider(steps), "balanced": lower})
        answer = await stage.gearbox(stage.request(buffered=False, on_interrupt="continue"))
        assert await answer.read() == begun
        with pytest.raises(StreamInterrupted):
            await answer.read()
        answer.close()
        assert not lower.calls
        stage.at_rest()

    play(scenario)


@pytest.mark.parametrize("n", [None, 1, 2])
def test_b15_one_of_several_choices_is_not_continued_before_the_others_began(n: int | None) -> None:
    async def scenario() -> None:
        lower = ScriptedProvider(["rest", finish()], name="b")
        stage = Stage({"creative": ScriptedProvider(["half ", CUT]), "balanced": lower})
        request = stage.request(buffered=False, on_interrupt="continue", params={"n": n})
        answer = await stage.gearbox(request)
        if n == 2:
            with pytest.raises(StreamInterrupted):
                await answer.finish()
        else:
            assert (await answer.finish()).text == "half rest"
        answer.close()

    play(scenario)


def test_b15_a_text_behind_its_reasoning_is_continued() -> None:
    async def scenario() -> None:
        thought = Chunk([Choice(Delta(reasoning_content="hm"))])
        lower = ScriptedProvider(["rest", finish()], name="b")
        stage = Stage({"creative": ScriptedProvider([thought, "half ", CUT]), "balanced": lower})
        answer = await stage.gearbox(stage.request(buffered=False, on_interrupt="continue"))
        whole = await answer.finish()
        assert (whole.reasoning, whole.text) == ("hm", "half rest")
        answer.close()

    play(scenario)


def test_b4_streams_are_overdue_in_their_own_time_beside_a_target_that_does_not_stream() -> None:
    async def scenario() -> None:
        whole = ScriptedProvider([1e9], name="whole", streams=False)
        streams = ScriptedProvider([1e9], name="streams")
        stage = Stage(
            {"creative": [whole, streams], "fast": ScriptedProvider()},
            mode_options={"creative": {"first_token_s": 120.0}},
        )
        for _ in range(50):
            stage.latency.hear("creative", 60.0)  # so its whole answers are overdue much later
        rung = stage.rung("creative")
        first, second = rung.targets
        asking: list[asyncio.Task[Any]] = []
        for resting, count in ((second, 1), (first, 3)):
            first.resting_until = second.resting_until = 0.0
            resting.resting_until = 1e9
            calls = [stage.gearbox(stage.request()) for _ in range(count)]
            asking += [asyncio.ensure_future(call) for call in calls]
            await asyncio.sleep(0.5)
        await asyncio.sleep(9.4)
        assert not rung.circuit.downshifted
        await asyncio.sleep(0.2)
        assert rung.circuit.downshifted
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
        stage.gearbox.close()

    play(scenario)


@pytest.mark.parametrize(
    "said",
    [
        [Chunk([Choice(Delta(reasoning_content="hm"))]), finish()],
        [text("one"), Chunk([Choice(Delta(role="assistant"), index=1, finish_reason="stop")])],
    ],
)
def test_b22_an_answer_with_an_empty_choice_is_not_kept(said: list[Step]) -> None:
    async def scenario() -> None:
        provider = ScriptedProvider([*said, finish()])
        front = Front(Stage({"creative": provider}))
        await front.ask(10.0)
        await front.ask(10.0)
        assert len(provider.calls) == 2

    play(scenario)


@pytest.mark.parametrize("slow_s", [1e-300, 1e-9, 1e308])
def test_a_slow_threshold_however_small_or_large_is_watched_in_finite_steps(slow_s: float) -> None:
    async def scenario() -> None:
        stage = Stage(
            {"creative": ScriptedProvider([1.0, "late", finish()]), "fast": ScriptedProvider()},
            options=CircuitOptions(slow_s=slow_s),
        )
        answer = await stage.gearbox(stage.request())
        assert (await answer.finish()).text == "late"
        answer.close()
        stage.gearbox.close()

    play(scenario)


def test_b7_a_target_that_failed_comes_last_among_its_like_for_ten_seconds() -> None:
    async def scenario() -> None:
        sick = ScriptedProvider([Unavailable("refused", kind=ErrorKind.CONNECT)], name="sick")
        stage = Stage({"creative": [sick, ScriptedProvider(name="well")]})

        async def ask() -> int:
            answer = await stage.gearbox(stage.request())
            assert (await answer.finish()).text == "fine"
            answer.close()
            return len(sick.calls)

        assert [await ask() for _ in range(5)] == [1] * 5
        await asyncio.sleep(9.9)
        assert await ask() == 1
        await asyncio.sleep(0.2)
        assert await ask() == 2
        stage.gearbox.close()

    play(scenario)


def test_b5_a_probe_waits_for_its_first_token_no_longer_than_its_lease() -> None:
    async def scenario() -> None:
        options = CircuitOptions(probe_lease_s=3.0, slow_s=10.0)
        stage = Stage(
            {"creative": ScriptedProvider([1e9]), "fast": ScriptedProvider()}, options=options
        )
        circuit = stage.rung("creative").circuit
        for _ in range(3):
            permit = circuit.admit()
            assert permit is not None
            circuit.settle(permit, Outcome.FAILURE)
        await asyncio.sleep(300.0)
        answer = await stage.gearbox(stage.request())
        assert answer.served.mode == "fast"
        assert loop().time() == pytest.approx(303.0, abs=0.05)
        answer.close()
        stage.gearbox.close()

    play(scenario)


def test_b9_an_early_probe_never_makes_a_hold_longer() -> None:
    clock = ManualClock(100.0)
    circuit = Circuit("fast", CircuitOptions(break_duration_s=5.0, early_probe_s=10.0), clock)
    for _ in range(3):
        permit = circuit.admit()
        assert permit is not None
        circuit.settle(permit, Outcome.FAILURE)
    clock.advance(4.999)
    assert circuit.admit() is None
    clock.advance(0.001)
    probe = circuit.admit()
    assert probe is not None and probe.probe


def test_b12_a_circuit_turns_the_same_whoever_raises_when_told_of_it() -> None:
    def raises(_: Transition) -> None:
        raise RuntimeError("a listener's fault")

    circuit = Circuit("creative", CircuitOptions(), ManualClock(1.0), on_change=raises)
    for _ in range(3):
        permit = circuit.admit()
        assert permit is not None
        circuit.settle(permit, Outcome.FAILURE)
    assert circuit.phase() is Phase.OPEN
    assert circuit.in_flight == 0
    circuit.force("open")
    circuit.force("auto")
    assert circuit.phase() is Phase.RECOVERING


def test_b13_a_stale_answer_of_the_very_mode_says_until_when_that_may_be_away() -> None:
    async def scenario() -> None:
        provider = ScriptedProvider(["old", finish()], [Unavailable("down")])
        front = Front(Stage({"creative": provider}))
        await front.ask(10.0)
        await asyncio.sleep(4000.0)
        for number in range(3):
            with pytest.raises(GatewayError):
                await front.ask(10.0, params={"seed": number})
        stale = await front.ask(10.0)
        assert (stale.served.stale, stale.degraded) == (True, False)
        assert stale.until == pytest.approx(300.0, abs=1.0)

    play(scenario)
