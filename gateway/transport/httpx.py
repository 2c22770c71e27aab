"""The one door to httpx: our client as its transport, its transports as our client.

Imported only by those who use it; `import gateway` does not load httpx.

* `HTTP1Transport`: our HTTP/1.1 under any `httpx.AsyncClient`.
* `HttpxClient`: any httpx transport (proxy, HTTP/2, own TLS, mock) where a `Client` is wanted.
* `FunctionTransport`: an async function under any `httpx.AsyncClient`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx

from gateway.errors import (
    ErrorKind,
    StreamInterrupted,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.transport.base import Origin, Response, request_head
from gateway.transport.http1 import LINGER_S
from gateway.transport.pool import HTTP1Client, tls_context


class HTTP1Transport(httpx.AsyncBaseTransport):
    """Our own HTTP/1.1 as an httpx transport: `httpx.AsyncClient(transport=HTTP1Transport())`.

    httpx's `read` timeout is kept, counted from the start of the request; the bound on connecting
    is the client's own. Request bodies are read whole before they are sent.

    Args:
        client: the client to send through, closed with this transport; a new one by default.
    """

    def __init__(self, client: HTTP1Client | None = None) -> None:
        self._client = client or HTTP1Client()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        if url.scheme not in ("http", "https"):
            raise httpx.UnsupportedProtocol(f"{url.scheme!r} is neither http nor https")
        origin = Origin(
            url.scheme,
            url.raw_host.decode("ascii"),
            url.port or (443 if url.scheme == "https" else 80),
        )
        body = await request.aread()
        try:
            head = request_head(
                request.method,
                url.raw_path.decode("ascii"),
                origin,
                [(k.decode("latin-1"), v.decode("latin-1")) for k, v in request.headers.raw],
            )
        except ValueError as error:
            raise httpx.LocalProtocolError(str(error)) from None
        framed = "content-length" in request.headers or "transfer-encoding" in request.headers
        read_s = request.extensions.get("timeout", {}).get("read")
        try:
            async with asyncio.timeout(read_s):
                response = await self._client.request(origin, head, body if framed else None)
        except (UpstreamError, TimeoutError) as error:
            raise _theirs(error) from error
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response, read_s),
            extensions={"http_version": b"HTTP/1.1"},
        )

    async def aclose(self) -> None:
        await self._client.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: Response, read_s: float | None) -> None:
        self._response = response
        self._read_s = read_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout(self._read_s):
                    data = await self._response.read_some()
            except (UpstreamError, TimeoutError) as error:
                raise _theirs(error) from error
            if not data:
                return
            yield data

    async def aclose(self) -> None:
        self._response.close()


def _theirs(error: UpstreamError | TimeoutError) -> httpx.TransportError:
    if isinstance(error, UpstreamTimeout):
        return httpx.ConnectTimeout(str(error))
    if isinstance(error, TimeoutError):
        return httpx.ReadTimeout("no answer in time")
    if error.kind is ErrorKind.CONNECT:
        return httpx.ConnectError(str(error))
    if error.kind is ErrorKind.INTERRUPTED:
        return httpx.ReadError(str(error))
    return httpx.RemoteProtocolError(str(error))


class FunctionTransport(httpx.AsyncBaseTransport):
    """An async function as an httpx transport.

    Args:
        handle: takes method, path with query, headers (lower-case names) and body; returns status,
            headers, and the body, whole or as it comes. An iterator with an `aclose` is closed with
            the response, read to its end or not.
    """

    def __init__(
        self,
        handle: Callable[
            [str, str, dict[str, str], bytes],
            Awaitable[tuple[int, list[tuple[str, str]], bytes | AsyncIterator[bytes]]],
        ],
    ) -> None:
        self._handle = handle

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        path = request.url.raw_path.decode("ascii")
        status, headers, content = await self._handle(
            request.method, path, dict(request.headers), body
        )
        if isinstance(content, bytes):
            return httpx.Response(status, headers=headers, content=content)
        return httpx.Response(status, headers=headers, stream=_Iterated(content))


class _Iterated(httpx.AsyncByteStream):
    def __init__(self, content: AsyncIterator[bytes]) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._content

    async def aclose(self) -> None:
        close = getattr(self._content, "aclose", None)
        if close is not None:
            await close()


class HttpxClient:
    """Any httpx transport as a `Client`.

    httpx loses connections when a request is cancelled at the wrong moment (httpcore #1099, httpx
    #2139; behaviour.md, B17). So each exchange runs in a task of its own, which is cancelled once
    at most, and only while it waits on the wire; connecting is bounded by `connect_s` instead.

    Args:
        transport: closed with this client; by default an `httpx.AsyncHTTPTransport` without a limit
            on connections, since admission is decided elsewhere (B23).
        connect_s: bound on waiting for a pooled connection, and on connecting, in seconds.
        ca_file: PEM file of the authorities the default transport trusts instead of the system's.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        connect_s: float = 3.0,
        ca_file: str | None = None,
    ) -> None:
        self._transport = transport or httpx.AsyncHTTPTransport(
            verify=tls_context(ca_file),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=512),
        )
        self._connect_s = connect_s
        self._exchanges: set[_Exchange] = set()

    @property
    def live_exchanges(self) -> int:
        """Exchanges under way, abandoned ones included until they have let go."""
        return len(self._exchanges)

    async def request(self, origin: Origin, head: bytes, body: bytes | None = None) -> Response:
        """Send and return when the response headers are here; see `Client.request`."""
        request_line, *lines = head.removesuffix(b"\r\n").split(b"\r\n")
        method, target, _ = request_line.decode("ascii").split(" ")
        request = httpx.Request(
            method,
            httpx.URL(
                scheme=origin.scheme,
                host=origin.host,
                port=origin.port,
                raw_path=target.encode("ascii"),
            ),
            headers=[(name, value) for name, _, value in (line.partition(b": ") for line in lines)],
            content=body,
        )
        exchange = _Exchange(self._transport, request, origin, self._connect_s)
        self._exchanges.add(exchange)
        exchange.task.add_done_callback(lambda _: self._exchanges.discard(exchange))
        await exchange.response.started()
        return exchange.response

    async def aclose(self) -> None:
        """Abandon what is under way, wait until it has let go, close the transport."""
        for exchange in self._exchanges:
            exchange.abort()
        if self._exchanges:
            await asyncio.wait([exchange.task for exchange in self._exchanges])
        await self._transport.aclose()


_ON_THE_WIRE = (
    "send_request_headers.started",
    "send_request_body.started",
    "receive_response_headers.started",
    "receive_response_body.started",
)


class _Exchange:
    """One request and its response on an httpx transport; the `Source` of the response.

    A task sends, then moves the body into the response as it comes. The reader only ever waits on
    the response, so its cancellation never strikes inside httpx; it arrives here as `abort`.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        request: httpx.Request,
        origin: Origin,
        connect_s: float,
    ) -> None:
        self.response = Response(self)
        self._transport = transport
        self._request = request
        self._origin = origin
        # Only httpx's own transport traces its steps; with others (mocks) any moment is as good.
        self._traces = isinstance(transport, httpx.AsyncHTTPTransport)
        self._safe = not self._traces  # to cancel now
        self._fresh = False  # a connection was made for this request
        self._abandoned = False
        self._cancelled = False
        self._room = asyncio.Event()
        timeout = {"connect": connect_s, "pool": connect_s, "read": None, "write": None}
        request.extensions = {"timeout": timeout, "trace": self._trace}
        self.task = asyncio.create_task(self._run())

    def resume_reading(self) -> None:
        self._room.set()

    def release(self) -> None:
        asyncio.get_running_loop().call_later(LINGER_S, self.abort)

    def abort(self) -> None:
        self._abandoned = True
        self._cancel()

    def _cancel(self) -> None:
        if self._safe and not self._cancelled:
            self._cancelled = True
            self.task.cancel()

    async def _trace(self, event: str, _info: dict[str, Any]) -> None:
        """Hear each step of httpcore, such as `http11.receive_response_body.started`.

        Waiting on the wire it can be cancelled; connecting and clearing up it must not be, or the
        pool goes on counting the connection.
        """
        if event == "connection.connect_tcp.started":
            self._fresh = True
        self._safe = event.endswith(_ON_THE_WIRE)
        if self._abandoned:
            self._cancel()

    async def _run(self) -> None:
        response = self.response
        try:
            await self._send()
        except asyncio.CancelledError:
            response.finish(StreamInterrupted("the request was cancelled"))
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader is to see it
            response.finish(_ours(error, self._origin, started=bool(response.status)))
        else:
            response.finish()

    async def _send(self) -> None:
        try:
            answer = await self._transport.handle_async_request(self._request)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
            if self._abandoned or self._fresh or not self._traces or not _silent(error):
                raise
            # a pooled connection that was closed meanwhile: once more, as our own client does
            answer = await self._transport.handle_async_request(self._request)
        response = self.response
        try:
            response.headers = [(name.lower(), value) for name, value in answer.headers.raw]
            response.status = answer.status_code
            response.wake()
            assert isinstance(answer.stream, httpx.AsyncByteStream)
            async for part in answer.stream:
                if response.push([part], len(part)):
                    self._room.clear()
                    await self._room.wait()
        finally:
            await answer.aclose()


def _silent(error: httpx.TransportError) -> bool:
    """Whether the connection ended before any byte of an answer."""
    return not isinstance(error, httpx.RemoteProtocolError) or "disconnected" in str(error)


def _ours(error: Exception, origin: Origin, *, started: bool) -> Exception:
    """Translate. Not chained: httpx's errors hold the request, and that holds the credentials."""
    message = f"{origin}: {error}" if str(error) else f"{origin}: {type(error).__name__}"
    match error:
        case httpx.PoolTimeout():
            return UpstreamUnavailable(
                f"{origin}: no free connection in the pool", kind=ErrorKind.OVERLOADED
            )
        case httpx.TimeoutException():
            phase = "connect" if isinstance(error, httpx.ConnectTimeout) else "headers"
            return UpstreamTimeout(message, phase="stall" if started else phase)
        case httpx.RemoteProtocolError() if not _silent(error) and "peer closed" not in str(error):
            return UpstreamUnavailable(message, kind=ErrorKind.MALFORMED)
        case httpx.TransportError() if started:
            return StreamInterrupted(message)
        case httpx.TransportError():
            return UpstreamUnavailable(message, kind=ErrorKind.CONNECT)
        case _:
            return error
