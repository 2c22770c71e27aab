"""Faults of the way to an upstream: addresses, connections, TLS, keys, and what is sent slowly."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path

import pytest
import trustme
from lab import Lab

from gateway.errors import ErrorKind, GatewayError, StreamInterrupted, UpstreamTimeout
from gateway.simulator.scripted import Exchange, ScriptedUpstream

TRANSPORTS = pytest.mark.parametrize("transport", ["http1", "httpx"])


@TRANSPORTS
async def test_nobody_listens(lab: Lab, transport: str) -> None:
    refused = {"base_url": lab.primary.refusing_url, "transport": transport}
    lab.start(creative={"target": refused})
    for _ in range(3):
        answer = await lab.ask()
        assert (answer.mode, answer.reason) == ("balanced", "failed")
    assert lab.kinds() == {ErrorKind.CONNECT}
    assert lab.phase() == "open"


@TRANSPORTS
async def test_no_such_host(lab: Lab, transport: str) -> None:
    nowhere = {"base_url": "http://no-such-host.invalid/v1", "transport": transport}
    lab.start(creative={"target": nowhere})
    assert (await lab.ask()).mode == "balanced"
    assert lab.kinds() == {ErrorKind.CONNECT}


@TRANSPORTS
async def test_tls_spoken_to_a_plain_server(lab: Lab, transport: str) -> None:
    url = lab.primary.base_url.replace("http:", "https:")
    lab.start(creative={"target": {"base_url": url, "transport": transport, "connect_s": 0.2}})
    assert (await lab.ask()).mode == "balanced"
    assert lab.kinds() == {ErrorKind.TIMEOUT}, "it waits for the rest of what it cannot read"


@TRANSPORTS
async def test_plain_words_spoken_to_a_tls_server(lab: Lab, transport: str) -> None:
    async with ScriptedUpstream(ssl_context=_server_tls(trustme.CA())) as server:
        url = server.base_url.replace("https:", "http:")
        lab.start(creative={"target": {"base_url": url, "transport": transport}})
        assert (await lab.ask()).mode == "balanced"
        assert {attempt.outcome for attempt in lab.attempts()} == {"failure"}


@TRANSPORTS
async def test_a_certificate_nobody_vouches_for_and_one_that_is_known(
    lab: Lab, transport: str, tmp_path: Path
) -> None:
    authority = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    async with ScriptedUpstream(ssl_context=_server_tls(authority)) as server:
        target = {"base_url": server.base_url, "transport": transport}
        lab.start(creative={"target": target})
        assert (await lab.ask()).mode == "balanced"
        assert lab.kinds() == {ErrorKind.CONNECT}
        gateway = lab.start(creative={"target": {**target, "ca_file": str(ca_file)}})
        assert (await lab.ask()).mode == "creative"
        server.script("creative", ["cut_rst"])
        heard = await lab.hear()
        assert isinstance(heard.error, StreamInterrupted)
        assert len(heard.text.split()) == 3
        await gateway.aclose()


def _server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def test_one_of_two_keys_is_wrong(lab: Lab, tmp_path: Path) -> None:
    for name in ("good", "bad"):
        (tmp_path / name).write_text(f"sk-{name}")

    async def checks_the_key(exchange: Exchange) -> None:
        if exchange.headers["authorization"] != "Bearer sk-good":
            error = {"message": "Incorrect API key sk-bad provided", "code": "invalid_api_key"}
            exchange.json({"error": error}, 401)
            return
        exchange.head()
        exchange.say(*exchange.tokens)
        exchange.finish()

    lab.script("creative", checks_the_key)
    place = {"kind": "vllm", "base_url": lab.primary.base_url, "model": "creative"}
    targets = [{**place, "api_key_file": str(tmp_path / name)} for name in ("bad", "good")]
    lab.start(creative={"targets": targets})
    first, *others = [await lab.ask() for _ in range(5)]
    assert first.mode == "balanced"
    assert {answer.mode for answer in others} == {"creative"}
    (rest,) = lab.rests()
    assert rest.alarm and rest.for_s >= 60
    assert lab.requests() == 5
    assert not any("sk-" in repr(event) for event in lab.events)


async def test_a_key_the_upstream_repeats_is_not_repeated_to_the_caller(
    lab: Lab, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("sk-very-secret-123")

    async def tells(exchange: Exchange) -> None:
        told = exchange.headers["authorization"].removeprefix("Bearer ")
        exchange.json({"error": {"message": f"no such field for {told}", "code": "bad"}}, 422)

    lab.start(target={"api_key_file": str(tmp_path / "key")})
    lab.script("creative", tells)
    with pytest.raises(GatewayError) as caught:
        await lab.ask()
    assert "secret" not in f"{caught.value!r} {caught.value} {lab.gateway.status()} {lab.events}"


async def test_a_model_missing_at_one_of_two_backends(lab: Lab) -> None:
    lab.primary.script("here", ["ok"])
    lab.primary.script("gone", ["404_vllm"])
    place = {"kind": "vllm", "base_url": lab.primary.base_url}
    targets = [{**place, "model": "gone"}, {**place, "model": "here"}]
    lab.start(creative={"targets": targets})
    modes = [(await lab.gateway.generate(lab.prompt())).mode for _ in range(4)]
    assert modes == ["balanced", "creative", "creative", "creative"]
    assert lab.requests("gone") == 0 and lab.primary.stats("gone").requests == 1


@TRANSPORTS
async def test_a_prompt_of_megabytes_read_slowly(lab: Lab, transport: str) -> None:
    lab.start(target={"transport": transport})
    prompt = "wood " * 400_000
    answer = await lab.ask(prompt)
    assert answer.mode == "creative"
    assert lab.primary.stats("creative").bodies[-1]["messages"][0]["content"] == prompt


@TRANSPORTS
async def test_an_answer_before_the_prompt_was_read(lab: Lab, transport: str) -> None:
    """A refusal that comes while megabytes are still being sent is heard, not lost in a reset."""

    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"error": {"message": "too large", "code": "context_length_exceeded"}}'
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
        writer.write(head + b"content-length: %d\r\n\r\n%b" % (len(body), body))
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        gone.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        target = {"base_url": f"http://127.0.0.1:{port}/v1", "transport": transport}
        gateway = lab.start(modes=("creative",), creative={"target": target})
        with pytest.raises(GatewayError) as caught:
            await lab.ask("wood " * 2_000_000)
        assert caught.value.code == "context_length_exceeded"
        await gateway.aclose()
        async with asyncio.timeout(1):
            await gone.wait()


@TRANSPORTS
async def test_a_connection_that_is_never_accepted(lab: Lab, transport: str) -> None:
    """A listener whose backlog is full drops what knocks: only our own clock ends that."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        filling = [socket.socket() for _ in range(4)]
        for one in filling:
            one.setblocking(False)
            one.connect_ex(address)
        target = {"base_url": f"http://127.0.0.1:{address[1]}/v1", "transport": transport}
        lab.start(creative={"target": {**target, "connect_s": 0.15}})
        with pytest.raises(UpstreamTimeout) as caught:
            await lab.ask(allow_degrade=False)
        assert caught.value.phase == "connect"
        assert (await lab.ask()).mode == "balanced"
        assert {attempt.outcome for attempt in lab.attempts()} == {"failure"}
        for one in filling:
            one.close()


@TRANSPORTS
async def test_a_restart_between_two_requests_is_not_noticed(lab: Lab, transport: str) -> None:
    lab.start(target={"transport": transport})
    assert (await lab.ask()).mode == "creative"
    await lab.primary.refuse()
    await lab.primary.listen()
    answer = await lab.ask()
    assert (answer.mode, answer.served.attempts) == ("creative", 1)
