"""A network cable that can be pulled: a TCP relay in front of a real server.

It makes a *real* upstream fail the ways networks do, without touching it: refused and reset
(`unplug`), or silent (`freeze`).
"""

from __future__ import annotations

import asyncio
import socket
import struct

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of zero seconds: close sends RST, not FIN


class Cable:
    """A relay from a port on 127.0.0.1 to one real address; starts plugged with `async with`.

    Args:
        host, port: the real server.

    Attributes:
        port: where the relay listens; chosen at the first `plug`, the same ever after.
    """

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.port = 0

    @property
    def address(self) -> str:
        """The relay as a URL, such as `http://127.0.0.1:40123`."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Cable:
        await self.plug()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.unplug()

    async def plug(self) -> None:
        """Accept connections, and let bytes flow if they were frozen. Idempotent.

        Raises:
            OSError: somebody else took the port meanwhile.
        """
        self._flows.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def unplug(self) -> None:
        """Refuse new connections and reset the running ones. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await server.wait_closed()
        await asyncio.sleep(0)  # aborted transports close their sockets on the loop's next turn

    def freeze(self) -> None:
        """Accept connections and forward nothing, in either direction, until `plug`."""
        self._flows.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # accepted by the kernel just before the listener closed
            _reset(writer)
            return
        connection = asyncio.create_task(self._relay(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection both ways until both ends are done or either breaks."""
        ends = [writer]
        try:
            await self._flows.wait()
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
            ends.append(up_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(reader, up_writer))
                both.create_task(self._carry(up_reader, writer))
            while ends:
                ends[-1].close()
                await ends[-1].wait_closed()
                ends.pop()
        except* OSError:
            pass  # one end broke
        finally:
            for end in ends:  # cut short, so neither side may take it for a clean end
                _reset(end)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._flows.wait()
            sink.write(data)
            await sink.drain()
        await self._flows.wait()
        sink.write_eof()


def _reset(end: asyncio.StreamWriter) -> None:
    if not end.transport.is_closing():
        connection: socket.socket = end.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    end.transport.abort()
