"""Streams on granian's own socket, in this process, so that what stays behind can be seen."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import pytest

from gateway.openai_api.words import Call
from gateway.server.options import ServerOptions

pytest.importorskip("granian")


class Endless:
    """A body that goes on until it is closed."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        return b"x" * 1000

    async def aclose(self) -> None:
        self.closed.set()


class Service:
    """Answers everybody with an `Endless` body."""

    stopping = False

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.body = Endless()

    async def handle(self, call: Call) -> tuple[int, list[tuple[str, str]], Endless]:
        self.asked.set()
        return 200, [("content-type", "text/event-stream")], self.body


@asynccontextmanager
async def listening(service: Service) -> AsyncIterator[int]:
    """granian with `service` on a port of this machine."""
    from gateway.server.granian_server import _OnSocket
    from gateway.server.rsgi import RSGI

    with socket.create_server(("127.0.0.1", 0)) as sock:
        application: Any = RSGI(service, ServerOptions())  # type: ignore[arg-type]
        server = _OnSocket(sock, application, log_enabled=False)
        serving = asyncio.create_task(server.serve())
        try:
            yield sock.getsockname()[1]
        finally:
            server.stop()  # type: ignore[no-untyped-call]
            await serving


async def test_a_client_that_leaves_while_it_is_written_to_leaves_nothing() -> None:
    service = Service()
    async with asyncio.timeout(10), listening(service) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()  # reset: the next piece finds nobody
        body = weakref.ref(service.body)
        closed = service.body.closed
        await closed.wait()
        del service.body
        while body() is not None:
            gc.collect()
            await asyncio.sleep(0)
