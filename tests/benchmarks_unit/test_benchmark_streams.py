"""Streams as the benchmarks look at them, and the stub and the load generator they come through."""

from __future__ import annotations

import http.client
import json

import pytest

from tests.benchmarks import stub
from tests.benchmarks.frames import inspect
from tests.benchmarks.native import compiled
from tests.benchmarks.server.load import Asking, begin, end, errors
from tests.benchmarks.upstream import Upstream

WHOLE = b"".join(stub.EVENT_BYTES) + b"data: [DONE]\n\n"
BODY = b'{"stream": true, "messages": [{"content": "################"}]}'
REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)


def test_a_stream_as_the_stub_sends_it_is_well() -> None:
    assert inspect(WHOLE) == []


def test_frames_may_be_joined_and_say_more() -> None:
    joined = WHOLE.replace(stub.EVENT_BYTES[5] + stub.EVENT_BYTES[6], b"")
    both = " token05 0000000000000000 token06 0000000000000000"
    chunk = {"choices": [{"index": 0, "delta": {"content": both}}], "gateway": {"mode": "fast"}}
    frame = b": ping\n\nevent: x\r\ndata: %b\r\n\r\n" % json.dumps(chunk).encode()
    at = joined.index(stub.EVENT_BYTES[7])
    assert inspect(joined[:at] + frame + joined[at:]) == []


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (WHOLE.replace(stub.EVENT_BYTES[7], b""), "61 of 62 tokens, 61 in all"),
        (WHOLE.replace(stub.EVENT_BYTES[7], 2 * stub.EVENT_BYTES[7]), "62 of 62 tokens, 63 in"),
        (WHOLE.replace(b"data: [DONE]\n\n", b""), "no [DONE] at the end"),
        (WHOLE.replace(b'"stop"', b"null"), "finish reasons []"),
        (WHOLE.replace(stub.EVENT_BYTES[7], b"data: {\n\n"), "not a chunk"),
        (WHOLE.replace(b" token07", b" to ken07"), "foreign text"),
        (b"", "no [DONE] at the end"),
    ],
)
def test_what_is_lost_doubled_cut_or_broken_is_seen(stream: bytes, complaint: str) -> None:
    assert any(complaint in wrong for wrong in inspect(stream))


def test_tokens_out_of_order_are_seen() -> None:
    seven, eight = stub.EVENT_BYTES[7:9]
    assert inspect(WHOLE.replace(seven + eight, eight + seven)) == ["62 of 62 tokens, 62 in all"]


@pytest.mark.parametrize("language", ["C", "Python"])
def test_both_stubs_answer_alike(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if language == "C" and compiled("stub") is None:
        pytest.skip("no C compiler")
    if language == "Python":
        monkeypatch.setattr("tests.benchmarks.upstream.compiled", lambda _: None)
    with Upstream(-1, ports=2) as upstream:
        assert upstream.language == language
        assert _ask(upstream, b'{"stream": true}') == (200, WHOLE)
        status, body = _ask(upstream, b'{"stream":false}')
        assert (status, json.loads(body)["object"]) == (200, "chat.completion")
        assert upstream.first_s() > 0
        upstream.set(mode="error", interval_s=0.001)
        assert upstream.first_s() == 0
        assert _ask(upstream, b"{}")[0] == 500
        upstream.set(interval_s=0.0001)
        status, body = _ask(upstream, b'{"stream": true}')
        assert (status, inspect(body)) == (200, [])
        assert (upstream.requests(0), upstream.requests(1)) == (4, 0)


@pytest.mark.skipif(compiled("load") is None, reason="no C compiler")
def test_the_load_generator_finds_nothing_wrong_with_the_stub_and_500s_wrong() -> None:
    with Upstream(-1, ports=1) as upstream:
        upstream.set(interval_s=0.0005)
        told = end(begin(upstream.ports[0], REQUEST, Asking(4, stream=True), 0.5, -1), 0.5)
        assert told.streams >= 1
        assert errors(told) == (0, "")
        assert (told.lost, told.stalled) == (0, 0)
        assert told.frames >= told.streams * stub.TOKENS
        assert told.delay_p50_us > 0  # stamped by the stub, and read on the same clock
        upstream.set(mode="error")
        told = end(begin(upstream.ports[0], REQUEST, Asking(2), 0.05, -1), 0.05)
        count, said = errors(told)
        assert count == told.answers > 0
        assert said == f"{count} x status 500"


def _ask(upstream: Upstream, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", upstream.ports[0], timeout=10)
    try:
        connection.request("POST", "/v1/chat/completions", body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
