"""The lab's upstream: three scripted providers on ports that follow one another, and their log.

    model name  creative-s08-stream  ->  the play of `creative` in scenario 8

Any of the ports plays any model. There are three because providers that fail together share an
address: a gateway may rightly hold the one's failures against whatever else lives there. The
caller talks to the lab over the same sockets (`/lab/...`), so that it may run elsewhere.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Self

import msgspec

from gateway.faultlab.scenario import ROLES, Entry, Run, Script, Until
from gateway.faultlab.words import Question, answer_tokens, find_question
from gateway.simulator.scripted import Exchange, ScriptedUpstream
from gateway.simulator.scripted.catalogue import plays


class Hit(msgspec.Struct):
    """One request as the upstream saw it.

    Attributes:
        at: when it came, seconds since the run began.
        question: which question it asked.
        stream: whether it asked for a stream.
        whole: whether the play came to its own end.
        left_at: when the client hung up before that; None if it did not.
    """

    at: float
    question: str
    stream: bool
    whole: bool = False
    left_at: float | None = None


class _Part:
    """What one model plays in a run, and who asked it."""

    def __init__(self, script: Script) -> None:
        self.hits: list[Hit] = []
        self._script = script
        self._turns: dict[str, int] = {}

    def next_entry(self, question: Question) -> Entry:
        """What to play to this request."""
        if isinstance(self._script, Mapping):
            entries, counted = self._script.get(question.mark, ("ok",)), question.number
        else:
            entries, counted = self._script, ""
        turn = self._turns.get(counted, 0)
        self._turns[counted] = turn + 1
        return entries[min(turn, len(entries) - 1)]


class _Line(ScriptedUpstream):
    """One of the ports."""

    def __init__(self, lab: Lab, port: int) -> None:
        super().__init__()
        self.port = port
        self._lab = lab

    async def answer(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/lab/"):
            self._lab.answer(exchange)
        elif exchange.is_chat:
            await self._lab.play(exchange)
        else:
            await super().answer(exchange)


class Lab:
    """The upstream; starts and stops with `async with`.

    Args:
        runs: what can be played.
        port: of the first provider, the others follow; 0 picks free ones.
    """

    def __init__(self, runs: Iterable[Run], port: int = 0) -> None:
        self._runs = {run.name: run for run in runs}
        self._parts: dict[str, _Part] = {}
        self._began: dict[str, float] = {}
        self._lines = [_Line(self, port and port + place) for place in range(len(ROLES))]
        self._stack = AsyncExitStack()
        for name in self._runs:
            self.begin(name)

    async def __aenter__(self) -> Self:
        for line in self._lines:
            await self._stack.enter_async_context(line)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def url(self) -> str:
        """Where the caller reaches the lab."""
        return f"http://127.0.0.1:{self._lines[0].port}"

    def urls(self, run: Run) -> dict[str, str]:
        """Each role's base URL in a run."""
        return base_urls([line.port for line in self._lines], run)

    def begin(self, name: str) -> None:
        """Play a run from its start, with an empty log.

        Raises:
            KeyError: there is no such run.
        """
        run = self._runs[name]
        self._began[name] = time.monotonic()
        for role in ROLES:
            self._parts[run.model(role)] = _Part(run.scenario.plays.get(role, ("ok",)))

    async def play(self, exchange: Exchange) -> None:
        """Answer a chat."""
        exchange.model = model = exchange.model.rpartition("/")[2]
        part = self._parts.get(model)
        run = model.partition("-")[2]
        messages = exchange.body.get("messages") or []
        question = find_question(messages)
        exchange.tokens = _tokens(model, question.number, messages)
        if part is None:
            await plays("ok", stream=exchange.stream)(exchange)
            return
        entry = part.next_entry(question)
        since = time.monotonic() - self._began[run]
        if isinstance(entry, Until):
            entry = entry.first if since < entry.seconds else entry.then
        hit = Hit(since, question.number, exchange.stream)
        part.hits.append(hit)
        try:
            await plays(entry, stream=exchange.stream)(exchange)
            hit.whole = True
        except asyncio.CancelledError:
            hit.left_at = time.monotonic() - self._began[run]
            raise

    def answer(self, exchange: Exchange) -> None:
        """Answer the caller: `/lab/begin/RUN`, `/lab/hits/MODEL`."""
        _, _, what, name = exchange.path.split("/", 3)
        if what == "begin" and name in self._runs:
            self.begin(name)
            exchange.json({"began": name})
        elif what == "hits" and name in self._parts:
            since = time.monotonic() - self._began[name.partition("-")[2]]
            exchange.json({"now": since, "hits": self._parts[name].hits})
        else:
            exchange.json({"error": {"message": "no such run or model"}}, 404)


def base_urls(ports: list[int], run: Run) -> dict[str, str]:
    """Each role's base URL in a run; where nobody shall listen, nobody does."""
    urls = {role: f"http://127.0.0.1:{port}/v1" for role, port in zip(ROLES, ports, strict=True)}
    if run.scenario.refused:
        urls[ROLES[0]] = "http://127.0.0.1:1/v1"  # tcpmux, which no machine serves any more
    return {role: urls[role] for role in run.roles}


def _tokens(model: str, number: str, messages: list[dict[str, Any]]) -> list[str]:
    """The answer; to a chat that ends with its beginning, the rest of it."""
    last = messages[-1] if messages else {}
    if last.get("role") == "assistant":
        begun = str(last.get("content") or "")
        whole = answer_tokens(begun.partition(" ")[0], number)
        if begun and "".join(whole).startswith(begun):
            return re.findall(r"\S+ ?| ", "".join(whole)[len(begun) :])
    return answer_tokens(model, number)
