"""The shape of the layers: a handler answers a request, a middleware wraps a handler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

from gateway.generation import Chunk, Generation, GenerationRequest, Served

Done = Callable[[Generation | None, BaseException | None], None]
"""Told once how an answer ended: the whole of it, or the error; both None if it was abandoned."""


class Answer(ABC):
    """An answer under way. A whole one is a stream read to its end: there is no second path.

    Whoever holds it must `close` it; layers that only want to know how it ends say `when_done`.

    Attributes:
        served: who answers and why.
    """

    __slots__ = ("_done", "served")

    def __init__(self, served: Served) -> None:
        self.served = served
        self._done: Done | None = None

    @abstractmethod
    async def read(self) -> list[Chunk]:
        """Return what has arrived since the last read, waiting for at least one chunk.

        An empty list is the end. Raises what the pipeline raises.
        """

    @abstractmethod
    async def finish(self) -> Generation:
        """Read to the end and return the whole."""

    @abstractmethod
    def close(self) -> None:
        """Let go at once, finished or not. Idempotent, synchronous, never raises."""

    def arrived(self) -> str:
        """The text that has come so far, reasoning included; "" if there is no telling."""
        return ""

    def when_done(self, done: Done) -> None:
        """Ask to be told, once, how the answer ends. Inner layers ask, and are told, first."""
        inner = self._done
        if inner is None:
            self._done = done
            return

        def both(generation: Generation | None, error: BaseException | None) -> None:
            try:
                inner(generation, error)
            finally:
                done(generation, error)

        self._done = both

    def _ended(self, generation: Generation | None, error: BaseException | None) -> None:
        done = self._done
        if done is not None:
            self._done = None
            done(generation, error)


Handler = Callable[[GenerationRequest], Awaitable[Answer]]


class Middleware(Protocol):
    """One layer. It may answer itself, change the request, or watch the answer; then `call_next`.

    A layer returns once the answer is committed: for a stream at its first content token, for a
    caller who wants one piece at its end. Until then it may raise; after that `Answer.read` does.
    """

    def __call__(self, request: GenerationRequest, call_next: Handler) -> Awaitable[Answer]:
        """Answer `request`, usually by awaiting `call_next(request)`.

        A layer with nothing to do afterwards is no coroutine: it returns `call_next(request)`.
        """
        ...


def compose(layers: Sequence[Middleware], terminal: Handler) -> Handler:
    """Fold layers, outermost first, around the one that answers in the end."""
    handler = terminal
    for layer in reversed(layers):
        handler = partial(layer.__call__, call_next=handler)  # in C: no frame between two layers
    return handler
