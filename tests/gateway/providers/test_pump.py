"""A blocking function as an asynchronous iterator."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Iterator

import pytest

from gateway.providers.pump import STREAM, Pump

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("WHO")


async def until(condition: threading.Event) -> None:
    """Wait for a thread's event without stopping the loop."""
    assert await asyncio.to_thread(condition.wait, 10)


async def test_a_result_and_the_end() -> None:
    WHO.set("caller")
    pump = Pump(lambda: (WHO.get(), threading.current_thread().daemon))
    assert await anext(pump) == ("caller", True)
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await anext(pump)


async def test_what_an_iterator_yields_comes_in_order() -> None:
    pump = Pump(lambda: iter(range(1000)))
    assert await anext(pump) is STREAM
    assert [item async for item in pump] == list(range(1000))


async def test_an_exception_comes_after_what_went_before() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    pump = Pump(broken)
    assert [await anext(pump), await anext(pump)] == [STREAM, 1]
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            await anext(pump)


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, StopIteration])
async def test_no_exception_ends_the_loop(raised: type[BaseException]) -> None:
    def run() -> None:
        raise raised

    with pytest.raises(RuntimeError):
        await anext(Pump(run))


async def test_a_thread_does_not_run_away_from_its_reader() -> None:
    made: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            made.append(len(made))
            yield made[-1]

    pump = Pump(endless)
    assert await anext(pump) is STREAM
    assert await anext(pump) == 0
    assert len(made) < 100
    pump.close()


async def test_closing_ends_the_thread_and_closes_its_iterator() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    pump = Pump(endless)
    await anext(pump)
    await anext(pump)
    pump.close()
    pump.close()
    await until(closed)


async def test_a_cancelled_wait_leaves_a_blocked_thread_to_itself() -> None:
    release, done = threading.Event(), threading.Event()

    def block() -> str:
        release.wait(10)
        done.set()
        return "nobody wants it"

    pump = Pump(block)
    waiting = asyncio.create_task(anext(pump))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    pump.close()
    release.set()
    await until(done)


def test_a_loop_that_is_gone_does_not_matter() -> None:
    release, over = threading.Event(), threading.Event()

    def late() -> Iterator[str]:
        try:
            release.wait(10)
            yield "too late"
            yield "far too late"
        finally:
            over.set()

    async def start() -> Pump:
        return Pump(late)

    asyncio.run(start())
    release.set()
    assert over.wait(10)


async def test_the_loop_runs_on_while_a_client_blocks() -> None:
    gate = threading.Event()
    pump = Pump(lambda: gate.wait(10))
    waiting = asyncio.ensure_future(anext(pump))
    started = time.monotonic()
    await asyncio.sleep(0)
    assert time.monotonic() - started < 5
    gate.set()
    assert await waiting is True
