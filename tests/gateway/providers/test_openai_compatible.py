"""The HTTP provider against a scripted client: what is sent, and what is made of the answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.assembly import Assembly
from gateway.errors import (
    ConfigError,
    ErrorKind,
    InvalidRequest,
    StreamInterrupted,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.generation import Chunk
from gateway.modes import TargetOptions
from gateway.providers.base import Call, Provider
from gateway.providers.openai_compatible import OpenAICompatible
from gateway.transport.base import Origin, Response

EVENTS = b"text/event-stream; charset=utf-8"
JSON = b"application/json"
KEY = "sk-very-secret-key"


class Wire:
    """A source of bytes that notes what became of it."""

    def __init__(self) -> None:
        self.released = self.aborted = 0

    def resume_reading(self) -> None:
        pass

    def release(self) -> None:
        self.released += 1

    def abort(self) -> None:
        self.aborted += 1


class Answer:
    """One scripted answer: its parts come one a read; then the end, a cut, or silence."""

    def __init__(
        self,
        *parts: bytes,
        status: int = 200,
        content_type: bytes = EVENTS,
        cut: UpstreamError | None = None,
        open_end: bool = False,
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        self.wire = Wire()
        self.response = Response(self.wire)
        self.response.status = status
        self.response.headers = [(b"content-type", content_type), *(headers or [])]
        self._parts = list(parts)
        self._cut, self._open_end = cut, open_end

    async def play(self) -> None:
        for part in self._parts:
            self.response.push([part], len(part))
            self.response.wake()
            await asyncio.sleep(0)
        if not self._open_end:
            self.response.finish(self._cut)


class Script:
    """A client that gives one answer after another and keeps what it was asked."""

    def __init__(self, *answers: Answer | BaseException | Callable[[], Awaitable[Any]]) -> None:
        self._answers = list(answers)
        self.origins: list[Origin] = []
        self.heads: list[bytes] = []
        self.bodies: list[dict[str, Any]] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def request(self, origin: Origin, head: bytes, body: bytes | None = None) -> Response:
        self.origins.append(origin)
        self.heads.append(head)
        self.bodies.append(json.loads(body or b"null"))
        answer = self._answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        if not isinstance(answer, Answer):
            await answer()  # which never ends
            return Response(Wire())
        self._tasks.append(asyncio.get_running_loop().create_task(answer.play()))
        return answer.response

    async def aclose(self) -> None:
        raise AssertionError("the client may be shared; it is not the provider's to close")


def provider(client: Script, kind: str = "vllm", **options: Any) -> OpenAICompatible:
    options.setdefault("model", "qwen3")
    return OpenAICompatible(TargetOptions(kind=kind, **options), client, api_key=KEY)


def call(**params: Any) -> Call:
    return Call([{"role": "user", "content": "Hi"}], params, request_id="req-1")


def event(delta: dict[str, Any], **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    choice.update((name, more.pop(name)) for name in ("index", "finish_reason") if name in more)
    data = {"id": "c1", "model": "m", "created": 1, "choices": [choice], **more}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


ROLE = event({"role": "assistant", "content": None})
HELLO = event({"content": "Hello"}) + event({"content": " you"})
STOP = event({}, finish_reason="stop")
USAGE = b'data: {"choices":[],"usage":{"total_tokens":3},"timings":{"ms":1}}\n\n'
DONE = b"data: [DONE]\n\n"


async def read_all(client: Script, kind: str = "vllm", **options: Any) -> Assembly:
    reply = await provider(client, kind, **options).open(call())
    assembly = Assembly()
    try:
        while chunks := await reply.read():
            assembly.add_all(chunks)
    finally:
        reply.close()
    return assembly


async def failure(*answers: Answer, kind: str = "vllm") -> tuple[UpstreamError, str]:
    """The error an answer ends in, and the text that came before."""
    texts: list[str] = []
    with pytest.raises(UpstreamError) as caught:
        reply = await provider(Script(*answers), kind).open(call())
        while chunks := await reply.read():
            texts += [chunk.text for chunk in chunks]
    assert caught.value.target == f"{kind}/qwen3"
    return caught.value, "".join(texts)


# -- what is sent ---------------------------------------------------------------------------------


async def test_a_request_as_it_goes_out() -> None:
    client = Script(Answer(ROLE + STOP + DONE))
    options: dict[str, Any] = {
        "base_url": "https://host.example:8443/api/v1/?v=2",
        "headers": {"X-Extra": "1"},
    }
    target = provider(client, **options)
    await target.open(call(temperature=0.5))
    assert client.origins == [Origin("https", "host.example", 8443)]
    lines = client.heads[0].decode().split("\r\n")
    assert lines[0] == "POST /api/v1/chat/completions?v=2 HTTP/1.1"
    headers = dict(line.split(": ", 1) for line in lines[1:] if line)
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["x-request-id"] == "req-1"
    assert headers["x-extra"] == "1"
    assert headers["content-type"] == "application/json"
    assert client.bodies[0] == {
        "model": "qwen3",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
    }


async def test_a_request_id_that_would_break_the_framing_is_left_out() -> None:
    client = Script(Answer(STOP + DONE))
    asked = call()
    asked.request_id = "x\r\nevil: 1"
    await provider(client).open(asked)
    assert b"evil" not in client.heads[0]
    assert b"x-request-id" not in client.heads[0]


async def test_no_key_no_authorization() -> None:
    client = Script(Answer(STOP + DONE))
    await OpenAICompatible(TargetOptions(kind="vllm"), client, api_key=None).open(call())
    assert b"authorization" not in client.heads[0].lower()
    assert "model" not in client.bodies[0]


def test_it_is_a_provider_and_shows_no_key() -> None:
    target = provider(Script(), base_url="http://a:1/v1?api-key=abc")
    assert isinstance(target, Provider)
    assert target.name == "vllm/qwen3"
    assert (target.streams, target.continues) == (True, True)
    for shown in (repr(target), target.name, target.domain, target.identity):
        assert KEY not in shown
        assert "abc" not in shown
    assert target.domain.startswith("http://a:1#")


def test_targets_share_a_failure_domain_if_host_and_credential_are_the_same() -> None:
    def make(model: str, key: str | None, url: str = "http://a:1/v1") -> OpenAICompatible:
        options = TargetOptions(kind="vllm", model=model, base_url=url)
        return OpenAICompatible(options, Script(), api_key=key)

    one = make("m1", "k1")
    assert make("m2", "k1").domain == one.domain
    assert make("m2", "k1").identity != one.identity
    assert make("m1", "k2").domain != one.domain
    assert make("m1", "k2").identity == one.identity
    assert make("m1", "k1", "http://b:1/v1").domain != one.domain
    assert make("m1", None).domain != one.domain


def test_what_is_known_of_a_model_beforehand() -> None:
    hosted = provider(Script(), "dashscope", model="qwq-plus", stream_upstream=False)
    assert hosted.streams, "this model only streams"
    assert not hosted.continues, "it always thinks"
    assert hosted.context_window == 98_304
    assert provider(Script(), "vllm", model="qwq-32b", stream_upstream=False).streams is False
    assert provider(Script(), "vllm").context_window is None
    assert provider(Script(), "vllm", context_window=8192).context_window == 8192
    assert provider(Script(), "dashscope", model="").model == "qwen3.8-max"


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"kind": "nope"}, "kind"),
        ({"kind": "transformers", "model": ""}, "model"),
        ({"base_url": "ftp://x/v1"}, "base_url"),
        ({"base_url": "http://user:pass@x/v1"}, "base_url"),
        ({"base_url": "no address"}, "base_url"),
        ({"headers": {"x-a": "b\r\nc: d"}}, "headers"),
    ],
)
def test_a_wrong_target_is_named(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        provider(Script(), **options)
    assert caught.value.key == key
    assert "pass" not in str(caught.value)


async def test_a_call_that_is_not_json_is_the_callers_fault() -> None:
    for value in (object(), 1j, "\ud800"):
        with pytest.raises(InvalidRequest):
            await provider(Script()).open(call(stop=value))


# -- streams --------------------------------------------------------------------------------------


async def test_a_good_stream_is_read_whole() -> None:
    answer = Answer(ROLE + HELLO[:50], HELLO[50:] + STOP, USAGE + DONE)
    assembly = await read_all(Script(answer))
    assert assembly.text() == "Hello you"
    assert assembly.finish_reason == "stop"
    assert assembly.usage == {"total_tokens": 3}
    assert assembly.extra == {"timings": {"ms": 1}}
    assert (assembly.id, assembly.model, assembly.created) == ("c1", "m", 1)
    assert answer.wire.aborted == 0


async def test_the_connection_is_given_back_at_done_without_waiting_for_the_server() -> None:
    answer = Answer(ROLE + HELLO + STOP + DONE, open_end=True)
    reply = await provider(Script(answer)).open(call())
    chunks = await reply.read()
    assert len(chunks) == 4
    assert answer.wire.released == 1
    assert await reply.read() == []
    reply.close()
    assert answer.wire.aborted == 0


async def test_chunks_of_one_socket_read_come_together() -> None:
    reply = await provider(Script(Answer(ROLE + HELLO + STOP + DONE))).open(call())
    assert [chunk.text for chunk in await reply.read()] == ["", "Hello", " you", ""]


async def test_without_done_a_finish_reason_is_a_clean_end() -> None:
    """transformers sends no [DONE]; its usage rides on the finish chunk."""
    finish = event({}, finish_reason="length", usage={"total_tokens": 9})
    assembly = await read_all(Script(Answer(event({"content": "x"}), finish)), "transformers")
    assert assembly.finish_reason == "length"
    assert assembly.usage == {"total_tokens": 9}


async def test_done_without_a_finish_reason_is_a_clean_end() -> None:
    assembly = await read_all(Script(Answer(HELLO + DONE)))
    assert assembly.text() == "Hello you"
    assert assembly.finish_reason is None


@pytest.mark.parametrize("tail", [b"", b"data: {", b'data: {"choices":[{"del', b": comment\n\n"])
async def test_an_end_without_terminator_is_an_interruption(tail: bytes) -> None:
    answer = Answer(ROLE + HELLO, tail)
    error, text = await failure(answer)
    assert isinstance(error, StreamInterrupted)
    assert error.kind is ErrorKind.INTERRUPTED
    assert text == "Hello you"


async def test_a_cut_is_an_interruption_unless_everything_had_been_said() -> None:
    cut = StreamInterrupted("cut")
    error, text = await failure(Answer(ROLE + HELLO, cut=cut))
    assert (error, text) == (cut, "Hello you")
    assembly = await read_all(Script(Answer(ROLE + HELLO + STOP, cut=StreamInterrupted("cut"))))
    assert assembly.finish_reason == "stop"


async def test_a_last_event_without_its_blank_line_counts() -> None:
    assert (await read_all(Script(Answer(HELLO, STOP.rstrip())))).finish_reason == "stop"
    assert (await read_all(Script(Answer(HELLO, DONE.rstrip())))).text() == "Hello you"


async def test_blanks_around_the_end_are_no_broken_answer() -> None:
    for end in (b"data: [DONE] \n\n", b"data:  [DONE]\n\n", b"data: [DONE]\t\r\n\r\n"):
        assert (await read_all(Script(Answer(ROLE + HELLO, STOP, end)))).text() == "Hello you"


async def test_with_several_choices_each_must_say_that_it_ended() -> None:
    both = event({"content": "a"}) + event({"content": "b"}, index=1)
    ends = event({}, finish_reason="stop"), event({}, finish_reason="stop", index=1)
    error, _ = await failure(Answer(both + ends[0]))
    assert error.kind is ErrorKind.INTERRUPTED
    assert len((await read_all(Script(Answer(both + ends[1] + ends[0])))).choices()) == 2
    reply = await provider(Script(Answer(event({"content": "a"}) + ends[0]))).open(call(n=2))
    await reply.read()
    with pytest.raises(StreamInterrupted):  # the second one never began
        await reply.read()


async def test_reasoning_goes_by_one_name() -> None:
    """vLLM and Ollama call it `reasoning`."""
    stream = ROLE + event({"reasoning": "h"}) + event({"reasoning_content": "m"}) + STOP + DONE
    message = (await read_all(Script(Answer(stream)))).choices()[0]["message"]
    assert message["reasoning_content"] == "hm"


async def test_events_off_the_specification_are_understood() -> None:
    choice = b'{"delta":{"content":"x"},"index":null}'
    odd = b'data:{"id":null,"created":null,"choices":[%b]}\r\n\r\n' % choice
    noise = b": ping\n\nid: 7\nretry: 1\n\nevent: ping\ndata: {}\n\ndata:\n\n"
    assembly = await read_all(Script(Answer(noise + odd + noise + odd + STOP + DONE)))
    assert assembly.text() == "xx"


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (b"data: {broken\n\n", ErrorKind.MALFORMED),
        (b"data: [1]\n\n", ErrorKind.MALFORMED),
        (b'data: {"error":{"message":"engine died","code":500}}\n\n', ErrorKind.SERVER),
        (
            b'id:1\nevent:error\n:HTTP_STATUS/429\ndata:{"code":"Throttling.RateQuota",'
            b'"message":"slow down"}\n\n',
            ErrorKind.RATE,
        ),
        (event({"content": "oops"}, finish_reason="error_finish"), ErrorKind.SERVER),
        (event({"content": ""}, error={"message": "gone", "code": 500}), ErrorKind.SERVER),
        (event({}, error={"message": "queue is full", "code": 503}), ErrorKind.OVERLOADED),
    ],
)
async def test_what_came_before_an_error_is_read_first(bad: bytes, kind: ErrorKind) -> None:
    answer = Answer(ROLE + HELLO + bad + HELLO + STOP + DONE, open_end=True)
    error, text = await failure(answer)
    assert error.kind is kind
    assert text == "Hello you"
    assert answer.wire.aborted == 1, "a broken answer's connection is not used again"


async def test_an_error_as_the_first_event_comes_before_any_chunk() -> None:
    error, text = await failure(
        Answer(b'data: {"error":{"message":"queue is full","code":503}}\n\n')
    )
    assert (error.kind, text) == (ErrorKind.OVERLOADED, "")


async def test_an_endless_event_is_given_up() -> None:
    piece = b"x" * (4 * 1024 * 1024)
    error, _ = await failure(Answer(b"data: " + piece, piece, piece, open_end=True))
    assert error.kind is ErrorKind.MALFORMED


# -- whole answers, refusals, repairs -------------------------------------------------------------


WHOLE = {
    "id": "c1",
    "model": "m",
    "created": 1,
    "system_fingerprint": "fp",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "reasoning": "hm"},
            "finish_reason": "stop",
            "logprobs": {"content": []},
        }
    ],
    "usage": {"total_tokens": 3},
}


def json_answer(data: object, status: int = 200, **more: Any) -> Answer:
    return Answer(json.dumps(data).encode(), status=status, content_type=JSON, **more)


async def test_an_unstreamed_answer_is_one_chunk_then_the_end() -> None:
    client = Script(json_answer(WHOLE))
    target = provider(client, stream_upstream=False)
    assert target.streams is False
    reply = await target.open(call(stream_options={"x": 1}))
    assert client.bodies[0]["stream"] is False
    assert "stream_options" not in client.bodies[0]
    (chunk,) = await reply.read()
    assert (chunk.text, chunk.reasoning, chunk.finish_reason) == ("Hello", "hm", "stop")
    assert chunk.usage == {"total_tokens": 3}
    assert chunk.extra == {"system_fingerprint": "fp"}
    assert await reply.read() == []
    assert await reply.read() == []


async def test_a_server_that_ignores_stream_is_understood_either_way() -> None:
    assert (await read_all(Script(json_answer(WHOLE)))).text() == "Hello"
    streamed = Script(Answer(HELLO + STOP + DONE))
    assert (await read_all(streamed, stream_upstream=False)).text() == "Hello you"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (json_answer({"error": {"message": "x", "code": 500}}), ErrorKind.SERVER),
        (json_answer({}), ErrorKind.MALFORMED),
        (json_answer([]), ErrorKind.MALFORMED),
        (Answer(b"{", content_type=JSON), ErrorKind.MALFORMED),
        (Answer(b"", content_type=JSON), ErrorKind.MALFORMED),
        (Answer(b"<html>", content_type=b"text/html"), ErrorKind.MALFORMED),
        (Answer(b"", content_type=b""), ErrorKind.MALFORMED),
        (Answer(b"\x1f", headers=[(b"content-encoding", b"gzip")]), ErrorKind.MALFORMED),
        (Answer(b'{"choi', content_type=JSON, cut=StreamInterrupted("cut")), ErrorKind.INTERRUPTED),
    ],
)
async def test_answers_that_are_none(answer: Answer, kind: ErrorKind) -> None:
    error, _ = await failure(answer)
    assert error.kind is kind


async def test_a_refusal_is_read_and_its_connection_kept() -> None:
    answer = json_answer(
        {"error": {"message": f"bad key {KEY}", "code": "invalid_api_key"}},
        401,
        headers=[(b"retry-after", b"7")],
    )
    error, _ = await failure(answer)
    assert isinstance(error, UpstreamRejected)
    assert (error.kind, error.status, error.retry_after) == (ErrorKind.AUTH, 401, 7.0)
    assert KEY not in str(error)
    assert answer.wire.aborted == 0


async def test_a_refusal_that_breaks_off_still_has_its_status() -> None:
    error, _ = await failure(Answer(b"{", status=500, cut=StreamInterrupted("cut")))
    assert (error.kind, error.status) == (ErrorKind.SERVER, 500)
    endless = Answer(b"x" * 100_000, b"x" * 100_000, status=503, open_end=True)
    error, _ = await failure(endless)
    assert error.status == 503
    assert endless.wire.aborted == 1


async def test_a_refusal_whose_body_never_ends_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.providers.openai_compatible._ERROR_BODY_S", 0.01)
    answer = Answer(b'{"error":', status=429, content_type=JSON, open_end=True)
    async with asyncio.timeout(5.0):
        error, _ = await failure(answer)
    assert (error.kind, answer.wire.aborted) == (ErrorKind.RATE, 1)


async def test_a_client_that_cannot_connect_names_the_target() -> None:
    refused = UpstreamUnavailable("refused", kind=ErrorKind.CONNECT)
    with pytest.raises(UpstreamUnavailable) as caught:
        await provider(Script(refused)).open(call())
    assert caught.value.target == "vllm/qwen3"
    assert caught.value.kind is ErrorKind.CONNECT


async def test_a_model_that_only_streams_is_streamed_from_then_on() -> None:
    refusal = {"error": {"message": "This model only support stream mode", "code": "x"}}
    client = Script(json_answer(refusal, 400), *[Answer(HELLO + STOP + DONE) for _ in range(2)])
    target = provider(client, "dashscope", stream_upstream=False)
    for _ in range(2):
        reply = await target.open(call())
        assert "Hello" in [chunk.text for chunk in await reply.read()]
    assert [body["stream"] for body in client.bodies] == [False, True, True]
    assert target.streams


async def test_calls_under_way_learn_from_each_other() -> None:
    refusal = {
        "error": {"message": "The value of enable_thinking is restricted to True", "code": 1}
    }
    answers = [json_answer(refusal, 400) for _ in range(2)]
    client = Script(*answers, *[Answer(HELLO + STOP + DONE) for _ in range(2)])
    target = provider(client, "dashscope", model="qwen3-odd")
    asked = Call([{"role": "user", "content": "Hi"}], {}, thinking=False)
    await asyncio.gather(target.open(asked), target.open(asked))
    assert ["enable_thinking" in body for body in client.bodies] == [True, True, False, False]


# -- clocks and cancellation ----------------------------------------------------------------------


async def test_response_headers_have_a_clock_of_their_own() -> None:
    silence = Script(asyncio.Event().wait)
    with pytest.raises(UpstreamTimeout) as caught:
        await provider(silence, headers_s=0.0).open(call())
    assert caught.value.phase == "headers"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_an_unstreamed_answer_is_not_hurried_by_the_headers_clock() -> None:
    gate = asyncio.Event()
    target = provider(Script(gate.wait), stream_upstream=False, headers_s=0.0)
    opening = asyncio.create_task(target.open(call()))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not opening.done()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening


async def test_cancelling_an_open_is_no_timeout() -> None:
    opening = asyncio.create_task(provider(Script(asyncio.Event().wait)).open(call()))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening


async def test_cancelling_while_a_refusal_is_read_closes_it() -> None:
    answer = Answer(status=500, content_type=JSON, open_end=True)
    opening = asyncio.create_task(provider(Script(answer)).open(call()))
    for _ in range(3):
        await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert answer.wire.aborted == 1


async def test_cancelling_a_read_and_closing_lets_go_of_the_socket() -> None:
    answer = Answer(ROLE, open_end=True)
    reply = await provider(Script(answer)).open(call())
    assert isinstance((await reply.read())[0], Chunk)
    reading = asyncio.create_task(reply.read())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    reply.close()
    reply.close()
    assert answer.wire.aborted == 1
