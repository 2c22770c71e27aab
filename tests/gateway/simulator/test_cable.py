"""The cable between real sockets: carried whole, refused, reset, frozen, and nothing left over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
import uvloop

from gateway.simulator.cable import Cable

SAFETY_S = 5


class Upstream:
    """Answers every line with itself in upper case; remembers what it heard of each connection."""

    def __init__(self) -> None:
        self.heard = asyncio.Queue[str]()
        self.port = 0

    async def __aenter__(self) -> Upstream:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=8_000_000)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard.put_nowait("connected")
        try:
            while line := await reader.readline():
                writer.write(line.upper())
                await writer.drain()
            self.heard.put_nowait("end")
            writer.write(b"bye")
        except ConnectionResetError:
            self.heard.put_nowait("reset")
        finally:
            writer.close()


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with asyncio.timeout(SAFETY_S), Upstream() as server:
        yield server


async def _ask(port: int, text: bytes) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text)
    return await reader.readline(), reader, writer


async def test_carries_both_ways_and_passes_half_close_on(upstream: Upstream) -> None:
    async with Cable("127.0.0.1", upstream.port) as cable:
        assert cable.address == f"http://127.0.0.1:{cable.port}"
        answer, reader, writer = await _ask(cable.port, b"hello\n")
        assert answer == b"HELLO\n"
        big = b"x" * 3_000_000 + b"\n"
        writer.write(big)
        assert await reader.readexactly(len(big)) == big.upper()
        writer.write_eof()
        assert await reader.read() == b"bye"
        assert [await upstream.heard.get() for _ in range(2)] == ["connected", "end"]
        writer.close()


async def test_unplugged_refuses_and_resets_and_plugs_back_on_the_same_port(
    upstream: Upstream,
) -> None:
    async with Cable("127.0.0.1", upstream.port) as cable:
        port = cable.port
        _, reader, writer = await _ask(port, b"one\n")
        await cable.unplug()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        assert [await upstream.heard.get() for _ in range(2)] == ["connected", "reset"]
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        await cable.unplug()  # again: nothing happens

        await cable.plug()
        await cable.plug()
        assert cable.port == port
        answer, _, writer = await _ask(port, b"two\n")
        assert answer == b"TWO\n"
        writer.close()


async def test_frozen_accepts_and_forwards_nothing_until_plugged(upstream: Upstream) -> None:
    async with Cable("127.0.0.1", upstream.port) as cable:
        _, reader, writer = await _ask(cable.port, b"one\n")
        assert await upstream.heard.get() == "connected"
        cable.freeze()
        writer.write(b"two\n")
        late_reader, late_writer = await asyncio.open_connection("127.0.0.1", cable.port)
        late_writer.write(b"three\n")
        waiting = asyncio.create_task(reader.readline())
        waiting_late = asyncio.create_task(late_reader.readline())
        for _ in range(50):  # every turn in which a byte could have passed
            await asyncio.sleep(0)
        assert not waiting.done()
        assert not waiting_late.done()
        assert upstream.heard.empty()  # the second connection never reached it

        await cable.plug()
        assert await waiting == b"TWO\n"
        assert await waiting_late == b"THREE\n"
        writer.close()
        late_writer.close()


async def test_frozen_then_unplugged_resets_what_was_held(upstream: Upstream) -> None:
    async with Cable("127.0.0.1", upstream.port) as cable:
        cable.freeze()
        reader, writer = await asyncio.open_connection("127.0.0.1", cable.port)
        writer.write(b"held\n")
        await asyncio.sleep(0)
        await cable.unplug()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_a_dead_upstream_breaks_the_connection_it_does_not_end_it() -> None:
    async with asyncio.timeout(SAFETY_S):
        async with Upstream() as upstream:
            gone = upstream.port
        async with Cable("127.0.0.1", gone) as cable:
            reader, writer = await asyncio.open_connection("127.0.0.1", cable.port)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_leaves_no_task_and_no_socket(new_loop: Callable[[], Any]) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(SAFETY_S), Upstream() as upstream:
            async with Cable("127.0.0.1", upstream.port) as cable:
                _, reader, writer = await _ask(cable.port, b"one\n")
                cable.freeze()
                idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", cable.port)
                await asyncio.sleep(0)
            for stream in (reader, idle_reader):
                with pytest.raises(ConnectionResetError):
                    await stream.read()
            writer.close()
            idle_writer.close()
            assert [await upstream.heard.get() for _ in range(2)] == ["connected", "reset"]
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())
