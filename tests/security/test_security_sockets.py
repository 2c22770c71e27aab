"""What may be tried on a bare connection: two meanings of one request, slowness, places outside."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.server.live import Live, chat, post

CONFIG = """
[modes.fast]
[[modes.fast.targets]]
kind = "simulated"
options = { first_token_s = 0.001, tokens_per_s = 100000, tokens = 4 }
[feedback]
path = ":memory:"
[server]
header_s = 2
body_s = 2
log = "off"
"""
SMUGGLED = b"GET /status HTTP/1.1\r\nhost: localhost\r\n\r\n"
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
CHUNKED = b"0\r\n\r\n" + SMUGGLED


def framed(*headers: str, body: bytes = CHUNKED) -> bytes:
    return HEAD.encode() + "".join(f"{line}\r\n" for line in headers).encode() + b"\r\n" + body


TWICE_MEANT = {
    "length and chunked": framed("content-length: 46", "transfer-encoding: chunked"),
    "chunked and length": framed("transfer-encoding: chunked", "content-length: 5"),
    "two lengths": framed("content-length: 0", "content-length: 41", body=SMUGGLED),
    "a list of lengths": framed("content-length: 0, 41", body=SMUGGLED),
    "a length with a sign": framed("content-length: +0", body=SMUGGLED),
    "a length in hex": framed("content-length: 0x0", body=SMUGGLED),
    "a negative length": framed("content-length: -1", body=SMUGGLED),
    "chunked, spelt otherwise": framed("transfer-encoding: xchunked"),
    "chunked is not the last": framed("transfer-encoding: chunked, identity"),
    "a space before the colon": framed("content-length : 0", body=SMUGGLED),
    "a folded header": framed("x: y", " content-length: 0", body=SMUGGLED),
    "a zero byte": framed("x: a\0b", "content-length: 0", body=SMUGGLED),
    "a chunk size that overflows": framed("transfer-encoding: chunked", body=b"f" * 17 + b"\r\n"),
    "no chunk size": framed("transfer-encoding: chunked", body=b"x\r\n" + SMUGGLED),
}
OUTSIDE = (
    "/dashboard/../../../../etc/passwd", "/dashboard/%2e%2e/%2e%2e/etc/passwd",
    "/dashboard//etc/passwd",
    "/dashboard/..%2f..%2fapp.py", "/dashboard/..\\..\\app.py", "/dashboard/%00",
    "/dashboard/./app.py",
    "/dashboard/%252e%252e/app.py", "http://localhost/dashboard/../app.py", "/static/../app.py",
    "/dashboard/page.html/../../app.py", "/../gateway/server/app.py", "//etc/passwd",
    "file:///etc/passwd",
)  # fmt: skip


async def test_no_request_is_read_as_two(tmp_path: Path) -> None:
    async with Live(CONFIG, tmp_path) as live:
        for name, data in TWICE_MEANT.items():
            client = await live.connect()
            client.send(data)
            said = await client.closed()
            assert said.count(b"HTTP/1.1 ") == 1, (name, said)
            assert said.startswith(b"HTTP/1.1 4"), (name, said[:80])
            assert b'"modes"' not in said, name


async def test_no_file_outside_the_page_is_served(tmp_path: Path) -> None:
    async with Live(CONFIG, tmp_path) as live:
        for path in OUTSIDE:
            answer = await live.get(path)
            assert answer.status in (400, 404), path
            assert b"root:" not in answer.body
            assert b"import" not in answer.body


@pytest.mark.slow
async def test_hundreds_of_slow_clients_hold_nobody_up(tmp_path: Path) -> None:
    """Slow heads, slow bodies, and connections that say nothing: gone in time, and unnoticed."""
    half = post("/v1/chat/completions", chat("fast"))
    kinds = (half[:30], half[:-5], b"", b"GET /livez HTTP/1.1\r\nx: " + b"a" * 60_000)
    async with Live(CONFIG, tmp_path) as live:
        files = await live.files()
        slow = [await live.connect() for _ in range(400)]
        for number, client in enumerate(slow):
            client.send(kinds[number % len(kinds)])
        for _ in range(20):
            assert (await live.post("/v1/chat/completions", chat("fast"))).status == 200
        ends = await asyncio.gather(*(client.closed() for client in slow))
        assert sum(end.startswith(b"HTTP/1.1 408") for end in ends) == 300
        assert sum(end == b"" for end in ends) == 100, "who said nothing is told nothing"
        async with asyncio.timeout(10):
            while await live.files() > files:
                await asyncio.sleep(0.05)
