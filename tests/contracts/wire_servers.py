"""Upstreams for the wire tests: scripted on raw sockets, uvicorn, nginx; and both event loops."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop

from gateway.transport.base import Origin, request_head

SAFETY_S = 20.0
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on asyncio's loop and on uvloop, and see that it leaves no socket open."""

    def run(loop: str, **arguments: Any) -> None:
        before = open_sockets()
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(asyncio.wait_for(test(**arguments), SAFETY_S))
        deadline = time.monotonic() + 2  # a server in another thread closes its end in its own time
        while not open_sockets() <= before:
            assert time.monotonic() < deadline, "a socket was left open"

    functools.update_wrapper(run, test)
    del run.__wrapped__  # type: ignore[attr-defined]  # pytest would look through to the coroutine
    signature = inspect.signature(test)
    loop = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), loop]
    )
    marked: Callable[..., None] = pytest.mark.parametrize("loop", list(LOOPS))(run)
    return marked


def open_sockets() -> set[str]:
    """Every TCP socket of this process, as the kernel names them."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            target = str(entry.readlink())
            if target.startswith("socket:") and _is_tcp(int(entry.name)):
                found.add(target)
    return found


def _is_tcp(fd: int) -> bool:
    with closing(socket.socket(fileno=os.dup(fd))) as copy:
        return copy.family in (socket.AF_INET, socket.AF_INET6)


async def until(condition: Callable[[], bool], what: str = "the expected state") -> None:
    """Let the loop turn until `condition` holds."""
    try:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0)
    except TimeoutError:
        raise AssertionError(f"{what} never came") from None


def post(origin: Origin, target: str = "/", *more: tuple[str, str]) -> bytes:
    return request_head("POST", target, origin, [("authorization", "Bearer sk-secret"), *more])


def get(origin: Origin, target: str = "/") -> bytes:
    return request_head("GET", target, origin)


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def head(self) -> bytes:
        """Read the head of a request; `b""` if the client is gone."""
        try:
            return await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""

    async def request(self) -> bytes | None:
        """Read a request; return its body, None if the client is gone."""
        head = await self.head()
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                return await self.reader.readexactly(int(line.split(b":")[1]))
        return b"" if head else None

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            with suppress(ConnectionError):
                await self.writer.drain()

    async def gone(self) -> None:
        """Wait until the client is gone, throwing away what it sends."""
        with suppress(ConnectionError, ssl.SSLError):
            while await self.reader.read(65536):
                pass

    def reset(self) -> None:
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


class Scripted:
    """A server that plays a script for every connection, then closes it."""

    def __init__(self) -> None:
        self.accepted = 0
        self.open = 0
        self.origin = Origin("http", "127.0.0.1", 0)


@asynccontextmanager
async def scripted(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Scripted]:
    served = Scripted()
    playing: set[asyncio.Task[Any]] = set()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        playing.add(task)
        served.accepted += 1
        served.open += 1
        try:
            # CancelledError: the end of the test; asyncio.streams would report it as a failure
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await script(Peer(reader, writer))
        finally:
            served.open -= 1
            playing.discard(task)
            writer.close()

    # limit: readexactly of a large request body
    server = await asyncio.start_server(play, "127.0.0.1", 0, ssl=tls, limit=1 << 20)
    host = "localhost" if tls else "127.0.0.1"
    port = server.sockets[0].getsockname()[1]
    served.origin = Origin("https" if tls else "http", host, port)
    try:
        yield served
    finally:
        server.close()
        for task in list(playing):
            task.cancel()
        await asyncio.gather(*playing, return_exceptions=True)
        await server.wait_closed()


def answering(*responses: bytes, then_close: bool = False) -> Script:
    """A script: one response per request, the last one again and again."""

    async def play(peer: Peer) -> None:
        for response in [*responses[:-1], *[responses[-1]] * 1000]:
            if await peer.request() is None:
                return
            await peer.send(response)
            if then_close:
                return

    return play


def closed_port() -> Origin:
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return Origin("http", "127.0.0.1", sock.getsockname()[1])


@contextmanager
def uvicorn_serving(app: Any) -> Iterator[Origin]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    ready = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready.set()

    config = uvicorn.Config(app, ws="none", lifespan="off", log_level="error", loop="asyncio")
    server = Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        assert ready.wait(SAFETY_S)
        yield Origin("http", "127.0.0.1", sock.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(SAFETY_S)
        sock.close()


NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

_NGINX_CONF = """
daemon off; master_process off; pid {root}/pid; error_log {root}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;
    server {{
        listen 127.0.0.1:{port};
        keepalive_requests 3;
        root {root}/www;
        location /small {{ client_max_body_size 1k; proxy_pass {upstream}; }}
        location /app/ {{
            proxy_pass {upstream}/; proxy_http_version 1.1; proxy_buffering off;
            client_max_body_size 16m;
        }}
        location /none {{ return 204; }}
    }}
}}
"""


@contextmanager
def nginx_serving(root: Path, upstream: Origin) -> Iterator[Origin]:
    assert NGINX is not None
    (root / "www").mkdir()
    (root / "www" / "big").write_bytes(b"0123456789abcdef" * 131072)
    origin = closed_port()
    (root / "conf").write_text(
        _NGINX_CONF.format(root=root, port=origin.port, upstream=upstream), "utf-8"
    )
    process = subprocess.Popen([NGINX, "-c", root / "conf", "-e", root / "error.log"])
    try:
        _await_listener(origin, process)
        yield origin
    finally:
        process.terminate()
        process.wait(SAFETY_S)


def _await_listener(origin: Origin, process: subprocess.Popen[bytes]) -> None:
    for _ in range(20_000):
        with closing(socket.socket()) as probe:
            if probe.connect_ex((origin.host, origin.port)) == 0:
                return
        assert process.poll() is None, "nginx did not start"
    raise AssertionError("nginx does not listen")
