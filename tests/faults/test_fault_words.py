"""Answers that are odd, legal or not, and what becomes of every word of them."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
from lab import Heard, Lab, begin

from gateway.errors import ErrorKind, StreamInterrupted, UpstreamRejected
from gateway.simulator.scripted import Exchange, cut_at_byte


async def test_compression_nobody_asked_for_is_not_taken_for_text(lab: Lab) -> None:
    async def squeezed(exchange: Exchange) -> None:
        exchange.head(headers={"content-encoding": "gzip"})
        exchange.write(gzip.compress(b'data: {"choices":[]}\n\ndata: [DONE]\n\n'))
        exchange.end()

    lab.start()
    lab.script("creative", squeezed)
    assert (await lab.ask()).mode == "balanced"
    assert lab.kinds() == {ErrorKind.MALFORMED}


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


# What HTTP may do that a chat route should not.


async def redirect(exchange: Exchange) -> None:
    exchange.document(b"", "text/plain", 302, {"location": "/login"})


async def nothing_at_all(exchange: Exchange) -> None:
    exchange.raw(b"HTTP/1.1 204 No Content\r\n\r\n")
    exchange.ended = True


async def an_empty_stream(exchange: Exchange) -> None:
    exchange.head()
    exchange.end()


async def only_done(exchange: Exchange) -> None:
    exchange.head()
    exchange.write(b"data: [DONE]\n\n")
    exchange.end()


async def an_empty_object(exchange: Exchange) -> None:
    exchange.json({})


async def no_choices(exchange: Exchange) -> None:
    exchange.json({"choices": [], "usage": {}})


async def null_choices(exchange: Exchange) -> None:
    exchange.json({"choices": None})


async def a_list(exchange: Exchange) -> None:
    exchange.json([1, 2, 3])


async def no_http(exchange: Exchange) -> None:
    exchange.raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


async def a_head_in_half(exchange: Exchange) -> None:
    exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-ty")


async def a_whole_error_finish(exchange: Exchange) -> None:
    exchange.json(exchange.completion({"content": "Throttling"}, finish_reason="error_finish"))


async def a_drip_of_headers(exchange: Exchange) -> None:
    exchange.raw(b"HTTP/1.1 200 OK\r\n")
    while True:
        exchange.raw(b"x-more: and more\r\n")
        await exchange.pause()


async def switching_protocols(exchange: Exchange) -> None:
    exchange.raw(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n")
    await exchange.forever()


@pytest.mark.parametrize(
    "play",
    [
        redirect,
        nothing_at_all,
        an_empty_stream,
        only_done,
        an_empty_object,
        no_choices,
        null_choices,
        a_list,
        no_http,
        a_head_in_half,
        a_whole_error_finish,
        a_drip_of_headers,
        switching_protocols,
    ],
)
@pytest.mark.parametrize("transport", ["http1", "httpx"])
async def test_what_is_no_answer_is_a_failure_and_balanced_answers(
    lab: Lab, transport: str, play: Any
) -> None:
    lab.start(creative={"first_token_s": 0.3}, target={"transport": transport})
    lab.script("creative", play)
    prompt = lab.prompt()
    heard = await lab.hear(prompt)
    assert heard.error is None
    assert heard.text == lab.says("balanced", prompt)
    answer = await lab.ask()
    assert (answer.mode, answer.reason) == ("balanced", "failed")
    await lab.ask()
    assert {attempt.outcome for attempt in lab.attempts()} == {"failure"}
    assert lab.phase() == "open"


# What is unusual and right.


async def early_hints(exchange: Exchange) -> None:
    exchange.raw(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n")
    await exchange.pause()
    exchange.head()
    exchange.say(*exchange.tokens)
    exchange.finish()


async def until_the_connection_ends(exchange: Exchange) -> None:
    """HTTP/1.0: no framing, the end of the connection is the end."""
    exchange.raw(b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
    exchange.say(*exchange.tokens)
    exchange.finish()
    exchange.ended = False


async def a_stream_though_not_asked(exchange: Exchange) -> None:
    exchange.head()
    exchange.say(*exchange.tokens)
    exchange.finish()


async def whole_though_a_stream_was_asked(exchange: Exchange) -> None:
    exchange.json(exchange.completion({"content": "".join(exchange.tokens)}))


async def in_parts(exchange: Exchange) -> None:
    """Content as a list of parts, as multimodal models send it."""
    parts = [{"type": "text", "text": token} for token in exchange.tokens]
    exchange.json(exchange.completion({"content": parts}))


@pytest.mark.parametrize(
    "play",
    [
        early_hints,
        until_the_connection_ends,
        a_stream_though_not_asked,
        whole_though_a_stream_was_asked,
        in_parts,
    ],
)
@pytest.mark.parametrize("stream_upstream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("transport", ["http1", "httpx"])
async def test_what_is_unusual_but_right_is_an_answer(
    lab: Lab, transport: str, stream_upstream: bool, play: Any
) -> None:
    lab.start(target={"transport": transport, "stream_upstream": stream_upstream})
    lab.script("creative", play)
    prompt = lab.prompt()
    heard = await lab.hear(prompt)
    assert (heard.error, heard.text) == (None, lab.says("creative", prompt))
    assert (await lab.ask()).mode == "creative"


async def test_http_1_0_cut_short_is_cut_short(lab: Lab) -> None:
    async def cut(exchange: Exchange) -> None:
        exchange.raw(b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        exchange.say(*exchange.tokens[:2])
        await exchange.pause()

    lab.start()
    lab.script("creative", cut)
    assert isinstance((await lab.hear()).error, StreamInterrupted)
    assert (await lab.ask()).mode == "balanced"


async def test_out_of_tokens_before_the_first_word_is_the_callers_own_cap(lab: Lab) -> None:
    async def capped(exchange: Exchange) -> None:
        exchange.head()
        exchange.role()
        exchange.finish("length")

    lab.start()
    lab.script("creative", capped)
    answer = await lab.gateway.generate(lab.prompt())
    assert (answer.mode, answer.text, answer.finish_reason) == ("creative", "", "length")
    heard = await lab.hear()
    assert heard.error is None and heard.whole is not None
    assert lab.cached_entries() == 0
    assert lab.phase() == "closed"


@pytest.mark.parametrize("transport", ["http1", "httpx"])
async def test_an_error_whose_words_never_come_is_told_by_its_status(
    lab: Lab, transport: str
) -> None:
    async def speechless(exchange: Exchange) -> None:
        exchange.head(429, content_type="application/json", length=1000)
        await exchange.forever()

    lab.start(target={"transport": transport})
    lab.script("creative", speechless)
    answer = await lab.ask()
    assert (answer.mode, answer.reason) == ("balanced", "cooling")
    assert answer.duration_s < 2.0, "not the five seconds a first token may take"
    assert lab.kinds() == {ErrorKind.RATE}
    await lab.until_hung_up()


async def test_one_of_two_choices_cut_off_is_cut_off(lab: Lab) -> None:
    async def half(exchange: Exchange) -> None:
        exchange.head()
        for token in exchange.tokens:
            for index in (0, 1):
                exchange.event(exchange.chunk({"content": token}, index=index))
        exchange.event(exchange.chunk({}, finish_reason="stop"))
        exchange.end()

    lab.start()
    lab.script("creative", half)
    assert (await lab.ask()).mode == "balanced"
    assert isinstance((await lab.hear()).error, StreamInterrupted)


# What breaks behind the first token, in other words than the catalogue's.


async def broken_framing(exchange: Exchange) -> None:
    await begin(exchange, 3)
    exchange.raw(b"this is no chunk size\r\n")
    await exchange.forever()


async def pings_for_ever(exchange: Exchange) -> None:
    await begin(exchange, 3)
    while True:
        exchange.write(b": ping\n\n")
        exchange.event(exchange.chunk({"content": ""}))
        await exchange.pause()


async def thoughts_then_cut(exchange: Exchange) -> None:
    exchange.head()
    exchange.event(exchange.chunk({"reasoning_content": "hm"}))
    await exchange.pause()


async def half_a_tool_call(exchange: Exchange) -> None:
    exchange.head()
    function = {"name": "find_notes", "arguments": '{"family": "wo'}
    call = {"index": 0, "id": "call_1", "type": "function", "function": function}
    exchange.event(exchange.chunk({"tool_calls": [call]}))
    await exchange.pause()


async def an_endless_event(exchange: Exchange) -> None:
    await begin(exchange, 3)
    exchange.write(b"data: " + b"x" * (9 * 1024 * 1024))
    await exchange.forever()


@pytest.mark.parametrize(
    ("play", "kind", "partial"),
    [
        (broken_framing, ErrorKind.MALFORMED, "t0 t1 t2 "),
        (pings_for_ever, ErrorKind.TIMEOUT, "t0 t1 t2 "),
        (an_endless_event, ErrorKind.MALFORMED, "t0 t1 t2 "),
        (thoughts_then_cut, ErrorKind.INTERRUPTED, ""),
        (half_a_tool_call, ErrorKind.INTERRUPTED, ""),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("transport", ["http1", "httpx"])
async def test_behind_the_first_token_a_break_is_told(
    lab: Lab, transport: str, play: Any, kind: ErrorKind, partial: str
) -> None:
    lab.start(creative={"stall_s": 0.3}, target={"transport": transport})
    lab.script("creative", play)
    heard = await lab.hear()
    check_break(heard, kind, partial)
    assert (await lab.ask()).mode == "balanced"
    assert {attempt.outcome for attempt in lab.attempts()} == {"failure"}
    assert lab.cached_entries() == 1, "balanced's"


def check_break(heard: Heard, kind: ErrorKind, partial: str) -> None:
    assert isinstance(heard.error, StreamInterrupted)
    assert (heard.error.kind, heard.error.partial, heard.text) == (kind, partial, partial)
    assert heard.chunks and heard.whole is None


async def test_a_filter_that_strikes_in_mid_answer_is_not_walked_around(lab: Lab) -> None:
    async def filtered(exchange: Exchange) -> None:
        await begin(exchange, 3)
        exchange.write(
            b"event:error\n:HTTP_STATUS/400\n"
            b'data:{"code":"data_inspection_failed","message":"inappropriate content"}\n\n'
        )
        exchange.end()

    lab.start()
    lab.script("creative", filtered)
    with pytest.raises(UpstreamRejected) as caught:
        await lab.ask()
    assert caught.value.kind is ErrorKind.CONTENT
    check_break(await lab.hear(), ErrorKind.CONTENT, "t0 t1 t2 ")
    assert lab.requests("balanced") == 0
    assert {attempt.outcome for attempt in lab.attempts()} == {"ignored"}


async def test_a_tool_call_that_is_no_json_is_never_kept(lab: Lab) -> None:
    async def broken_arguments(exchange: Exchange) -> None:
        exchange.head()
        function = {"name": "find_notes", "arguments": '{"family": "wo'}
        call = {"index": 0, "id": "call_1", "type": "function", "function": function}
        exchange.event(exchange.chunk({"tool_calls": [call]}))
        exchange.finish("tool_calls")

    lab.start()
    lab.script("creative", broken_arguments)
    prompt = lab.prompt()
    for _ in range(2):
        answer = await lab.gateway.generate(prompt)
        assert (answer.mode, answer.cached) == ("creative", False)
        assert answer.tool_calls[0]["function"]["arguments"] == '{"family": "wo'
