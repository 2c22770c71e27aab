"""A gateway over real sockets, upstreams that fail on cue, and what a test wants to see of both.

Creative calls one server, balanced and fast another: they are different failure domains, and the
first can die while the second serves. Time is real, but a test may move the clock ahead, so that
a hold of 300 s passes at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway import Gateway
from gateway.config import Config
from gateway.errors import GatewayError
from gateway.events import AttemptFinished, CircuitChanged, Event, RequestFinished, TargetResting
from gateway.generation import Chunk, Generation, Served
from gateway.simulator.scripted import Exchange, ScriptedUpstream, answer_tokens
from gateway.streaming import GenerationStream
from gateway.transport.httpx import HttpxClient
from gateway.transport.pool import HTTP1Client

MODES = ("creative", "balanced", "fast")
SAFETY_S = 20.0

Script = Any
"""One entry of a script (a fault's name, or a function), or a list of them."""


class OffsetClock:
    """Monotonic seconds that a test may move ahead."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead

    def skip(self, seconds: float) -> None:
        """Let so many seconds have passed."""
        self.ahead += seconds


@dataclass
class Heard:
    """What one streaming caller got.

    Attributes:
        chunks: as they came.
        served: who answered; None if nobody did.
        whole: the finished answer; None unless the stream ended cleanly.
        error: what was raised instead.
    """

    chunks: list[Chunk] = field(default_factory=list)
    served: Served | None = None
    whole: Generation | None = None
    error: GatewayError | None = None

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)


class Lab:
    """Two upstreams and a gateway in front of them.

    Args:
        primary: serves creative.
        standby: serves every other mode.

    Attributes:
        clock: the gateway's.
        gateway: the gateway, once `start` was called.
        events: everything it told, in order.
    """

    gateway: Gateway

    def __init__(self, primary: ScriptedUpstream, standby: ScriptedUpstream) -> None:
        self.primary = primary
        self.standby = standby
        self.clock = OffsetClock()
        self.events: list[Event] = []
        self._prompts = (f"question {number}" for number in itertools.count(1))
        self._gateways: list[Gateway] = []

    # -- what there is --------------------------------------------------------------------------

    def start(
        self,
        *,
        modes: tuple[str, ...] = MODES,
        target: Mapping[str, Any] | None = None,
        each: Mapping[str, Any] | None = None,
        tables: Mapping[str, Mapping[str, Any]] | None = None,
        **own: Mapping[str, Any],
    ) -> Gateway:
        """Build the gateway.

        Args:
            modes: their names, best first.
            target: options of every target.
            each: options of every mode.
            tables: the other tables of the configuration.
            own: options of one mode; `target` among them are options of its target.
        """
        built = {}
        for name in modes:
            mode = {"deadline_s": 10.0, "first_token_s": 5.0, "stall_s": 5.0, **(each or {})}
            mode.update(own.get(name, {}))
            options = {
                "kind": "vllm",
                "base_url": self.server(name).base_url,
                "model": name,
                **(target or {}),
                **mode.pop("target", {}),
            }
            built[name] = {"targets": [options], **mode}
        config = Config.from_dict(
            {"feedback": {"path": ":memory:"}, **(tables or {}), "modes": built}
        )
        return self.adopt(Gateway(config, clock=self.clock, listeners=[self.events.append]))

    def adopt(self, gateway: Gateway) -> Gateway:
        """Look after a gateway built elsewhere."""
        self.gateway = gateway
        self._gateways.append(gateway)
        return gateway

    def forget(self) -> None:
        """The latest gateway lived, and was closed, on another loop."""
        self._gateways.pop()

    async def stop(self) -> None:
        """Close every gateway; nothing may be left of any, on either side of the wire."""
        for gateway in self._gateways:
            await self.check_at_rest(gateway)
            await gateway.aclose()
        for server in (self.primary, self.standby):
            await server.until(lambda server=server: server.connections == 0)  # type: ignore[misc]
        await asyncio.sleep(0)
        left = [
            task
            for task in asyncio.all_tasks() - {asyncio.current_task()}
            # The openai package leaves generators behind, which the loop closes as they are freed.
            if "async_generator_athrow" not in repr(task.get_coro())
        ]
        assert not left, left

    # -- the upstreams --------------------------------------------------------------------------

    def server(self, mode: str) -> ScriptedUpstream:
        return self.primary if mode == "creative" else self.standby

    def script(self, mode: str, play: Script) -> None:
        """What a mode's upstream plays from now on."""
        self.server(mode).script(mode, play if isinstance(play, list) else [play])

    def requests(self, mode: str = "creative") -> int:
        """How many requests a mode's upstream has got."""
        return self.server(mode).stats(mode).requests

    async def until_asked(self, mode: str = "creative", *, times: int = 1) -> None:
        """Wait until a mode's upstream has got so many requests in all."""
        stats = self.server(mode).stats(mode)
        await self.server(mode).until(lambda: stats.requests >= times, within_s=SAFETY_S)

    async def until_hung_up(self, mode: str = "creative", *, times: int = 1) -> None:
        """Wait until a mode's upstream saw so many clients go; they have a second (B17)."""
        stats = self.server(mode).stats(mode)
        await self.server(mode).until(lambda: stats.aborted >= times, within_s=1.0)

    def says(self, mode: str, prompt: str) -> str:
        """The whole good answer of a mode's upstream."""
        messages = [{"role": "user", "content": prompt}]
        return "".join(answer_tokens({"model": mode, "messages": messages}))

    # -- asking ---------------------------------------------------------------------------------

    def prompt(self) -> str:
        """A question nobody asked before."""
        return next(self._prompts)

    async def ask(
        self, prompt: str | None = None, mode: str = "creative", **options: Any
    ) -> Generation:
        """Ask for one piece, and check that an answer is whole and honest about who gave it."""
        prompt = prompt or self.prompt()
        async with asyncio.timeout(SAFETY_S):
            answer = await self.gateway.generate(prompt, mode, **options)
        self.check_answer(answer, prompt, mode)
        return answer

    async def hear(
        self, prompt: str | None = None, mode: str = "creative", **options: Any
    ) -> Heard:
        """Ask for a stream and listen to its end, good or bad."""
        heard = Heard()
        async with asyncio.timeout(SAFETY_S):
            try:
                async with self.gateway.stream(prompt or self.prompt(), mode, **options) as stream:
                    heard.served = stream.served
                    async for chunk in stream:
                        heard.chunks.append(chunk)
                    heard.served, heard.whole = stream.served, await stream.finish()
            except GatewayError as error:
                heard.error = error
        return heard

    def check_answer(self, answer: Generation, prompt: str, mode: str = "creative") -> None:
        """An answer says honestly who gave it, and is that one's whole answer."""
        assert answer.requested_mode == mode
        assert answer.degraded == (answer.mode != mode)
        assert (answer.reason is not None) == (answer.degraded or answer.served.stale)
        assert answer.text == self.says(answer.mode, prompt)

    @contextlib.asynccontextmanager
    async def reading(
        self, prompt: str | None = None, mode: str = "creative", **options: Any
    ) -> AsyncIterator[GenerationStream]:
        """A stream that is open while the block runs."""
        async with self.gateway.stream(prompt or self.prompt(), mode, **options) as stream:
            yield stream

    # -- what happened --------------------------------------------------------------------------

    def status(self, mode: str = "creative") -> dict[str, Any]:
        """How a mode stands."""
        status: dict[str, Any] = self.gateway.status()["modes"][mode]
        return status

    def phase(self, mode: str = "creative") -> str:
        return str(self.status(mode)["phase"])

    def attempts(self, mode: str = "creative") -> list[AttemptFinished]:
        return [e for e in self.events if isinstance(e, AttemptFinished) and e.mode == mode]

    def kinds(self, mode: str = "creative") -> set[str]:
        """What went wrong with a mode's attempts."""
        return {attempt.kind for attempt in self.attempts(mode)}

    def finished(self) -> list[RequestFinished]:
        return [event for event in self.events if isinstance(event, RequestFinished)]

    def changes(self, mode: str = "creative") -> list[tuple[str, str]]:
        moved = [e for e in self.events if isinstance(e, CircuitChanged) and e.mode == mode]
        return [(change.old, change.new) for change in moved]

    def rests(self) -> list[TargetResting]:
        return [event for event in self.events if isinstance(event, TargetResting)]

    def cached_entries(self) -> int:
        return int(self.gateway.status()["cache"]["entries"])

    async def fail(self, times: int, play: Script = "html", mode: str = "creative") -> None:
        """Let so many requests fail at a mode, one after the other; "html" is never retried."""
        self.script(mode, play)
        for _ in range(times):
            with contextlib.suppress(GatewayError):
                await self.ask(mode=mode)

    async def check_at_rest(self, gateway: Gateway | None = None) -> None:
        """With no request under way every permit, slot and socket is free again."""
        gateway = gateway or self.gateway
        for server in (self.primary, self.standby):
            playing = [server.stats(mode) for mode in MODES]
            await server.until(lambda playing=playing: not any(s.in_flight for s in playing))  # type: ignore[misc]
        await asyncio.sleep(0)
        status = gateway.status()
        assert (status["in_flight"], status["queued"], status["listener_faults"]) == (0, 0, 0)
        pipeline = gateway._in_force.pipeline
        assert not pipeline.cache._flights
        assert not any(pipeline.gearbox._watch._waiting.values())
        for rung in pipeline.ladder:
            assert rung.circuit.in_flight == rung.limit.in_flight == 0, rung.name
            assert rung.limit.native_waiting == 0
            assert not rung.circuit._waiting
            assert all(target.in_flight == 0 for target in rung.targets)
        for client in pipeline.clients._clients.values():
            await _until_idle(client)


async def _until_idle(client: object) -> None:
    """Connections in use are given back at once; those lingering or closing soon after."""
    async with asyncio.timeout(5):
        while not _idle(client):
            await asyncio.sleep(0.005)


def _idle(client: object) -> bool:
    if isinstance(client, HTTP1Client):
        return client.open_connections == client.idle_connections
    assert isinstance(client, HttpxClient)
    pool = client._transport._pool  # type: ignore[attr-defined]
    idle = all(connection.is_idle() for connection in pool.connections)
    return client.live_exchanges == 0 and idle and not pool._requests


async def begin(exchange: Exchange, tokens: int) -> None:
    """The beginning of a good stream of numbered tokens, with time for the client to read it."""
    exchange.head()
    exchange.role()
    exchange.say(*(f"t{number} " for number in range(tokens)))
    await exchange.pause()
