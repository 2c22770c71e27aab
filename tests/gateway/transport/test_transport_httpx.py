"""What is particular to the door to httpx; the behaviour on the wire is in tests/contracts."""

from __future__ import annotations

import asyncio
import gzip
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from gateway.errors import ErrorKind, StreamInterrupted, UpstreamTimeout, UpstreamUnavailable
from gateway.transport.base import Origin, request_head
from gateway.transport.httpx import FunctionTransport, HTTP1Transport, HttpxClient

ORIGIN = Origin("http", "h", 80)
KEY = "sk-" + "secret"
HEAD = request_head("POST", "/v1/x?y=1", ORIGIN, [("authorization", f"Bearer {KEY}")])

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await script(reader, writer, await reader.readuntil(b"\r\n\r\n"))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


# HTTP1Transport


async def test_an_httpx_client_over_our_wire() -> None:
    heads: list[bytes] = []

    async def script(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes
    ) -> None:
        heads.append(head)
        if b"/old" in head:
            writer.write(b"HTTP/1.1 307 X\r\nlocation: /new\r\ncontent-length: 0\r\n\r\n")
        else:
            body = gzip.compress(b'{"n": 1}')
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\n"
                b"set-cookie: a=1\r\nset-cookie: b=2\r\ncontent-length: %d\r\n\r\n" % len(body)
            )
            writer.write(body)

    async with (
        serving(script) as url,
        httpx.AsyncClient(transport=HTTP1Transport(), follow_redirects=True) as client,
    ):
        response = await client.get(f"{url}/old", params={"q": "한 b"})
        assert response.json() == {"n": 1}
        assert response.url.path == "/new"
        assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]
        assert response.http_version == "HTTP/1.1"
        assert heads[0].startswith(b"GET /old?q=%ED%95%9C+b HTTP/1.1\r\n")
        assert b"content-length" not in heads[0].lower()
        head = await client.head(url)
        assert head.status_code == 200


async def test_a_streamed_upload_and_a_streamed_answer() -> None:
    async def script(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes
    ) -> None:
        assert b"transfer-encoding" not in head.lower()
        body = await reader.readexactly(6)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for i in range(6):
            writer.write(b"1\r\n" + body[i : i + 1] + b"\r\n")
        writer.write(b"0\r\n\r\n")

    async def upload() -> AsyncIterator[bytes]:
        yield b"abc"
        yield b"def"

    async with serving(script) as url, httpx.AsyncClient(transport=HTTP1Transport()) as client:
        async with client.stream("POST", url, content=upload()) as response:
            assert b"".join([part async for part in response.aiter_raw()]) == b"abcdef"
        async with client.stream("POST", url, content=b"abcdef") as response:
            pass  # not read at all
        assert (await client.post(url, content=b"abcdef")).content == b"abcdef"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", httpx.ConnectError),
        (b"garbage\r\n\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nfour", httpx.ReadError),
    ],
)
async def test_httpx_hears_its_own_errors(answer: bytes, error: type[Exception]) -> None:
    async def script(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes
    ) -> None:
        writer.write(answer)
        writer.close()

    async with serving(script) as url, httpx.AsyncClient(transport=HTTP1Transport()) as client:
        with pytest.raises(error) as caught:
            await client.get(url, headers={"authorization": f"Bearer {KEY}"})
        assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("begun", [False, True])
async def test_the_read_timeout_of_httpx_is_kept(begun: bool) -> None:
    async def script(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes
    ) -> None:
        if begun:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nfour")
        await reader.read()

    transport = HTTP1Transport()
    async with serving(script) as url, httpx.AsyncClient(transport=transport) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get(url, timeout=httpx.Timeout(5, read=0.02))
        while transport._client.open_connections:
            await asyncio.sleep(0)


async def test_what_cannot_be_sent_is_refused() -> None:
    async with httpx.AsyncClient(transport=HTTP1Transport()) as client:
        with pytest.raises(httpx.UnsupportedProtocol):
            await client.get("ftp://h/")
        with pytest.raises(httpx.LocalProtocolError, match="x-bad") as caught:
            await client.get("http://h/", headers={"x-bad": "a\r\nsecret: b"})
        assert "secret" not in str(caught.value)


# FunctionTransport

Answer = tuple[int, list[tuple[str, str]], bytes | AsyncIterator[bytes]]


async def test_a_function_answers() -> None:
    asked: list[Any] = []

    async def handle(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        asked.extend([method, path, headers["x-name"], body])
        return 201, [("x-served", "1"), ("content-type", "text/plain")], b"done"

    async with httpx.AsyncClient(transport=FunctionTransport(handle)) as client:
        response = await client.post("http://any/v1/x?a=1", content=b"in", headers={"X-Name": "v"})
    assert asked == ["POST", "/v1/x?a=1", "v", b"in"]
    assert (response.status_code, response.text) == (201, "done")
    assert response.headers["x-served"] == "1"


class Lazy:
    """Counts what was asked of it."""

    def __init__(self) -> None:
        self.given = self.closed = 0

    def __aiter__(self) -> Lazy:
        return self

    async def __anext__(self) -> bytes:
        if self.given == 5:
            raise StopAsyncIteration
        self.given += 1
        return b"%d" % self.given

    async def aclose(self) -> None:
        self.closed += 1


async def test_an_iterated_body_is_lazy_and_closed_with_the_response() -> None:
    body = Lazy()

    async def handle(method: str, path: str, headers: dict[str, str], _: bytes) -> Answer:
        return 200, [], body

    async with httpx.AsyncClient(transport=FunctionTransport(handle)) as client:
        async with client.stream("GET", "http://any/") as response:
            assert body.given == 0
            async for part in response.aiter_raw():
                assert part == b"1"
                break
            assert (body.given, body.closed) == (1, 0)
        assert (body.given, body.closed) == (1, 1)
        body = Lazy()
        assert (await client.get("http://any/")).content == b"12345"
        assert body.closed == 1


async def test_a_generator_left_early_is_cleaned_up() -> None:
    cleaned = asyncio.Event()

    async def generate() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            cleaned.set()

    async def handle(method: str, path: str, headers: dict[str, str], _: bytes) -> Answer:
        return 200, [], generate()

    async with httpx.AsyncClient(transport=FunctionTransport(handle)) as client:
        async with client.stream("GET", "http://any/") as response:
            async for _ in response.aiter_raw():
                break
        assert cleaned.is_set()


async def test_an_iterator_that_cannot_be_closed_will_do() -> None:
    class Bare:
        def __init__(self) -> None:
            self.left = [b"a", b"b"]

        def __aiter__(self) -> Bare:
            return self

        async def __anext__(self) -> bytes:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop(0)

    async def handle(method: str, path: str, headers: dict[str, str], _: bytes) -> Answer:
        return 200, [], Bare()

    async with httpx.AsyncClient(transport=FunctionTransport(handle)) as client:
        assert (await client.get("http://any/")).content == b"ab"


# HttpxClient


async def test_any_httpx_transport_will_do() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(429, headers={"Retry-After": "7"}, content=b"slow down")

    client = HttpxClient(httpx.MockTransport(handler))
    response = await client.request(ORIGIN, HEAD, b"{}")
    assert response.status == 429
    assert response.header(b"retry-after") == b"7"
    assert await response.read_all() == b"slow down"
    await client.aclose()
    (request,) = seen
    assert (request.method, str(request.url)) == ("POST", "http://h/v1/x?y=1")
    assert request.content == b"{}"
    assert request.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("error", "expected", "kind"),
    [
        (httpx.PoolTimeout(""), UpstreamUnavailable, ErrorKind.OVERLOADED),
        (httpx.ConnectTimeout("slow"), UpstreamTimeout, ErrorKind.TIMEOUT),
        (httpx.ReadTimeout("slow"), UpstreamTimeout, ErrorKind.TIMEOUT),
        (httpx.ConnectError("refused"), UpstreamUnavailable, ErrorKind.CONNECT),
        (httpx.ProxyError("407"), UpstreamUnavailable, ErrorKind.CONNECT),
        (httpx.ReadError(""), UpstreamUnavailable, ErrorKind.CONNECT),
        (httpx.RemoteProtocolError("nonsense"), UpstreamUnavailable, ErrorKind.MALFORMED),
    ],
)
async def test_httpx_errors_become_ours_and_forget_the_request(
    error: httpx.TransportError, expected: type[Exception], kind: ErrorKind
) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        error.request = request
        raise error

    client = HttpxClient(httpx.MockTransport(handler))
    with pytest.raises(expected) as caught:
        await client.request(ORIGIN, HEAD, b"{}")
    assert isinstance(caught.value, UpstreamTimeout | UpstreamUnavailable)
    assert caught.value.kind is kind
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    await client.aclose()


async def test_an_error_that_is_not_of_the_wire_passes_through() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise KeyError("a mistake in the mock")

    client = HttpxClient(httpx.MockTransport(handler))
    with pytest.raises(KeyError):
        await client.request(ORIGIN, HEAD, b"{}")
    await client.aclose()


async def test_a_body_that_breaks_is_an_interruption() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"half"
        raise httpx.ReadError("gone")

    client = HttpxClient(httpx.MockTransport(lambda _: httpx.Response(200, content=body())))
    response = await client.request(ORIGIN, HEAD, b"{}")
    assert await response.read_some() == b"half"
    with pytest.raises(StreamInterrupted):
        await response.read_some()
    await client.aclose()


@pytest.mark.parametrize("abandon", ["cancel", "aclose"])
async def test_a_mock_that_hangs_is_cancelled_at_once(abandon: str) -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    async def handler(request: httpx.Request) -> httpx.Response:
        entered.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            left.set()
        raise AssertionError

    client = HttpxClient(httpx.MockTransport(handler))
    asking = asyncio.ensure_future(client.request(ORIGIN, HEAD, b"{}"))
    await entered.wait()
    assert client.live_exchanges == 1
    if abandon == "cancel":
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await left.wait()
        await client.aclose()
    else:
        await client.aclose()
        with pytest.raises(StreamInterrupted):
            await asking
    assert left.is_set()
    assert client.live_exchanges == 0


async def test_a_slow_reader_holds_the_body_back() -> None:
    given = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal given
        while given < 100:
            given += 1
            yield b"x" * 65536

    client = HttpxClient(httpx.MockTransport(lambda _: httpx.Response(200, content=body())))
    response = await client.request(ORIGIN, HEAD, b"{}")
    for _ in range(300):
        await asyncio.sleep(0)
    assert given == 17  # the first past 1 MiB
    assert len(await response.read_all()) == 100 * 65536
    await client.aclose()
