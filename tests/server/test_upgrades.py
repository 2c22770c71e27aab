"""What polite clients may say and need not be given: another protocol, a wait, a list in pieces."""

from __future__ import annotations

import json

import pytest

from gateway.openai_api.headers import cache_control
from gateway.server.edge import fields_of
from tests.server.conftest import UVICORN, Serve
from tests.server.live import chat, post

H2C = (  # java.net.http.HttpClient sends this with every request that is not https
    "connection: Upgrade, HTTP2-Settings",
    "upgrade: h2c",
    "http2-settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAABgAGAAAA",
)


@pytest.mark.parametrize("cut", [0, 60, -200, -20])
@UVICORN
async def test_a_wish_for_http2_loses_no_body(serve: Serve, cut: int) -> None:
    async with serve() as live:
        client = await live.connect()
        request = post("/v1/chat/completions", chat("fast"), *H2C)
        for _ in range(2):  # the connection stays what it is, too
            client.send(request[:cut] if cut else request)
            if cut:
                await live.get("/livez")  # so that the rest comes by itself
                client.send(request[cut:])
            answer = await client.answer()
            assert answer.status == 200, answer.body
            assert json.loads(answer.body)["choices"]


@UVICORN
async def test_a_wish_for_http2_in_chunks_and_ahead_of_its_turn(serve: Serve) -> None:
    body = json.dumps(chat("fast")).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n"
        "content-type: application/json\r\n" + "\r\n".join(H2C) + "\r\n\r\n"
    )
    one = head.encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    async with serve() as live:
        client = await live.connect()
        client.send(one * 3)
        assert [(await client.answer()).status for _ in range(3)] == [200, 200, 200]


@UVICORN
async def test_old_clients_are_not_told_to_go_on(serve: Serve) -> None:
    """RFC 9110, 10.1.1: an expectation of HTTP/1.0 is ignored."""
    asked = post("/v1/chat/completions", chat("fast"), "expect: 100-continue")
    async with serve() as live:
        assert (await live.ask(asked.replace(b"HTTP/1.1", b"HTTP/1.0"))).status == 200


@UVICORN
async def test_a_head_is_refused_without_a_body(serve: Serve) -> None:
    async with serve(max_body_bytes=2000) as live:
        client = await live.connect()
        client.send(b"HEAD" + post("/v1/models", b" " * 3000, "x-a: b")[4:])
        said = await client.closed()
        assert said.startswith(b"HTTP/1.1 413 ")
        assert said.endswith(b"\r\n\r\n")
        assert b'{"error"' not in said


def test_a_field_in_two_lines_is_one_list() -> None:
    lines = [(b"Cache-Control", b"no-store"), (b"host", b"a"), (b"cache-control", b"max-age=60")]
    fields = fields_of(lines)
    assert fields == {"cache-control": "no-store, max-age=60", "host": "a"}
    assert not cache_control(fields["cache-control"]).store
