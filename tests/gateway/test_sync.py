"""The loop of scripts: one for all threads, and nobody waits for what will never come."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

from gateway.errors import GatewayError
from gateway.gateway import Gateway
from gateway.sync import LoopThread

PATIENCE_S = 10.0


async def one() -> int:
    return 1


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    made = LoopThread()
    yield made
    made.stop()


def test_the_first_calls_of_several_threads_share_one_loop() -> None:
    async def which() -> int:
        return id(asyncio.get_running_loop())

    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            gateway = Gateway.__new__(Gateway)
            gateway._sync = None
            found: set[int] = set()
            at_once = threading.Barrier(6)

            def call(gateway: Gateway = gateway, found: Any = found, at: Any = at_once) -> None:
                at.wait(PATIENCE_S)
                found.add(gateway._in_thread(which()))

            callers = [threading.Thread(target=call) for _ in range(6)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join(PATIENCE_S)
            assert gateway._sync is not None
            gateway._sync.stop()
            assert len(found) == 1
    finally:
        sys.setswitchinterval(switching)


def test_a_call_under_way_ends_when_another_thread_closes() -> None:
    thread, begun, ends = LoopThread(), threading.Event(), []

    async def forever() -> None:
        begun.set()
        await asyncio.Event().wait()

    def call() -> None:
        try:
            thread.run(forever())
        except CancelledError as error:
            ends.append(error)

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    assert begun.wait(PATIENCE_S)
    thread.stop()
    caller.join(PATIENCE_S)
    assert len(ends) == 1
    with pytest.raises(GatewayError, match="closed"):
        thread.run(one())


def test_a_call_on_the_gateways_own_loop_is_refused(thread: LoopThread) -> None:
    async def again() -> int:
        return thread.run(one())

    with pytest.raises(GatewayError, match="own loop"):
        thread.run(again())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_process_hears_that_the_loop_is_not_there(thread: LoopThread) -> None:
    assert thread.run(one()) == 1
    child = os.fork()
    if child == 0:
        signal.alarm(int(PATIENCE_S))  # it would wait forever
        try:
            thread.run(one())
        except GatewayError as error:
            os._exit(0 if "fork" in error.message else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
