"""The scripted upstream keeps its word: each fault looks on the wire as the catalogue says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
import trustme

from gateway.errors import ErrorKind
from gateway.simulator.scripted import (
    FAULTS,
    SEQUENCES,
    Exchange,
    ScriptedFault,
    ScriptedUpstream,
    answer_tokens,
    cut_at_byte,
)

QUESTION = [{"role": "user", "content": "Name three woody perfume notes"}]


@dataclass
class Seen:
    """One answer as it came over the wire."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    end: str = ""  # proper | fin | rst

    @property
    def events(self) -> list[Any]:
        """The data of its server-sent events, as a plain reader of the specification sees them."""
        seen = []
        for block in self.body.decode(errors="replace").replace("\r\n", "\n").split("\n\n"):
            data = [line[5:].lstrip() for line in block.split("\n") if line.startswith("data:")]
            if data:
                try:
                    seen.append(json.loads("\n".join(data)))
                except ValueError:
                    seen.append("\n".join(data))
        return seen

    def deltas(self, index: int = 0) -> list[dict[str, Any]]:
        return [
            choice["delta"]
            for event in self.events
            if isinstance(event, dict)
            for choice in event.get("choices", [])
            if choice["index"] == index and choice["finish_reason"] != "error_finish"
        ]

    @property
    def tokens(self) -> list[str]:
        return [delta["content"] for delta in self.deltas() if delta.get("content")]

    @property
    def finish_reasons(self) -> list[str]:
        choices = [event.get("choices", []) for event in self.events if isinstance(event, dict)]
        return [c["finish_reason"] for every in choices for c in every if c["finish_reason"]]


class Line:
    """A client that sees everything: how the answer is framed and how it ends."""

    def __init__(self, server: ScriptedUpstream, **connect: Any) -> None:
        self.server = server
        self.connect = connect

    async def __aenter__(self) -> Line:
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self.server.port, **self.connect
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    def send(self, model: str, *, stream: bool = True, **more: Any) -> None:
        payload = json.dumps({"model": model, "messages": QUESTION, "stream": stream, **more})
        self.writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: scripted\r\nauthorization: Bearer k\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(payload), payload.encode())
        )

    async def read(self, *, tokens: int | None = None) -> Seen:
        """Read the answer to its end, or until it has brought so many content tokens."""
        seen = Seen()
        async with asyncio.timeout(5):
            await self._read(seen, tokens)
        return seen

    async def _read(self, seen: Seen, tokens: int | None) -> None:
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode().rstrip().split("\r\n")
            seen.status = int(status.split()[1])
            seen.headers = dict(line.split(": ", 1) for line in lines)
            if "content-length" in seen.headers:
                seen.body = await self.reader.readexactly(int(seen.headers["content-length"]))
                seen.end = "proper"
            while not seen.end:
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                seen.body += (await self.reader.readexactly(size + 2))[:-2]
                if size == 0:
                    seen.end = "proper"
                if tokens is not None and len(seen.tokens) >= tokens:
                    break
        except asyncio.IncompleteReadError:
            seen.end = "fin"
        except ConnectionResetError:
            seen.end = "rst"


@pytest.fixture
async def server() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(pace_s=0.002) as started:
        yield started


def text_of(fault: ScriptedFault, model: str) -> str:
    asked = {"model": model, "messages": QUESTION}
    return "".join(answer_tokens(asked)) if fault.text is None else fault.text


def cases(*, stream: bool, ends: bool = True) -> list[str]:
    return [
        name
        for name, fault in FAULTS.items()
        if fault.strikes(stream=stream)
        and (fault.kind is not ErrorKind.TIMEOUT and name != "lingers") == ends
    ]


@pytest.mark.parametrize("name", cases(stream=True))
async def test_each_streamed_answer_is_what_the_catalogue_says(
    server: ScriptedUpstream, name: str
) -> None:
    fault = FAULTS[name]
    async with Line(server) as line:
        line.send(name)
        seen = await line.read()
    assert seen.status == fault.status
    done = seen.body.endswith(b"data: [DONE]\n\n")
    if fault.kind is None:
        assert seen.end == "proper"
        assert "".join(seen.tokens) == text_of(fault, name)
        assert done or name == "no_done"
        assert seen.finish_reasons or name == "done_without_finish"
    elif fault.kind is ErrorKind.CONNECT:
        assert seen.end in ("fin", "rst")
    elif fault.kind is ErrorKind.INTERRUPTED:
        assert len(seen.tokens) == fault.tokens
        assert not done
        assert not seen.finish_reasons
    elif fault.status != 200:
        assert seen.end == "proper"
        assert seen.headers["content-length"] == str(len(seen.body))
    elif fault.kind is not ErrorKind.MALFORMED:
        assert len(seen.tokens) == fault.tokens


@pytest.mark.parametrize("name", cases(stream=False))
async def test_each_whole_answer_is_what_the_catalogue_says(
    server: ScriptedUpstream, name: str
) -> None:
    fault = FAULTS[name]
    async with Line(server) as line:
        line.send(name, stream=False)
        seen = await line.read()
    assert seen.status == fault.status
    if fault.kind is None:
        message = json.loads(seen.body)["choices"][0]["message"]
        assert (message["content"] or "") == text_of(fault, name)
    elif fault.kind in (ErrorKind.CONNECT, ErrorKind.INTERRUPTED):
        assert seen.end in ("fin", "rst")
    else:
        assert seen.end == "proper"


@pytest.mark.parametrize("name", cases(stream=True, ends=False))
async def test_silent_answers_last_until_the_client_hangs_up(
    server: ScriptedUpstream, name: str
) -> None:
    fault, stats = FAULTS[name], server.stats(name)
    async with Line(server) as line:
        line.send(name)
        if name == "silent":
            await server.until(lambda: stats.in_flight == 1)
        elif name == "lingers":
            assert "".join((await line.read(tokens=8)).tokens) == text_of(fault, name)
        elif fault.tokens:
            assert len((await line.read(tokens=fault.tokens)).tokens) == fault.tokens
        else:
            await line.reader.readuntil(b"\r\n\r\n")
        assert (stats.in_flight, stats.aborted) == (1, 0)
        hung_up = asyncio.get_running_loop().time()
    await server.until(lambda: stats.aborted == 1)
    assert stats.aborted_at[0] - hung_up < 1
    await server.until(lambda: stats.in_flight == stats.open == server.connections == 0)
    assert (stats.requests, stats.completed) == (1, 0)


@pytest.mark.parametrize("name", ["silent", "headers_then_silence"])
async def test_silence_for_callers_who_want_the_answer_whole(
    server: ScriptedUpstream, name: str
) -> None:
    stats = server.stats(name)
    async with Line(server) as line:
        line.send(name, stream=False)
        await server.until(lambda: stats.in_flight == 1)
    await server.until(lambda: stats.aborted == 1)


async def test_resets_are_resets_and_closes_are_closes(server: ScriptedUpstream) -> None:
    ends = {}
    for name in ("reset", "cut_rst", "close", "cut_fin", "cut_mid_event", "cut_after_role"):
        async with Line(server) as line:
            line.send(name)
            ends[name] = (await line.read()).end
    assert ends == {
        "reset": "rst",
        "cut_rst": "rst",
        "close": "fin",
        "cut_fin": "fin",
        "cut_mid_event": "fin",
        "cut_after_role": "fin",
    }


async def test_characters_arrive_in_pieces(server: ScriptedUpstream) -> None:
    async with Line(server) as line:
        line.send("split_utf8")
        pieces = [await line.reader.read(65536)]
        while b"[DONE]" not in pieces[-1]:
            pieces.append(await line.reader.read(65536))
    with pytest.raises(UnicodeDecodeError):
        [piece.decode() for piece in pieces]


async def test_tools_choices_and_probabilities_are_in_the_deltas(server: ScriptedUpstream) -> None:
    async def deltas(name: str, index: int = 0) -> list[dict[str, Any]]:
        async with Line(server) as line:
            line.send(name)
            return (await line.read()).deltas(index)

    split = await deltas("tool_name_split")
    calls = [delta["tool_calls"][0] for delta in split if "tool_calls" in delta]
    assert [call["function"].get("name", "") for call in calls] == ["find_", "notes", "", "", ""]
    assert "".join(c["function"].get("arguments", "") for c in calls) == '{"family": "woody"}'
    assert await deltas("two_choices", 0) == await deltas("two_choices", 1)
    assert "".join(d.get("reasoning_content", "") for d in await deltas("reasoning_only"))


async def test_usage_is_told_to_those_who_ask(server: ScriptedUpstream) -> None:
    async with Line(server) as line:
        line.send("ok", stream_options={"include_usage": True}, max_tokens=5)
        usage = (await line.read()).events[-2]
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}


@pytest.mark.parametrize("name", [name for name in FAULTS if "retry_after" in name])
async def test_every_form_of_retry_after_is_sent(server: ScriptedUpstream, name: str) -> None:
    async with Line(server) as line:
        line.send(name)
        headers = (await line.read()).headers
    told = headers.get("retry-after") or headers["retry-after-ms"]
    expected = FAULTS[name].retry_after
    match name.removeprefix("429_retry_after_"):
        case "date":
            ahead = parsedate_to_datetime(told) - parsedate_to_datetime(headers["date"])
            assert ahead.total_seconds() == expected == 3
        case "words" | "negative":
            assert not expected
        case "ms":
            assert float(told) / 1000 == expected
        case _:
            assert float(told) == expected


async def test_scripts_play_in_order_and_their_last_entry_repeats(server: ScriptedUpstream) -> None:
    server.script("creative", ["500", "429_burst", "ok"])
    async with Line(server) as line:  # one connection for all: each answer ends properly
        statuses = []
        for _ in range(4):
            line.send("creative", stream=False)
            statuses.append((await line.read()).status)
        assert server.connections == 1
    stats = server.stats("creative")
    assert statuses == [500, 429, 200, 200]
    assert (stats.requests, stats.completed, stats.aborted) == (4, 4, 0)
    assert stats.bodies[0] == {"model": "creative", "messages": QUESTION, "stream": False}
    assert stats.headers[0]["authorization"] == "Bearer k"


@pytest.mark.parametrize("name", SEQUENCES)
async def test_named_sequences_end_well(server: ScriptedUpstream, name: str) -> None:
    statuses = []
    for _ in SEQUENCES[name]:
        async with Line(server) as line:
            line.send(name)
            statuses.append((await line.read()).status)
    assert statuses == [FAULTS[fault].status for fault in SEQUENCES[name]]
    assert statuses[-1] == 200


async def test_a_function_of_ones_own_can_be_scripted(server: ScriptedUpstream) -> None:
    async def teapot(exchange: Exchange) -> None:
        exchange.json({"tea": exchange.body["leaves"]}, status=418)

    server.script("tea", [teapot, "ok"])
    async with Line(server) as line:
        line.send("tea", leaves="oolong")
        seen = await line.read()
    assert (seen.status, json.loads(seen.body)) == (418, {"tea": "oolong"})


async def test_a_wrong_script_is_refused(server: ScriptedUpstream) -> None:
    with pytest.raises(ValueError, match=r"no_such_fault.*one_token_then_stall"):
        server.script("creative", ["ok", "no_such_fault"])
    with pytest.raises(ValueError, match="empty"):
        server.script("creative", [])


async def test_an_answer_can_be_cut_at_any_byte(server: ScriptedUpstream) -> None:
    async def received(cut: int, *, rst: bool = False) -> tuple[bytes, str]:
        server.script("cut", [cut_at_byte(cut, rst=rst)])
        async with Line(server) as line:
            line.send("cut", max_tokens=1)
            data = b""
            try:
                while not data.endswith(b"0\r\n\r\n") and (piece := await line.reader.read(65536)):
                    data += piece
            except ConnectionResetError:
                return data, "rst"
            return data, "fin"

    whole, _ = await received(100_000)
    assert whole.endswith(b"0\r\n\r\n")
    for cut in [1, 9, *range(30, len(whole), 61), len(whole) - 1]:
        assert await received(cut) == (whole[:cut], "fin")
    assert await received(200, rst=True) == (whole[:200], "rst")


async def test_a_dead_process_refuses_and_resets_and_comes_back_on_its_port(
    server: ScriptedUpstream,
) -> None:
    stats = server.stats("silent")
    async with Line(server) as line:
        line.send("silent")
        await server.until(lambda: stats.in_flight == 1)
        await server.refuse()
        assert (await line.read()).end == "rst"
        assert (stats.aborted, stats.in_flight, server.connections) == (0, 0, 0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)
    await server.listen()
    async with Line(server) as line:
        line.send("ok")
        assert (await line.read()).end == "proper"


async def test_the_refusing_address_refuses(server: ScriptedUpstream) -> None:
    port = int(server.refusing_url.rsplit(":", 1)[1].removesuffix("/v1"))
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    assert server.base_url == f"http://127.0.0.1:{server.port}/v1"


async def test_it_speaks_tls_and_can_reset_there_too() -> None:
    authority = trustme.CA()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    async with ScriptedUpstream(ssl_context=theirs) as server:
        assert server.base_url.startswith("https://")
        ends = []
        for name in ("ok", "cut_rst"):
            async with Line(server, ssl=ours, server_hostname="127.0.0.1") as line:
                line.send(name)
                ends.append((await line.read()).end)
        assert ends == ["proper", "rst"]


async def test_models_health_and_unknown_paths_answer(server: ScriptedUpstream) -> None:
    async with Line(server) as line:
        answers = []
        for path in ("/v1/models", "/health", "/v1/nothing"):
            line.writer.write(f"GET {path} HTTP/1.1\r\nhost: scripted\r\n\r\n".encode())
            answers.append(await line.read())
    assert [seen.status for seen in answers] == [200, 200, 404]
    assert "silent" in {model["id"] for model in json.loads(answers[0].body)["data"]}


@pytest.mark.parametrize(
    "request_bytes",
    [b"nonsense\r\n\r\n", b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 5\r\n\r\n{oops"],
)
async def test_a_broken_request_gets_a_400(server: ScriptedUpstream, request_bytes: bytes) -> None:
    async with Line(server) as line:
        line.writer.write(request_bytes)
        assert (await line.read()).status == 400
        assert await line.reader.read() == b""


async def test_a_script_that_fails_itself_is_told_at_the_end() -> None:
    async def broken(exchange: Exchange) -> None:
        raise KeyError("my own mistake")

    with pytest.raises(ExceptionGroup) as caught:
        async with ScriptedUpstream() as server:
            server.script("creative", [broken])
            async with Line(server) as line:
                line.send("creative")
                await line.read()
    assert caught.group_contains(KeyError, match="my own mistake")


async def test_the_openai_sdk_understands_it(server: ScriptedUpstream) -> None:
    import openai

    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="k", max_retries=0) as client:
        messages: Any = QUESTION
        whole = await client.chat.completions.create(model="ok", messages=messages)
        stream = await client.chat.completions.create(model="ok", messages=messages, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        with pytest.raises(openai.RateLimitError, match="requests list"):
            await client.chat.completions.create(model="429_requests", messages=messages)
        with pytest.raises(openai.APIError, match="worker died"):
            broken = await client.chat.completions.create(
                model="error_mid_stream", messages=messages, stream=True
            )
            [chunk async for chunk in broken]
    assert whole.choices[0].message.content == text == text_of(FAULTS["ok"], "ok")
    await server.until(lambda: server.connections == 0)
