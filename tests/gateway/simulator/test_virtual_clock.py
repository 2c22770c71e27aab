"""Virtual time: it jumps, it is exact, it is reproducible, and it says when it cannot go on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import pytest

from gateway.simulator.clock import DeadlockError, LeakedTasksError, VirtualLoop, run


def now() -> float:
    return asyncio.get_running_loop().time()


def test_sleeping_five_minutes_costs_nothing_and_ends_exactly_then() -> None:
    async def main() -> float:
        await asyncio.sleep(300)
        return now()

    began = time.perf_counter()
    assert run(main) == 300.0
    assert run(main, start=1000.0) == 1300.0
    assert time.perf_counter() - began < 5


def test_timers_fire_in_order_at_their_own_time() -> None:
    async def main() -> list[tuple[float, str]]:
        seen: list[tuple[float, str]] = []

        async def note(after: float, name: str) -> None:
            await asyncio.sleep(after)
            seen.append((now(), name))

        await asyncio.gather(note(3, "c"), note(1, "a"), note(2.5, "b"))
        return seen

    assert run(main) == [(1.0, "a"), (2.5, "b"), (3.0, "c")]


def test_timers_of_the_same_time_fire_in_the_order_they_were_set() -> None:
    async def main() -> list[int]:
        seen: list[int] = []
        for number in range(50):
            asyncio.get_running_loop().call_at(5.0, seen.append, number)
        await asyncio.sleep(6)
        return seen

    assert run(main) == list(range(50))


def test_a_timer_in_the_past_does_not_turn_the_clock_back() -> None:
    async def main() -> float:
        await asyncio.sleep(10)
        fired = asyncio.Event()
        asyncio.get_running_loop().call_at(4, fired.set)
        await fired.wait()
        return now()

    assert run(main) == 10.0


def test_timeouts_work_on_virtual_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(20):
                await asyncio.get_running_loop().create_future()
        return now()

    assert run(main) == 20.0


def test_many_cancelled_timers_are_forgotten() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        for _ in range(5000):
            loop.call_later(1000, print).cancel()
            await asyncio.sleep(0)
        return len(loop._timers)

    assert run(main) < 250


def test_a_deadlock_is_told_with_the_place_that_waits() -> None:
    async def wait_for_nobody() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(DeadlockError, match=r"nothing is scheduled.*> .*wait_for_nobody"):

        async def main() -> None:
            await wait_for_nobody()

        run(main)


def test_a_timer_that_is_never_due_does_not_hide_a_deadlock() -> None:
    with pytest.raises(DeadlockError, match="nothing is scheduled"):
        run(lambda: asyncio.sleep(float("inf")))


def test_a_spinning_task_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.simulator.clock.STANDSTILL_TURNS", 1000)

    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(DeadlockError, match="time stands still"):
        run(spin)


def interleaving(seed: int | None) -> str:
    async def main() -> str:
        order: list[str] = []

        async def step(name: str) -> None:
            for _ in range(3):
                order.append(name)
                await asyncio.sleep(0)

        await asyncio.gather(*(step(name) for name in "abcd"))
        return "".join(order)

    return run(main, seed=seed)


def test_without_a_seed_the_order_is_first_in_first_out() -> None:
    assert interleaving(None) == "abcd" * 3


def test_seeds_explore_interleavings_and_reproduce_them() -> None:
    found = {interleaving(seed) for seed in range(20)}
    assert len(found) > 10
    assert all(interleaving(seed) == interleaving(seed) for seed in range(5))


def test_tasks_left_behind_are_reported_and_cancelled() -> None:
    cancelled: list[str] = []
    kept: list[asyncio.Task[None]] = []

    async def forgotten() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append("forgotten")
            raise

    async def main() -> str:
        kept.append(asyncio.create_task(forgotten(), name="forgotten"))
        await asyncio.sleep(0)
        return "done"

    with pytest.raises(LeakedTasksError, match=r"forgotten at test_virtual_clock\.py") as caught:
        run(main)
    assert len(caught.value.tasks) == 1
    assert cancelled == ["forgotten"]
    assert run(main, allow_leaks=True) == "done"


def test_a_task_that_is_just_ending_is_not_a_leak() -> None:
    async def main() -> None:
        task = asyncio.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        task.cancel()

    run(main)


def test_async_generators_left_open_are_closed() -> None:
    closed: list[bool] = []
    kept: list[AsyncIterator[int]] = []

    async def main() -> None:
        async def numbers() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                await asyncio.sleep(0)
                closed.append(True)

        kept.append(numbers())
        async for _ in kept[0]:
            break

    run(main)
    assert closed == [True]


def test_the_error_of_main_wins_over_the_leak_it_causes() -> None:
    kept: list[asyncio.Task[None]] = []

    async def main() -> None:
        kept.append(asyncio.create_task(asyncio.sleep(60)))
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(main)


def test_cancelling_at_every_turn_reaches_every_await() -> None:
    reached: set[int] = set()

    async def scenario(done: list[int]) -> None:
        for step in range(4):
            await asyncio.sleep(step)
            done.append(step)

    async def main(turn: int) -> bool:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        done: list[int] = []
        task = asyncio.create_task(scenario(done))
        loop.at_turn(loop.turns + turn, task.cancel)
        await asyncio.wait([task])
        reached.add(len(done))
        return task.cancelled()

    turn = 0
    while run(lambda: main(turn)):  # noqa: B023 - called at once
        turn += 1
    assert reached == {0, 1, 2, 3, 4}


def test_threads_are_refused() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        with pytest.raises(RuntimeError, match="single-threaded"):
            await asyncio.to_thread(print)
        refused: list[str] = []

        def call_in() -> None:
            try:
                loop.call_soon_threadsafe(print)
            except RuntimeError as error:
                refused.append(str(error))

        thread = threading.Thread(target=call_in)
        thread.start()
        thread.join()
        done = asyncio.Event()
        loop.call_soon_threadsafe(done.set)  # the loop's own thread may
        await done.wait()
        return refused[0]

    assert "another thread may not call in" in run(main)


def test_a_hundred_thousand_events_in_twenty_minutes_are_quick() -> None:
    async def worker(period: float) -> None:
        while now() < 1200:
            await asyncio.sleep(period)

    async def main() -> float:
        await asyncio.gather(*(worker(0.5 + index * 0.001) for index in range(45)))
        return now()

    began = time.process_time()
    assert run(main) >= 1200
    assert time.process_time() - began < 4  # about 0.6 s on an idle machine
