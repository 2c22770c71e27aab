"""Whatever comes in: no 500, no traceback, OpenAI's envelope, and the service lives on."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.conftest import UVICORN, Serve
from tests.server.live import Live, chat, post

BOUNDED = settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
GOOD = post("/v1/chat/completions", chat("fast", stream=True), "connection: close")
WORDS = [
    b"\r\n",
    b"\x00",
    b"\xff",
    b" ",
    b":",
    b"%",
    b"/",
    b"?",
    b"chunked",
    b"HTTP/1.1",
    b"\r",
    b"-1",
]
CONFIG = """
[modes.fast]
[[modes.fast.targets]]
kind = "simulated"
options = { first_token_s = 0.001, tokens_per_s = 100000, tokens = 4 }
[feedback]
path = ":memory:"
[server]
header_s = 2
"""


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good request with some of its bytes replaced, removed, doubled or joined by others."""
    data = bytearray(GOOD)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 12))
        data[at : at + length] = draw(
            st.one_of(
                st.binary(max_size=6), st.sampled_from(WORDS), st.just(data[at : at + length] * 2)
            )
        )
    return bytes(data)


def said(port: int, data: bytes) -> bytes:
    """What comes back, until it is silent for a moment."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        try:
            sock.sendall(data)
            sock.settimeout(0.3)  # a request that is not whole is waited for; we do not
            while piece := sock.recv(65536):
                answer += piece
        except (TimeoutError, ConnectionError):
            pass
    return answer


def check(answer: bytes) -> None:
    assert b"Traceback" not in answer
    for part in answer.split(b"HTTP/1.1 ")[1:]:
        status = int(part[:3])
        assert status != 500, answer
        head, _, body = part.partition(b"\r\n\r\n")
        if status >= 400 and b"transfer-encoding" not in head.lower():
            error = json.loads(body)["error"]
            assert {"message", "type", "param", "code"} <= error.keys()


async def test_bytes_that_are_no_http_and_requests_gone_wrong(tmp_path: Path) -> None:
    async with Live(CONFIG, tmp_path) as live:

        @BOUNDED
        @given(st.one_of(st.binary(max_size=300).map(lambda data: data + b"\r\n\r\n"), mutated()))
        def fuzz(data: bytes) -> None:
            check(said(live.port, data))

        await asyncio.to_thread(fuzz)
        assert (await live.get("/livez")).status == 200
        log = await live.told()
        assert "Traceback" not in log
        assert "Exception" not in log


GOOD_BODY = json.dumps(chat("fast")).encode()
BAD_BODIES = [
    (b"", 400),
    (b"{", 400),
    (b"[]", 400),
    (b'"text"', 400),
    (b"\xff\xfe{}", 400),
    (b'{"messages": "hi"}', 400),
    (b'{"model": "fast"}', 400),
    (b'{"model": "fast", "messages": []}', 400),
    (b'{"model": 5, "messages": [{"role": "user", "content": "x"}]}', 400),
    (b'{"model": "gpt-none", "messages": [{"role": "user", "content": "x"}]}', 404),
    (b'{"model": "fast", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
    (b'{"a":' * 1000 + b"1" + b"}" * 1000, 400),
    (b"[" * 100_000, 400),
    (json.dumps(chat("fast", text="x" * 10_300_000)).encode(), 400),
    (json.dumps(chat("fast", text="x" * 10_600_000)).encode(), 413),
    (json.dumps(chat("fast", temperature=1e400)).encode(), 400),
    (GOOD_BODY[:-1] + b', "seed": ' + b"9" * 5000 + b"}", 400),
]  # fmt: skip


async def test_bodies_that_are_no_request(serve: Serve) -> None:
    async with serve() as live:
        for body, status in BAD_BODIES:
            answer = await live.post("/v1/chat/completions", body)
            assert answer.status == status, (body[:80], answer.body[:200])
            assert answer.error["type"] in ("invalid_request_error", "not_found_error")
        text = "content-type: text/plain"
        assert (await live.post("/v1/chat/completions", b"hi", text)).status == 415
        odd = ("x-stainless-read-timeout: never", "cache-control: max-age=x, , =", "traceparent: 0",
               "x-gateway-allow-degrade: \xff", "x-request-id: " + "y" * 500)  # fmt: skip
        answer = await live.post("/v1/chat/completions", chat("fast"), *odd)
        assert answer.status == 200
        assert answer.headers["x-request-id"] != "y" * 500


@UVICORN
@pytest.mark.slow
async def test_schemathesis_finds_nothing(serve: Serve, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        pytest.skip("schemathesis is not installed")
    checks = (
        "not_a_server_error,status_code_conformance,content_type_conformance,"
        "response_schema_conformance,unsupported_method,negative_data_rejection"
    )
    # What is forced open rightly answers 503, and figures that stream never end.
    rest = ("--exclude-path", "/live", "--exclude-path", "/admin/force", "--max-time", "35")
    force = ("--include-path", "/admin/force", "--max-time", "5")
    async with serve(log="off", tables='[feedback]\npath = ":memory:"\n') as live:
        for paths in (rest, force):
            process = await asyncio.create_subprocess_exec(
                str(program), "run", f"http://127.0.0.1:{live.port}/openapi.json",
                *("--checks", checks, "--phases", "examples,coverage,fuzzing", "--seed", "1"),
                *("-n", "50", "--continue-on-failure", *paths),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path,
            )  # fmt: skip
            out, _ = await process.communicate()
            assert process.returncode == 0, out.decode()[-6000:]
        assert (await live.get("/livez")).status == 200
        assert "Traceback" not in "".join(live.log)
