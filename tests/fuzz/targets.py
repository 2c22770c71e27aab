"""What is fuzzed: each a function of raw bytes that raises AssertionError, or what should not
have been raised, if something is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.config import Config
from gateway.errors import ConfigError, GatewayError, UpstreamError
from gateway.openai_api.chat_request import parse_chat
from gateway.openai_api.completions_request import parse_completion
from gateway.openai_api.responses_request import parse_response
from gateway.openai_api.words import Call
from gateway.policies.keys import key_hash
from gateway.providers import decoding
from gateway.providers.dialects import parse_error, retry_after
from gateway.server.app import App
from gateway.server.edge import plain_path
from gateway.sse import EventTooLarge, SSESplitter, encode
from gateway.transport.base import Origin
from gateway.transport.http1 import Connection
from tests.fuzz.material import CANARY, Material

ROOT: Final = Path(__file__).resolve().parents[2]
REQUEST_NAMES: Final = (
    "model", "messages", "role", "content", "type", "text", "image_url", "url", "tools", "function",
    "name", "parameters", "tool_calls", "tool_call_id", "arguments", "id", "stream", "n", "stop",
    "stream_options", "include_usage", "temperature", "max_tokens", "response_format",
    "json_schema", "schema", "input", "instructions", "prompt", "suffix", "logprobs", "logit_bias",
    "seed", "user", "metadata", "output", "call_id", "summary", "reasoning", "effort", "format",
    "tool_choice",
    "refusal", "input_audio", "data", "file", "file_id", "file_data", "filename", "detail", "x",
    "generation_id", "rating", "mode", "how", "top_p", "extra_body", "store",
    "previous_response_id",
)  # fmt: skip
ANSWER_NAMES: Final = (
    "choices", "delta", "message", "content", "index", "finish_reason", "role", "tool_calls", "id",
    "function", "name", "arguments", "usage", "error", "code", "type", "object", "model", "created",
    "reasoning_content", "reasoning", "logprobs", "text", "prompt_tokens", "refusal", "audio", "x",
    "retry_after", "detail", "param", "errors", "annotations", "function_call", "request_id",
)  # fmt: skip
CONFIG_NAMES: Final = (
    "modes", "creative", "fast", "targets", "kind", "base_url", "model", "api_key_env", "headers",
    "options", "deadline_s", "first_token_s", "temperature", "max_tokens", "circuit", "ramp",
    "failure_threshold", "cache", "ttl_s", "max_bytes", "path", "server", "port", "host", "workers",
    "admin_key_hash", "keys_file", "keys", "hash", "tenant", "expires", "priority", "aliases",
    "embeddings", "feedback", "budget", "tokens", "admission", "max_queue", "log", "runner", "x",
    "cors_origins", "max_body_bytes", "transport", "weight", "ca_file", "thinking", "api_key_file",
)  # fmt: skip


def sse(data: bytes) -> None:
    """The SSE splitter: how a stream is cut changes nothing, bounds hold, encoding is undone."""
    material = Material(data)
    limit = 1 + material.number(200) if material.number(2) else 2**20
    stream = material.choice((b"", b"data: ", b"event: error\ndata: ")) + data
    pieces = material.pieces(stream)
    outcomes = []
    for cut in (pieces, [stream[at : at + 1] for at in range(len(stream))]):
        splitter, payloads, large = SSESplitter(limit), [], False
        try:
            for piece in cut:
                payloads += splitter.feed(piece)
        except EventTooLarge:
            large = True
        outcomes.append((payloads, splitter.error, None if large else splitter.pending, large))
    if not any(large for *_, large in outcomes):
        assert outcomes[0] == outcomes[1], outcomes
    if limit == 2**20:
        again = SSESplitter().feed(encode(data))
        plain = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        assert again == [plain], again


class _Wire:
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        self.aborted = False

    def write(self, data: bytes) -> None: ...

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class _Keeper:
    def __init__(self) -> None:
        self.free_again = 0

    def free(self, connection: Connection) -> None:
        self.free_again += 1

    def gone(self, connection: Connection) -> None: ...


_MAX_HEADERS: Final = 512
_HEADS: Final = (
    b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n",
)  # fmt: skip


def http1(data: bytes) -> None:
    """The HTTP/1.1 client: an answer or a typed error, however it is cut; bounds hold; only a
    connection that is surely clean is used again.
    """
    material = Material(data)
    stream = material.choice(_HEADS) + material.rest()
    whole = _answer([stream])
    pieces = Material(data).pieces(stream)
    assert _answer(pieces)[:3] == whole[:3], (pieces, whole)


def _answer(pieces: list[bytes]) -> tuple[int, bytes | None, str, int]:
    """Status, body, error and how often the connection was given back."""

    async def exchange() -> tuple[int, bytes | None, str, int]:
        keeper, wire = _Keeper(), _Wire()
        connection = Connection(Origin.from_url("http://upstream"), keeper, _MAX_HEADERS)
        connection.connection_made(wire)  # type: ignore[arg-type]
        response = connection.send(b"POST / HTTP/1.1\r\n", b"{}")
        for piece in pieces:
            if wire.aborted:
                break
            if piece:
                connection.data_received(piece)
        if not wire.aborted:
            connection.eof_received()
        body, said = None, ""
        try:
            await asyncio.wait_for(response.started(), 1)
            assert sum(len(n) + len(v) for n, v in response.headers) <= _MAX_HEADERS
            body = await asyncio.wait_for(response.read_all(), 1)
        except UpstreamError as error:
            said = type(error).__name__
        connection.connection_lost(None)
        return response.status, body, said, keeper.free_again

    return asyncio.run(exchange())


_FUNCTION: Final = {"name": "f", "description": "d", "parameters": {"type": "object"}}
_PARTS: Final = [
    {"type": "text", "text": CANARY},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
    {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
]
_REQUESTS: Final[tuple[dict[str, Any], ...]] = (
    {
        "model": "fast",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": _PARTS},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": CANARY},
        ],
        "tools": [{"type": "function", "function": _FUNCTION}], "tool_choice": "auto",
        "stream": True, "stream_options": {"include_usage": True}, "stop": ["a", "b"], "n": 2,
        "temperature": 0.5, "max_tokens": 5, "logit_bias": {"1": 2}, "seed": 1,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
    },
    {
        "model": "fast", "prompt": [CANARY, "b"], "max_tokens": 5, "echo": False, "suffix": "x",
        "logprobs": 2, "best_of": 1, "stream": True, "stream_options": {"include_usage": True},
    },
    {
        "model": "fast", "instructions": CANARY,
        "input": [
            {"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": CANARY},
                {"type": "input_image", "image_url": "http://x/y.png", "detail": "auto"},
                {"type": "input_file", "filename": "f", "file_data": "data:;base64,AA"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "t"}]},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": CANARY},
        ],
        "tools": [{"type": "function", **_FUNCTION}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}, "stream": True,
        "reasoning": {"effort": "low"}, "max_output_tokens": 5, "metadata": {"a": "b"},
    },
)  # fmt: skip


def request(data: bytes) -> None:
    """The request parsers: what they take or refuse, in words that quote nothing."""
    material = Material(data)
    body = data
    if material.number(4):
        good = material.choice(_REQUESTS)
        body = json.dumps(material.spoilt(good, REQUEST_NAMES)).encode()
    for parse in (parse_chat, parse_completion, parse_response):
        try:
            parse(Call("POST", "/", body=body))
        except GatewayError as error:
            assert error.__class__.__name__ == "InvalidRequest", error
            assert CANARY not in str(error), error


@cache
def _service() -> tuple[asyncio.Runner, App]:
    """A service in this process whose one mode answers at once."""
    mode = {
        "targets": [
            {
                "kind": "simulated",
                "options": {"first_token_s": 1e-6, "tokens_per_s": 1e9, "tokens": 3},
            }
        ]
    }
    config = Config.from_dict(
        {
            "modes": {"creative": mode, "fast": mode},
            "feedback": {"path": ":memory:"},
            "server": {"log": "off"},
        }
    )
    runner = asyncio.Runner()

    async def start() -> App:
        return App(config)

    return runner, runner.run(start())


_PATHS: Final = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/models",
    "/status", "/feedback", "/admin/force", "/metrics", "/health", "/livez", "/dashboard/", "/",
    "/dashboard/../../../etc/passwd", "/dashboard/%2e%2e/x", "/v1/models/fast", "/openapi.json",
)  # fmt: skip
_HEADER_NAMES: Final = (
    "authorization", "x-api-key", "content-type", "cache-control", "x-request-id", "traceparent",
    "x-gateway-allow-degrade", "x-gateway-on-interrupt", "x-stainless-read-timeout", "accept",
    "x-stainless-retry-count", "host", "origin", "x-forwarded-for", "content-length", "x-odd",
)  # fmt: skip
_HEADER_VALUES: Final = (
    "", "x", "application/json", "text/html", "no-cache", "max-age=", "max-age=1e9", "Bearer",
    "Bearer \xff", "localhost", "[::1", "::1]:", "http://[", "1e309", "nan", "-1", "inf", "0",
    ",=,", "a" * 300, "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "continue", "false",
    "\x85", "²",
)  # fmt: skip


def service(data: bytes) -> None:
    """A whole request through the service: never a 500, errors in OpenAI's envelope, and headers
    that nobody can break lines in.
    """
    material = Material(data)
    fields: Any = material.table(REQUEST_NAMES, 3)
    if material.number(3):
        fields |= {
            "model": material.choice(("fast", "creative", "auto", "x\r\ny: z", CANARY)),
            "messages": [{"role": "user", "content": material.text()}],
        }
    headers = {
        material.choice(_HEADER_NAMES): material.choice(_HEADER_VALUES)
        for _ in range(material.number(6))
    }
    call = Call(
        material.choice(("POST", "GET", "HEAD", "DELETE", "\x00")),
        plain_path(material.choice((*_PATHS, "/" + material.text()))),
        headers,
        json.dumps(fields).encode() if material.number(8) else material.rest(),
        peer=material.choice(("127.0.0.1", "", "10.0.0.1", "not an address")),
    )
    runner, app = _service()

    async def ask() -> tuple[int, list[tuple[str, str]], bytes]:
        status, said, body = await app.service.handle(call)
        if not isinstance(body, bytes):
            try:
                body = b"".join([piece async for piece in body])
            finally:
                await body.aclose() if not isinstance(body, bytes) else None
        return status, said, body

    status, said, body = runner.run(ask())
    assert status != 500, (call, body)
    for name, value in said:
        assert (name + value).isprintable(), (name, value)
        (name + value).encode("latin-1")
    if status >= 400 and call.path not in ("/health", "/readyz", "/health/readiness"):
        error = json.loads(body)["error"]
        assert {"message", "type", "param", "code"} <= error.keys()
        assert "Traceback" not in error["message"]
        assert error["message"].isprintable() or "\n" not in error["message"]


_SHIPPED: Final = {
    **tomllib.loads((ROOT / "config.toml").read_text(encoding="utf-8")),
    "keys": {"alice": {"hash": key_hash("x"), "expires": "2027-01-31", "modes": ["fast"]}},
    "aliases": {"gpt-4o": "creative"},
    "embeddings": {"targets": [{"kind": "vllm", "base_url": "http://x/v1", "model": "m"}]},
}


def config(data: bytes) -> None:
    """The configuration loader: a configuration or a ConfigError, of text and of tables."""
    material = Material(data)
    with contextlib.suppress(ConfigError):
        if material.number(3):
            Config.from_dict(material.spoilt(_SHIPPED, CONFIG_NAMES))
        else:
            with tempfile.NamedTemporaryFile(suffix=".toml") as file:
                Path(file.name).write_bytes(data[1:])
                Config.from_toml(file.name)


_CALL: Final = {"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}}
_ENDS: Final = {"index": 0, "finish_reason": "stop", "logprobs": {"content": []}}
_ANSWERS: Final[tuple[dict[str, Any], ...]] = (
    {"id": "1", "model": "m", "created": 1, "choices": [{"index": 0, "delta": {"content": "x"}}]},
    {"choices": [{**_ENDS, "delta": {"role": "assistant", "tool_calls": [_CALL]}}], "usage": None},
    {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}},
    {"choices": [{**_ENDS, "message": {"content": "x", "refusal": None}}], "usage": {}, "id": "1"},
    {"choices": [{**_ENDS, "text": "x"}], "object": "text_completion"},
    {"error": {"message": f"bad key {CANARY}", "type": "x", "param": None, "code": CANARY}},
    {"error": "overloaded", "error_type": "overloaded", "detail": [{"msg": CANARY, "loc": ["a"]}]},
    {"code": "Throttling.RateQuota", "message": CANARY, "request_id": "1"},
)


def answers(data: bytes) -> None:
    """What reads a model's answers: chunks or a typed error, and a key that is in no error."""
    material = Material(data)
    payload = data
    if material.number(4):
        good = material.choice(_ANSWERS)
        payload = json.dumps(material.spoilt(good, ANSWER_NAMES)).encode()
    careful = decoding.CarefulDecoder("vllm", "upstream", (CANARY,))
    for decode in (decoding.fast_chunk, decoding.text_chunk):
        with contextlib.suppress(*decoding.NOT_JSON, msgspec.ValidationError):
            decode(payload)
    decoding.fast_whole(payload)
    try:
        careful.chunk(payload)
    except UpstreamError as error:
        assert CANARY not in str(error), error
    name = material.choice(("retry-after", "retry-after-ms", "x-ratelimit-reset"))
    headers = {name: material.choice((*_HEADER_VALUES, "Wed, 99 Oct 2026 07:28:00 GMT", "9" * 400))}
    wait = retry_after(headers, now=0.0)
    assert wait is None or wait >= 0
    said = parse_error(
        200 + material.number(400),
        headers,
        payload,
        kind="vllm",
        target="upstream",
        secrets=(CANARY,),
    )
    assert CANARY not in str(said), said


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    one.__name__: one for one in (sse, http1, request, service, config, answers)
}
