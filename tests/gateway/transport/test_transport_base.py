"""Addresses, heads and the response every client fills."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import ErrorKind, StreamInterrupted, UpstreamUnavailable
from gateway.transport.base import HIGH_WATER, Origin, Response, header_line, request_head


@pytest.mark.parametrize(
    ("url", "origin", "authority"),
    [
        ("http://h", ("http", "h", 80), "h"),
        ("https://H.example/v1?x=1", ("https", "h.example", 443), "h.example"),
        ("http://h:8080/", ("http", "h", 8080), "h:8080"),
        ("https://h:443", ("https", "h", 443), "h"),
        ("http://[::1]:11434/v1", ("http", "::1", 11434), "[::1]:11434"),
        (
            "https://bücher.example",
            ("https", "xn--bcher-kva.example", 443),
            "xn--bcher-kva.example",
        ),
    ],
)
def test_an_origin_from_an_address(url: str, origin: tuple[str, str, int], authority: str) -> None:
    parsed = Origin.from_url(url)
    assert parsed == origin
    assert parsed.authority == authority
    assert str(parsed) == f"{origin[0]}://{authority}"


@pytest.mark.parametrize(
    "url", ["", "h:80", "ftp://h", "http://", "http://h:notaport", "https://user:secret@h/"]
)
def test_what_is_no_address_says_so_without_repeating_credentials(url: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Origin.from_url(url)
    assert "secret" not in str(caught.value)


def test_a_head_is_built_once_and_appended_to() -> None:
    origin = Origin("http", "h", 8080)
    head = request_head(
        "POST",
        "/v1/chat/completions?a=%20b",
        origin,
        [("Authorization", "Bearer x"), ("Content-Length", "7"), ("transfer-encoding", "chunked")],
    )
    assert head + header_line("x-request-id", "7") == (
        b"POST /v1/chat/completions?a=%20b HTTP/1.1\r\n"
        b"host: h:8080\r\nAuthorization: Bearer x\r\nx-request-id: 7\r\n"
    )


def test_a_given_host_is_kept() -> None:
    head = request_head("GET", "/", Origin("http", "h", 80), [("Host", "virtual")])
    assert head == b"GET / HTTP/1.1\r\nHost: virtual\r\n"


@pytest.mark.parametrize(
    "value", ["sk-secret\r\nx: y", "sk-secret\n", "sk-secret\0", "sk-secret한"]
)
def test_a_value_that_would_break_the_framing_is_refused_and_not_repeated(value: str) -> None:
    with pytest.raises(ValueError, match="authorization") as caught:
        header_line("authorization", value)
    assert "sk-secret" not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize("name", ["", "x y", "x:", "x\r\n", "ключ"])
def test_a_bad_header_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="header name"):
        header_line(name, "v")


@pytest.mark.parametrize(
    ("method", "target"),
    [("POST /", "/"), ("", "/"), ("GET", ""), ("GET", "/a b"), ("GET", "/\r\n")],
)
def test_a_bad_request_line_is_refused(method: str, target: str) -> None:
    with pytest.raises(ValueError, match="request line"):
        request_head(method, target, Origin("http", "h", 80))


def test_latin_1_and_tabs_may_be_sent() -> None:
    assert header_line("x", "caf\xe9\tau lait") == b"x: caf\xe9\tau lait\r\n"


class FakeSource:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def resume_reading(self) -> None:
        self.calls.append("resume")

    def release(self) -> None:
        self.calls.append("release")

    def abort(self) -> None:
        self.calls.append("abort")


def response() -> tuple[Response, FakeSource]:
    source = FakeSource()
    return Response(source), source


async def test_a_read_returns_all_that_arrived_since_the_last() -> None:
    answer, _ = response()
    answer.push([b"a", b"b"], 2)
    answer.push([b"c"], 1)
    assert await answer.read_some() == b"abc"
    answer.push([b"d"], 1)
    answer.finish()
    assert await answer.read_some() == b"d"
    assert await answer.read_some() == b""
    assert await answer.read_some() == b""


async def test_what_arrived_is_read_before_the_error_is_seen() -> None:
    answer, _ = response()
    answer.push([b"half"], 4)
    answer.finish(StreamInterrupted("cut"))
    assert await answer.read_some() == b"half"
    for _ in range(2):
        with pytest.raises(StreamInterrupted):
            await answer.read_some()


async def test_a_wake_without_news_is_no_end() -> None:
    answer, _ = response()
    reading = asyncio.ensure_future(answer.read_some())
    for _ in range(3):
        await asyncio.sleep(0)
        answer.wake()
        answer.wake()
    await asyncio.sleep(0)
    assert not reading.done()
    answer.push([b"x"], 1)
    answer.wake()
    assert await reading == b"x"


async def test_read_all_in_one_piece_and_in_several() -> None:
    answer, _ = response()
    answer.push([b"whole"], 5)
    answer.finish()
    assert await answer.read_all() == b"whole"
    assert await answer.read_all() == b""

    answer, _ = response()
    answer.push([b"first "], 6)
    reading = asyncio.ensure_future(answer.read_all())
    await asyncio.sleep(0)
    answer.push([b"second"], 6)
    answer.finish()
    assert await reading == b"first second"


async def test_read_all_raises_what_broke_the_body() -> None:
    answer, _ = response()
    answer.push([b"half"], 4)
    answer.finish(StreamInterrupted("cut"))
    with pytest.raises(StreamInterrupted):
        await answer.read_all()


@pytest.mark.parametrize("pieces", [[b"x" * 11], [b"x" * 6, b"x" * 5]])
async def test_read_all_past_its_limit_lets_go(pieces: list[bytes]) -> None:
    answer, source = response()
    reading = asyncio.ensure_future(answer.read_all(limit=10))
    for piece in pieces:
        answer.push([piece], len(piece))
        answer.wake()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(UpstreamUnavailable, match="10 bytes") as caught:
        await reading
    assert caught.value.kind is ErrorKind.MALFORMED
    assert source.calls == ["abort"]


async def test_the_source_is_resumed_once_the_reader_has_caught_up() -> None:
    answer, source = response()
    answer.push([b"x" * HIGH_WATER], HIGH_WATER)
    assert not answer.full
    answer.push([b"x"], 1)
    assert answer.full
    await answer.read_some()
    assert not answer.full
    assert source.calls == ["resume"]
    answer.push([b"x"], 1)
    await answer.read_some()
    assert source.calls == ["resume"]


async def test_a_cancelled_read_closes() -> None:
    answer, source = response()
    reading = asyncio.ensure_future(answer.read_some())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert source.calls == ["abort"]


@pytest.mark.parametrize("how", ["release", "close"])
async def test_letting_go_is_idempotent_and_never_looks_like_an_end(how: str) -> None:
    answer, source = response()
    answer.push([b"unread"], 6)
    waiting = asyncio.ensure_future(answer.read_some())
    assert await waiting == b"unread"
    waiting = asyncio.ensure_future(answer.read_some())
    await asyncio.sleep(0)
    getattr(answer, how)()
    answer.close()
    answer.release()
    assert source.calls == ["release" if how == "release" else "abort"]
    answer.finish()  # the source hears of it later
    with pytest.raises(StreamInterrupted):
        await waiting
    with pytest.raises(StreamInterrupted):
        await answer.read_some()


async def test_letting_go_of_a_complete_answer_asks_nothing_of_the_source() -> None:
    answer, source = response()
    answer.push([b"x"], 1)
    answer.finish()
    answer.close()
    answer.release()
    assert source.calls == []


async def test_two_readers_are_a_mistake() -> None:
    answer, _ = response()
    first = asyncio.ensure_future(answer.read_some())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="one reader"):
        await answer.read_some()
    answer.finish()
    assert await first == b""
