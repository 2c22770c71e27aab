"""Cancelled at every await, nothing leaks: points 1, 13 and 19.

The same scenario is played again and again; in play number k its task is cancelled just before
turn k of the loop, until there is a play that ends before it could be.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from world import FOREVER, MODES, World, ladder, play

from gateway.config import Config
from gateway.errors import GatewayError
from gateway.generation import Generation
from gateway.policies.phases import Phase
from gateway.simulator.faults import CutStream, Outage, Stall, Throttled

Ask = Callable[[World], Awaitable[object]]


def cancelled_at_every_turn(
    ask: Ask,
    *,
    config: Config | None = None,
    before: Ask | None = None,
    after: Ask | None = None,
    again: bool = False,
    seed: int | None = None,
) -> int:
    """Cancel `ask` at its every await. Returns how many there were.

    Args:
        before: what comes first, uncancelled.
        after: what must still work when the cancelled one is gone.
        again: cancel it once more, one turn later.
    """

    def run_once(turn: int) -> bool:
        async def scenario(world: World) -> bool:
            if before is not None:
                await before(world)
            task = asyncio.ensure_future(ask(world))
            loop, first = world.loop, world.loop.turns
            hit = False

            def cancel() -> None:
                nonlocal hit
                hit = task.cancel() or hit
                if again:
                    loop.at_turn(first + turn + 1, task.cancel)

            loop.at_turn(first + turn, cancel)
            await asyncio.wait([task])
            await asyncio.sleep(0.01)  # upstream must be closed at once, not after a second
            if hit:
                assert task.cancelled() or isinstance(task.exception(), GatewayError | None)
            if after is not None:
                world.check()
                await after(world)
            else:
                world.check_at_rest()
            return hit

        return play(scenario, config, seed=seed)

    turns = 0
    while run_once(turns):
        turns += 1
        assert turns < 2000
    return turns


async def generate(world: World) -> object:
    return await world.outcome(deadline=40.0)


async def stream(world: World) -> object:
    async with world.gateway.stream(world.prompt(), deadline=40.0) as answer:
        async for _ in answer:
            pass
        return answer.served


async def stream_left_early(world: World) -> object:
    async with world.gateway.stream(world.prompt()) as answer:
        async for chunk in answer:
            if chunk.text:
                break
        await asyncio.sleep(0)
    return answer.served


async def stream_to_the_end(world: World) -> object:
    async with world.gateway.stream(world.prompt(), on_interrupt="continue") as answer:
        return await answer.finish()


async def still_works(world: World) -> None:
    await asyncio.sleep(61.0)
    world.plan("creative")
    assert (await world.ask()).text
    world.check_at_rest()


FAULTS: dict[str, Any] = {
    "healthy": (),
    "refused": (Outage(0.0, FOREVER, "refuse"),),
    "refused once": (Outage(0.0, 0.001, "error500"),),
    "silent": (Outage(0.0, FOREVER, "silent"),),
    "headers then silence": (Stall(0.0, FOREVER, after_chunks=0),),
    "stalled": (Stall(0.0, FOREVER, after_chunks=1),),
    "cut": (CutStream(0.0, FOREVER, after_chunks=2),),
    "throttled briefly": (Throttled(0.0, 0.5, 1.0),),
    "throttled": (Throttled(0.0, FOREVER, 30.0),),
}


@pytest.mark.parametrize("ask", [generate, stream, stream_left_early, stream_to_the_end])
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_13_cancelled_at_every_await(ask: Ask, faults: tuple[Any, ...]) -> None:
    async def suffer(world: World) -> None:
        world.plan("creative", *faults)

    async def and_typed(world: World) -> object:
        try:
            return await ask(world)
        except GatewayError as error:
            return error

    turns = cancelled_at_every_turn(and_typed, before=suffer, after=still_works)
    assert turns >= 5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ask", [generate, stream])
def test_13_cancelled_twice_in_any_interleaving(ask: Ask, seed: int) -> None:
    async def suffer(world: World) -> None:
        world.plan("creative", Outage(0.0, FOREVER, "reset"))

    cancelled_at_every_turn(ask, before=suffer, after=still_works, again=True, seed=seed)


@pytest.mark.parametrize("ask", [generate, stream])
def test_13_cancelled_while_queued(ask: Ask) -> None:
    """One slot, and somebody has it; a third caller queues behind and must still get its turn."""

    async def fill(world: World) -> None:
        world.loop.create_task(world.outcome("solo"))
        await asyncio.sleep(0.01)

    async def queue(world: World) -> object:
        return await world.gateway.generate(world.prompt(), "solo")

    async def queue_stream(world: World) -> object:
        async with world.gateway.stream(world.prompt(), "solo") as answer:
            return await answer.finish()

    async def third(world: World) -> None:
        assert (await world.ask("solo")).mode == "solo"
        world.check_at_rest()

    config = ladder(modes={"solo": {"max_in_flight": 1}})
    cancelled = queue if ask is generate else queue_stream
    turns = cancelled_at_every_turn(cancelled, config=config, before=fill, after=third)
    assert turns >= 5


@pytest.mark.parametrize("stall", [False, True], ids=["", "stalling"])
def test_13_a_cancelled_probe_leaves_the_mode_to_be_probed_again(stall: bool) -> None:
    async def open_and_wait(world: World) -> None:
        opened = await world.open_circuit()
        if stall:
            world.plan("creative", Stall(0.0, 310.0, after_chunks=0))
        await asyncio.sleep(opened + 300.0 - world.now)

    async def recovers(world: World) -> None:
        await asyncio.sleep(0.0 if world.phase("creative") is not Phase.OPEN else 300.0)
        world.plan("creative")
        assert (await world.ask()).mode == "creative"
        world.check_at_rest()

    cancelled_at_every_turn(generate, before=open_and_wait, after=recovers)
    cancelled_at_every_turn(stream, before=open_and_wait, after=recovers)


def test_13_a_cancelled_trial_of_a_total_outage() -> None:
    async def all_open(world: World) -> None:
        for mode in MODES:
            await world.open_circuit(mode)
        await asyncio.sleep(2.0)

    async def recovers(world: World) -> None:
        await asyncio.sleep(5.0)
        assert (await world.ask()).text
        world.check_at_rest()

    cancelled_at_every_turn(generate, before=all_open, after=recovers)


@pytest.mark.parametrize("place", [0, 1, 4], ids=["who began it", "in the middle", "the last"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_16_one_of_many_who_asked_the_same(place: int, streamed: bool) -> None:
    """A waiter's cancellation hurts nobody, and there is one upstream call all the same."""

    async def ask(world: World) -> object:
        if not streamed:
            return await world.ask(prompt="the same")
        async with world.gateway.stream("the same") as answer:
            texts = [chunk.text async for chunk in answer]
        assert "".join(texts) == world.said_by("creative", "the same")
        return None

    def run_once(turn: int) -> bool:
        async def scenario(world: World) -> bool:
            tasks = [asyncio.ensure_future(ask(world)) for _ in range(5)]
            world.loop.at_turn(world.loop.turns + turn, tasks[place].cancel)
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            others = ended[:place] + ended[place + 1 :]
            assert not [end for end in others if isinstance(end, BaseException)]
            assert world.calls("creative") == 1
            assert world.upstream("creative").stats.completed == 1
            return isinstance(ended[place], asyncio.CancelledError)

        return play(scenario)

    turns = 0
    while run_once(turns):
        turns += 1
    assert turns >= 5


def test_16_the_last_waiter_leaving_cancels_upstream_at_once() -> None:
    async def scenario(world: World) -> None:
        tasks = [
            asyncio.ensure_future(world.gateway.generate("the same", deadline=30.0))
            for _ in range(50)
        ]
        await asyncio.sleep(0.05)
        for task in tasks[:-1]:
            task.cancel()
        await asyncio.sleep(0.01)
        stats = world.upstream("creative").stats
        assert (stats.in_flight, stats.cancelled) == (1, 0)
        tasks[-1].cancel()
        await asyncio.sleep(0.01)
        assert (stats.in_flight, stats.cancelled) == (0, 1)
        # Whoever asks now begins anew.
        assert (await world.ask(prompt="the same")).text
        assert stats.started == 2

    play(scenario)


@pytest.mark.parametrize("fault", ["healthy", "silent", "stalled", "throttled briefly"])
def test_13_the_gateway_closed_at_every_await(fault: str) -> None:
    """Whoever waits then hears a typed error, and hears it at once."""

    def run_once(turn: int) -> bool:
        async def scenario(world: World) -> bool:
            world.plan("creative", *FAULTS[fault])
            tasks = [
                asyncio.ensure_future(generate(world)),
                asyncio.ensure_future(generate(world)),
                asyncio.ensure_future(world.gateway.generate("the same", deadline=40.0)),
                asyncio.ensure_future(world.gateway.generate("the same", deadline=40.0)),
                asyncio.ensure_future(stream(world)),
            ]
            closing: list[asyncio.Task[None]] = []
            world.loop.at_turn(
                world.loop.turns + turn,
                lambda: closing.append(world.loop.create_task(world.gateway.aclose())),
            )
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            world.loop.at_turn(-1, bool)  # too late now
            if closing:
                before = world.now
                await asyncio.wait(closing)
                assert world.now - before <= 0.01
            for end in ended:
                assert isinstance(end, GatewayError) or not isinstance(end, BaseException), end
            return bool(closing)

        return play(scenario)

    turns = 0
    while run_once(turns):
        turns += 1
    assert turns >= 5


def test_13_closing_ends_what_waits_at_once() -> None:
    async def scenario(world: World) -> None:
        world.plan("creative", Outage(0.0, FOREVER, "silent"))
        tasks = [asyncio.ensure_future(generate(world)) for _ in range(10)]
        await asyncio.sleep(1.0)
        await world.gateway.aclose()
        ended = await asyncio.gather(*tasks)
        assert world.now == pytest.approx(1.0)
        assert all(isinstance(end, GatewayError) for end in ended)
        with pytest.raises(GatewayError, match="closed"):
            await world.gateway.generate("hello")

    play(scenario)


def test_13_closing_in_the_turn_a_request_came_in() -> None:
    async def scenario(world: World) -> None:
        task = asyncio.ensure_future(generate(world))
        await asyncio.sleep(0)
        await world.gateway.aclose()
        assert isinstance(await task, GatewayError)
        assert world.now == 0.0

    play(scenario)


async def storm(world: World, count: int) -> None:
    """`count` callers, cancelled at all moments; a fifth of them ask the same."""
    batch = 200
    for start in range(0, count, batch):
        tasks = []
        for number in range(start, start + batch):
            prompt = "the same" if number % 5 == 0 else f"number {number}"
            asked = world.gateway.generate(prompt, deadline=20.0, cache=number % 3 > 0)
            tasks.append(asyncio.ensure_future(asked))
            if number % 7 == 0:
                await asyncio.sleep(0.004)
        await asyncio.sleep(0.011 * (start / batch % 9))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)


def baseline_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whose answer a rating would be about is remembered for the last 10,000: bounded, but large
    # beside what is measured here.
    monkeypatch.setattr("gateway.ratings._REMEMBERED", 100)

    async def scenario(world: World) -> None:
        world.gateway._events._listeners.clear()  # a test's own list is no leak
        world.plan("creative", Outage(0.5, 2.0, "silent"), Stall(2.0, 3.0, 0.5))
        await storm(world, 1000)  # warm: windows, rings and caches are as full as they get
        world.check_at_rest()
        gc.collect()
        blocks, objects = sys.getallocatedblocks(), len(gc.get_objects())
        await storm(world, count)
        for upstream in world.upstreams:
            upstream.stats.times.clear()  # the simulation's own diary
        gc.collect()
        more, new = sys.getallocatedblocks() - blocks, len(gc.get_objects()) - objects
        world.check_at_rest()
        assert more < 4000, f"{more / count:.2f} blocks of memory a cancelled call"
        assert new < 2000, f"{new / count:.2f} objects a cancelled call"

    play(scenario, ladder(cache={"max_bytes": 100_000}, service={"tokens": 2}))


def test_19_back_to_the_baseline_after_many_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    baseline_after(1000, monkeypatch)


@pytest.mark.slow
def test_19_back_to_the_baseline_after_10_to_the_5_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    baseline_after(100_000, monkeypatch)


def test_19_a_long_call_does_not_remember_those_who_left() -> None:
    """Thousands join and leave one silent call; it must not keep a thing of each."""

    async def scenario(world: World) -> None:
        world.plan("creative", Outage(0.0, FOREVER, "silent"))
        first = asyncio.ensure_future(world.outcome(prompt="the same", deadline=1000.0))
        await asyncio.sleep(0.1)
        [flight] = world.pipeline.cache._flights.values()
        for _ in range(20):
            tasks = [
                asyncio.ensure_future(world.gateway.generate("the same", deadline=1000.0))
                for _ in range(100)
            ]
            await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert flight.passengers == 1
        assert len(flight._sleepers) <= 1
        answer = await first
        assert isinstance(answer, Generation)

    play(scenario)
