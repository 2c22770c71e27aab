"""A gateway before failing upstreams, scenario by scenario: retries, silence, cuts, deadlines.

The numbers are those of the scenario list that other gateways are measured by (their public
benches and bug reports); what is asserted is this gateway's own contract.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from lab import MODES, Lab, begin

from gateway.errors import (
    AllModesFailed,
    DeadlineExceeded,
    ErrorKind,
    StreamInterrupted,
    UpstreamRejected,
    UpstreamTimeout,
)
from gateway.simulator.scripted import Exchange

# 1-5: what a second try may mend.


async def test_01_a_short_retry_after_is_waited_for_once(lab: Lab) -> None:
    arrived: list[float] = []

    async def later(exchange: Exchange) -> None:
        arrived.append(lab.clock())
        body = {"error": {"message": "slow down", "code": "limit_requests"}}
        exchange.json(body, 429, {"retry-after-ms": "150"})

    async def fine(exchange: Exchange) -> None:
        arrived.append(lab.clock())
        exchange.head()
        exchange.say(*exchange.tokens)
        exchange.finish()

    lab.start()
    lab.script("creative", [later, fine])
    answer = await lab.ask()
    assert (answer.mode, answer.served.attempts) == ("creative", 2)
    assert 0.15 <= arrived[1] - arrived[0] < 2.0


async def test_01_a_retry_after_too_long_for_the_deadline_is_walked_past(lab: Lab) -> None:
    lab.start()
    lab.script("creative", ["429_retry_after_seconds", "ok"])
    answer = await lab.ask(deadline=10.0)
    assert (answer.mode, answer.reason) == ("balanced", "cooling")
    assert answer.until is not None and 1.0 < answer.until <= 2.0
    assert lab.requests() == 1
    lab.clock.skip(2.0)
    assert (await lab.ask()).mode == "creative"


async def test_02_429_for_ever_rests_the_target_instead_of_hammering_it(lab: Lab) -> None:
    lab.start()
    lab.script("creative", "429_requests")
    for _ in range(10):
        answer = await lab.ask()
        assert (answer.mode, answer.reason) == ("balanced", "cooling")
    assert lab.requests() == 1
    assert lab.phase() == "closed"


@pytest.mark.parametrize("fault", ["500", "reset", "close"])
async def test_03_05_a_quick_fault_is_tried_once_more(lab: Lab, fault: str) -> None:
    lab.start()
    lab.script("creative", [fault, "ok"])
    answer = await lab.ask()
    assert (answer.mode, answer.served.attempts) == ("creative", 2)
    lab.script("creative", [fault, "ok"])
    heard = await lab.hear()
    assert heard.whole is not None and heard.whole.mode == "creative"
    assert lab.requests() == 4
    assert lab.phase() == "closed"


async def test_05_a_pooled_connection_that_died_is_no_failure(lab: Lab) -> None:
    lab.start()
    await lab.ask()
    lab.script("creative", ["reset", "ok"])
    answer = await lab.ask()
    assert (answer.mode, answer.served.attempts) == ("creative", 1)
    assert {attempt.outcome for attempt in lab.attempts()} == {"success"}


async def test_04_503_for_ever_costs_six_requests_and_nobody_notices(lab: Lab) -> None:
    lab.start()
    lab.script("creative", "503_text")
    for _ in range(15):
        assert (await lab.ask()).mode == "balanced"
    assert lab.requests() <= 6
    assert lab.phase() == "open"


async def test_04_loading_is_waited_out_by_lower_modes(lab: Lab) -> None:
    lab.start()
    lab.script("creative", ["503_loading", "503_loading", "ok"])
    modes = []
    for _ in range(4):
        modes.append((await lab.ask()).mode)
        lab.clock.skip(5.0)
    assert modes == ["balanced", "balanced", "creative", "creative"]
    assert lab.phase() == "closed"


# 6, 7, 20: silence, however it is dressed.


@pytest.mark.parametrize(
    "silence", ["silent", "headers_then_silence", "pings_only", "empty_deltas_only"]
)
async def test_06_07_20_silence_costs_one_timeout(lab: Lab, silence: str) -> None:
    lab.start(creative={"first_token_s": 0.12})
    lab.script("creative", silence)
    for ask in (lab.ask, lab.hear):
        started, before = lab.clock(), lab.requests()
        answer: Any = await ask()
        assert (answer.served.mode, answer.served.reason) == ("balanced", "failed")
        assert 0.1 < lab.clock() - started < 1.1
        assert lab.requests() == before + 1
    await lab.until_hung_up(times=2)
    assert {attempt.kind for attempt in lab.attempts()} == {ErrorKind.TIMEOUT}


async def test_06_headers_have_a_limit_of_their_own(lab: Lab) -> None:
    lab.start(creative={"target": {"headers_s": 0.05}})
    lab.script("creative", "silent")
    started = lab.clock()
    assert (await lab.ask()).mode == "balanced"
    assert lab.clock() - started < 1.0
    lab.start(modes=("creative",), creative={"target": {"headers_s": 0.05}})
    with pytest.raises(UpstreamTimeout) as caught:
        await lab.ask()
    assert caught.value.phase == "headers"


async def test_06_overdue_attempts_do_not_wait_for_their_timeouts(lab: Lab) -> None:
    lab.start(tables={"circuit": {"slow_s": 0.1}})
    lab.script("creative", "silent")
    started = lab.clock()
    answers = await asyncio.gather(*(lab.ask() for _ in range(4)))
    assert {answer.mode for answer in answers} == {"balanced"}
    assert lab.clock() - started < 1.5, "not the 5 s they were allowed"
    assert lab.phase() == "open"
    await lab.until_hung_up(times=4)


# 8-11: streams that end badly, or oddly.


async def cut_after_forty(exchange: Exchange) -> None:
    await begin(exchange, 40)


async def test_08_a_cut_after_forty_tokens_is_never_a_success(lab: Lab) -> None:
    lab.start()
    lab.script("creative", cut_after_forty)
    heard = await lab.hear()
    assert isinstance(heard.error, StreamInterrupted)
    assert heard.error.partial == heard.text == "".join(f"t{n} " for n in range(40))
    answer = await lab.ask()
    assert (answer.mode, answer.reason, answer.finish_reason) == ("balanced", "failed", "stop")
    with pytest.raises(StreamInterrupted) as caught:
        await lab.ask(allow_degrade=False)
    assert (caught.value.partial, caught.value.mode) == (heard.text, "creative")
    assert [attempt.outcome for attempt in lab.attempts()] == ["failure"] * 3


async def test_09_a_stall_after_twenty_tokens_is_bounded(lab: Lab) -> None:
    async def stall(exchange: Exchange) -> None:
        await begin(exchange, 20)
        await exchange.forever()

    lab.start(creative={"stall_s": 0.12})
    lab.script("creative", [stall, stall, "ok"])
    started = lab.clock()
    heard = await lab.hear()
    assert isinstance(heard.error, StreamInterrupted)
    assert (heard.error.kind, len(heard.text.split())) == (ErrorKind.TIMEOUT, 20)
    assert (await lab.ask()).mode == "balanced"
    assert lab.clock() - started < 2.0
    await lab.until_hung_up(times=2)
    assert (await lab.ask()).mode == "creative"


async def test_10_a_broken_event_is_told_and_harms_nobody_else(lab: Lab) -> None:
    async def tenth_is_broken(exchange: Exchange) -> None:
        await begin(exchange, 9)
        exchange.write(b'data: {"choices": [{"index": 0, "delta": {"content\n\n')
        exchange.say(*exchange.tokens)
        exchange.finish()

    lab.start()
    lab.script("creative", [tenth_is_broken, tenth_is_broken, "ok"])
    heard = await lab.hear()
    assert isinstance(heard.error, StreamInterrupted)
    assert (heard.error.kind, len(heard.text.split())) == (ErrorKind.MALFORMED, 9)
    assert (await lab.ask()).mode == "balanced"
    assert (await lab.ask()).mode == "creative"


async def test_11_a_stream_without_done_is_whole_if_it_said_why_it_ended(lab: Lab) -> None:
    async def no_done(exchange: Exchange) -> None:
        exchange.head()
        exchange.say(*exchange.tokens)
        exchange.finish(done=False)

    lab.start()
    lab.script("creative", no_done)
    answer = await lab.ask()
    assert (answer.mode, answer.finish_reason) == ("creative", "stop")
    assert answer.usage.completion_tokens == 8
    heard = await lab.hear()
    assert heard.whole is not None and heard.whole.usage.completion_tokens == 8


async def test_11_a_finished_answer_does_not_wait_for_its_connection(lab: Lab) -> None:
    lab.start()
    lab.script("creative", "lingers")
    started = lab.clock()
    assert (await lab.ask()).mode == "creative"
    assert lab.clock() - started < 1.0
    await lab.until_hung_up()


# 12-14: what is the caller's own doing, and what must not become it.


async def test_12_a_prompt_too_long_goes_to_a_larger_window_or_back(lab: Lab) -> None:
    small = {"target": {"context_window": 8192}}
    lab.start(creative=small, balanced=small, fast={"target": {"context_window": 32768}})
    lab.script("creative", "400_context_vllm")
    answer = await lab.ask()
    assert (answer.mode, answer.reason) == ("fast", "context")
    assert (lab.requests("creative"), lab.requests("balanced")) == (1, 0)
    assert lab.phase() == "closed"

    lab.start(creative=small, balanced=small, fast=small)
    with pytest.raises(UpstreamRejected) as caught:
        await lab.ask()
    assert caught.value.code == "context_length_exceeded"
    assert (lab.requests("creative"), lab.requests("balanced"), lab.requests("fast")) == (2, 0, 1)


async def test_13_a_filtered_prompt_is_not_routed_around(lab: Lab) -> None:
    lab.start()
    lab.script("creative", "400_content_dashscope")
    with pytest.raises(UpstreamRejected, match="inappropriate content") as caught:
        await lab.ask()
    assert (caught.value.http_status, caught.value.code) == (400, "content_filter")
    heard = await lab.hear()
    assert isinstance(heard.error, UpstreamRejected)
    assert (lab.requests("creative"), lab.requests("balanced")) == (2, 0)


async def test_13_nor_is_a_filtered_answer(lab: Lab) -> None:
    async def withheld(exchange: Exchange) -> None:
        exchange.head()
        exchange.role()
        exchange.finish("content_filter")

    lab.start()
    lab.script("creative", withheld)
    with pytest.raises(UpstreamRejected) as caught:
        await lab.ask()
    assert caught.value.kind is ErrorKind.CONTENT
    assert lab.requests("balanced") == 0
    assert lab.cached_entries() == 0


async def test_14_a_refused_continuation_is_not_the_callers_error(lab: Lab) -> None:
    async def refuses_prefill(exchange: Exchange) -> None:
        assert exchange.body["messages"][-1]["role"] == "assistant"
        error = {"message": "Cannot continue a final assistant message", "code": 400}
        exchange.json({"error": error}, 400)

    lab.start()
    lab.script("creative", "cut_fin")
    lab.script("balanced", refuses_prefill)
    lab.script("fast", refuses_prefill)
    heard = await lab.hear(on_interrupt="continue")
    assert isinstance(heard.error, StreamInterrupted)
    assert (heard.error.mode, heard.error.partial) == ("creative", heard.text)
    assert lab.requests("balanced") == 1

    lab.script("balanced", "ok")  # a whole answer restarts clean, without the half that broke
    assert (await lab.ask()).mode == "balanced"
    assert [m["role"] for m in lab.standby.stats("balanced").bodies[-1]["messages"]] == ["user"]


async def test_14_a_continuation_takes_up_where_the_text_broke_off(lab: Lab) -> None:
    async def goes_on(exchange: Exchange) -> None:
        exchange.head()
        exchange.say(f"{exchange.body['messages'][-1]['content']!r} ", "and on")
        exchange.finish()

    lab.start()
    lab.script("creative", "cut_rst")
    lab.script("balanced", goes_on)
    prompt = lab.prompt()
    heard = await lab.hear(prompt, on_interrupt="continue")
    begun = "".join(lab.says("creative", prompt).partition(" ")[0])
    assert heard.error is None and heard.whole is not None
    assert heard.text == heard.whole.text
    assert heard.text.startswith(begun) and heard.text.endswith(" and on")
    assert heard.text.count(begun) == 2, "said once, and quoted back once"
    assert (heard.whole.mode, heard.whole.degraded) == ("balanced", True)


# 15, 16: an outage from its first minute to its last.


async def test_15_an_outage_of_a_minute_costs_few_requests_and_ends_soon(lab: Lab) -> None:
    lab.start(tables={"circuit": {"early_probe_s": 10.0}})
    lab.script("creative", "503_text")
    modes = []
    for second in range(0, 100, 4):
        if second == 60:
            lab.script("creative", "ok")
        modes.append((await lab.ask()).mode)
        lab.clock.skip(4.0)
        if second < 60:
            during = lab.requests()
    assert set(modes[:15]) == {"balanced"}
    assert during <= 6 + 5, "three requests tried twice, then a probe each ten seconds"
    assert "creative" in modes[15:18]
    assert set(modes[18:]) == {"creative"}


async def test_16_model_and_usage_are_those_of_who_answered(lab: Lab) -> None:
    lab.start()
    lab.script("creative", "cut_fin")
    prompt = lab.prompt()
    answer = await lab.ask(prompt)
    assert (answer.model, answer.mode, answer.requested_mode) == (
        "balanced",
        "balanced",
        "creative",
    )
    assert answer.usage.details == {"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10}
    finished = lab.finished()[-1]
    assert (finished.model, finished.completion_tokens, finished.attempts) == ("balanced", 8, 2)


# 17: answers in one piece. The matrix has every one of them; here is the rule in one place.


@pytest.mark.parametrize("fault", ["body_cut", "headers_then_silence", "broken_json", "html"])
async def test_17_a_broken_whole_answer_is_never_handed_on(lab: Lab, fault: str) -> None:
    lab.start(creative={"deadline_s": 1.0, "target": {"stream_upstream": False}})
    lab.script("creative", fault)
    answer = await lab.ask()
    assert (answer.mode, answer.reason, answer.finish_reason) == ("balanced", "failed", "stop")


# 18, 19, 22: errors in a stream's clothes.


@pytest.mark.parametrize("fault", ["error_after_role", "error_in_200", "cut_after_role"])
async def test_18_what_breaks_before_the_first_token_is_never_seen(lab: Lab, fault: str) -> None:
    lab.start()
    lab.script("creative", fault)
    prompt = lab.prompt()
    heard = await lab.hear(prompt)
    assert heard.error is None and heard.whole is not None
    assert heard.text == lab.says("balanced", prompt)
    assert {chunk.model for chunk in heard.chunks} == {"balanced"}
    roles = [c.choices[0].delta.role for c in heard.chunks if c.choices]
    assert roles.count("assistant") == 1, "one clean stream"


async def test_19_if_nobody_gets_to_a_first_token_nothing_is_shown(lab: Lab) -> None:
    lab.start()
    lab.script("creative", "error_after_role")
    lab.script("balanced", "cut_after_role")
    lab.script("fast", "html")
    heard = await lab.hear()
    assert heard.chunks == [] and heard.served is None
    assert isinstance(heard.error, AllModesFailed)
    assert heard.error.http_status == 503
    kinds = [getattr(cause, "kind", None) for cause in heard.error.causes.values()]
    assert list(heard.error.causes) == ["creative", "balanced", "fast"]
    assert kinds == [ErrorKind.SERVER, ErrorKind.INTERRUPTED, ErrorKind.MALFORMED]


async def test_22_throttled_in_mid_stream_with_nobody_below_is_one_error(lab: Lab) -> None:
    async def throttled(exchange: Exchange) -> None:
        await begin(exchange, 5)
        exchange.write(
            b"event:error\n:HTTP_STATUS/429\n"
            b'data:{"code":"Throttling.RateQuota","message":"slower please"}\n\n'
        )
        exchange.end()

    lab.start(modes=("creative",))
    lab.script("creative", throttled)
    heard = await lab.hear()
    assert isinstance(heard.error, StreamInterrupted)
    assert (heard.error.kind, len(heard.text.split())) == (ErrorKind.RATE, 5)
    assert [attempt.outcome for attempt in lab.attempts()] == ["ignored"]
    await lab.check_at_rest()
    assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing goes on behind it"


# 23: one deadline over everything.


async def test_23_three_silent_modes_end_by_the_callers_deadline(lab: Lab) -> None:
    lab.start(each={"first_token_s": 30.0, "deadline_s": 180.0})
    for mode in ("creative", "balanced", "fast"):
        lab.script(mode, "silent")
    errors = []
    for _ in range(3):
        started = lab.clock()
        with pytest.raises(DeadlineExceeded) as caught:
            await lab.gateway.generate(lab.prompt(), deadline=0.45)
        assert 0.4 < lab.clock() - started < 0.75
        errors.append(str(caught.value))
    assert [lab.requests(mode) for mode in MODES] == [3, 3, 3]
    for mode in MODES:
        await lab.until_hung_up(mode, times=3)
    told = r"creative: .*no first token.*; balanced: .*no first token.*; fast: "
    assert any(re.search(told, error) for error in errors), errors
    assert lab.phase() == "closed", "in a hurry is not the upstream's fault"


async def test_23_a_silent_creative_leaves_balanced_its_share(lab: Lab) -> None:
    lab.start(each={"first_token_s": 30.0, "deadline_s": 180.0})
    lab.script("creative", "silent")
    answer = await lab.ask(deadline=0.6)
    assert answer.mode == "balanced"
    assert answer.duration_s < 0.6


async def test_23_a_deadline_in_mid_answer_hands_over_what_there_is(lab: Lab) -> None:
    async def slow(exchange: Exchange) -> None:
        await begin(exchange, 6)
        await exchange.forever()

    lab.start()
    lab.script("creative", slow)
    heard = await lab.hear(deadline=0.2)
    assert isinstance(heard.error, DeadlineExceeded)
    assert heard.error.partial == heard.text == "".join(f"t{n} " for n in range(6))
    with pytest.raises(DeadlineExceeded) as caught:
        await lab.ask(deadline=0.2, allow_degrade=False)
    assert caught.value.partial == heard.text
    await lab.until_hung_up(times=2)
    assert [attempt.outcome for attempt in lab.attempts()] == ["ignored", "ignored"]
