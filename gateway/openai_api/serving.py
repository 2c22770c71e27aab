"""From a parsed request to a reply: what chats, legacy completions and responses have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, Protocol, Self

from gateway.errors import GatewayError
from gateway.generation import Chunk, Generation, Message, Served
from gateway.openai_api.headers import (
    ANY_CACHE,
    Headers,
    allows_degrade,
    cache_control,
    on_interrupt,
    overhead_s,
    patience_s,
    served_headers,
    was_retried,
)
from gateway.openai_api.models import Models
from gateway.openai_api.words import Call, Reply

_SSE = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),  # nginx would hold events back
]


class Opened(Protocol):
    """A streamed answer whose first token is there."""

    @property
    def id(self) -> str:
        """The generation's id."""
        ...

    @property
    def served(self) -> Served:
        """Who answers now."""
        ...


class Writer(Protocol):
    """Turns a streamed answer into the events of one route."""

    def begin(self, answer: Opened) -> bytes:
        """The first token is there: what to send before it."""
        ...

    def write(self, chunks: list[Chunk]) -> bytes:
        """The events of what has arrived together; may be empty."""
        ...

    def end(self) -> bytes:
        """What ends a complete answer."""
        ...

    def fail(self, error: BaseException) -> bytes:
        """What ends a broken one, begun or not."""
        ...


class Serving:
    """Asks the gateway on behalf of HTTP callers.

    Args:
        gateway: who answers.
        models: resolves `model`.
        headers_s: a stream whose first token is not there by then starts with an empty 200, so that
            the connection can be kept warm; until then errors get their own status. None waits.
    """

    def __init__(self, gateway: Any, models: Models, headers_s: float | None) -> None:
        self._gateway = gateway
        self._models = models
        self._headers_s = headers_s

    async def whole(
        self,
        call: Call,
        model: str,
        prompt: str | Sequence[Message],
        params: dict[str, Any],
        *,
        raw: bool = False,
    ) -> tuple[Generation, Headers]:
        """One answer in one piece, and the headers that say who gave it."""
        options = self._options(call, model, stream=False)
        answer: Generation = await self._gateway.generate(
            prompt, extra_body=params, raw=raw, **options
        )
        own = overhead_s(answer.served, answer.duration_s)
        cache = options["cache"]
        return answer, served_headers(answer.served, answer.id, cache=cache, overhead_s=own)

    async def stream(
        self,
        call: Call,
        model: str,
        prompt: str | Sequence[Message],
        params: dict[str, Any],
        writer: Writer,
        *,
        raw: bool = False,
    ) -> Reply:
        """One answer as events. Waits for its first token, `headers_s` at most."""
        options = self._options(call, model, stream=True)
        policy = on_interrupt(call.headers)
        stream = self._gateway.stream(
            prompt, extra_body=params, raw=raw, on_interrupt=policy, **options
        )
        opening: asyncio.Task[Any] | None = None
        if self._headers_s is None:
            await stream.__aenter__()
        else:
            opening = asyncio.ensure_future(stream.__aenter__())
            try:
                await _done_or(opening, self._headers_s)
            except asyncio.CancelledError:
                await _abandon(stream, opening)
                raise
            if opening.done():
                opening.result()
                opening = None
        facts: Headers = []
        if opening is None:
            served = stream.served
            own = overhead_s(served, served.first_token_s)
            facts = served_headers(served, stream.id, cache=options["cache"], overhead_s=own)
        return 200, [*_SSE, *facts], _Body(stream, opening, writer)

    def _options(self, call: Call, model: str, *, stream: bool) -> dict[str, Any]:
        """How this caller wants to be answered, in `Gateway.generate`'s words."""
        headers, caller = call.headers, call.caller
        mode = self._models.mode(model, caller)
        said = headers.get("cache-control")
        options: dict[str, Any] = {
            "mode": mode,
            "allow_degrade": allows_degrade(headers),
            "cache": cache_control(said) if said else ANY_CACHE,
            "tenant": caller.tenant,
            "key": caller.key,
            "trace": headers.get("traceparent", ""),
            "generation_id": call.take_generation_id(),
            # A retried call is shed first: its caller has already shown it will come again.
            "priority": caller.priority + was_retried(headers),
        }
        wait_s = None if stream else patience_s(headers)  # of a stream, it bounds the silences
        if wait_s is not None:
            own = next(m.deadline_s for m in self._gateway.config.modes if m.name == mode)
            options["deadline"] = min(wait_s, own)
        return options


class _Body:
    """A streamed body. Whoever holds it must `aclose` it, read or not: a generator alone that was
    never begun would close without a word, and what it was to free would never be freed.
    """

    def __init__(self, stream: Any, opening: asyncio.Task[Any] | None, writer: Writer) -> None:
        self._stream = stream
        self._opening = opening
        self._events = _events(stream, opening, writer)
        self.last_words = writer.fail

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, bytes]:
        return self._events.__anext__()

    async def aclose(self) -> None:
        """Let go of the answer. Idempotent."""
        await self._events.aclose()
        await _abandon(self._stream, self._opening)


async def _events(
    stream: Any, opening: asyncio.Task[Any] | None, writer: Writer
) -> AsyncGenerator[bytes, None]:
    try:
        if opening is not None:
            await asyncio.shield(opening)
        if events := writer.begin(stream):
            yield events
        async for chunks in stream.batches():
            if events := writer.write(chunks):
                yield events
        yield writer.end()
    except GatewayError as error:
        yield writer.fail(error)
    except Exception as error:
        yield writer.fail(error)
        raise
    finally:
        await _abandon(stream, opening)


async def _done_or(task: asyncio.Task[Any], timeout_s: float) -> None:
    """`asyncio.wait` for one task, without its sets and checks: a quarter of its calls."""
    loop = task.get_loop()
    waiter = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = loop.call_later(timeout_s, wake)
    task.add_done_callback(wake)
    try:
        await waiter
    finally:
        timer.cancel()
        task.remove_done_callback(wake)


async def _abandon(stream: Any, opening: asyncio.Task[Any] | None) -> None:
    """Let go of a stream, even one that is still opening."""
    if opening is not None:
        if not opening.done():
            opening.cancel()
            await asyncio.wait((opening,))
        if opening.cancelled() or opening.exception() is not None:
            return
    await stream.__aexit__(None, None, None)
