"""What every client must do on a real wire: ours, httpx's, and ours worn as an httpx transport."""

from __future__ import annotations

import asyncio
import ssl
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from wire_servers import (
    NGINX,
    Peer,
    Script,
    Scripted,
    answering,
    closed_port,
    get,
    nginx_serving,
    on_both_loops,
    post,
    scripted,
    until,
    uvicorn_serving,
)

from gateway.errors import (
    ErrorKind,
    StreamInterrupted,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.transport.base import Client, Origin
from gateway.transport.httpx import HTTP1Transport, HttpxClient
from gateway.transport.pool import HTTP1Client

KINDS = ["http1", "httpx", "http1-as-httpx"]
_TRUST = ssl.create_default_context()
every_client = pytest.mark.parametrize("kind", KINDS)


def make(kind: str, ca_file: str | None = None, connect_s: float = 3.0) -> Client:
    if kind == "http1":
        return HTTP1Client(ca_file=ca_file, connect_s=connect_s)
    if kind == "httpx":
        if ca_file is None:  # reading the system's authorities once is enough for the tests
            return HttpxClient(httpx.AsyncHTTPTransport(verify=_TRUST), connect_s=connect_s)
        return HttpxClient(ca_file=ca_file, connect_s=connect_s)
    return HttpxClient(HTTP1Transport(HTTP1Client(ca_file=ca_file, connect_s=connect_s)))


@asynccontextmanager
async def client_of(kind: str, ca_file: str | None = None) -> AsyncIterator[Client]:
    client = make(kind, ca_file)
    try:
        yield client
    finally:
        await client.aclose()


def settled(client: Client) -> bool:
    """Whether nothing is open but what waits in the pool."""
    if isinstance(client, HTTP1Client):
        return client.open_connections == client.idle_connections
    assert isinstance(client, HttpxClient)
    if client.live_exchanges:
        return False
    transport = client._transport
    if isinstance(transport, HTTP1Transport):
        return settled(transport._client)
    assert isinstance(transport, httpx.AsyncHTTPTransport)
    return all(connection.is_idle() for connection in transport._pool.connections)


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

# name: (response, status, body, whether the connection can be used again)
GOOD: dict[str, tuple[bytes, int, bytes, bool]] = {
    "length": (OK, 200, b"ok", True),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b"", True),
    "no reason": (b"HTTP/1.1 429 \r\nContent-Length: 1\r\n\r\nx", 429, b"x", True),
    "chunked": (CHUNKED + b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n", 200, b"abc0123456789", True),
    "extensions": (CHUNKED + b"2;a=b\r\nok\r\n0;c\r\n\r\n", 200, b"ok", True),
    "trailers": (CHUNKED + b"2\r\nok\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\n", 200, b"ok", True),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, b"", True),
    "until close": (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, b"until the end", False),
    "1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", False),
    "close": (
        b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nok",
        200,
        b"ok",
        False,
    ),
    "100": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"ok", True),
    "103": (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2 + OK, 200, b"ok", True),
    "upgrade offered": (
        b"HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nok",
        200,
        b"ok",
        True,
    ),
}


@on_both_loops
@every_client
@pytest.mark.parametrize("name", GOOD)
async def test_a_response_arrives_whole_and_the_connection_is_reused_where_it_may_be(
    kind: str, name: str
) -> None:
    raw, status, body, reusable = GOOD[name]
    script = answering(raw, then_close=not reusable)
    async with scripted(script) as server, client_of(kind) as client:
        for _ in range(3):
            response = await client.request(server.origin, post(server.origin), b"{}")
            assert response.status == status
            assert await response.read_all() == body
            assert await response.read_some() == b""
            response.release()
            await until(lambda: settled(client))
        assert server.accepted == (1 if reusable else 3)


@on_both_loops
@every_client
async def test_headers_are_lower_case_trimmed_and_in_order(kind: str) -> None:
    raw = b"HTTP/1.1 200 OK\r\nX-B:  two words \t\r\nX-A:\r\nX-B: 3\r\nContent-Length: 0\r\n\r\n"
    async with scripted(answering(raw)) as server, client_of(kind) as client:
        response = await client.request(server.origin, get(server.origin))
        assert response.headers[:3] == [(b"x-b", b"two words"), (b"x-a", b""), (b"x-b", b"3")]
        assert response.header(b"x-b") == b"two words"
        assert response.header(b"x-c") is None
        response.close()


@on_both_loops
@every_client
async def test_the_request_arrives_as_it_was_built(kind: str) -> None:
    seen: list[bytes] = []

    async def record(peer: Peer) -> None:
        seen.append(await peer.head())
        seen.append(await peer.reader.readexactly(7))
        await peer.send(OK)
        await peer.gone()

    async with scripted(record) as server, client_of(kind) as client:
        head = post(server.origin, "/v1/x?y=%20z", ("X-Id", "7"))
        response = await client.request(server.origin, head, b"payload")
        assert await response.read_all() == b"ok"
    request_line, *headers = seen[0].removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert request_line == b"POST /v1/x?y=%20z HTTP/1.1"
    names = [line.split(b": ")[0].lower() for line in headers]
    assert sorted(names) == [b"authorization", b"content-length", b"host", b"x-id"]
    assert b"host: 127.0.0.1:%d" % server.origin.port in [line.lower() for line in headers]
    assert seen[1] == b"payload"


@on_both_loops
@every_client
async def test_a_body_that_drips_in_byte_by_byte(kind: str) -> None:
    raw = CHUNKED + b"5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\nT: 1\r\n\r\n"

    async def drip(peer: Peer) -> None:
        await peer.request()
        for i in range(len(raw)):
            await peer.send(raw[i : i + 1])
            for _ in range(3):
                await asyncio.sleep(0)
        await peer.gone()

    async with scripted(drip) as server, client_of(kind) as client:
        response = await client.request(server.origin, post(server.origin), b"")
        assert await response.read_all() == b"hello world"


async def _silent_close(peer: Peer) -> None:
    await peer.request()


async def _reset(peer: Peer) -> None:
    await peer.request()
    peer.reset()


def _saying(*pieces: bytes, reset: bool = False) -> Script:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)
        if reset:
            await peer.reader.read(1)  # the client says when it has read what came before
            peer.reset()

    return play


# name: (script, kinds allowed). httpx cannot tell a connection closed within the headers from one
# closed before them.
NO_ANSWER: dict[str, tuple[Script, set[ErrorKind]]] = {
    "closes": (_silent_close, {ErrorKind.CONNECT}),
    "resets": (_reset, {ErrorKind.CONNECT}),
    "cut in the headers": (
        _saying(b"HTTP/1.1 200 OK\r\ncontent-le"),
        {ErrorKind.INTERRUPTED, ErrorKind.CONNECT},
    ),
    "garbage": (_saying(b"\x16\x03\x01 not http at all\r\n\r\n"), {ErrorKind.MALFORMED}),
    "another protocol": (
        _saying(b"SSH-2.0-OpenSSH_9.2\r\n"),
        {ErrorKind.MALFORMED, ErrorKind.CONNECT},
    ),
    "header without colon": (
        _saying(b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n"),
        {ErrorKind.MALFORMED},
    ),
    "endless header": (
        _saying(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 400_000 + b"\r\n\r\n"),
        {ErrorKind.MALFORMED},
    ),
}


@on_both_loops
@every_client
@pytest.mark.parametrize("name", NO_ANSWER)
async def test_no_answer_is_an_error_that_says_what_went_wrong(kind: str, name: str) -> None:
    script, kinds = NO_ANSWER[name]
    async with scripted(script) as server, client_of(kind) as client:
        with pytest.raises(UpstreamUnavailable) as caught:
            await client.request(server.origin, post(server.origin), b"{}")
        assert caught.value.kind in kinds
        assert server.accepted == 1, "a fresh connection is not retried"
        assert str(server.origin) in str(caught.value)
        told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert "sk-secret" not in told
        await until(lambda: settled(client) and server.open == 0)


# name: (script, what arrives first, kind)
BROKEN: dict[str, tuple[Script, bytes, ErrorKind]] = {
    "length, end": (
        _saying(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nfour"),
        b"four",
        ErrorKind.INTERRUPTED,
    ),
    "chunked, end": (_saying(CHUNKED + b"4\r\nfour\r\n"), b"four", ErrorKind.INTERRUPTED),
    "in a chunk, end": (_saying(CHUNKED + b"9\r\nfour"), b"four", ErrorKind.INTERRUPTED),
    "bad chunk size": (
        _saying(CHUNKED + b"4\r\nfour\r\n", b"zz\r\n"),
        b"four",
        ErrorKind.MALFORMED,
    ),
}


@on_both_loops
@every_client
@pytest.mark.parametrize("name", BROKEN)
async def test_a_body_cut_short_never_looks_complete(kind: str, name: str) -> None:
    script, arrives, expected = BROKEN[name]
    async with scripted(script) as server, client_of(kind) as client:
        response = await client.request(server.origin, post(server.origin), b"{}")
        data = b""
        with pytest.raises(UpstreamError) as caught:
            while piece := await response.read_some():
                data += piece
        assert caught.value.kind is expected
        assert isinstance(caught.value, StreamInterrupted) == (expected is ErrorKind.INTERRUPTED)
        assert data == arrives or (not data and expected is ErrorKind.MALFORMED)
        with pytest.raises(UpstreamError):
            await response.read_some()
        response.release()
        await until(lambda: settled(client) and server.open == 0)


@on_both_loops
@every_client
@pytest.mark.parametrize("framing", [b"content-length: 9\r\n\r\n", b"\r\n"])
async def test_a_reset_within_the_body_is_an_interruption(kind: str, framing: bytes) -> None:
    half_read = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n" + framing + b"four")
        await half_read.wait()
        peer.reset()

    async with scripted(play) as server, client_of(kind) as client:
        response = await client.request(server.origin, post(server.origin), b"{}")
        assert await response.read_some() == b"four"
        half_read.set()
        with pytest.raises(StreamInterrupted):
            await response.read_some()


@on_both_loops
@every_client
async def test_nobody_listens(kind: str) -> None:
    async with client_of(kind) as client:
        origin = closed_port()
        with pytest.raises(UpstreamUnavailable) as caught:
            await client.request(origin, post(origin), b"{}")
        assert caught.value.kind is ErrorKind.CONNECT


@on_both_loops
@every_client
async def test_a_host_that_cannot_exist(kind: str) -> None:
    async with client_of(kind) as client:
        origin = Origin("http", "a" * 70 + ".invalid", 80)  # no resolver is asked: too long a label
        with pytest.raises(UpstreamUnavailable) as caught:
            await client.request(origin, get(origin))
        assert caught.value.kind is ErrorKind.CONNECT


@on_both_loops
@every_client
async def test_connecting_is_bounded(kind: str) -> None:
    async def never_shakes_hands(peer: Peer) -> None:
        await peer.gone()

    client = make(kind, connect_s=0.05)
    async with scripted(never_shakes_hands) as server:
        origin = server.origin._replace(scheme="https")
        with pytest.raises(UpstreamTimeout) as caught:
            await client.request(origin, get(origin))
        assert caught.value.phase == "connect"
        await until(lambda: server.open == 0)
        await client.aclose()


@on_both_loops
@every_client
async def test_a_pooled_connection_closed_on_use_is_retried_once(kind: str) -> None:
    async def once(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()  # and closes without a word

    async with scripted(once) as server, client_of(kind) as client:
        for accepted in (1, 2, 3):
            response = await client.request(server.origin, post(server.origin), b"{}")
            assert await response.read_all() == b"ok"
            await until(lambda: settled(client))
            assert server.accepted == accepted


@on_both_loops
@every_client
async def test_the_retry_is_the_only_one(kind: str) -> None:
    answers = [OK]

    async def play(peer: Peer) -> None:
        await peer.request()
        if answers:
            await peer.send(answers.pop())
            await peer.request()

    async with scripted(play) as server, client_of(kind) as client:
        response = await client.request(server.origin, post(server.origin), b"{}")
        await response.read_all()
        await until(lambda: settled(client))
        with pytest.raises(UpstreamUnavailable) as caught:
            await client.request(server.origin, post(server.origin), b"{}")
        assert caught.value.kind is ErrorKind.CONNECT
        assert server.accepted == 2


@on_both_loops
@pytest.mark.parametrize(
    ("kind", "begun", "expected"),
    [
        *((kind, b"\x00garbage\r\n\r\n", ErrorKind.MALFORMED) for kind in KINDS),
        ("http1", b"HTTP/1.1 200 O", ErrorKind.INTERRUPTED),  # to httpx this is no answer at all
    ],
)
async def test_an_answer_begun_is_never_retried(
    kind: str, begun: bytes, expected: ErrorKind
) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(begun)

    async with scripted(play) as server, client_of(kind) as client:
        response = await client.request(server.origin, post(server.origin), b"{}")
        await response.read_all()
        await until(lambda: settled(client))
        with pytest.raises(UpstreamUnavailable) as caught:
            await client.request(server.origin, post(server.origin), b"{}")
        assert caught.value.kind is expected
        assert server.accepted == 1


@on_both_loops
@pytest.mark.parametrize("kind", ["http1", "http1-as-httpx"])  # httpx itself reports the reset
async def test_an_early_answer_is_delivered_though_the_body_was_not_taken(kind: str) -> None:
    refusal = b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig"

    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.send(refusal)  # and closes with most of the body unread: a reset

    async with scripted(play) as server, client_of(kind) as client:
        for _ in range(5):
            response = await client.request(
                server.origin, post(server.origin), b"x" * (8 * 1024 * 1024)
            )
            assert response.status == 413
            assert await response.read_all() == b"big"
        await until(lambda: settled(client) and server.open == 0)


@on_both_loops
@every_client
async def test_an_answer_before_a_half_close(kind: str) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        peer.writer.write_eof()
        await peer.gone()

    async with scripted(play) as server, client_of(kind) as client:
        response = await client.request(server.origin, post(server.origin), b"{}")
        assert await response.read_all() == b"all of it"
        await until(lambda: server.open == 0, "the client's end of the connection")


@on_both_loops
@every_client
async def test_a_large_body_goes_both_ways_whole(kind: str) -> None:
    async def echo(peer: Peer) -> None:
        while (body := await peer.request()) is not None:
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)

    body = bytes(range(256)) * 16384  # 4 MiB
    async with scripted(echo) as server, client_of(kind) as client:
        for _ in range(2):
            response = await client.request(server.origin, post(server.origin), body)
            assert await response.read_all() == body
        assert server.accepted == 1


@on_both_loops
@every_client
async def test_an_unread_answer_holds_the_server_back(kind: str) -> None:
    total, piece = 64 * 1024 * 1024, b"x" * 65536
    sent = 0

    async def pour(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while sent < total:
            await peer.send(piece)
            sent += len(piece)
        await peer.gone()

    async with scripted(pour) as server, client_of(kind) as client:
        response = await client.request(server.origin, get(server.origin))
        before = -1
        while before != sent:  # until it stands still; socket buffers take a few MiB
            before = sent
            for _ in range(200):
                await asyncio.sleep(0)
        assert sent < total // 2
        received = 0
        while data := await response.read_some():
            received += len(data)
        assert received == total


@on_both_loops
@every_client
async def test_read_all_is_bounded(kind: str) -> None:
    async with (
        scripted(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n123456789")) as server,
        client_of(kind) as client,
    ):
        response = await client.request(server.origin, get(server.origin))
        with pytest.raises(UpstreamUnavailable) as caught:
            await response.read_all(limit=8)
        assert caught.value.kind is ErrorKind.MALFORMED
        response = await client.request(server.origin, get(server.origin))
        assert await response.read_all(limit=9) == b"123456789"


@on_both_loops
@every_client
async def test_an_abandoned_answer_closes_its_socket(kind: str) -> None:
    async def stream(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"4\r\ndata\r\n")
        await peer.gone()

    async with scripted(stream) as server, client_of(kind) as client:
        response = await client.request(server.origin, post(server.origin), b"{}")
        assert await response.read_some() == b"data"
        response.close()
        response.close()
        response.release()
        await until(lambda: server.open == 0 and settled(client))
        with pytest.raises(StreamInterrupted):
            await response.read_some()


@on_both_loops
@every_client
async def test_a_released_answer_waits_a_moment_for_its_end(kind: str) -> None:
    released = asyncio.Event()

    async def play(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(CHUNKED + b"e\r\ndata: [DONE]\n\n\r\n")
            await released.wait()
            released.clear()
            await peer.send(b"0\r\n\r\n")

    async with scripted(play) as server, client_of(kind) as client:
        for _ in range(2):
            response = await client.request(server.origin, post(server.origin), b"{}")
            assert await response.read_some() == b"data: [DONE]\n\n"
            response.release()
            released.set()
            await until(lambda: settled(client))
        assert server.accepted == 1


@on_both_loops
@every_client
async def test_a_released_answer_does_not_wait_for_ever(kind: str) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"4\r\ndata\r\n")
        await peer.gone()

    async with scripted(play) as server, client_of(kind) as client:
        response = await client.request(server.origin, post(server.origin), b"{}")
        assert await response.read_some() == b"data"
        response.release()
        await until(lambda: server.open == 0 and settled(client))


@on_both_loops
@every_client
async def test_closing_the_client_closes_what_is_in_use(kind: str) -> None:
    async def stream(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"4\r\ndata\r\n")
        await peer.gone()

    async with scripted(stream) as server:
        client = make(kind)
        response = await client.request(server.origin, post(server.origin), b"{}")
        await response.read_some()
        reading = asyncio.ensure_future(response.read_some())
        await asyncio.sleep(0)
        await client.aclose()
        with pytest.raises(StreamInterrupted):
            await reading
        await until(lambda: server.open == 0)
        await client.aclose()


# Cancellation: at every turn of the loop, in every phase.


async def _answer(peer: Peer) -> None:
    while await peer.request() is not None:
        await peer.send(CHUNKED + b"4\r\ndata\r\n")
        await asyncio.sleep(0)
        await peer.send(b"4\r\nmore\r\n")
        await asyncio.sleep(0)
        await peer.send(b"0\r\n\r\n")


async def _whole(client: Client, origin: Origin) -> bytes:
    response = await client.request(origin, post(origin), b"{}")
    try:
        return await response.read_all()
    finally:
        response.release()


async def _cancel_at_every_turn(
    client: Client, server: Scripted, *, again: bool, warm: bool = False
) -> int:
    for turn in range(2000):
        if warm:
            assert await _whole(client, server.origin) == b"datamore"
        task = asyncio.ensure_future(_whole(client, server.origin))
        for _ in range(turn):
            await asyncio.sleep(0)
        if task.done():
            assert task.result() == b"datamore"
            return turn
        task.cancel()
        if again:
            await asyncio.sleep(0)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: settled(client), f"rest after a cancel at turn {turn}")
        idle = client.idle_connections if isinstance(client, HTTP1Client) else 1
        await until(lambda: server.open <= idle, f"the close after a cancel at turn {turn}")  # noqa: B023
    raise AssertionError("the request never completed")


@on_both_loops
@every_client
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
async def test_a_cancel_at_any_turn_leaks_nothing(kind: str, again: bool) -> None:
    async with scripted(_answer) as server, client_of(kind) as client:
        turns = await _cancel_at_every_turn(client, server, again=again)
        assert turns > 3
        assert await _whole(client, server.origin) == b"datamore"


@on_both_loops
@every_client
async def test_a_cancel_at_any_turn_of_a_pooled_connection(kind: str) -> None:
    async with scripted(_answer) as server, client_of(kind) as client:
        await _cancel_at_every_turn(client, server, again=False, warm=True)


@on_both_loops
@every_client
async def test_a_cancel_at_any_turn_of_a_tls_handshake(kind: str, authority: Authority) -> None:
    async with (
        scripted(_answer, authority.server_context("localhost")) as server,
        client_of(kind, authority.file) as client,
    ):
        await _cancel_at_every_turn(client, server, again=False)
        assert await _whole(client, server.origin) == b"datamore"


async def _tunnel(peer: Peer) -> None:
    """A proxy: CONNECT, then bytes both ways."""
    authority = (await peer.head()).split(b" ")[1].decode()
    host, port = authority.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))

    async def forth() -> None:
        try:
            while data := await peer.reader.read(65536):
                writer.write(data)
        finally:
            writer.close()

    forwarding = asyncio.ensure_future(forth())
    try:
        await peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        while data := await reader.read(65536):
            await peer.send(data)
    finally:
        writer.close()
        forwarding.cancel()
        await asyncio.gather(forwarding, return_exceptions=True)


@on_both_loops
async def test_a_cancel_at_any_turn_through_a_proxy(authority: Authority) -> None:
    async with (
        scripted(_answer, authority.server_context("localhost")) as server,
        scripted(_tunnel) as proxy,
    ):
        transport = httpx.AsyncHTTPTransport(
            proxy=str(proxy.origin), verify=ssl.create_default_context(cafile=authority.file)
        )
        client = HttpxClient(transport)
        await _cancel_at_every_turn(client, server, again=False)
        assert await _whole(client, server.origin) == b"datamore"
        await client.aclose()


@on_both_loops
@every_client
async def test_a_cancel_while_the_server_is_silent(kind: str) -> None:
    asked = asyncio.Event()

    async def silent(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.gone()

    async with scripted(silent) as server, client_of(kind) as client:
        task = asyncio.ensure_future(_whole(client, server.origin))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.open == 0 and settled(client))


# TLS.


class Authority:
    def __init__(self, root: Path) -> None:
        self._ca = trustme.CA()
        self.file = str(root / "ca.pem")
        self._ca.cert_pem.write_to_path(self.file)

    def server_context(self, *names: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(*names).configure_cert(context)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@on_both_loops
@every_client
async def test_tls_with_a_name_and_a_trusted_authority(kind: str, authority: Authority) -> None:
    names: list[str | None] = []
    context = authority.server_context("localhost")
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    async with (
        scripted(answering(OK), context) as server,
        client_of(kind, authority.file) as client,
    ):
        for _ in range(2):
            response = await client.request(server.origin, post(server.origin), b"{}")
            assert await response.read_all() == b"ok"
            await until(lambda: settled(client))
        assert server.accepted == 1
        assert names == ["localhost"]


@on_both_loops
@every_client
async def test_tls_carries_large_bodies_and_cut_ones(kind: str, authority: Authority) -> None:
    async def play(peer: Peer) -> None:
        body = await peer.request() or b""
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(body) + 1), body)

    async with (
        scripted(play, authority.server_context("localhost")) as server,
        client_of(kind, authority.file) as client,
    ):
        body = b"0123456789abcdef" * 65536
        response = await client.request(server.origin, post(server.origin), body)
        received = b""
        with pytest.raises(StreamInterrupted):
            while data := await response.read_some():
                received += data
        assert received == body


@on_both_loops
@every_client
@pytest.mark.parametrize("trusted", [True, False], ids=["wrong host", "unknown authority"])
async def test_tls_that_cannot_be_trusted(kind: str, trusted: bool, authority: Authority) -> None:
    context = authority.server_context("elsewhere.example" if trusted else "localhost")
    async with (
        scripted(answering(OK), context) as server,
        client_of(kind, authority.file if trusted else None) as client,
    ):
        with pytest.raises(UpstreamUnavailable, match=r"(?i)certificate") as caught:
            await client.request(server.origin, post(server.origin), b"{}")
        assert caught.value.kind is ErrorKind.CONNECT
        await until(lambda: settled(client) and server.open == 0)


@on_both_loops
@every_client
async def test_tls_spoken_to_a_plain_server(kind: str) -> None:
    async def plain(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with scripted(plain) as server, client_of(kind) as client:
        origin = server.origin._replace(scheme="https")
        with pytest.raises(UpstreamUnavailable) as caught:
            await client.request(origin, post(origin), b"{}")
        assert caught.value.kind is ErrorKind.CONNECT


# Real servers.


async def _echo(request: Request) -> Response:
    return Response(await request.body(), headers={"x-length": str(len(await request.body()))})


async def _events(request: Request) -> Response:
    async def events() -> AsyncIterator[bytes]:
        for i in range(50):
            yield b"data: %d\n\n" % i
            await asyncio.sleep(0)

    return StreamingResponse(events(), media_type="text/event-stream")


async def _refuse(_: Request) -> Response:
    return PlainTextResponse("no", 403)


APP = Starlette(
    routes=[
        Route("/echo", _echo, methods=["POST"]),
        Route("/events", _events, methods=["POST"]),
        Route("/refuse", _refuse, methods=["POST"]),
    ]
)
EVENTS = b"".join(b"data: %d\n\n" % i for i in range(50))


@pytest.fixture(scope="module")
def uvicorn_origin() -> Iterator[Origin]:
    with uvicorn_serving(APP) as origin:
        yield origin


@pytest.fixture(scope="module")
def nginx_origin(
    uvicorn_origin: Origin, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Origin]:
    if NGINX is None:
        pytest.skip("nginx is not installed")
    with nginx_serving(tmp_path_factory.mktemp("nginx"), uvicorn_origin) as origin:
        yield origin


async def _post(client: Client, origin: Origin, target: str, body: bytes) -> tuple[int, bytes]:
    response = await client.request(origin, post(origin, target), body)
    data = await response.read_all()
    response.release()
    return response.status, data


@on_both_loops
@every_client
async def test_uvicorn(kind: str, uvicorn_origin: Origin) -> None:
    async with client_of(kind) as client:
        for body in (b"", b"{}", b"x" * 300_000):
            assert await _post(client, uvicorn_origin, "/echo", body) == (200, body)
        assert await _post(client, uvicorn_origin, "/events", b"") == (200, EVENTS)
        assert await _post(client, uvicorn_origin, "/refuse", b"x" * 5_000_000) == (403, b"no")
        results = await asyncio.gather(
            *(_post(client, uvicorn_origin, "/echo", b"%d" % i) for i in range(20))
        )
        assert results == [(200, b"%d" % i) for i in range(20)]
        await until(lambda: settled(client))
        if isinstance(client, HTTP1Client):
            assert 1 <= client.idle_connections <= 20


@on_both_loops
@every_client
async def test_nginx(kind: str, nginx_origin: Origin) -> None:
    async with client_of(kind) as client:
        for _ in range(8):  # it closes a connection after every third request
            assert await _post(client, nginx_origin, "/app/echo", b"{}") == (200, b"{}")
        assert await _post(client, nginx_origin, "/app/events", b"") == (200, EVENTS)
        body = b"0123456789abcdef" * 131072
        assert await _post(client, nginx_origin, "/app/echo", body) == (200, body)
        response = await client.request(nginx_origin, get(nginx_origin, "/big"))
        assert await response.read_all() == body
        assert await _post(client, nginx_origin, "/none", b"") == (204, b"")
        status, _ = await _post(client, nginx_origin, "/small", body)
        assert status == 413
        await until(lambda: settled(client))
