"""A real `gateway serve` in a process of its own, and raw sockets to talk to it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 15.0


class Live:
    """The process; starts and stops with `async with`.

    Args:
        config: the configuration's text.
        folder: where it is written.
        arguments: further arguments of `gateway serve`.
    """

    def __init__(self, config: str, folder: Path, *arguments: str, **environment: str) -> None:
        self.file = folder / "config.toml"
        self.file.write_text(config, encoding="utf-8")
        self._arguments = arguments
        self._environment = environment
        self.port = 0
        self.log: list[str] = []
        self._heard = asyncio.Event()
        self._clients: list[Client] = []

    async def __aenter__(self) -> Self:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", "serve", "-c", str(self.file), "--port", "0",
            *self._arguments,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), **self._environment},
            cwd=self.file.parent,
        )  # fmt: skip
        self._reading = asyncio.create_task(self._read())
        try:
            line = await self.says(lambda line: " at http://" in line)
        except BaseException:
            await self._end()
            raise
        found = re.search(r"at http://\S+:(\d+)", line)
        assert found is not None
        self.port = int(found[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _end(self) -> None:
        for client in self._clients:
            client.close()
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append(line.decode(errors="replace"))
            self._heard.set()
        self._heard.set()

    async def says(self, wanted: Callable[[str], bool], since: int = 0) -> str:
        """Wait for a line on its standard error."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for line in self.log[since:]:
                    if wanted(line):
                        return line
                assert not self._reading.done(), f"it ended: {''.join(self.log)}"
                self._heard.clear()
                await self._heard.wait()

    async def told(self) -> str:
        """All it has logged so far: lines wait a moment to be written together."""
        mark = f"mark-{len(self.log)}"
        ask = f"GET /v1/nowhere HTTP/1.1\r\nhost: localhost\r\nx-request-id: {mark}\r\n"
        await self.ask(f"{ask}connection: close\r\n\r\n")
        await self.says(lambda line: mark in line)
        return "".join(self.log)

    async def until(self, reached: Callable[[dict[str, Any]], bool], path: str = "/status") -> Any:
        """Ask a route until its JSON is as expected."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = json.loads((await self.get(path)).body)
                if reached(found):
                    return found
                await asyncio.sleep(0.02)

    async def memory_mb(self) -> float:
        """Its largest resident size so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) / 1024 if found else 0.0

    async def files(self) -> int:
        """Its open files."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def refuses(self) -> None:
        """Wait until nobody is let in any more; it may say before that it is not ready."""
        stopping = False
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    status = (await self.get("/readyz")).status
                    assert status == 503 or not stopping
                    stopping = status == 503
                except (OSError, asyncio.IncompleteReadError):
                    return

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()

    async def connect(self, receive_buffer: int = 0) -> Client:
        import socket

        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        except OSError:
            sock.close()
            raise
        limit = 64 if receive_buffer else 2**20
        client = Client(*await asyncio.open_connection(sock=sock, limit=limit))
        self._clients.append(client)
        return client

    async def get(self, path: str) -> Answer:
        return await self.ask(
            f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )

    async def ask(self, text: str | bytes) -> Answer:
        """One request on a connection of its own."""
        client = await self.connect()
        try:
            client.send(text)
            return await client.answer()
        finally:
            client.close()

    async def post(self, path: str, body: Any, *headers: str) -> Answer:
        return await self.ask(post(path, body, "connection: close", *headers))


def post(path: str, body: Any, *headers: str) -> bytes:
    """A POST of JSON as it goes over the wire."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {len(data)}", *headers]
    if not any(header.lower().startswith("content-type") for header in headers):
        head.append("content-type: application/json")
    return "\r\n".join([*head, "", ""]).encode() + data


def chat(model: str, *, stream: bool = False, text: str = "hi", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "stream": stream, **more}


class Answer:
    """One whole response."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def error(self) -> dict[str, Any]:
        """Of OpenAI's envelope, which it must be."""
        found = json.loads(self.body)["error"]
        assert {"message", "type", "param", "code"} <= found.keys()
        assert isinstance(found["message"], str) and found["message"]
        assert "Traceback" not in found["message"]
        return dict(found)


class Client:
    """One connection; who waits longer than `patience_s` for its next piece gets a TimeoutError."""

    patience_s = PATIENCE_S

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, text: str | bytes) -> None:
        self.writer.write(text.encode("latin-1") if isinstance(text, str) else text)

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(self.patience_s):
            head = await self.reader.readuntil(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")[:-2]
        fields = (line.partition(":") for line in lines)
        return int(status.split(" ")[1]), {n.lower(): v.strip() for n, _, v in fields}

    async def answer(self, *, head_only: bool = False) -> Answer:
        async with asyncio.timeout(self.patience_s):
            status, headers = await self.head()
            if head_only:
                body = b""
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            else:
                body = b"".join([chunk async for chunk in self.chunks()])
            return Answer(status, headers, body)

    async def chunks(self) -> Any:
        """The pieces of a chunked body, as they come; raises if it is cut off."""
        while True:
            async with asyncio.timeout(self.patience_s):
                size = int((await self.reader.readuntil(b"\r\n")).strip(), 16)
                data = await self.reader.readexactly(size + 2)
            if not size:
                return
            yield data[:-2]

    async def closed(self) -> bytes:
        """What still comes until the server closes."""
        async with asyncio.timeout(self.patience_s):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    def close(self) -> None:
        self.writer.close()
