"""Callers of every kind, and an account of what became of each request."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

from gateway.simulator.scripted import answer_tokens
from tests.server.live import Answer, Client, chat, post
from tests.soak.service import ADMIN_KEY, EDITIONS, KEYS, MODES

_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER of zero seconds: close sends RST, not FIN
_POOL: Final = 24
_REPEATED: Final = 150  # questions that come again and again: the cache answers many of them
_MOST_LOST: Final = 20


def _bearer(key: str) -> str:
    return f"authorization: Bearer {key}"


_ALICE: Final = _bearer(KEYS["alice"])
_CHAT: Final = "/v1/chat/completions"
_GOOD: Final = chat("fast")
WRONG: Final = {
    "broken JSON": (post(_CHAT, b'{"model":', _ALICE), 400),
    "no messages": (post(_CHAT, {"model": "fast"}, _ALICE), 400),
    "no such model": (post(_CHAT, chat("none"), _ALICE), 404),
    "no such route": (post("/v1/nothing", {}, _ALICE), 404),
    "wrong method": (post("/status", {}, _ALICE), 405),
    "wrong key": (post(_CHAT, _GOOD, _bearer("sk-wrong")), 401),
    "no key": (post(_CHAT, _GOOD), 401),
    "not an operator": (post("/admin/reload", {}, _ALICE), 403),
    "no JSON at all": (post(_CHAT, b"hi", _ALICE, "content-type: text/plain"), 415),
    "too long": (
        f"POST {_CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n".encode(),
        413,
    ),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
    "head too slow": (f"POST {_CHAT} HTTP/1.1\r\nhost: x\r\n".encode(), 408),
    "body too slow": (post(_CHAT, _GOOD, _ALICE)[:-5], 408),
}


class _Caller(Client):
    """One who waits: on a busy machine an answer may take its time, but must come."""

    patience_s = 60.0


class Traffic:
    """Sends requests at a mean rate, at random moments, each by a caller of its own.

    Args:
        port: of the server.
        per_s: mean requests a second.
        dice: what is asked follows from it.

    Attributes:
        ends: how many requests ended in which way.
        statuses: honest errors by status.
        lost: of those that ended in no way allowed, what happened; the first few.
    """

    def __init__(self, port: int, per_s: float, dice: random.Random) -> None:
        self.ends: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.lost: list[str] = []
        self.asked = 0
        self._port = port
        self._per_s = per_s
        self._dice = dice
        self._idle: list[Client] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._answered: deque[str] = deque(maxlen=50)  # ids of alice's answers

    async def run(self) -> None:
        """Traffic, until cancelled."""
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            due += self._dice.expovariate(self._per_s)
            await asyncio.sleep(due - clock())
            task = asyncio.create_task(self._one())
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def end(self) -> None:
        """Wait for the last request, then close every connection."""
        if self._under_way:
            await asyncio.wait(self._under_way)
        for client in self._idle:
            client.close()
        self._idle.clear()

    async def prime(self, workers: int = 1) -> None:
        """Touch everything once in each worker, so that what is made on first use is there."""
        # The kernel picks who accepts: several rounds, on new connections, to meet them all.
        for _ in range(1 if workers == 1 else 4 * workers):
            for mode in MODES:
                for stream in (False, True):
                    await self._told(f"{mode} {stream}", self._ask(chat(mode, stream=stream)))
            # Many at once, so that the event loop's pool of threads is as large as it gets.
            await asyncio.gather(*(self._told("operations", self._operate()) for _ in range(40)))
            await self._told("figures", self._watch(0.5))
            await self.end()

    async def _one(self) -> None:
        kinds = {
            "ask": 72, "leave": 14, "tear": 2, "wrong": 6, "operate": 4, "watch": 1, "limited": 1,
        }  # fmt: skip
        (kind,) = self._dice.choices([*kinds], [*kinds.values()])
        match kind:
            case "ask":
                await self._told(
                    "ask", self._ask(self._body(), self._dice.choice(("alice", "bob")))
                )
            case "limited":
                await self._told("limited", self._ask(self._body(), "slow"))
            case "leave":
                await self._leave(10 ** self._dice.uniform(-3, 0.3))
            case "tear":
                await self._tear()
            case "wrong":
                name = self._dice.choice([*WRONG])
                await self._told(name, self._wrong(*WRONG[name]))
            case "operate":
                await self._told("operate", self._operate())
            case "watch":
                await self._told("watch", self._watch(self._dice.uniform(0.5, 5)))

    async def _told(self, what: str, conversation: Any) -> None:
        """Have a conversation and book how it ended."""
        self.asked += 1
        try:
            end = await conversation
        except Exception as error:
            end = self._lose(f"{what}: {type(error).__name__} {error}")
        self.ends[end] += 1

    def _lose(self, why: str) -> str:
        if len(self.lost) < _MOST_LOST:
            self.lost.append(why)
        return "lost"

    def _body(self) -> dict[str, Any]:
        dice = self._dice
        if dice.random() < 0.35:
            text = f"again {int(_REPEATED * dice.random() ** 2)}"
        else:
            text = f"new {dice.getrandbits(64):x} " + "word " * int(dice.expovariate(1 / 50))
        model = dice.choice((*MODES, "creative", "auto", "gpt-4o"))
        return chat(model, text=text, stream=dice.random() < 0.5)

    # -- conversations, each ending in a word for the account -----------------------------------

    async def _ask(self, body: dict[str, Any], who: str = "alice") -> str:
        client, (status, headers) = await self._send(post(_CHAT, body, _bearer(KEYS[who])))
        if "content-length" in headers:
            raw = await client.reader.readexactly(int(headers["content-length"]))
            self._keep(client, headers)
            answer = Answer(status, headers, raw)
            if status != 200:
                return self._honest(answer)
            said = json.loads(raw)
            text, how = said["choices"][0]["message"]["content"], "answered whole"
        else:
            text, error, done = await _events(client)
            self._keep(client, headers)
            if error is not None and not done:
                return "interrupted, and told so"
            if error is not None or not done:
                return self._lose(f"a stream ended with done={done}, error={error}")
            how = "answered as a stream"
        mode = headers.get("x-gateway-mode")  # unknown where headers had to go out before a token
        if text not in _expected(body, (mode,) if mode else MODES):
            return self._lose(f"{headers}: not the answer to this question: {text[:80]!r}")
        if who == "alice":
            self._answered.append(headers["x-gateway-id"])
        return f"{how}, from the cache" if headers.get("x-gateway-cache") == "hit" else how

    async def _leave(self, after_s: float) -> None:
        """Ask, and hang up at a random moment, politely or not."""
        self.asked += 1
        client = await self._connect()
        client.send(post(_CHAT, self._body(), _bearer(KEYS["bob"])))
        with suppress(TimeoutError, OSError, asyncio.IncompleteReadError):
            async with asyncio.timeout(after_s):
                while await client.reader.read(1024):
                    pass
        self._hang_up(client)
        self.ends["left by the caller"] += 1

    async def _tear(self) -> None:
        """Hang up before the request is whole."""
        self.asked += 1
        client = await self._connect()
        data = post(_CHAT, self._body(), _ALICE)
        client.send(data[: self._dice.randrange(len(data))])
        await asyncio.sleep(self._dice.uniform(0, 0.2))
        self._hang_up(client)
        self.ends["left by the caller"] += 1

    async def _wrong(self, data: bytes, status: int) -> str:
        client = await self._connect()
        client.send(data)
        answer = await client.answer()
        client.close()
        assert answer.status == status, f"{answer.status} instead of {status}"
        assert answer.error
        return "wrong, and refused"

    async def _operate(self) -> str:
        for path in ("/status", "/metrics", "/health", "/v1/models"):
            get = f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{_bearer(ADMIN_KEY)}\r\n\r\n"
            client, (status, headers) = await self._send(get.encode())
            await client.reader.readexactly(int(headers["content-length"]))
            self._keep(client, headers)
            assert status == 200 or path == "/health", (path, status)
        if self._answered:
            rating = {"generation_id": self._dice.choice(self._answered), "rating": 4}
            client, (status, headers) = await self._send(post("/feedback", rating, _ALICE))
            raw = await client.reader.readexactly(int(headers["content-length"]))
            self._keep(client, headers)
            assert status == 200, (status, raw)
        return "operated"

    async def _watch(self, for_s: float) -> str:
        """Look at the dashboard's figures for a while."""
        client = await self._connect()
        client.send(f"GET /live HTTP/1.1\r\nhost: localhost\r\n{_bearer(ADMIN_KEY)}\r\n\r\n")
        status, _ = await client.head()
        assert status == 200, status
        with suppress(TimeoutError):
            async with asyncio.timeout(for_s):
                async for _ in client.chunks():
                    pass
        self._hang_up(client)
        return "watched the figures"

    def _honest(self, answer: Answer) -> str:
        """An error in OpenAI's envelope that is no fault of ours."""
        if answer.status == 500 or not answer.error:
            return self._lose(f"{answer.status} {answer.body[:200]!r}")
        self.statuses[answer.status] += 1
        return "an honest error"

    # -- connections ----------------------------------------------------------------------------

    async def _send(self, data: bytes) -> tuple[Client, tuple[int, dict[str, str]]]:
        """Send on a connection kept from before, or a new one, and read the head."""
        if self._idle:
            client = self._idle.pop()
            client.send(data)
            try:
                return client, await client.head()
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                # Closed while idle, crossing our request: any client sends it again
                # (RFC 9112, 9.3.1).
                client.close()
                if getattr(error, "partial", b""):
                    raise
        client = await self._connect()
        client.send(data)
        return client, await client.head()

    async def _connect(self) -> Client:
        return _Caller(*await asyncio.open_connection("127.0.0.1", self._port))

    def _keep(self, client: Client, headers: dict[str, str]) -> None:
        if len(self._idle) < _POOL and headers.get("connection") != "close":
            self._idle.append(client)
        else:
            client.close()

    def _hang_up(self, client: Client) -> None:
        if self._dice.random() < 0.5:
            sock: socket.socket = client.writer.get_extra_info("socket")
            if sock.fileno() != -1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        client.writer.transport.abort()


async def _events(client: Client) -> tuple[str, Any, bool]:
    """A stream's text, its error if it told one, and whether it ended with `[DONE]`."""
    text, error, done = "", None, False
    async for line in _lines(client):
        if line == b"data: [DONE]":
            done = True
        elif line.startswith(b"data: "):
            event = json.loads(line[6:])
            error = error or event.get("error")
            for choice in event.get("choices", ()):
                text += choice["delta"].get("content") or ""
    return text, error, done


async def _lines(client: Client) -> AsyncIterator[bytes]:
    buffer = b""
    async for piece in client.chunks():
        *lines, buffer = (buffer + piece).split(b"\n")
        for line in lines:
            yield line


def _expected(body: dict[str, Any], modes: tuple[str, ...]) -> set[str]:
    """What the modes' models, of either edition, answer to it."""
    return {
        "".join(answer_tokens({"model": f"{mode}-{edition}", "messages": body["messages"]}))
        for mode in modes
        for edition in EDITIONS
    }
