"""An answer as bytes: one write, whole lines, and a client that knows where it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.openai_api.words import Call
from gateway.server.exchange import Exchange

DATE = "date: today\r\n"


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


class Flow:
    """uvicorn's flow control: a client that reads, or not."""

    write_paused = False

    def __init__(self) -> None:
        self.reads = asyncio.Event()

    async def drain(self) -> None:
        await self.reads.wait()
        self.write_paused = False


def exchange(
    method: str = "POST", *, keep_alive: bool = True, chunked: bool = True
) -> tuple[Exchange, Wire, Flow, list[int]]:
    wire: Any = Wire()
    flow: Any = Flow()
    done: list[int] = []
    made = Exchange(
        Call(method, "/x"), wire, flow, lambda: done.append(1), DATE,
        keep_alive=keep_alive, chunked=chunked,
    )  # fmt: skip
    return made, wire, flow, done


async def test_head_and_body_are_one_write() -> None:
    made, wire, _, done = exchange()
    assert made.whole(404, [("x-a", "1"), ("x-b", "é")], b"{}") is None
    assert wire.writes == [
        b"HTTP/1.1 404 Not Found\r\nx-a: 1\r\nx-b: \xe9\r\n"
        b"date: today\r\ncontent-length: 2\r\n\r\n{}"
    ]
    assert done == [1]
    assert not wire.closed


async def test_the_last_answer_says_so_and_closes() -> None:
    made, wire, _, _ = exchange(keep_alive=False)
    made.whole(200, [], b"")
    assert b"connection: close\r\n" in wire.writes[0]
    assert wire.closed


@pytest.mark.parametrize("evil", ["a\r\nset-cookie: b=c", "a\nb", "a\rb", "a\0b"])
async def test_no_value_ends_its_line(evil: str) -> None:
    made, wire, _, _ = exchange()
    made.whole(200, [("x-model", evil), ("x-b", "fine")], b"")
    head = wire.writes[0].decode()
    assert [line.partition(":")[0] for line in head.split("\r\n")[1:]] == [
        "x-model", "x-b", "date", "content-length", "", "",
    ]  # fmt: skip
    assert "\0" not in head


async def test_a_status_without_a_name_is_sent_all_the_same() -> None:
    made, wire, _, _ = exchange()
    made.whole(498, [], b"")
    assert wire.writes[0].startswith(b"HTTP/1.1 498 \r\n")


async def test_a_head_has_no_body_whole_or_streamed() -> None:
    made, wire, _, _ = exchange("HEAD")
    made.whole(200, [], b"{}")
    assert b"content-length: 2" in wire.writes[0]
    assert wire.writes[0].endswith(b"\r\n\r\n")
    made, wire, _, _ = exchange("HEAD")
    made.begin(200, [])
    made.end()
    assert len(wire.writes) == 1
    assert b"chunked" not in wire.writes[0]


async def test_pieces_and_an_end_that_says_it_is_one() -> None:
    made, wire, _, done = exchange()
    made.begin(200, [])
    assert b"transfer-encoding: chunked\r\n" in wire.writes[0]
    for piece in (b"0123456789abcdef", b""):  # a piece of nothing would be the end
        made.send(piece)
    assert wire.writes[1:] == [b"10\r\n0123456789abcdef\r\n"]
    assert not done
    made.end()
    assert wire.writes[-1] == b"0\r\n\r\n"
    assert done == [1]


async def test_a_client_that_knows_no_pieces_gets_them_bare_and_then_the_connections_end() -> None:
    made, wire, _, _ = exchange(chunked=False)
    made.begin(200, [])
    made.send(b"one")
    made.end()
    assert b"connection: close" in wire.writes[0]
    assert b"chunked" not in wire.writes[0]
    assert wire.writes[1:] == [b"one"]
    assert wire.closed


async def test_who_does_not_read_holds_up_what_is_sent() -> None:
    made, wire, flow, done = exchange()
    flow.write_paused = True
    waits = made.whole(200, [], b"{}")
    assert waits is not None
    task = asyncio.ensure_future(waits)
    await asyncio.sleep(0)
    assert not wire.writes
    flow.reads.set()
    await task
    assert len(wire.writes) == 1
    assert done == [1]


async def test_leaving_cancels_what_is_done_once_and_never_what_is_finished() -> None:
    made, _, _, _ = exchange()
    made.task = asyncio.create_task(asyncio.sleep(3600))
    made.leave()
    assert made.gone
    with pytest.raises(asyncio.CancelledError):
        await made.task
    assert made.whole(200, [], b"") is None  # nobody is there to take it
    over, _, _, _ = exchange()
    over.task = asyncio.create_task(asyncio.sleep(0))
    over.whole(200, [], b"")
    over.leave()
    assert not over.gone
    await over.task
