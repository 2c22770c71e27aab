"""Hostile, slow and odd clients on real sockets: answered or let go, and never waited for."""

from __future__ import annotations

import asyncio
import json

from gateway.simulator.scripted.server import ScriptedUpstream
from tests.server.conftest import UVICORN, Serve
from tests.server.live import chat, post

HELLO = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"


@UVICORN
async def test_a_client_slow_with_its_head_is_told_and_let_go(serve: Serve) -> None:
    async with serve(header_s=0.4) as live:
        mute, drip = await live.connect(), await live.connect()
        drip.send("GET /livez HTTP/1.1\r\nx-a: ")
        answer = await drip.answer()
        assert answer.status == 408
        assert answer.error["code"] == "request_timeout"
        assert answer.headers["connection"] == "close"
        assert await drip.closed() == b""
        assert await mute.closed() == b""  # it had asked nothing: nothing is said


@UVICORN
async def test_the_head_of_a_later_request_and_silence_are_bounded_too(serve: Serve) -> None:
    async with serve(header_s=0.4, keep_alive_s=0.4) as live:
        drip, idle, blank = await live.connect(), await live.connect(), await live.connect()
        for client in (drip, idle, blank):
            client.send(HELLO)
            assert (await client.answer()).status == 200
        drip.send("GET /li")
        blank.send("\r\n\r\n")  # allowed before a request, and no request
        assert (await drip.answer()).status == 408
        assert await idle.closed() == b""
        await blank.closed()


async def test_a_client_slow_with_its_body_is_told_and_let_go(serve: Serve) -> None:
    async with serve(body_s=0.4) as live:
        for head in ("content-length: 100", "transfer-encoding: chunked"):
            client = await live.connect()
            client.send(f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{head}\r\n\r\n")
            answer = await client.answer()
            assert answer.status == 408
            assert answer.error["code"] == "request_timeout"
            assert await client.closed() == b""


POST = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
CHUNKED = "transfer-encoding: chunked\r\n"
NO_REQUESTS = [
    ("garbage", "\x16\x03\x01\x02 hello\r\n\r\n", 400),
    ("no such version", "GET / HTTP/9.9\r\n\r\n", 400),
    ("two lengths", POST + "content-length: 1\r\ncontent-length: 2\r\n\r\nab", 400),
    ("both framings", POST + "content-length: 3\r\n" + CHUNKED + "\r\n0\r\n\r\n", 400),
    ("a negative length", POST + "content-length: -1\r\n\r\n", 400),
    ("a bad chunk", POST + CHUNKED + "\r\nzz\r\n", 400),
    ("a space in a name", "GET /livez HTTP/1.1\r\nbad name: x\r\n\r\n", 400),
    ("a connect", "CONNECT example.com:443 HTTP/1.1\r\nhost: localhost\r\n\r\n", 400),
    ("many fields", "GET /livez HTTP/1.1\r\n" + "a: b\r\n" * 200 + "\r\n", 431),
    ("a long field", "GET /livez HTTP/1.1\r\na: " + "b" * 70_000 + "\r\n\r\n", 431),
    ("an endless field", "GET /livez HTTP/1.1\r\na: " + "b" * 140_000, 431),
    ("an endless path", "GET /" + "b" * 140_000, 431),
]  # fmt: skip


@UVICORN
async def test_what_is_no_request_gets_the_envelope(serve: Serve) -> None:
    async with serve() as live:
        for name, request, status in NO_REQUESTS:
            answer = await live.ask(request)
            assert answer.status == status, name
            assert answer.error["type"] == "invalid_request_error"
            assert answer.headers["connection"] == "close"
        assert (await live.get("/livez")).status == 200


async def test_forms_of_a_good_request(serve: Serve, upstream: ScriptedUpstream) -> None:
    async with serve() as live:
        client = await live.connect()
        client.send(HELLO * 3)  # one after the other, without waiting
        assert [(await client.answer()).status for _ in range(3)] == [200] * 3
        client.send("HEAD /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        head = await client.answer(head_only=True)
        assert head.status == 200
        assert head.headers["content-length"] == "15"
        for path in ("/v1/models/", "/models", "/v1/mod%65ls", "/v1/models?limit=2"):
            client.send(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert (await client.answer()).status == 200, path
        for path in ("/v1", "/v1/", "/v1/models%2f..", "/%00", "/v1/chat/completions/x"):
            client.send(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")
            answer = await client.answer()
            assert answer.status == 404, path
            assert answer.error["code"] in ("not_found", "model_not_found")
        client.send("DELETE /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n")
        answer = await client.answer()
        assert answer.status == 405
        assert answer.headers["allow"] == "GET"
        body = json.dumps(chat("creative")).encode()
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
        client.send(
            (POST + CHUNKED + "content-type: application/json\r\n\r\n").encode()
            + chunks
            + b"0\r\n\r\n"
        )
        assert (await client.answer()).status == 200
        assert upstream.stats("creative-model").requests == 1


async def test_http_2_is_not_spoken(serve: Serve) -> None:
    async with serve() as live:
        client = await live.connect()
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")  # settings
        assert (await client.closed())[:12] in (b"HTTP/1.1 400", b"")


async def test_expect_100_continue(serve: Serve) -> None:
    async with serve(max_body_bytes=2048) as live:
        client = await live.connect()
        whole = post("/v1/chat/completions", chat("creative"), "expect: 100-continue")
        head, _, body = whole.partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        assert (await client.head())[0] == 100
        client.send(body)
        assert (await client.answer()).status == 200
        client.send(
            "POST /v1/chat/completions HTTP/1.1\r\nexpect: 100-continue\r\n"
            "content-length: 99999\r\n\r\n"
        )
        assert (await client.answer()).status == 413  # without asking for the body first


@UVICORN
async def test_a_websocket_is_refused(serve: Serve) -> None:
    async with serve() as live:
        client = await live.connect()
        client.send(
            "GET /v1/realtime HTTP/1.1\r\nhost: localhost\r\n"
            "upgrade: websocket\r\nconnection: upgrade\r\n"
            "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        answer = await client.answer()
        assert answer.status == 404
        assert answer.error["code"] == "not_found"


async def test_too_long_a_body_is_refused_in_words(serve: Serve) -> None:
    async with serve(max_body_bytes=100_000) as live:
        big = b'{"model": "' + b"x" * 3_000_000
        for framing in ("said", "chunked"):
            client = await live.connect()
            if framing == "said":
                client.send(post("/v1/chat/completions", big))
            else:
                client.send(POST + CHUNKED + "\r\n")
                for _ in range(30):
                    client.send(b"186a0\r\n" + b"x" * 100_000 + b"\r\n")
                client.send(b"0\r\n\r\n")
            await client.writer.drain()  # sends all of it before it listens, as most clients do
            answer = await client.answer()
            assert answer.status == 413
            assert answer.error["code"] == "request_too_large"
            assert await client.closed() == b""


@UVICORN
async def test_more_connections_than_are_taken_are_told_so(serve: Serve) -> None:
    async with serve(max_connections=3) as live:
        taken = [await live.connect() for _ in range(3)]
        for client in taken:
            client.send(HELLO)
            assert (await client.answer()).status == 200
        one_more = await live.ask(HELLO)
        assert one_more.status == 503
        assert one_more.error["code"] == "too_many_connections"
        assert one_more.headers["retry-after"] == "1"
        taken[0].close()
        async with asyncio.timeout(5):
            while (await live.ask(HELLO)).status != 200:
                await asyncio.sleep(0.01)


async def test_more_requests_than_are_taken_are_told_so(
    serve: Serve, upstream: ScriptedUpstream
) -> None:
    async with serve(max_connections=3) as live:
        upstream.script("creative-model", ["silent"])
        stats = upstream.stats("creative-model")
        taken = [await live.connect() for _ in range(3)]
        for number, client in enumerate(taken):
            client.send(post("/v1/chat/completions", chat("creative", text=f"{number}")))
        await upstream.until(lambda: stats.in_flight == 3)
        for request in (HELLO.encode(), post("/v1/chat/completions", chat("creative"))):
            one_more = await live.connect()
            one_more.send(request)
            answer = await one_more.answer()
            assert answer.status == 503
            assert answer.error["code"] == "too_many_connections"
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["connection"] == "close"
            assert await one_more.closed() == b""
        assert stats.requests == 3
        taken[0].close()
        await upstream.until(lambda: stats.in_flight == 2)
        async with asyncio.timeout(5):
            while (await live.ask(HELLO)).status != 200:
                await asyncio.sleep(0.01)


@UVICORN
async def test_requests_sent_far_ahead_end_the_connection(serve: Serve) -> None:
    async with serve() as live:
        client = await live.connect()
        client.send(post("/v1/chat/completions", chat("creative")) + HELLO.encode() * 50)
        assert (await client.answer()).status == 200
        assert await client.closed() == b""


async def test_web_pages_are_let_in_only_where_they_are_named(serve: Serve) -> None:
    asked = (
        "OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\norigin: https://app.example\r\n"
        "access-control-request-method: POST\r\n"
        "access-control-request-headers: authorization\r\n\r\n"
    )
    async with serve() as live:
        answer = await live.ask(asked)
        assert answer.status == 405
        assert "access-control-allow-origin" not in answer.headers
    async with serve(cors_origins=["https://app.example"]) as live:
        answer = await live.ask(asked)
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        page = "GET /livez HTTP/1.1\r\nhost: localhost\r\norigin: https://app.example\r\n\r\n"
        assert "access-control-allow-origin" in (await live.ask(page)).headers
        other = await live.ask(asked.replace("app.example", "evil.example"))
        assert "access-control-allow-origin" not in other.headers
