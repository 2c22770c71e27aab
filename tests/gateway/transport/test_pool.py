"""The pool: which connection is used, which is kept, and that none is lost."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway.errors import ErrorKind, UpstreamTimeout, UpstreamUnavailable
from gateway.transport.base import Origin, request_head
from gateway.transport.http1 import Connection
from gateway.transport.pool import HTTP1Client, tls_context


class SteppedLoop(asyncio.SelectorEventLoop):
    """A loop whose timers are fired by moving its clock."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


def stepped(test: Callable[[SteppedLoop], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        with asyncio.Runner(loop_factory=SteppedLoop) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, SteppedLoop)
            runner.run(test(loop))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


class Server:
    """Answers every request with the number of its connection, when it is let."""

    def __init__(self) -> None:
        self.accepted = 0
        self.open = 0
        self.waiting = 0
        self.go = asyncio.Event()
        self.go.set()
        self.writers: list[asyncio.StreamWriter] = []
        self.origin = Origin("http", "127.0.0.1", 0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = b"%d" % self.accepted
        self.accepted += 1
        self.open += 1
        self.writers.append(writer)
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                self.waiting += 1
                await self.go.wait()
                self.waiting -= 1
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(number))
                writer.write(number)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server = Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.origin = Origin("http", "127.0.0.1", listener.sockets[0].getsockname()[1])
    async with listener:
        yield server
    await until(lambda: server.open == 0)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "the expected state never came"
        await asyncio.sleep(0)


async def ask(client: HTTP1Client, origin: Origin) -> int:
    response = await client.request(origin, request_head("GET", "/", origin))
    return int(await response.read_all())


async def ask_at_once(client: HTTP1Client, server: Server, count: int) -> list[int]:
    server.go.clear()
    asking = [asyncio.ensure_future(ask(client, server.origin)) for _ in range(count)]
    await until(lambda: server.waiting == count)
    server.go.set()
    return sorted(await asyncio.gather(*asking))


@stepped
async def test_the_connection_used_last_is_used_first(loop: SteppedLoop) -> None:
    async with serving() as server:
        client = HTTP1Client()
        assert await ask_at_once(client, server, 3) == [0, 1, 2]
        assert client.idle_connections == client.open_connections == 3
        used = {await ask(client, server.origin) for _ in range(5)}
        assert len(used) == 1
        assert server.accepted == 3
        await client.aclose()
        assert client.idle_connections == client.open_connections == 0


@stepped
async def test_no_more_are_kept_than_allowed(loop: SteppedLoop) -> None:
    async with serving() as server:
        client = HTTP1Client(max_idle=2)
        await ask_at_once(client, server, 5)
        assert client.idle_connections == 2
        await until(lambda: server.open == 2 and client.open_connections == 2)
        await client.aclose()


@stepped
async def test_idle_connections_are_closed_in_time_and_used_ones_kept(loop: SteppedLoop) -> None:
    async with serving() as server:
        client = HTTP1Client(idle_s=30)
        await ask_at_once(client, server, 3)
        loop.ahead += 20
        kept = await ask(client, server.origin)
        loop.ahead += 9
        await asyncio.sleep(0.001)
        assert client.idle_connections == 3
        loop.ahead += 1
        await until(lambda: client.open_connections == 1)  # the other two
        await until(lambda: server.open == 1)
        assert await ask(client, server.origin) == kept
        loop.ahead += 30
        await until(lambda: client.open_connections == 0)
        assert await ask(client, server.origin) == 3
        await client.aclose()


@stepped
async def test_origins_do_not_share_connections(loop: SteppedLoop) -> None:
    async with serving() as one, serving() as other:
        client = HTTP1Client()
        for _ in range(2):
            assert await ask(client, one.origin) == 0
            assert await ask(client, other.origin) == 0
        assert (one.accepted, other.accepted) == (1, 1)
        assert client.idle_connections == 2
        await client.aclose()


@stepped
async def test_a_connection_the_server_closes_leaves_the_pool(loop: SteppedLoop) -> None:
    async with serving() as server:
        client = HTTP1Client()
        assert await ask(client, server.origin) == 0
        server.writers[0].close()
        await until(lambda: client.idle_connections == 0)
        assert client.open_connections == 0
        assert await ask(client, server.origin) == 1
        await client.aclose()


@stepped
async def test_a_connection_known_to_be_closing_is_passed_over(loop: SteppedLoop) -> None:
    async with serving() as server:
        client = HTTP1Client()
        await ask_at_once(client, server, 2)
        (idle,) = client._idle.values()
        newest = list(idle)[-1]
        newest.abort()  # its socket is gone, and the pool has not heard of it yet
        assert client.idle_connections == 2
        await ask(client, server.origin)
        assert server.accepted == 2
        await client.aclose()


def test_a_client_outlives_the_loop_it_was_used_on() -> None:
    client = HTTP1Client()

    async def once() -> None:
        async with serving() as server:
            assert await ask(client, server.origin) == 0
            assert client.idle_connections == 1
            await client_closed_behind(server)

    async def client_closed_behind(server: Server) -> None:
        for writer in server.writers:
            writer.close()
        await until(lambda: client.open_connections == 0)

    asyncio.run(once())
    asyncio.run(once())

    async def leftover() -> None:
        client._open.add(object())  # type: ignore[arg-type]
        client._idle[Origin("http", "h", 80)] = {object(): None}  # type: ignore[dict-item]

    async def forgotten() -> None:
        assert client._take(Origin("http", "h", 80)) is None
        assert client.open_connections == 0
        await client.aclose()

    async def late() -> None:
        stranger = Connection(Origin("http", "h", 80), client, 65536)
        stranger.usable = True
        client.free(stranger)  # of a loop that this client has left
        assert not stranger.usable
        assert client.idle_connections == 0

    asyncio.run(late())
    asyncio.run(leftover())
    asyncio.run(forgotten())


@stepped
async def test_a_closed_client_says_so(loop: SteppedLoop) -> None:
    client = HTTP1Client()
    await client.aclose()
    await client.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await ask(client, Origin("http", "127.0.0.1", 1))


@stepped
async def test_closing_while_connecting_leaves_nothing(loop: SteppedLoop) -> None:
    async with serving() as server:
        client = HTTP1Client()
        asking = asyncio.ensure_future(ask(client, server.origin))
        await asyncio.sleep(0)
        await client.aclose()
        with pytest.raises(RuntimeError, match="closed"):
            await asking
        assert client.open_connections == 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), UpstreamUnavailable),
        (ConnectionRefusedError(111, "Connect call failed"), UpstreamUnavailable),
        (TimeoutError(110, "Connection timed out"), UpstreamTimeout),
        (UnicodeError("label too long"), UpstreamUnavailable),
        (OSError(24, "Too many open files"), UpstreamUnavailable),
    ],
)
async def test_every_way_not_to_connect(
    error: Exception, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", fails)
    client = HTTP1Client()
    with pytest.raises(expected, match="http://h") as caught:
        await ask(client, Origin("http", "h", 80))
    assert isinstance(caught.value, UpstreamTimeout | UpstreamUnavailable)
    assert caught.value.kind in (ErrorKind.CONNECT, ErrorKind.TIMEOUT)
    assert client.open_connections == 0


@stepped
async def test_connecting_takes_no_longer_than_told(loop: SteppedLoop) -> None:
    async def never(*_: Any, **__: Any) -> None:
        await loop.create_future()

    loop.create_connection = never  # type: ignore[method-assign,assignment]
    client = HTTP1Client(connect_s=3)
    asking = asyncio.ensure_future(ask(client, Origin("http", "h", 80)))
    await asyncio.sleep(0)
    loop.ahead += 2.9
    await asyncio.sleep(0.001)
    assert not asking.done()
    loop.ahead += 0.1
    with pytest.raises(UpstreamTimeout) as caught:
        await asking
    assert caught.value.phase == "connect"


def test_a_wrong_file_of_authorities_is_noticed_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        HTTP1Client(ca_file=str(tmp_path / "none.pem"))
    (tmp_path / "no.pem").write_text("nothing", "utf-8")
    with pytest.raises(ssl.SSLError):
        HTTP1Client(ca_file=str(tmp_path / "no.pem"))


def test_certificates_are_checked_by_default() -> None:
    context = tls_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_small_writes_are_not_delayed(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def scenario() -> None:
        async with serving() as server:
            client = HTTP1Client()
            await ask(client, server.origin)
            (connection,) = client._open
            assert connection._transport is not None
            sock = connection._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            await client.aclose()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario())
