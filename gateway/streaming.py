"""A streamed answer as the caller holds it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Self

from gateway.errors import GatewayError
from gateway.generation import Chunk, Generation, Served
from gateway.middleware.base import Answer


class GenerationStream:
    """An answer piece by piece. Enter it, iterate it once; leaving it early cancels upstream.

    Attributes:
        id: the generation's id, what `Gateway.feedback` refers to.
    """

    def __init__(self, generation_id: str, open_answer: Callable[[], Awaitable[Answer]]) -> None:
        self.id = generation_id
        self._open_answer = open_answer
        self._answer: Answer | None = None
        self._chunks: list[Chunk] = []

    @property
    def served(self) -> Served:
        """Who answers and why; complete once the stream is entered."""
        return self._entered().served

    async def __aenter__(self) -> Self:
        self._answer = await self._open_answer()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered().close()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        answer = self._entered()
        while chunks := await answer.read():
            for chunk in chunks:
                yield chunk

    async def batches(self) -> AsyncIterator[list[Chunk]]:
        """Chunks as they arrive together, one list per wake-up: the cheap way to relay them."""
        answer = self._entered()
        while chunks := await answer.read():
            yield chunks

    async def finish(self) -> Generation:
        """Read to the end and return the whole answer."""
        return await self._entered().finish()

    def _entered(self) -> Answer:
        if self._answer is None:
            raise GatewayError("use `async with gateway.stream(...) as stream:`")
        return self._answer
