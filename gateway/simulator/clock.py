"""Virtual time: an asyncio event loop that never sleeps.

When nothing is ready the loop moves its clock to the next timer instead of waiting for it, so
twenty simulated minutes cost only the work done in them, and `loop.time` is the gateway's clock:

    def test_hold_ends_after_five_minutes() -> None:
        async def scenario() -> None:
            gateway = Gateway(config, clock=asyncio.get_running_loop().time)
            await asyncio.sleep(300)  # returns at once, 300 s later
            ...

        run(scenario)

There are no sockets and no threads here: what waits for the outside world would stop the clock.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context
from pathlib import PurePath
from typing import Any, NoReturn, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

STANDSTILL_TURNS = 1_000_000
"""Turns of the loop at one instant after which we say that time stands still."""


class DeadlockError(RuntimeError):
    """Time cannot go on: nothing is scheduled, or some task spins without ever waiting."""


class LeakedTasksError(RuntimeError):
    """The main coroutine returned and left tasks behind.

    Attributes:
        tasks: one line a task: its name and where it waits.
    """

    def __init__(self, tasks: list[str]) -> None:
        super().__init__("tasks left behind: " + "; ".join(tasks))
        self.tasks = tasks


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop on a clock of its own.

    Timers fire at exactly their time (a timer at 300.0 sees `time() == 300.0`), those of the same
    time in the order they were set.

    Args:
        seed: shuffles the callbacks ready in each turn, the same way for the same seed, to find
            what holds in only one interleaving. None keeps asyncio's first-in, first-out.
        start: the first reading of the clock, in seconds.
    """

    # What BaseEventLoop keeps; the same in CPython 3.11 to 3.13.
    _ready: deque[asyncio.Handle]
    _timer_cancelled_count: int
    _thread_id: int | None

    def __init__(self, *, seed: int | None = None, start: float = 0.0) -> None:
        super().__init__()
        self._now = start
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_set = itertools.count()
        self._shuffle = None if seed is None else random.Random(seed).shuffle  # noqa: S311
        self._turns = 0
        self._last_move = 0
        self._interrupt: tuple[int, Callable[[], object]] = (-1, _nothing)

    def time(self) -> float:
        return self._now

    @property
    def turns(self) -> int:
        """How many turns the loop has made."""
        return self._turns

    def at_turn(self, turn: int, callback: Callable[[], object]) -> None:
        """Call back just before the loop's turn number `turn`; the last call to this wins.

        Cancelling a task at turn 0, 1, 2, ... of the same scenario cancels it at its every await.
        """
        self._interrupt = (turn, callback)

    def settle(self) -> None:
        """Run what is ready now and what that makes ready, without moving the clock."""
        while self._ready:
            self.call_soon(self.stop)
            self.run_forever()

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """As asyncio's, on virtual time."""
        self._check_closed()  # type: ignore[attr-defined]
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        timer._scheduled = True  # type: ignore[attr-defined]
        heapq.heappush(self._timers, (when, next(self._timers_set), timer))
        return timer

    def _run_once(self) -> None:
        """One turn: move the clock if nothing is ready, then run what is."""
        if self._turns == self._interrupt[0]:
            self._interrupt[1]()
        self._turns += 1

        ready, timers = self._ready, self._timers
        if self._timer_cancelled_count > 100 + len(timers) // 2:
            self._drop_cancelled_timers()
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
            self._timer_cancelled_count -= 1
        if not ready:
            self._move_to_next_timer()
        elif self._turns - self._last_move > STANDSTILL_TURNS:
            self._last_move = self._turns  # or the clean-up would fail as well
            self._fail(f"time stands still at {self._now:.3f} s: some task spins without waiting")
        while timers and timers[0][0] <= self._now:
            timer = heapq.heappop(timers)[2]
            timer._scheduled = False  # type: ignore[attr-defined]
            ready.append(timer)

        if self._shuffle is not None and len(ready) > 1:
            self._shuffle(ready)
        # Only what is ready now: what these callbacks schedule belongs to the next turn.
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def _move_to_next_timer(self) -> None:
        if not self._timers or self._timers[0][0] == math.inf:
            self._fail("nothing is ready and nothing is scheduled")
        # A timer set in the past fires now: a clock never goes back.
        self._now = max(self._now, self._timers[0][0])
        self._last_move = self._turns

    def _drop_cancelled_timers(self) -> None:
        """Forget cancelled timers in one sweep: deadlines are mostly cancelled, never due."""
        self._timers[:] = [entry for entry in self._timers if not entry[2]._cancelled]
        heapq.heapify(self._timers)
        self._timer_cancelled_count = 0

    def _fail(self, why: str) -> NoReturn:
        raise DeadlockError(f"{why}; waiting: {'; '.join(_waiting(self)) or 'no task'}")

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As `call_soon`, from the loop's own thread (asyncio itself calls it there)."""
        if self._thread_id not in (None, threading.get_ident()):
            raise RuntimeError("virtual time is single-threaded: another thread may not call in")
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Refused: the clock could not know how long a thread takes."""
        raise RuntimeError("virtual time is single-threaded: run_in_executor is not available")


def run(
    main: Callable[[], Coroutine[Any, Any, T]],
    *,
    seed: int | None = None,
    start: float = 0.0,
    allow_leaks: bool = False,
) -> T:
    """Run `main()` on a fresh virtual loop, clean up and return what it returns.

    Args:
        main: a coroutine function without arguments.
        seed: explores one interleaving, see `VirtualLoop`.
        start: the first reading of the clock, in seconds.
        allow_leaks: True cancels tasks left behind without a word.

    Raises:
        DeadlockError: nothing is scheduled and `main` is not done.
        LeakedTasksError: `main` returned, and tasks it started still wait for something.
    """
    loop = VirtualLoop(seed=seed, start=start)
    try:
        result = loop.run_until_complete(main())
        loop.settle()
        leaked = _waiting(loop)
        if leaked and not allow_leaks:
            raise LeakedTasksError(leaked)
        return result
    finally:
        try:
            _cancel_all(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()


def _cancel_all(loop: VirtualLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks))


def _waiting(loop: VirtualLoop) -> list[str]:
    tasks = asyncio.all_tasks(loop)
    return sorted(f"{task.get_name()} at {_where(task.get_coro())}" for task in tasks)


def _where(awaited: Any) -> str:
    """The chain of coroutines down to the await that waits."""
    steps = []
    while (frame := getattr(awaited, "cr_frame", None)) is not None:
        code = frame.f_code
        steps.append(f"{PurePath(code.co_filename).name}:{frame.f_lineno} {code.co_name}")
        awaited = awaited.cr_await
    return " > ".join(steps) or "its end"


def _nothing() -> None:
    """Interrupts nobody."""
