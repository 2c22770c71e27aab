"""One upstream call, any number of callers (B21).

The call runs in a task of its own: a caller that goes away hurts nobody, and the last one to
leave cancels it. What arrives is kept in a log that each caller reads at its own pace, so a slow
reader never looks like a slow upstream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from gateway.clock import Clock
from gateway.errors import DeadlineExceeded, GatewayError
from gateway.generation import Chunk, Generation, GenerationRequest, Served
from gateway.middleware.base import Answer, Handler

# At the deadline the flight itself is heard first: it knows which modes were tried, and how they
# failed. Well within the 50 ms in which every call must end (B1).
_LAST_WORD_S = 0.02
_ANY = float("inf")
# Who has up to so many times as long as those aboard shares their flight all the same (B21).
_AS_PATIENT = 2.0

Key = tuple[bytes, object]
"""What is asked, and in which way: those who share a flight agree in both."""

Keep = Callable[[Key, GenerationRequest, Generation], Awaitable[None] | None]
"""Says whether a whole answer is worth keeping, and if so how to keep it; that is done after
everyone who waits has been told."""


class Flight:
    """One request under way for everyone who asked the same.

    Args:
        key: see `Key`.
        request: the first caller's; later callers may extend its deadline.
        call_next: who answers.
        keep: see `Keep`.
        gone: told when the flight takes nobody on any more. Perhaps more than once.
        clock: monotonic seconds.

    Attributes:
        log: chunks so far; stays empty for callers who want one piece.
        served: who answers, None until it commits.
        generation, error: how it ended.
        patience_s: how much time it had when it set out; inf before.
        passengers: callers aboard now.
        boarded: callers there ever were.
    """

    __slots__ = (
        "_call_next",
        "_gone",
        "_keep",
        "_sleepers",
        "_task",
        "boarded",
        "clock",
        "ended",
        "error",
        "generation",
        "key",
        "log",
        "loop",
        "passengers",
        "patience_s",
        "request",
        "served",
    )

    def __init__(
        self,
        key: Key,
        request: GenerationRequest,
        call_next: Handler,
        keep: Keep,
        gone: Callable[[Flight], None],
        clock: Clock,
    ) -> None:
        self.key = key
        self.request = request
        self.clock = clock
        self.log: list[Chunk] = []
        self.served: Served | None = None
        self.generation: Generation | None = None
        self.error: BaseException | None = None
        self.ended = False
        self.patience_s = _ANY
        self.passengers = self.boarded = 0
        self._call_next = call_next
        self._keep = keep
        self._gone = gone
        self.loop = asyncio.get_running_loop()
        self._sleepers: dict[asyncio.Future[None], None] = {}
        self._task = self.loop.create_task(self._fly())

    def board(self, request: GenerationRequest) -> Passenger:
        """Take a caller on. Its deadline is its own; the flight's is the latest of all."""
        self.passengers += 1
        self.boarded += 1
        if request is not self.request:
            self.request.deadline = max(self.request.deadline, request.deadline)
        return Passenger(self, request)

    def suits(self, request: GenerationRequest) -> bool:
        """Whether a caller may come aboard. Modes are given up sooner for somebody in a hurry; who
        has far more time must not get less because of that, as long as nothing has come.
        """
        if self.served is not None:
            return True
        return request.deadline - request.started <= _AS_PATIENT * self.patience_s

    async def abort(self) -> None:
        """Stop it, whoever is aboard, and wait until everything it held is free."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self.ended:  # cancelled before its first step, so it never began to fly
            self.error = asyncio.CancelledError()
            self._land()

    def leave(self) -> None:
        """A caller is done with it; with the last one the upstream call goes too."""
        self.passengers -= 1
        if self.passengers == 0 and not self.ended:
            self._gone(self)
            self._task.cancel()

    def sleeper(self) -> asyncio.Future[None]:
        """A future that is done when something changed; `forget` it if nobody waits so long."""
        sleeper = self.loop.create_future()
        self._sleepers[sleeper] = None
        return sleeper

    def forget(self, sleeper: asyncio.Future[None]) -> None:
        """Nobody waits for it any more."""
        self._sleepers.pop(sleeper, None)

    def _wake(self) -> None:
        sleepers = self._sleepers
        if sleepers:
            for sleeper in sleepers:
                if not sleeper.done():
                    sleeper.set_result(None)
            sleepers.clear()

    async def _fly(self) -> None:
        answer: Answer | None = None
        keeping: Awaitable[None] | None = None
        self.patience_s = self.request.deadline - self.clock()
        try:
            answer = await self._call_next(self.request)
            self.served = answer.served
            if not self.request.buffered:
                while chunks := await answer.read():
                    self.served = answer.served
                    self.log += chunks
                    self._wake()
            self.generation = await answer.finish()
            keeping = self._keep(self.key, self.request, self.generation)
        except BaseException as error:  # noqa: BLE001 - handed to every passenger, who raises it
            self.error = error
        finally:
            if answer is not None:
                answer.close()
            self._land()
        if keeping is not None:
            await keeping

    def _land(self) -> None:
        self.ended = True
        self._gone(self)
        self._wake()


_UNKNOWN = Served(requested_mode="", mode="")


class Passenger(Answer):
    """One caller's view of a flight."""

    __slots__ = (
        "_aboard",
        "_deadline",
        "_flight",
        "_late",
        "_position",
        "_request",
        "_sleeper",
        "_timer",
    )

    def __init__(self, flight: Flight, request: GenerationRequest) -> None:
        self.served = _UNKNOWN  # until it has opened
        self._done = None
        self._flight = flight
        self._request = request
        self._deadline = request.deadline + _LAST_WORD_S
        self._position = 0
        self._aboard = True
        self._late = False
        self._sleeper: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def opened(self) -> None:
        """Wait for the commit point: the first content token, or the end for a whole answer.

        Raises:
            GatewayError: no mode answered; or the deadline passed first.
        """
        flight, buffered = self._flight, self._request.buffered
        try:
            while not flight.ended and (buffered or flight.served is None):
                await self._news()
            if flight.error is not None and (buffered or flight.served is None):
                self._raise_if_failed()
        except BaseException:
            self._leave()
            raise
        assert flight.served is not None
        self.served = flight.served

    async def read(self) -> list[Chunk]:
        """Return what has arrived since the last read."""
        flight = self._flight
        try:
            while self._position >= len(flight.log):
                if flight.ended:
                    self._raise_if_failed()
                    self._ended(flight.generation, None)
                    return []
                await self._news()
            chunks = flight.log[self._position :] if self._position else flight.log.copy()
            self._position += len(chunks)
            if flight.served is not None:
                self.served = flight.served
        except BaseException as error:
            self._fail(error)
            raise
        else:
            return chunks

    async def finish(self) -> Generation:
        """Wait for the whole."""
        flight = self._flight
        try:
            while not flight.ended:
                await self._news()
            if flight.error is not None:
                self._raise_if_failed()
        except BaseException as error:
            self._fail(error)
            raise
        assert flight.generation is not None
        generation = flight.generation
        if flight.boarded > 1:
            generation = msgspec.structs.replace(
                generation,
                id=self._request.id,
                choices=own_copy(generation.choices),
                served=msgspec.structs.replace(generation.served),
                extra=own_copy(generation.extra),
                duration_s=flight.clock() - self._request.started,
            )
        self.served = generation.served
        self._ended(generation, None)
        return generation

    def arrived(self) -> str:
        """What has come so far, read or not: the upstream wrote it. Empty for one piece."""
        return "".join(chunk.reasoning + chunk.text for chunk in self._flight.log)

    def close(self) -> None:
        """Leave the flight."""
        self._leave()
        self._ended(None, None)

    def _news(self) -> asyncio.Future[None]:
        """What to await until something changed.

        Raises:
            DeadlineExceeded: this caller's deadline came first; so may the await.
        """
        flight = self._flight
        if self._timer is None:  # one for the whole journey: a stream waits once a chunk
            delay = max(0.0, self._deadline - flight.clock())
            self._timer = flight.loop.call_later(delay, self._ring)
        if self._late:
            raise _too_late()
        sleeper = self._sleeper = flight.sleeper()
        return sleeper

    def _ring(self) -> None:
        self._late = True
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_exception(_too_late())

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, DeadlineExceeded) and not error.partial:
            error.partial = "".join(chunk.text for chunk in self._flight.log)
        self._leave()
        self._ended(None, error)

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._aboard:
            self._aboard = False
            flight = self._flight
            if self._sleeper is not None and not flight.ended:
                flight.forget(self._sleeper)
            flight.leave()

    def _raise_if_failed(self) -> None:
        error = self._flight.error
        if isinstance(error, asyncio.CancelledError):
            raise GatewayError("the gateway was closed while it answered")
        if error is not None:
            raise error.with_traceback(None)


def own_copy(json: Any) -> Any:
    """A copy that a caller may change without reaching anyone else's."""
    if type(json) is dict:
        return {key: own_copy(v) if type(v) in _NESTED else v for key, v in json.items()}
    return [own_copy(v) if type(v) in _NESTED else v for v in json]


_NESTED = frozenset({dict, list})


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("no answer by the caller's deadline")
