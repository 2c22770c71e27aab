"""4 Hit, miss, single flight, stale-if-error.

Fresh native -> fresh stand-in while downshifted -> live -> stale on an upstream fault -> error
(B20). A key is made of everything that changes the answer, the tenant, and the identity that
*served* it (B18): a stand-in can never outlive a recovery as a full-quality answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from hashlib import sha256
from typing import Any

import msgspec

from gateway.assembly import chunks_of
from gateway.clock import Clock
from gateway.errors import (
    AllModesFailed,
    CircuitOpen,
    DeadlineExceeded,
    ErrorKind,
    GatewayError,
    InvalidRequest,
    UpstreamError,
)
from gateway.generation import Chunk, Generation, GenerationRequest, Served
from gateway.middleware.base import Answer, Handler
from gateway.middleware.flight import Flight, Key
from gateway.policies.downshift import Ladder, Rung
from gateway.policies.phases import Phase
from gateway.policies.ttl import CacheOptions
from gateway.stores.base import Entry, Store

# Sorted keys, so that two callers who set the same fields in another order share an answer.
_canonical = msgspec.msgpack.Encoder(order="sorted").encode
_CALLERS = frozenset({ErrorKind.CONTEXT, ErrorKind.CONTENT, ErrorKind.REQUEST})
_WHOLE = frozenset({"stop", "tool_calls", "function_call"})
_SAYS = ("content", "tool_calls", "refusal", "function_call", "audio")
_check_json = msgspec.json.Decoder(msgspec.Raw).decode
# A store may take 50 ms to be given up, for each mode; who has more time than this need not count.
_HURRIED_S = 0.25
# Until when behind the deadline a stale answer may be looked for: every call ends 50 ms behind it.
_LAST_LOOK_S = 0.04


class ResponseCache:
    """Answers from the store what it can, and sends each distinct question upstream once.

    Args:
        store: where answers are kept.
        options: lifetimes, see `CacheOptions`.
        ladder: knows which mode is downshifted now.
        clock: monotonic seconds.
    """

    def __init__(self, store: Store, options: CacheOptions, ladder: Ladder, clock: Clock) -> None:
        self._store = store
        self._options = options
        self._ladder = ladder
        self._clock = clock
        self._flights: dict[Key, Flight] = {}
        self._closed = False

    async def __call__(self, request: GenerationRequest, call_next: Handler) -> Answer:
        """Answer from the store, from a flight already under way, or from upstream."""
        question = self._question(request)
        if self._options.enabled and request.cache.read:
            looking = self._find_fresh(request, question)
            hurried = request.deadline - request.started < _HURRIED_S
            hit = await (self._in_time(request, looking) if hurried else looking)
            if hit is not None:
                return hit
        passenger = self._flight(request, question, call_next).board(request)
        try:
            await passenger.opened()
        except GatewayError as error:
            if not self._may_serve_stale(request, error):
                raise
            stale = await self._in_time(request, self._find_stale(request, question, error))
            if stale is None:
                raise
            return stale
        return passenger

    # -- keys -----------------------------------------------------------------------------------

    def _question(self, request: GenerationRequest) -> bytes:
        try:
            asked = _canonical((request.messages, request.params, request.tenant, request.raw))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidRequest(f"the request cannot be said in JSON: {error}") from error
        return sha256(asked).digest()

    # -- looking --------------------------------------------------------------------------------

    async def _in_time(
        self, request: GenerationRequest, looking: Awaitable[Answer | None]
    ) -> Answer | None:
        """Look no longer than the caller has time: a store elsewhere may be slow (B1)."""
        try:
            async with asyncio.timeout(request.deadline + _LAST_LOOK_S - self._clock()):
                return await looking
        except TimeoutError:
            return None

    async def _find_fresh(self, request: GenerationRequest, question: bytes) -> Answer | None:
        wanted = self._ladder.by_name[request.mode]
        for rung in self._ladder.below(wanted.index, allow_degrade=request.allow_degrade):
            entry = await self._store.get(question + rung.identity)
            now = self._clock()
            if entry is not None:
                age_s = now - entry.stored_at
                native, max_age_s = rung is wanted, request.cache.max_age_s
                if self._options.fresh(age_s, native=native, max_age_s=max_age_s):
                    return self._hit(request, rung, entry, now)
            if rung.well(now) or _may_be_back(rung):
                return None  # this mode answers live: nothing below it may stand in
        return None

    def _may_serve_stale(self, request: GenerationRequest, error: GatewayError) -> bool:
        """Only for faults of the upstream: never to hide a refusal or a caller's mistake."""
        fault = isinstance(error, (AllModesFailed, CircuitOpen, DeadlineExceeded, UpstreamError))
        return (
            fault
            and getattr(error, "kind", None) not in _CALLERS
            and self._options.enabled
            and request.cache.stale_if_error
        )

    async def _find_stale(
        self, request: GenerationRequest, question: bytes, error: GatewayError
    ) -> Answer | None:
        start = self._ladder.index(request.mode)
        for rung in self._ladder.below(start, allow_degrade=request.allow_degrade):
            entry = await self._store.get(question + rung.identity)
            now = self._clock()
            if entry is not None and self._options.usable_stale(now - entry.stored_at):
                return self._hit(request, rung, entry, now, because=error)
        return None

    def _hit(
        self,
        request: GenerationRequest,
        rung: Rung,
        entry: Entry,
        now: float,
        because: GatewayError | None = None,
    ) -> Answer:
        wanted = self._ladder.by_name[request.mode]
        degraded = rung is not wanted
        stored = entry.generation
        served = Served(
            requested_mode=request.mode,
            mode=rung.name,
            model=stored.served.model,
            target=stored.served.target,
            cached=True,
            age_s=now - entry.stored_at,
            first_token_s=now - request.started,
        )
        if because:
            served.stale, served.reason = True, "upstream_error"
        else:
            served.ttl_s = self._options.ttl(downshifted=degraded)
        if degraded:
            served.degraded = True
            served.reason = served.reason or _why(wanted)
        if degraded or because:
            served.until = wanted.until()
        return CachedAnswer(request, stored, served, self._clock)

    # -- flying ---------------------------------------------------------------------------------

    def _flight(self, request: GenerationRequest, question: bytes, call_next: Handler) -> Flight:
        """Join the flight of those who asked the same in the same way, or start one."""
        how: object = (request.mode, request.buffered, request.allow_degrade, request.on_interrupt)
        if not (request.cache.read and request.cache.store):
            how = object()  # like no other: nobody may join
        key = (question, how)
        if self._closed:  # while it looked into a store elsewhere
            raise GatewayError("this gateway is closed")
        flight = self._flights.get(key)
        if flight is not None and not flight.suits(request):
            flight.key = (question, object())  # it goes on with those who are aboard
            self._flights[flight.key] = flight
            flight = None
        if flight is None:
            flight = Flight(key, request, call_next, self._keep, self._gone, self._clock)
            self._flights[key] = flight
        return flight

    def _gone(self, flight: Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    def _keep(
        self, key: Key, request: GenerationRequest, generation: Generation
    ) -> Awaitable[None] | None:
        """Keep a whole answer under who served it. Never a truncated, filtered or empty one."""
        options, choices = self._options, generation.choices
        if not (options.enabled and request.cache.store and choices):
            return None
        for choice in choices:
            if not _is_whole(choice):
                return None
        served = generation.served
        served.ttl_s = options.ttl(downshifted=served.degraded)
        rung = self._ladder.by_name[served.mode]
        entry = Entry(generation, self._clock(), rung.name, rung.identity.hex())
        return self._store.put(key[0] + rung.identity, entry, options.lifetime_s)

    async def aclose(self) -> None:
        """Stop every flight and free what it holds; none begins any more."""
        self._closed = True
        for flight in list(self._flights.values()):
            await flight.abort()


def _is_whole(choice: dict[str, Any]) -> bool:
    """Whether a choice said something, and ended of its own accord. A tool call whose arguments are
    no JSON was cut short, whatever the finish reason says.
    """
    if choice.get("finish_reason") not in _WHOLE:
        return False
    message = choice["message"]
    if not any(map(message.get, _SAYS)):
        return False  # it thought, and then said nothing
    calls = message.get("tool_calls")
    if not calls:
        return True
    for call in calls:
        arguments = call.get("function", {}).get("arguments")
        try:
            if arguments:  # "" is how a function without parameters is called
                _check_json(arguments)
        except msgspec.DecodeError:
            return False
    return True


def _may_be_back(rung: Rung) -> bool:
    """Whether the next request for a downshifted mode is to find out how it is (B5). With a
    stand-in for all who ask the same nobody would, and recovery would wait until that is old.
    """
    return rung.circuit.phase() is Phase.PROBE_DUE and not rung.resting_s()


def _why(rung: Rung) -> str:
    """Why a downshifted mode does not answer itself."""
    phase = rung.circuit.phase()
    if phase is Phase.FORCED_OPEN:
        return "forced"
    return "circuit_open" if phase.downshifted else "cooling"


class CachedAnswer(Answer):
    """A stored answer, replayed whole or as a stream."""

    __slots__ = ("_clock", "_request", "_stored", "_unread")

    def __init__(
        self, request: GenerationRequest, stored: Generation, served: Served, clock: Clock
    ) -> None:
        self.served = served
        self._done = None
        self._request = request
        self._stored = stored
        self._clock = clock
        self._unread = True

    async def read(self) -> list[Chunk]:
        """Return the whole answer as chunks, then the end."""
        if self._unread:
            self._unread = False
            return chunks_of(self._stored)
        self._ended(self._whole(), None)
        return []

    async def finish(self) -> Generation:
        """Return the stored answer under this request's id."""
        generation = self._whole()
        self._ended(generation, None)
        return generation

    def close(self) -> None:
        """Nothing to let go."""
        self._ended(None, None)

    def _whole(self) -> Generation:
        stored = self._stored
        return Generation(
            id=self._request.id,
            choices=stored.choices,
            served=self.served,
            usage=stored.usage,
            created=stored.created,
            extra=stored.extra,
            duration_s=self._clock() - self._request.started,
        )
