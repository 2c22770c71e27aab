"""Any client that already exists as a provider: a function, an OpenAI-like or a DashScope-like one.

call --client_shapes--> the client's own call --client_results--> chunks
                                 |--raises--> client_errors --> UpstreamError
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import inspect
import secrets
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from gateway.errors import StreamInterrupted, UpstreamError
from gateway.generation import Choice, Chunk, Delta
from gateway.providers.base import Call, Provider, Reply
from gateway.providers.capabilities import capabilities
from gateway.providers.client_errors import upstream_error
from gateway.providers.client_results import chunk_from, text_chunk
from gateway.providers.client_shapes import Shape, is_async, shape_of
from gateway.providers.pump import STREAM, Pump
from gateway.providers.request_body import Accent, Speaker

_CLOSING_S = 5.0
"""How long `aclose` waits for clients that are still letting go of their streams."""

# Answers of a function that has no address and perhaps no name are its own, and this process's.
_PROCESS = secrets.token_hex(4)


def wrap_client(client: Any, *, name: str = "client", model: str = "") -> Provider:
    """Make a provider of any client.

    Args:
        client: one of
            a callable, sync or async, of a prompt or (if it takes `messages`) of chat messages,
            that returns text, an iterator of texts, sync or async, or a completion in OpenAI's
            shape; sampling fields are passed to one that names them or takes `**kwargs`;
            an object with `chat.completions.create`, such as `AsyncOpenAI` or `OpenAI`;
            dashscope's `Generation` or `AioGeneration`.
        name: for people and logs.
        model: the model asked for; an OpenAI-like client must be told, unless it points at
            DashScope.

    A blocking client runs in a thread of its own for each call; a call that is dropped cannot be
    interrupted, so its thread lives until the client returns.

    Raises:
        ConfigError: nothing that can be called, or a function that needs more than a prompt.
    """
    return WrappedClient(client, name=name, model=model)


class WrappedClient:
    """A client of any shape; a `Provider`. See `wrap_client`."""

    context_window: int | None = None
    continues = False

    def __init__(self, client: Any, *, name: str, model: str) -> None:
        self._shape = shape_of(client, model)
        self.model = self._shape.model
        self.name = f"{name}/{self.model}" if self.model else name
        self.streams = self._shape.streams
        self.domain, self.identity = _whereabouts(client, self._shape)
        self._speaker = Speaker(Accent(capabilities(self._shape.kind), self.model))
        self._async = is_async(self._shape.function)
        self._closing: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"WrappedClient({self.name!r})"

    async def open(self, call: Call) -> Reply:
        return await self._speaker.ask(self._attempt, call)

    async def aclose(self) -> None:
        """Wait for streams that are still being closed. The client itself is its owner's."""
        if self._closing:
            _, late = await asyncio.wait(self._closing, timeout=_CLOSING_S)
            for task in late:
                task.cancel()

    async def _attempt(self, call: Call, accent: Accent) -> Reply:
        positional, named = self._shape.arguments(call, accent)
        invoke = functools.partial(self._shape.function, *positional, **named)
        pump: Pump | None = None
        try:
            if self._async:
                result = invoke()
            else:
                pump = Pump(invoke)
                result = await anext(pump)
            if inspect.isawaitable(result):
                result = await result
            if result is STREAM:
                source, pump = pump, None
                return _ClientReply(self, source)
            if isinstance(result, AsyncIterator):
                # Not `aiter`: closing what openai's stream gives there does not close the stream.
                return _ClientReply(self, result)
            if isinstance(result, AsyncIterable):
                return _ClientReply(self, aiter(result))
            whole = text_chunk(result, finish_reason="stop") if isinstance(result, str) else None
            return _ClientReply(self, None, whole or self.chunk(result))
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  (translated)
            raise self.error(error, begun=False) from _cause(error)
        finally:
            if pump is not None:
                pump.close()

    def chunk(self, item: Any) -> Chunk:
        """See `chunk_from`."""
        return chunk_from(item, kind=self._shape.kind, target=self.name)

    def error(
        self, error: Exception | asyncio.CancelledError, *, begun: bool
    ) -> UpstreamError | asyncio.CancelledError:
        """What an exception means: our own cancellation itself, anything else an `UpstreamError`.

        A client may end up cancelled by its own doing; that is its failure, not our wish.
        """
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            return error
        return upstream_error(error, kind=self._shape.kind, target=self.name, begun=begun)

    def close_behind(self, source: AsyncIterator[Any]) -> None:
        """Close a stream without waiting for it."""
        try:
            task = asyncio.get_running_loop().create_task(_close(source))
        except RuntimeError:  # no loop any more, so nothing that could be waiting
            return
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class _ClientReply:
    """What a client returned, or what its stream yields, one item a read."""

    __slots__ = ("_begun", "_ended", "_finished", "_owner", "_source", "_texts", "_whole")

    def __init__(
        self, owner: WrappedClient, source: AsyncIterator[Any] | None, whole: Chunk | None = None
    ) -> None:
        self._owner = owner
        self._source = source
        self._whole = whole
        self._begun = False
        self._texts = True  # nothing but text came, which ends without saying so
        self._finished = False
        self._ended = False

    async def read(self) -> list[Chunk]:
        if self._whole is not None:
            chunk, self._whole = self._whole, None
            return [chunk]
        if self._ended or self._source is None:
            return []
        try:
            item = await anext(self._source)
            chunk = self._owner.chunk(item)
        except StopAsyncIteration:
            return self._end()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  (translated)
            self.close()
            raise self._owner.error(error, begun=self._begun) from _cause(error)
        self._begun = True
        self._texts = self._texts and isinstance(item, str)
        self._finished = self._finished or chunk.finish_reason is not None
        return [chunk]

    def close(self) -> None:
        source, self._source = self._source, None
        if isinstance(source, Pump):
            source.close()
        elif source is not None and not self._ended:
            self._owner.close_behind(source)

    def _end(self) -> list[Chunk]:
        """The stream is exhausted. Chunks must have said why; text has no way to."""
        self._ended = True
        if self._finished:
            return []
        if self._texts:
            return [Chunk([Choice(Delta(), finish_reason="stop")])]
        name = self._owner.name
        raise StreamInterrupted(f"{name} ended its answer without saying that it is done")


def _cause(error: BaseException) -> BaseException | None:
    """What a translated error is raised from; one that stays itself has its own cause already."""
    return error.__cause__ if isinstance(error, UpstreamError | asyncio.CancelledError) else error


async def _close(source: Any) -> None:
    closer = getattr(source, "aclose", None) or getattr(source, "close", None)
    with contextlib.suppress(Exception):  # nobody is left to be told
        closed = closer() if closer else None
        if inspect.isawaitable(closed):
            await closed


def _whereabouts(client: Any, shape: Shape) -> tuple[str, str]:
    """Failure domain and identity: by the client's address where it has one, else its own."""
    kind = type(client).__qualname__
    address = urlsplit(str(getattr(client, "base_url", "")))
    if address.hostname:
        place = f"{address.scheme}://{address.hostname}:{address.port or ''}"
        key = str(getattr(client, "api_key", ""))
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        return f"{place}#{digest}", f"client {kind} {place}{address.path} {shape.model}"
    itself = f"client:{_PROCESS}-{id(client):x}"
    return itself, f"{itself} {shape.model}"
