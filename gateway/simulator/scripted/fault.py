"""What the scripted upstream can play, as a record: how to answer, and what to make of it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from gateway.errors import ErrorKind
from gateway.simulator.scripted.exchange import Exchange

Play: TypeAlias = Callable[[Exchange], Coroutine[Any, Any, None]]
Form: TypeAlias = Literal["both", "stream", "whole"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedFault:
    """One way to answer, good answers included.

    Attributes:
        play: writes the answer.
        says: what it does, in words for people.
        kind: the failure it is; None: a complete answer. Providers report all but two, which the
            gateway must find: TIMEOUT never ends by itself, EMPTY is well-formed.
        form: which callers it is for; the others get a good answer.
        tokens: content tokens a streaming caller has received when it strikes.
        text: the text of a complete answer, None for the numbered words (`answer_tokens`).
        status: the HTTP status, 0 if none is sent.
        retry_after: seconds a provider must report, None for none.
    """

    play: Play
    says: str
    kind: ErrorKind | None = None
    form: Form = "both"
    tokens: int = 0
    text: str | None = None
    status: int = 200
    retry_after: float | None = None

    def strikes(self, *, stream: bool) -> bool:
        """Whether it plays for a caller who wants a stream, or one who wants the answer whole."""
        return self.form == "both" or (self.form == "stream") == stream


def enter(table: dict[str, ScriptedFault], **about: Any) -> Callable[[Play], Play]:
    """Enter a function into a table, under its name, with its docstring as the words for people."""

    def entered(play: Play) -> Play:
        table[play.__name__] = ScriptedFault(play=play, says=play.__doc__ or "", **about)
        return play

    return entered
