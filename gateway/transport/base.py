"""What every client of ours offers, and the one answer type they all fill.

A provider depends on `Client` and `Response` only; whether the bytes come from our own HTTP/1.1
(`gateway.transport.pool`) or from httpx (`gateway.transport.httpx`) is configuration.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import msgspec

from gateway.errors import ErrorKind, StreamInterrupted, UpstreamUnavailable

HIGH_WATER = 1024 * 1024
"""Unread bytes above which a response asks its source to pause."""

MAX_BODY_BYTES = 64 * 1024 * 1024
"""Most that `Response.read_all` gathers unless told otherwise."""


class Origin(NamedTuple):
    """Where a request goes, and what a pooled connection belongs to. A tuple, for cheap hashing."""

    scheme: str
    host: str
    port: int

    @classmethod
    def from_url(cls, url: str) -> Origin:
        """Take the origin of an http or https address; path and query are left aside.

        Raises:
            ValueError: no http(s) address, or one that bears credentials. Never repeats them.
        """
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None:
            raise ValueError("put credentials into a header, not into the address")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an address that begins with http:// or https:// and a host")
        host = parts.hostname
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
        return cls(parts.scheme, host, parts.port or (443 if parts.scheme == "https" else 80))

    @property
    def authority(self) -> str:
        """`host`, or `host:port` if the port is not the scheme's own: the `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = 443 if self.scheme == "https" else 80
        return host if self.port == usual else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def header_line(name: str, value: str) -> bytes:
    """Return one header as it goes over the wire, CRLF included.

    Raises:
        ValueError: something RFC 9110 5.5 does not allow, above all a line break (header
            injection). Names the header, never its value.
    """
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is no header name")
    if not _FIELD_VALUE.fullmatch(value):
        raise ValueError(f"the value of header {name!r} holds a character HTTP does not allow")
    return f"{name}: {value}\r\n".encode("latin-1")


def request_head(
    method: str, target: str, origin: Origin, headers: Iterable[tuple[str, str]] = ()
) -> bytes:
    """Prebuild request line and headers, so that a request costs one concatenation.

    `Host` is added unless given; `Content-Length` is the client's business and left out, as is
    `Transfer-Encoding`. Further lines (`header_line`) may be appended to the result.

    Args:
        method: such as `POST`.
        target: path and query, percent-encoded, such as `/v1/chat/completions`.
        origin: where it goes.
        headers: name and value pairs.

    Raises:
        ValueError: something that would break the framing.
    """
    if not _TOKEN.fullmatch(method) or not _TARGET.fullmatch(target):
        raise ValueError("method or target would break the request line; percent-encode the target")
    given = [(name, value) for name, value in headers if name.lower() not in _FRAMING]
    if all(name.lower() != "host" for name, _ in given):
        given.insert(0, ("host", origin.authority))
    lines = b"".join(header_line(name, value) for name, value in given)
    return f"{method} {target} HTTP/1.1\r\n".encode("ascii") + lines


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(r"[\x21-\x7e]+")
_FRAMING = frozenset({"content-length", "transfer-encoding"})


class Source(Protocol):
    """Where a response's bytes come from, as far as the response needs to know."""

    def resume_reading(self) -> None:
        """Go on after `Response.full`: everything was read."""
        ...

    def release(self) -> None:
        """The reader has what it wants: keep the connection if it can still be kept."""
        ...

    def abort(self) -> None:
        """The reader is gone: stop at once. Synchronous, idempotent, never raises."""
        ...


class Response(msgspec.Struct, eq=False):
    """An answer whose headers have arrived; its body is read as it comes. For one reader.

    Args:
        source: where its bytes come from.

    Attributes:
        status: the HTTP status; 0 until the headers are here.
        headers: name (lower case) and value pairs, in order.
    """

    _source: Source | None
    """None once nothing more can come."""
    status: int = 0
    headers: list[tuple[bytes, bytes]] = []
    _parts: list[bytes] = []
    _buffered: int = 0
    _error: Exception | None = None
    _waiter: asyncio.Future[None] | None = None

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of the header `name` (lower case), or None."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    async def read_some(self) -> bytes:
        """Return all that has arrived since the last read, `b""` at the end of the body.

        Cancelling a read closes the response.

        Raises:
            StreamInterrupted: the body was cut short, or the response was closed meanwhile.
            UpstreamUnavailable: kind MALFORMED, the framing is broken.
        """
        while not self._parts and self._source is not None:
            try:
                await self._news()
            except asyncio.CancelledError:
                self._cancelled()
                raise
        if self._parts:
            return self._take()
        if self._error is not None:
            raise self._error
        return b""

    async def read_all(self, limit: int = MAX_BODY_BYTES) -> bytes:
        """Return the rest of the body.

        Raises:
            UpstreamUnavailable: kind MALFORMED: larger than `limit` bytes.
            UpstreamError: see `read_some`.
        """
        if self._source is None and self._error is None and self._buffered <= limit:
            return self._take() if self._parts else b""  # the usual case: it is all here
        data = await self.read_some()
        parts, size = [data], len(data)
        while size <= limit and (data := await self.read_some()):
            parts.append(data)
            size += len(data)
        if size > limit:
            self.close()
            raise UpstreamUnavailable(
                f"the answer is larger than {limit} bytes", kind=ErrorKind.MALFORMED
            )
        return b"".join(parts)

    def release(self) -> None:
        """Say that what was wanted has been read. Idempotent, synchronous, never raises.

        If only the end of the message is missing, as after `[DONE]`, the connection is given a
        moment to bring it and be reused; otherwise it is closed.
        """
        source = self._leave()
        if source is not None:
            source.release()

    def close(self) -> None:
        """Abandon the answer: unless complete, the socket is closed now. As safe as `release`."""
        source = self._leave()
        if source is not None:
            source.abort()

    def _leave(self) -> Source | None:
        source = self._source
        self._parts.clear()
        if source is not None:
            self._source = None
            self._error = StreamInterrupted("the response was closed before its end")
            self.wake()
        return source

    # The source's side.

    @property
    def full(self) -> bool:
        """Whether more than `HIGH_WATER` bytes lie unread."""
        return self._buffered > HIGH_WATER

    def push(self, parts: list[bytes], size: int) -> bool:
        """Add what one read of the socket brought, `size` bytes in all, and wake the reader.

        Returns:
            Whether the source had better pause, see `full`.
        """
        self._parts += parts
        self._buffered += size
        waiter = self._waiter  # as `wake`, without the call: every chunk passes here
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)
        return self._buffered > HIGH_WATER

    def finish(self, error: Exception | None = None) -> None:
        """Nothing more comes: the body is complete, or broken off by `error`."""
        if self._source is not None:
            self._source = None
            self._error = error
            self.wake()

    def wake(self) -> None:
        """Let the reader see what is new: once per read of the socket, not once per event."""
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    async def started(self) -> None:
        """Wait for the headers. Cancelled, it closes the response.

        Raises:
            UpstreamError: none came.
        """
        while not self.status and self._source is not None:
            try:
                await self._news()
            except asyncio.CancelledError:
                self._cancelled()
                raise
        if not self.status and self._error is not None:
            raise self._error

    def _news(self) -> asyncio.Future[None]:
        """What the reader awaits until something changed. No coroutine: it is made per wake-up."""
        if self._waiter is not None:
            raise RuntimeError("a response has one reader")
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        return waiter

    def _cancelled(self) -> None:
        self._waiter = None
        self.close()

    def _take(self) -> bytes:
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        paused, self._buffered = self._buffered > HIGH_WATER, 0
        if paused and self._source is not None:
            self._source.resume_reading()
        return data


class Client(Protocol):
    """Sends requests. One per upstream or shared, as the caller likes; for one event loop."""

    async def request(self, origin: Origin, head: bytes, body: bytes | None = None) -> Response:
        """Send and return when the response headers are here.

        Args:
            origin: where to.
            head: from `request_head`, perhaps with more `header_line`s.
            body: sent with its `Content-Length`; None sends neither.

        Raises:
            UpstreamTimeout: phase `connect`.
            UpstreamUnavailable: kind CONNECT if no byte of an answer came, INTERRUPTED if it broke
                off within the headers, MALFORMED if it is no HTTP.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection, idle or in use. Idempotent."""
        ...
