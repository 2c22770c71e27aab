"""One connection, byte by byte, without a socket: what it parses, refuses, keeps and gives back."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ErrorKind, StreamInterrupted, UpstreamError, UpstreamUnavailable
from gateway.transport.base import HIGH_WATER, Origin, Response
from gateway.transport.http1 import MAX_HEADERS, Connection

ORIGIN = Origin("http", "h", 80)
HEAD = b"POST / HTTP/1.1\r\nhost: h\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class FakeTransport(asyncio.Transport):
    """Records; as asyncio does, reports an abort in a later call, here `settle`."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection
        self.written = b""
        self.aborted = self.lost = self.paused = False
        self.congested = False  # every write fills the buffer

    def write(self, data: Any) -> None:
        self.written += data
        if self.congested:
            self.connection.pause_writing()

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        assert not self.aborted
        self.paused = True

    def resume_reading(self) -> None:
        assert not self.aborted
        self.paused = False

    def settle(self) -> None:
        if self.aborted and not self.lost:
            self.lost = True
            self.connection.connection_lost(None)


class Wire:
    """A connection between a fake transport and a keeper that records."""

    def __init__(self, max_header_bytes: int = 65536) -> None:
        self.freed = 0
        self.lost = False
        self.connection = Connection(ORIGIN, self, max_header_bytes)
        self.transport = FakeTransport(self.connection)
        self.connection.connection_made(self.transport)

    def free(self, connection: Connection) -> None:
        assert connection is self.connection
        self.freed += 1

    def gone(self, connection: Connection) -> None:
        self.lost = True

    def feed(self, *pieces: bytes) -> None:
        for piece in pieces:
            if piece and not self.transport.aborted:
                self.connection.data_received(piece)
        self.transport.settle()

    def send(self, body: bytes | None = b"{}") -> Response:
        return self.connection.send(HEAD, body)


async def whole(response: Response) -> bytes:
    await response.started()
    return await response.read_all()


async def test_a_request_is_one_write() -> None:
    wire = Wire()
    wire.send(b'{"a":1}')
    assert wire.transport.written == HEAD + b'content-length: 7\r\n\r\n{"a":1}'
    wire.feed(OK)
    wire.send(None)
    assert wire.transport.written.endswith(b'{"a":1}' + HEAD + b"\r\n")


async def test_every_split_of_a_chunked_response() -> None:
    raw = (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nX-A: 1 \r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nX-Trailer: t\r\nY: z\r\n\r\n"
    )
    wire = Wire()
    for cut in range(len(raw) + 1):
        response = wire.send()
        wire.feed(raw[:cut], raw[cut:])
        assert await whole(response) == b"hello world"
        assert response.headers == [(b"x-a", b"1"), (b"transfer-encoding", b"chunked")]
        assert wire.freed == cut + 1
    assert not wire.transport.aborted


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(1, 200), max_size=12), reads=st.booleans())
def test_any_splits_of_two_responses_in_turn(cuts: list[int], reads: bool) -> None:
    async def scenario() -> None:
        wire = Wire()
        for raw, expected in (
            (CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
            (OK, b"ok"),
        ):
            response = wire.send()
            edges = [0, *sorted(cut % len(raw) for cut in cuts), len(raw)]
            got = b""
            for start, end in itertools.pairwise(edges):
                wire.feed(raw[start:end])
                if reads and response._parts:
                    got += await response.read_some()
            assert got + await response.read_all() == expected
        assert wire.freed == 2

    asyncio.run(scenario())


async def test_trailers_do_not_turn_up_in_the_next_headers() -> None:
    wire = Wire()
    first = wire.send()
    wire.feed(CHUNKED + b"0\r\nX-Late: 1\r\n\r\n")
    assert first.header(b"x-late") is None
    second = wire.send()
    wire.feed(OK)
    assert second.headers == [(b"content-length", b"2")]


async def test_a_protocol_switched_unasked_is_named() -> None:
    wire = Wire()
    response = wire.send()
    wire.feed(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
    with pytest.raises(UpstreamUnavailable, match="switched"):
        await response.started()


async def test_a_read_of_the_socket_wakes_the_reader_once() -> None:
    wire = Wire()
    response = wire.send()
    wire.feed(CHUNKED)
    reading = asyncio.ensure_future(response.read_some())
    await asyncio.sleep(0)
    wire.feed(b"".join(b"2\r\nab\r\n" for _ in range(50)))
    assert await reading == b"ab" * 50


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (OK + b"HTTP/1.1 200 OK\r\n", b"ok"),
        (OK + OK, b"ok"),
        (OK + b"x", b"ok"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok" + OK, b"ok"),
    ],
    ids=["close", "1.0", "half a response more", "a response more", "a byte more", "after close"],
)
async def test_a_connection_that_may_not_be_used_again(raw: bytes, body: bytes) -> None:
    wire = Wire()
    response = wire.send()
    wire.feed(raw)
    assert response.status == 200
    assert await whole(response) == body
    assert wire.freed == 0
    assert wire.lost


async def test_http_1_0_may_ask_to_be_kept() -> None:
    wire = Wire()
    response = wire.send()
    wire.feed(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok")
    assert await whole(response) == b"ok"
    assert wire.freed == 1


async def test_bytes_nobody_asked_for_close_an_idle_connection() -> None:
    wire = Wire()
    response = wire.send()
    wire.feed(OK)
    wire.feed(OK)
    assert await whole(response) == b"ok"
    assert wire.lost
    assert not wire.connection.usable


async def test_sending_on_a_dead_connection_fails_as_unanswered() -> None:
    wire = Wire()
    wire.connection.abort()
    wire.transport.settle()
    response = wire.send()
    with pytest.raises(UpstreamUnavailable) as caught:
        await response.started()
    assert caught.value.kind is ErrorKind.CONNECT
    assert wire.connection.silent


async def test_a_head_request_has_no_body_and_is_not_reused() -> None:
    wire = Wire()
    response = wire.connection.send(b"HEAD / HTTP/1.1\r\nhost: h\r\n", None)
    wire.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 700\r\n\r\n")
    assert await whole(response) == b""
    assert response.header(b"content-length") == b"700"
    assert wire.freed == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nname : x\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_refused(raw: bytes) -> None:
    wire = Wire()
    response = wire.send()
    wire.feed(raw)
    with pytest.raises(UpstreamUnavailable) as caught:
        await response.started()
    assert caught.value.kind is ErrorKind.MALFORMED
    assert wire.lost
    assert wire.freed == 0


LONG = b"x: " + b"y" * 600 + b"\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\n" + LONG * 2 + b"content-length: 0\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\n", LONG, LONG],
        [b"HTTP/1.1 200 OK\r\nx: " + b"y" * 600, b"y" * 600],
        [b"HTTP/1.1 200 " + b"y" * 600, b"y" * 600],
        [b"HTTP/1.1 103 Hint\r\nlink: " + b"x" * 300 + b"\r\n\r\n"] * 4,
        [b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * (MAX_HEADERS + 1) + b"content-length: 0\r\n\r\n"],
    ],
    ids=["at once", "by line", "in one value", "reason", "hints for ever", "too many"],
)
async def test_headers_are_bounded(pieces: list[bytes]) -> None:
    wire = Wire(max_header_bytes=1000 if len(pieces) > 1 or LONG in pieces[0] else 65536)
    response = wire.send()
    wire.feed(*pieces)
    with pytest.raises(UpstreamUnavailable, match="large") as caught:
        await response.started()
    assert caught.value.kind is ErrorKind.MALFORMED
    assert wire.lost


async def test_small_headers_before_a_large_first_read_are_fine() -> None:
    wire = Wire(max_header_bytes=1000)
    response = wire.send()
    wire.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n" + b"x" * 5000)
    assert len(await whole(response)) == 5000


@pytest.mark.parametrize("endless", [b"X: " + b"y" * 300, b"X: y\r\n" * 50], ids=["one", "many"])
async def test_trailers_are_bounded(endless: bytes) -> None:
    wire = Wire(max_header_bytes=1000)
    response = wire.send()
    wire.feed(CHUNKED + b"2\r\nok\r\n0\r\n")
    for _ in range(5):
        wire.feed(endless)
    assert await response.read_some() == b"ok"
    with pytest.raises(UpstreamUnavailable) as caught:
        await response.read_some()
    assert caught.value.kind is ErrorKind.MALFORMED
    assert wire.lost


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"", ErrorKind.CONNECT),
        (b"HTTP/1.1 2", ErrorKind.INTERRUPTED),
        (b"HTTP/1.1 100 Continue\r\n\r\n", ErrorKind.INTERRUPTED),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nok", ErrorKind.INTERRUPTED),
        (CHUNKED + b"2\r\nok\r\n", ErrorKind.INTERRUPTED),
        (CHUNKED + b"2\r\nok\r\n0\r\n", ErrorKind.INTERRUPTED),
    ],
)
@pytest.mark.parametrize("reset", [False, True])
async def test_an_end_too_early(raw: bytes, kind: ErrorKind, reset: bool) -> None:
    wire = Wire()
    response = wire.send()
    wire.feed(raw)
    if reset:
        wire.connection.connection_lost(ConnectionResetError("reset"))
    else:
        wire.connection.eof_received()
        wire.transport.settle()
    with pytest.raises(UpstreamError) as caught:
        await whole(response)
    assert caught.value.kind is kind
    assert isinstance(caught.value, StreamInterrupted) == (response.status == 200)
    assert wire.lost
    assert wire.freed == 0


async def test_a_body_until_the_end_of_the_connection() -> None:
    wire = Wire()
    response = wire.send()
    wire.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc", b"def")
    wire.connection.eof_received()
    wire.transport.settle()
    assert await whole(response) == b"abcdef"
    assert wire.lost


async def test_a_large_request_is_written_as_the_peer_takes_it() -> None:
    wire = Wire()
    body = bytes(range(256)) * 2048  # 512 KiB
    wire.transport.congested = True
    response = wire.send(body)
    taken = [len(wire.transport.written)]
    while not wire.transport.written.endswith(body):
        wire.connection.resume_writing()
        taken.append(len(wire.transport.written))
    assert wire.transport.written == HEAD + b"content-length: 524288\r\n\r\n" + body
    assert {after - before for before, after in itertools.pairwise(taken)} == {65536}
    wire.feed(OK)
    assert await whole(response) == b"ok"
    assert wire.freed == 1


async def test_an_answer_before_the_request_is_out_ends_the_connection() -> None:
    wire = Wire()
    wire.transport.congested = True
    response = wire.send(b"x" * 500_000)
    wire.feed(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
    assert response.status == 413
    assert await whole(response) == b"no"
    assert wire.freed == 0
    assert wire.lost


async def test_reading_pauses_while_too_much_lies_unread() -> None:
    wire = Wire()
    response = wire.send()
    wire.feed(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (HIGH_WATER * 3))
    wire.feed(b"x" * HIGH_WATER)
    assert not wire.transport.paused
    wire.feed(b"x")
    assert wire.transport.paused
    assert len(await response.read_some()) == HIGH_WATER + 1
    assert not wire.transport.paused
    response.close()
    wire.transport.settle()
    assert wire.lost


async def test_release_waits_for_the_end_of_a_chunked_message_only() -> None:
    wire = Wire()
    response = wire.send()
    wire.feed(CHUNKED + b"2\r\nok\r\n")
    response.release()
    assert not wire.transport.aborted
    wire.feed(b"0\r\n")
    wire.feed(b"\r\n")
    assert wire.freed == 1
    following = wire.send()
    wire.feed(OK)
    assert await whole(following) == b"ok"

    response = wire.send()
    wire.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nok")
    response.release()
    wire.transport.settle()
    assert wire.lost


async def test_release_too_early_closes_with_the_next_byte_of_body() -> None:
    wire = Wire()
    response = wire.send()
    wire.feed(CHUNKED + b"2\r\nok\r\n")
    response.release()
    wire.feed(b"4\r\nmore\r\n")
    assert wire.lost
    with pytest.raises(StreamInterrupted):
        await response.read_some()


async def test_release_while_paused_closes() -> None:
    wire = Wire()
    response = wire.send()
    wire.feed(CHUNKED + b"%x\r\n" % (HIGH_WATER + 1) + b"x" * (HIGH_WATER + 1) + b"\r\n")
    assert wire.transport.paused
    response.release()
    wire.transport.settle()
    assert wire.lost


async def test_a_cancel_that_crosses_the_end_spares_the_connections_next_user() -> None:
    wire = Wire()
    response = wire.send()
    waiting = asyncio.ensure_future(response.started())
    await asyncio.sleep(0)
    wire.feed(OK)  # complete and given back before the waiting task runs again
    following = wire.send()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not wire.transport.aborted
    wire.feed(OK)
    assert await whole(following) == b"ok"


async def test_a_transport_that_comes_after_the_abort_is_aborted() -> None:
    wire = Wire()
    connection = Connection(ORIGIN, wire, 65536)
    connection.abort()
    transport = FakeTransport(connection)
    connection.connection_made(transport)
    assert transport.aborted
    assert not connection.usable


async def test_an_idle_connection_at_its_end_is_not_usable() -> None:
    wire = Wire()
    assert wire.connection.usable
    wire.connection.eof_received()  # the transport closes in a later turn
    assert not wire.connection.usable
