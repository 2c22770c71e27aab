"""A real HTTP/1.1 server on 127.0.0.1 that speaks OpenAI chat completions and fails on cue.

    async with ScriptedUpstream() as server:
        server.script("qwen3-max", ["500", "cut_fin", "ok"])
        ...  # talk to server.base_url
        stats = server.stats("qwen3-max")

A model that has no script but the name of a fault or of a sequence plays that (`model="silent"`);
any other model answers well. `FAULTS` lists what there is.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Self, cast

import msgspec

from gateway.simulator.scripted.catalogue import FAULTS, SEQUENCES, Script, check, plays
from gateway.simulator.scripted.exchange import CutOff, Exchange, reset
from gateway.simulator.scripted.fault import Play


class ModelStats(msgspec.Struct):
    """What happened to the requests for one model.

    Attributes:
        requests: requests that arrived whole.
        bodies: their JSON bodies, the latest 1,000.
        headers: their headers, names in lower case, the latest 1,000.
        in_flight: requests being answered now.
        completed: answers sent to their proper end.
        aborted: requests whose client hung up before that.
        aborted_at: when it did, on the event loop's clock, the latest 1,000.
        open: connections open now whose latest request was for this model.
    """

    requests: int = 0
    bodies: deque[dict[str, Any]] = msgspec.field(default_factory=lambda: deque(maxlen=1000))
    headers: deque[dict[str, str]] = msgspec.field(default_factory=lambda: deque(maxlen=1000))
    in_flight: int = 0
    completed: int = 0
    aborted: int = 0
    aborted_at: deque[float] = msgspec.field(default_factory=lambda: deque(maxlen=1000))
    open: int = 0


class ScriptedUpstream:
    """The server; starts and stops with `async with`.

    Args:
        ssl_context: speaks TLS with this certificate; None speaks plain HTTP.
        pace_s: length of the pauses in scripts, seconds.

    Attributes:
        port: where it listens, chosen at the start.
    """

    def __init__(self, *, ssl_context: ssl.SSLContext | None = None, pace_s: float = 0.01) -> None:
        self.port = 0
        self.pace_s = pace_s
        self.errors: list[Exception] = []
        self._ssl = ssl_context
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._scripts: dict[str, deque[str | Play]] = {}
        self._stats: dict[str, ModelStats] = {}
        self._changed = asyncio.Event()
        self._closed_port = socket.socket()

    async def __aenter__(self) -> Self:
        # Bound but never listening: whoever connects there is refused, and nobody else gets it.
        self._closed_port.bind(("127.0.0.1", 0))
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        self._closed_port.close()
        if self.errors:
            raise ExceptionGroup("scripts that failed themselves", self.errors)

    @property
    def base_url(self) -> str:
        """Up to and including `/v1`."""
        return f"{'https' if self._ssl else 'http'}://127.0.0.1:{self.port}/v1"

    @property
    def refusing_url(self) -> str:
        """A base URL where every connection is refused."""
        port = self._closed_port.getsockname()[1]
        return f"{'https' if self._ssl else 'http'}://127.0.0.1:{port}/v1"

    async def listen(self) -> None:
        """Accept connections, again on the same port after `refuse`."""
        if self._server is None:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Connection(self), "127.0.0.1", self.port, ssl=self._ssl
            )
            self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Refuse new connections and reset those that are open, as a process that died does."""
        if self._server is not None:
            self._server.close()
            self._server = None
        playing = [connection.playing for connection in self._connections if connection.playing]
        for connection in list(self._connections):
            connection.reset()
        if playing:
            await asyncio.wait(playing)
        while self._connections:
            await self._next_change()

    def script(self, model: str, script: Script) -> None:
        """Play one entry of `script` a request for `model`, from now on; the last repeats.

        Raises:
            ValueError: the script is empty or names an unknown fault.
        """
        check(script)
        self._scripts[model] = deque(script)

    def stats(self, model: str) -> ModelStats:
        """What happened to the requests for `model` so far; the object stays up to date."""
        return self._stats.setdefault(model, ModelStats())

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._connections)

    async def until(self, reached: Callable[[], bool], *, within_s: float = 5.0) -> None:
        """Wait until `reached()` holds; asked at every change in the stats and connections.

        Raises:
            TimeoutError: it did not, within `within_s` seconds.
        """
        async with asyncio.timeout(within_s):
            while not reached():
                await self._next_change()

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def changed(self) -> None:
        """Wake those who wait for a change."""
        self._changed.set()

    def opened(self, connection: _Connection) -> None:
        """Count a connection."""
        self._connections.add(connection)
        self.changed()

    def lost(self, connection: _Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        self.changed()

    def next_entry(self, model: str) -> str | Play:
        """What the next request for `model` plays."""
        if model not in self._scripts:
            named = SEQUENCES.get(model) or (model if model in FAULTS else "ok",)
            self._scripts[model] = deque(named)
        script = self._scripts[model]
        return script.popleft() if len(script) > 1 else script[0]

    async def answer(self, exchange: Exchange) -> None:
        """Play the answer to one request."""
        if exchange.is_chat:
            play = plays(self.next_entry(exchange.model), stream=exchange.stream)
            await play(exchange)
        elif exchange.path.endswith("/models"):
            models = [{"id": name, "object": "model"} for name in (*FAULTS, *SEQUENCES)]
            exchange.json({"object": "list", "data": models})
        elif exchange.path.endswith("/health"):
            exchange.json({"status": "ok"})
        else:
            exchange.json({"detail": "Not Found"}, status=404)


class _Connection(asyncio.Protocol):
    """One connection: its requests, one after the other."""

    _transport: asyncio.Transport

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self._upstream = upstream
        self._buffer = b""
        self._latest: ModelStats | None = None
        self.playing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._upstream.opened(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self.playing is None:
            self._next_request()

    def connection_lost(self, error: Exception | None) -> None:
        if self.playing is not None:
            self.playing.cancel()
        if self._latest is not None:
            self._latest.open -= 1
            if self.playing is not None:
                self._latest.aborted += 1
                self._latest.aborted_at.append(asyncio.get_running_loop().time())
        self._upstream.lost(self)

    def reset(self) -> None:
        """Break the connection, whatever is under way."""
        if self.playing is not None:
            self.playing.cancel()
            self.playing = None  # it was us, not the client
        reset(self._transport)

    def _next_request(self) -> None:
        try:
            parsed = _parse(self._buffer)
        except (ValueError, msgspec.DecodeError):
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            self._transport.close()
            return
        if parsed is not None:
            path, headers, body, self._buffer = parsed
            exchange = Exchange(self._transport, path, headers, body, self._upstream.pace_s)
            self.playing = asyncio.create_task(self._play(exchange))

    async def _play(self, exchange: Exchange) -> None:
        stats = self._arrive(exchange) if exchange.is_chat else ModelStats()
        try:
            await self._upstream.answer(exchange)
        except CutOff:
            pass
        except Exception as error:  # noqa: BLE001 - told when the server stops
            self._upstream.errors.append(error)
        finally:
            stats.in_flight -= 1
            stats.completed += exchange.ended
            self._upstream.changed()
        self.playing = None
        if exchange.ended:
            self._next_request()
        else:
            self._transport.close()

    def _arrive(self, exchange: Exchange) -> ModelStats:
        stats = self._upstream.stats(exchange.model)
        if self._latest is not None:
            self._latest.open -= 1
        self._latest = stats
        stats.open += 1
        stats.requests += 1
        stats.in_flight += 1
        stats.bodies.append(exchange.body)
        stats.headers.append(exchange.headers)
        self._upstream.changed()
        return stats


def _parse(data: bytes) -> tuple[str, dict[str, str], dict[str, Any], bytes] | None:
    """Take one request off the front of `data`: path, headers, body and the rest; None if it is
    not whole yet.
    """
    head, ended, rest = data.partition(b"\r\n\r\n")
    if not ended:
        return None
    request, *lines = head.decode("latin-1").split("\r\n")
    _, path, _ = request.split(" ")
    fields = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    length = int(headers.get("content-length", 0))
    if len(rest) < length:
        return None
    body = msgspec.json.decode(rest[:length], type=dict[str, Any]) if length else {}
    return path, headers, body, rest[length:]
