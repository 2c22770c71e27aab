"""Faults that are no single answer: addresses, keys, encodings, loads, odd but legal words."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from lab import Lab, begin

from gateway.errors import AllModesFailed, ErrorKind, GatewayError, StreamInterrupted
from gateway.simulator.scripted import Exchange, ScriptedUpstream, cut_at_byte

TRANSPORTS = pytest.mark.parametrize("transport", ["http1", "httpx"])


def kinds(lab: Lab) -> set[str]:
    return {attempt.kind for attempt in lab.attempts()}


@TRANSPORTS
async def test_nobody_listens(lab: Lab, transport: str) -> None:
    refused = {"base_url": lab.primary.refusing_url, "transport": transport}
    lab.start(creative={"target": refused})
    for _ in range(3):
        answer = await lab.ask()
        assert (answer.mode, answer.reason) == ("balanced", "failed")
    assert kinds(lab) == {ErrorKind.CONNECT}
    assert lab.phase() == "open"


@TRANSPORTS
async def test_no_such_host(lab: Lab, transport: str) -> None:
    nowhere = {"base_url": "http://no-such-host.invalid/v1", "transport": transport}
    lab.start(creative={"target": nowhere})
    assert (await lab.ask()).mode == "balanced"
    assert kinds(lab) == {ErrorKind.CONNECT}


@TRANSPORTS
async def test_tls_spoken_to_a_plain_server(lab: Lab, transport: str) -> None:
    url = lab.primary.base_url.replace("http:", "https:")
    lab.start(creative={"target": {"base_url": url, "transport": transport, "connect_s": 0.2}})
    assert (await lab.ask()).mode == "balanced"
    assert kinds(lab) == {ErrorKind.TIMEOUT}, "it waits for the rest of what it cannot read"


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
        assert kinds(lab) == {ErrorKind.CONNECT}
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


async def test_compression_nobody_asked_for_is_not_taken_for_text(lab: Lab) -> None:
    async def squeezed(exchange: Exchange) -> None:
        exchange.head(headers={"content-encoding": "gzip"})
        exchange.write(gzip.compress(b'data: {"choices":[]}\n\ndata: [DONE]\n\n'))
        exchange.end()

    lab.start()
    lab.script("creative", squeezed)
    assert (await lab.ask()).mode == "balanced"
    assert kinds(lab) == {ErrorKind.MALFORMED}


async def test_templates_that_leak_are_passed_on_as_they_came(lab: Lab) -> None:
    leaked = "<think>\nhm\n</think>\n<tool_call>{}</tool_call>"

    async def leaks(exchange: Exchange) -> None:
        exchange.head()
        exchange.say(*leaked.partition(">"))
        exchange.finish()

    lab.start()
    lab.script("creative", leaks)
    answer = await lab.gateway.generate(lab.prompt())
    assert (answer.mode, answer.text) == ("creative", leaked)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "many"}, [1], "none"])
async def test_usage_that_is_missing_or_wrong_spoils_no_answer(lab: Lab, usage: object) -> None:
    async def says(exchange: Exchange) -> None:
        exchange.head()
        exchange.say(*exchange.tokens)
        exchange.event(exchange.chunk({}, finish_reason="stop") | {"usage": usage})
        exchange.write(b"data: [DONE]\n\n")
        exchange.end()

    lab.start()
    lab.script("creative", says)
    answer = await lab.ask()
    assert (answer.mode, answer.usage.completion_tokens) == ("creative", 0)


async def test_two_tool_calls_with_one_id_stay_two(lab: Lab) -> None:
    async def calls(exchange: Exchange) -> None:
        exchange.head()
        for index, name in enumerate(("find", "mix")):
            function = {"name": name, "arguments": "{}"}
            call = {"index": index, "id": "call_1", "type": "function", "function": function}
            exchange.event(exchange.chunk({"tool_calls": [call]}))
        exchange.finish("tool_calls")

    lab.start()
    lab.script("creative", calls)
    made = (await lab.gateway.generate(lab.prompt())).tool_calls
    assert [call["function"]["name"] for call in made] == ["find", "mix"]


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


async def test_a_hundred_at_once_before_four_slots(lab: Lab) -> None:
    """The upstream refuses a fifth; the queue and the lower modes carry the rest."""
    playing = most = 0

    async def four_slots(exchange: Exchange) -> None:
        nonlocal playing, most
        if playing == 4:
            exchange.json({"object": "error", "message": "The request queue is full."}, 503)
            return
        playing += 1
        most = max(most, playing)
        try:
            await exchange.pause()
            exchange.head()
            exchange.say(*exchange.tokens)
            exchange.finish()
        finally:
            playing -= 1

    lab.start()
    lab.script("creative", four_slots)
    answers = await asyncio.gather(*(lab.ask() for _ in range(100)))
    modes = [answer.mode for answer in answers]
    assert modes.count("creative") >= 4
    assert set(modes) <= {"creative", "balanced", "fast"}
    assert most == 4
    assert lab.phase() == "closed", "a full queue is no failure"
    lab.clock.skip(5.0)
    assert (await lab.ask()).mode == "creative"
    assert lab.status()["limit"] < 512, "it takes less at once from now on"


async def test_a_limit_of_ones_own_keeps_a_hundred_in_line(lab: Lab) -> None:
    lab.start(modes=("creative",), each={"max_in_flight": 4})
    lab.script("creative", "drip")
    stats, most = lab.primary.stats("creative"), 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, stats.in_flight)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    answers = await asyncio.gather(*(lab.ask() for _ in range(100)))
    watching.cancel()
    await asyncio.wait([watching])
    assert {answer.mode for answer in answers} == {"creative"}
    assert most == 4


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("caller", ["whole", "stream"])
async def test_an_answer_cut_at_any_byte_is_never_taken_for_whole(
    lab: Lab, caller: str, reset: bool
) -> None:
    lab.start(
        modes=("creative", "balanced"),
        tables={"circuit": {"failure_threshold": 10_000, "failure_ratio": 0.0}},
    )
    whole = 0
    for byte in range(1, 4000, 41):
        lab.script("creative", [cut_at_byte(byte, rst=reset)])
        prompt = lab.prompt()
        said = lab.says("creative", prompt)
        if caller == "whole":
            answer = await lab.ask(prompt)
            whole += answer.mode == "creative"
            continue
        heard = await lab.hear(prompt)
        if isinstance(heard.error, StreamInterrupted):
            assert heard.error.partial == heard.text
            assert heard.text and said.startswith(heard.text)
            continue
        assert heard.error is None and heard.whole is not None
        assert heard.text == lab.says(heard.whole.mode, prompt)
        whole += heard.whole.mode == "creative"
    assert 0 < whole < 60, "cut behind its last word an answer is whole, before that it is not"


async def test_creative_and_balanced_both_fail_and_fast_answers(lab: Lab) -> None:
    lab.start()
    lab.script("creative", "cut_fin")
    lab.script("balanced", "one_token_then_stall")
    lab.start(balanced={"first_token_s": 0.12, "stall_s": 0.12})
    prompt = lab.prompt()
    answer = await lab.ask(prompt)
    assert (answer.mode, answer.reason, answer.served.attempts) == ("fast", "failed", 3)


async def test_whoever_starts_lower_never_climbs(lab: Lab) -> None:
    lab.start()
    lab.script("balanced", "html")
    answer = await lab.ask(mode="balanced")
    assert (answer.mode, answer.requested_mode) == ("fast", "balanced")
    lab.script("fast", "html")
    with pytest.raises(AllModesFailed) as caught:
        await lab.ask(mode="balanced")
    assert list(caught.value.causes) == ["balanced", "fast"]
    assert lab.requests("creative") == 0


@pytest.mark.parametrize("size", [64 * 1024 + 1, 9 * 1024 * 1024])
async def test_an_upstream_is_not_trusted_with_our_memory(lab: Lab, size: int) -> None:
    async def floods(exchange: Exchange) -> None:
        if size < 1024 * 1024:
            exchange.head(headers={"x-flood": "x" * size})
        else:
            exchange.head()
            exchange.write(b"data: " + b"x" * size)
        await exchange.forever()

    lab.start()
    lab.script("creative", floods)
    assert (await lab.ask()).mode == "balanced"
    assert kinds(lab) == {ErrorKind.MALFORMED}
    await lab.until_hung_up()


async def test_first_bytes_that_come_late_but_in_time(lab: Lab) -> None:
    async def late(exchange: Exchange) -> None:
        await exchange.pause()
        exchange.head()
        await exchange.pause()
        exchange.say(*exchange.tokens)
        exchange.finish()

    lab.start()
    lab.script("creative", late)
    assert (await lab.ask()).mode == "creative"


async def test_a_second_answer_nobody_asked_for_is_not_handed_to_the_next(lab: Lab) -> None:
    """Bytes behind the end of an answer spoil the connection, not the next call."""

    async def smuggles(exchange: Exchange) -> None:
        await begin(exchange, 1)
        exchange.finish()
        exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno")

    lab.start()
    lab.script("creative", [smuggles, "ok"])
    first: Any = await lab.gateway.generate(lab.prompt())
    assert (first.mode, first.text) == ("creative", "t0 ")
    for _ in range(3):
        assert (await lab.ask()).mode == "creative"
