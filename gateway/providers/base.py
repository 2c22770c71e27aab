"""What the gateway asks of whoever answers: open an answer, read it piece by piece, drop it.

A provider is one target. It knows its wire format and nothing of modes, circuits, budgets or
clocks; every failure leaves it as an `UpstreamError` whose `kind` says what went wrong.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import msgspec

from gateway.generation import Chunk, Message


class Call(msgspec.Struct, gc=False):
    """One attempt at one target.

    Attributes:
        messages: the chat messages.
        params: every other body field, sampling defaults of the mode already filled in.
        request_id: sent upstream as `x-request-id`.
        thinking: True/False asks the provider to turn reasoning on/off its own way; None leaves it.
        prefix: text of an interrupted answer to continue; only if `Provider.continues`.
        raw: `messages` is one user message, whose text is to be completed as it stands, without a
            chat template; a provider that cannot do that asks it as a chat.
    """

    messages: list[Message]
    params: dict[str, Any]
    request_id: str = ""
    thinking: bool | None = None
    prefix: str = ""
    raw: bool = False


@runtime_checkable
class Reply(Protocol):
    """An answer under way."""

    async def read(self) -> list[Chunk]:
        """Return what has arrived since the last read, waiting for at least one chunk.

        An empty list is the clean end: a finish_reason or `[DONE]` was seen. Cancelling a read
        loses nothing but the reply, which must then be closed.

        Raises:
            UpstreamError: the answer broke; `kind` INTERRUPTED if it ended without a terminator.
        """
        ...

    def close(self) -> None:
        """Let go at once, finished or not. Idempotent, synchronous, never raises.

        The socket of an unfinished reply is closed, never reused; slow clean-up goes on behind.
        """
        ...


@runtime_checkable
class Provider(Protocol):
    """One target.

    Attributes:
        name: for people and logs, such as `dashscope/qwen3.8-max`; never a credential.
        model: the model asked for.
        domain: failure domain: targets that fail together (same host and credential) share it.
        identity: everything that makes its answers its own (kind, address, model), for cache keys.
        context_window: tokens, None if unknown.
        streams: False if the first token arrives only with the whole answer.
        continues: whether `Call.prefix` is understood.
    """

    name: str
    model: str
    domain: str
    identity: str
    context_window: int | None
    streams: bool
    continues: bool

    async def open(self, call: Call) -> Reply:
        """Send the call; return when the upstream has accepted it (2xx headers).

        Raises:
            UpstreamError: no connection, or any other status; cancellation frees the socket.
        """
        ...

    async def aclose(self) -> None:
        """Close idle connections and anything started for this target."""
        ...
