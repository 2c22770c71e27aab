"""The gearbox and the answers it gives; the walk itself is tested beside it."""

from __future__ import annotations

import asyncio

import pytest
from stage import ScriptedProvider, Stage, Step, finish, loop, play, role, timers

from gateway.detectors.failures import Outcome
from gateway.errors import DeadlineExceeded, ErrorKind, StreamInterrupted, UpstreamError
from gateway.events import AttemptFinished
from gateway.generation import Choice, Chunk, Delta
from gateway.middleware.base import compose
from gateway.policies.phases import CircuitOptions, Phase


def outcomes(stage: Stage) -> list[str]:
    return [e.outcome for e in stage.events if isinstance(e, AttemptFinished)]


def test_a_stream_is_handed_on_as_it_comes() -> None:
    async def scenario() -> None:
        stage = Stage({"solo": ScriptedProvider([role(), 1.0, "a", 2.0, "b", finish()])})
        answer = await stage.gearbox(stage.request("solo", buffered=False))
        assert loop().time() == 1.0
        assert [chunk.text for chunk in await answer.read()] == ["", "a"]
        assert [chunk.text for chunk in await answer.read()] == ["b"]
        assert [chunk.finish_reason for chunk in await answer.read()] == ["stop"]
        assert await answer.read() == []
        assert outcomes(stage) == ["success"]
        assert (await answer.finish()).text == "ab"
        answer.close()
        stage.at_rest()

    play(scenario)


def test_a_whole_answer_is_there_at_its_end() -> None:
    async def scenario() -> None:
        stage = Stage({"solo": ScriptedProvider(["a", 3.0, "b", finish(total_tokens=2)])})
        answer = await stage.gearbox(stage.request("solo"))
        assert loop().time() == 3.0
        generation = await answer.finish()
        assert (generation.text, generation.usage.total_tokens) == ("ab", 2)
        assert generation.duration_s == 3.0
        assert generation is await answer.finish()
        answer.close()
        stage.at_rest()
        stage.gearbox.close()
        assert timers() == 0

    play(scenario)


def test_closing_early_frees_everything_and_is_no_verdict() -> None:
    async def scenario() -> None:
        provider = ScriptedProvider(["a", 3.0, "b", finish()])
        stage = Stage({"solo": provider})
        answer = await stage.gearbox(stage.request("solo", buffered=False))
        answer.close()
        answer.close()
        stage.at_rest()
        assert outcomes(stage) == ["ignored"]
        assert provider.replies[0].closed == 1
        assert await answer.read() == []

    play(scenario)


@pytest.mark.parametrize(("silence", "outcome"), [(5.0, "ignored"), (12.0, "failure")])
def test_leaving_a_silent_stream_late_is_a_verdict(silence: float, outcome: str) -> None:
    async def scenario() -> None:
        stage = Stage({"solo": ScriptedProvider(["a", 1e9])})
        answer = await stage.gearbox(stage.request("solo", buffered=False))
        await answer.read()
        await asyncio.sleep(silence)
        answer.close()
        assert outcomes(stage) == [outcome]

    play(scenario)


def test_a_deadline_mid_answer_tells_what_had_arrived_and_blames_nobody() -> None:
    async def scenario() -> None:
        stage = Stage({"solo": ScriptedProvider(["a", 1.0, "b", 1.0, "c", 1e9])})
        answer = await stage.gearbox(stage.request("solo", buffered=False, deadline=2.5))
        with pytest.raises(DeadlineExceeded) as late:
            await answer.finish()
        assert late.value.partial == "abc"
        assert outcomes(stage) == ["ignored"]
        answer.close()
        stage.at_rest()

    play(scenario)


@pytest.mark.parametrize("buffered", [False, True])
def test_tool_calls_come_through_whole(buffered: bool) -> None:
    async def scenario() -> None:
        def call(**function: str) -> Chunk:
            piece = {"index": 0, "id": "call_1", "type": "function", "function": function}
            return Chunk([Choice(Delta(tool_calls=[piece]))])

        script: list[Step] = [call(name="weather", arguments=""), call(arguments='{"at": '), 0.5,
                  call(arguments='"Rome"}'), finish("tool_calls")]  # fmt: skip
        stage = Stage({"solo": ScriptedProvider(script)})
        answer = await stage.gearbox(stage.request("solo", buffered=buffered))
        generation = await answer.finish()
        [made] = generation.tool_calls
        assert made["function"] == {"name": "weather", "arguments": '{"at": "Rome"}'}
        assert generation.finish_reason == "tool_calls"
        answer.close()

    play(scenario)


def test_a_probe_that_streams_is_proven_before_its_end() -> None:
    async def scenario() -> None:
        options = CircuitOptions(break_duration_s=10.0)
        script: list[Step] = ["a", *(1.0, "b") * 40, finish()]
        stage = Stage(
            {"solo": ScriptedProvider(script), "below": ScriptedProvider()}, options=options
        )
        circuit = stage.rung("solo").circuit
        for _ in range(3):
            permit = circuit.admit()
            assert permit is not None
            circuit.settle(permit, Outcome.FAILURE)
        await asyncio.sleep(10.0)
        answer = await stage.gearbox(stage.request("solo", buffered=False))
        while circuit.phase() is Phase.PROBING:
            await answer.read()
        assert loop().time() == 15.0
        answer.close()
        assert circuit.phase() is Phase.RECOVERING
        stage.at_rest()

    play(scenario)


def test_what_breaks_a_stream_is_its_cause() -> None:
    async def scenario() -> None:
        broke = UpstreamError("event: error", kind=ErrorKind.SERVER, target="x")
        stage = Stage({"solo": ScriptedProvider(["a", broke])})
        answer = await stage.gearbox(stage.request("solo", buffered=False))
        with pytest.raises(StreamInterrupted) as raised:
            await answer.finish()
        assert raised.value.__cause__ is broke
        assert raised.value.kind is ErrorKind.SERVER
        assert outcomes(stage) == ["failure"]

    play(scenario)


def test_closing_the_gearbox_stops_its_timers() -> None:
    async def scenario() -> None:
        stage = Stage({"solo": ScriptedProvider([1e9])})
        asking = asyncio.ensure_future(stage.gearbox(stage.request("solo")))
        await asyncio.sleep(1.0)
        asking.cancel()
        await asyncio.wait([asking])
        stage.gearbox.close()
        assert timers() == 0
        stage.at_rest()

    play(scenario)


def test_layers_are_composed_outermost_first() -> None:
    async def scenario() -> None:
        order: list[str] = []

        class Layer:
            def __init__(self, name: str) -> None:
                self.name = name

            async def __call__(self, request, call_next):  # type: ignore[no-untyped-def]
                order.append(self.name)
                return await call_next(request)

        stage = Stage({"solo": ScriptedProvider()})
        handle = compose([Layer("outer"), Layer("inner")], stage.gearbox)
        answer = await handle(stage.request("solo"))
        assert (await answer.finish()).text == "fine"
        assert order == ["outer", "inner"]

    play(scenario)
