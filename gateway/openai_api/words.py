"""The words of the API: a call comes in, a reply goes out. No framework's types."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from gateway.validation import new_id


class Body(Protocol):
    """A body as it comes. Whoever holds one closes it, read to its end or never begun."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The body itself."""
        ...

    def __anext__(self) -> Awaitable[bytes]:
        """What comes next."""
        ...

    def aclose(self) -> Awaitable[Any]:
        """Let go of what it comes from. Idempotent."""
        ...


Reply = tuple[int, list[tuple[str, str]], bytes | Body]
"""Status, headers, and the body: whole, or as it comes."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        key: the name of the `[keys.NAME]` table, whose limits count; "" where none are configured.
        tenant: answers are never shared between tenants.
        modes: the modes that may be asked for; None is all.
        priority: 0 goes first when a queue forms.
    """

    key: str = ""
    tenant: str = ""
    modes: frozenset[str] | None = None
    priority: int = 1


ANYONE = Caller()
"""The caller where no keys are configured, and in this very process."""


class Call(msgspec.Struct, gc=False):
    """One HTTP request, read whole. A struct, whose fields C fills in: one is made per request.

    Attributes:
        method: upper case.
        path: without query and without a leading `/v1`.
        headers: by lower-case name.
        query: what followed the `?`.
        peer: the address it came from, "" within this process.
        caller: who it is, once known.
        id: the request's id, in `x-request-id`.
        generation_id: set once the pipeline has taken the request.
    """

    method: str
    path: str
    headers: Mapping[str, str] = {}
    body: bytes = b""
    query: str = ""
    peer: str = ""
    caller: Caller = ANYONE
    id: str = ""
    generation_id: str = ""

    def take_generation_id(self) -> str:
        """The pipeline takes the request from here on: the id of the answer it will be."""
        self.generation_id = new_id()
        return self.generation_id


Handler = Callable[[Call], Awaitable[Reply]]
Routes = Mapping[tuple[str, str], Handler]
"""Handlers by method and path. A path ending in `/` takes everything below it;
`/` itself only itself."""

JSON = ("content-type", "application/json")
