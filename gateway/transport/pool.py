"""Our own HTTP/1.1 client: a pool of connections per origin, the one used last first.

It does what calling a model needs and no more: no redirects, cookies, proxies, decompression or
HTTP/2; `gateway.transport.httpx` opens the way to those. There is no limit on connections in use,
because admission decides how many requests run (behaviour.md, B23).
"""

from __future__ import annotations

import asyncio
import ssl

from gateway.errors import ErrorKind, UpstreamTimeout, UpstreamUnavailable
from gateway.transport.base import Origin, Response
from gateway.transport.http1 import Connection


class HTTP1Client:
    """Pooled HTTP/1.1 over TCP and TLS; a `Client`.

    A pooled connection that the server closed while it was idle is noticed on sending at the
    latest; if not one byte of an answer came, the request is sent once more on a fresh one.

    Args:
        connect_s: bound on name lookup, TCP and TLS handshake together, in seconds.
        max_idle: most idle connections kept per origin.
        idle_s: idle connections are closed after this many seconds.
        max_header_bytes: bound on the headers, and on the trailers, of a response.
        ca_file: PEM file of the authorities to trust instead of the system's.
        ssl_context: used as it is, instead of one made from `ca_file`.
    """

    def __init__(
        self,
        *,
        connect_s: float = 3.0,
        max_idle: int = 512,
        idle_s: float = 30.0,
        max_header_bytes: int = 64 * 1024,
        ca_file: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._connect_s = connect_s
        self._max_idle = max_idle
        self._idle_s = idle_s
        self._max_header_bytes = max_header_bytes
        self._ssl_context = ssl_context
        if ca_file is not None and ssl_context is None:  # at once, so that a wrong file is noticed
            self._ssl_context = tls_context(ca_file)
        self._open: set[Connection] = set()
        self._idle: dict[Origin, dict[Connection, None]] = {}  # ordered: popitem is LIFO, del O(1)
        self._reaper: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._emptied = asyncio.Event()

    @property
    def open_connections(self) -> int:
        """Connections whose socket is open, in use or idle."""
        return len(self._open)

    @property
    def idle_connections(self) -> int:
        """Connections waiting in the pool."""
        return sum(map(len, self._idle.values()))

    async def request(self, origin: Origin, head: bytes, body: bytes | None = None) -> Response:
        """Send and return when the response headers are here; see `Client.request`.

        Raises:
            RuntimeError: the client was closed.
        """
        connection = self._take(origin) or await self._connect(origin)
        response = connection.send(head, body)
        try:
            await response.started()
        except UpstreamUnavailable:
            if connection.exchanges == 1 or not connection.silent:
                raise
            # Closed while idle, crossing our request (RFC 9112, 9.3.1). Asking a model again is
            # safe: it changes nothing there.
            connection = await self._connect(origin)
            response = connection.send(head, body)
            await response.started()
        return response

    async def aclose(self) -> None:
        """Close every connection, idle or in use, and wait until the sockets are gone."""
        self._closed = True
        self._on_this_loop()
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        self._idle.clear()
        for connection in list(self._open):
            connection.abort()
        if self._open:
            await self._emptied.wait()

    def _take(self, origin: Origin) -> Connection | None:
        if asyncio.get_running_loop() is not self._loop:
            self._on_this_loop()
        idle = self._idle.get(origin)
        while idle:
            connection, _ = idle.popitem()
            if connection.usable:
                return connection
        return None

    def _on_this_loop(self) -> None:
        """Forget the connections of another loop, as of an earlier `asyncio.run`: they are dead."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._idle, self._open, self._reaper = {}, set(), None

    async def _connect(self, origin: Origin) -> Connection:
        if self._closed:
            raise RuntimeError("this client is closed")
        connection = Connection(origin, self, self._max_header_bytes)
        tls = origin.scheme == "https"
        try:
            async with asyncio.timeout(self._connect_s):
                await asyncio.get_running_loop().create_connection(
                    lambda: connection,
                    origin.host,
                    origin.port,
                    ssl=self._tls() if tls else None,
                    server_hostname=origin.host if tls else None,
                )
            if self._closed:
                raise RuntimeError("this client was closed meanwhile")
            if not connection.usable:
                raise ConnectionResetError("closed at once")
        except TimeoutError as error:
            connection.abort()
            raise UpstreamTimeout(f"no connection to {origin} in time", phase="connect") from error
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name no resolver would take
            connection.abort()
            raise UpstreamUnavailable(
                f"cannot connect to {origin}: {_reason(error)}", kind=ErrorKind.CONNECT
            ) from error
        except BaseException:
            connection.abort()
            raise
        self._open.add(connection)
        return connection

    def _tls(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            self._ssl_context = tls_context()  # reads the system's authorities: some 20 ms, once
        return self._ssl_context

    # Called by connections (gateway.transport.http1.Keeper).

    def free(self, connection: Connection) -> None:
        loop = self._loop
        idle = self._idle.get(connection.origin)
        if idle is None:
            idle = self._idle[connection.origin] = {}
        if loop is None or connection not in self._open or len(idle) >= self._max_idle:
            connection.abort()  # there are enough, or it is of an earlier loop
            return
        connection.idle_since = loop.time()
        idle[connection] = None
        if self._reaper is None:
            self._reaper = loop.call_later(self._idle_s, self._reap)

    def gone(self, connection: Connection) -> None:
        self._open.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle is not None:
            idle.pop(connection, None)
        if self._closed and not self._open:
            self._emptied.set()

    def _reap(self) -> None:
        """Close what has been idle too long; come back when the next one will have been."""
        self._reaper = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        oldest = now
        for origin, idle in list(self._idle.items()):
            for connection in list(idle):  # the one idle longest comes first
                if now - connection.idle_since < self._idle_s:
                    oldest = min(oldest, connection.idle_since)
                    break
                del idle[connection]
                connection.abort()
            if not idle:
                del self._idle[origin]
        if self._idle:
            self._reaper = loop.call_later(oldest + self._idle_s - now, self._reap)


def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """Trust the authorities of a PEM file, or the system's.

    Raises:
        OSError: no such file, or (`ssl.SSLError`) none of that kind.
    """
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _reason(error: OSError | UnicodeError) -> str:
    """What went wrong in words, without the numbers and addresses asyncio puts around it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
