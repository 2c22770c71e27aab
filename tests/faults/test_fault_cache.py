"""The response cache before failing upstreams, scenario by scenario."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from lab import Lab

from gateway.assembly import Assembly
from gateway.errors import AllModesFailed, GatewayError, StreamInterrupted
from gateway.generation import CacheControl
from gateway.simulator.scripted import Exchange


@pytest.mark.parametrize("play", ["ok", "tool_calls", "logprobs", "two_choices", "split_utf8"])
async def test_35_a_hit_is_the_same_answer_whole_or_streamed(lab: Lab, play: str) -> None:
    lab.start()
    lab.script("creative", play)
    for first_streams in (False, True):
        prompt = lab.prompt()
        if first_streams:
            heard = await lab.hear(prompt)
            assert heard.whole is not None
            first = heard.whole
        else:
            first = await lab.gateway.generate(prompt)
        seen = lab.requests()
        again, replayed = await lab.gateway.generate(prompt), await lab.hear(prompt)
        assert lab.requests() == seen
        assert replayed.whole is not None
        merged = Assembly()
        merged.add_all(replayed.chunks)
        assert first.choices == again.choices == replayed.whole.choices == merged.choices()
        assert first.usage == again.usage == replayed.whole.usage
        assert again.cached and replayed.whole.cached and not first.cached
        assert again.id != first.id


async def test_35_reasoning_survives_a_hit(lab: Lab) -> None:
    async def thinks(exchange: Exchange) -> None:
        exchange.head()
        exchange.event(exchange.chunk({"reasoning_content": "hm, "}))
        exchange.event(exchange.chunk({"reasoning": "well"}))
        exchange.say("Cedar")
        exchange.finish()

    lab.start()
    lab.script("creative", thinks)
    prompt = lab.prompt()
    for cached in (False, True):
        answer = await lab.gateway.generate(prompt)
        assert (answer.reasoning, answer.text, answer.cached) == ("hm, well", "Cedar", cached)


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": 0.5},
        {"seed": 7},
        {"stop": ["x"]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"response_format": {"type": "json_object"}},
        {"extra_body": {"anything": 1}},
        {"tenant": "somebody else"},
    ],
    ids=lambda changed: next(iter(changed)),
)
async def test_36_whatever_changes_the_answer_is_a_miss(lab: Lab, changed: dict[str, Any]) -> None:
    lab.start()
    prompt = lab.prompt()
    await lab.ask(prompt)
    assert not (await lab.ask(prompt, **changed)).cached
    assert (await lab.ask(prompt, **changed)).cached
    assert (await lab.ask(prompt)).cached
    assert lab.requests() == 2


@pytest.mark.parametrize("how", ["length", "content_filter", None])
async def test_37_what_is_not_whole_is_not_kept(lab: Lab, how: str | None) -> None:
    async def ends_so(exchange: Exchange) -> None:
        exchange.head()
        exchange.say(*exchange.tokens)
        if how is None:
            exchange.write(b"data: [DONE]\n\n")
            exchange.end()
        else:
            exchange.finish(how)

    lab.start()
    lab.script("creative", ends_so)
    prompt = lab.prompt()
    for _ in range(2):
        answer = await lab.ask(prompt)
        assert (answer.mode, answer.finish_reason, answer.cached) == ("creative", how, False)
    assert lab.cached_entries() == 0


async def test_37_a_broken_stream_is_not_kept_and_the_next_one_is_whole(lab: Lab) -> None:
    lab.start()
    lab.script("creative", ["cut_fin", "ok"])
    prompt = lab.prompt()
    assert isinstance((await lab.hear(prompt)).error, StreamInterrupted)
    answer = await lab.ask(prompt)
    assert (answer.mode, answer.cached) == ("creative", False)


async def test_37_a_stand_in_never_outlives_the_recovery(lab: Lab) -> None:
    lab.start(tables={"circuit": {"early_probe_s": 10.0}})
    await lab.fail(3)
    prompt = lab.prompt()
    first, again = await lab.ask(prompt), await lab.ask(prompt)
    assert (first.mode, first.cached) == ("balanced", False)
    assert (again.mode, again.cached, again.degraded) == ("balanced", True, True)
    lab.script("creative", "ok")
    lab.clock.skip(10.0)
    assert (await lab.ask()).mode == "creative", "the probe"
    answer = await lab.ask(prompt)
    assert (answer.mode, answer.cached, answer.degraded) == ("creative", False, False)


async def test_38_stand_ins_live_300_s_and_native_answers_an_hour(lab: Lab) -> None:
    lab.start(tables={"circuit": {"break_duration_s": 1000.0, "break_max_s": 1000.0}})
    native, stand_in = lab.prompt(), lab.prompt()
    await lab.ask(native)
    assert lab.status()["ttl_s"] == 3600
    await lab.fail(3)
    assert lab.status()["ttl_s"] == 300
    answer = await lab.ask(stand_in)
    assert (answer.mode, answer.served.ttl_s) == ("balanced", 300)

    lab.clock.skip(299.0)
    assert (await lab.ask(stand_in)).cached
    assert (await lab.ask(native)).mode == "creative", "keeps its age: no mass expiry"
    lab.clock.skip(1.5)
    assert not (await lab.ask(stand_in)).cached
    hit = await lab.ask(native)
    assert (hit.mode, hit.cached) == ("creative", True)
    assert 300 < hit.served.age_s < 310

    lab.script("creative", "ok")
    lab.clock.skip(1000.0)
    assert (await lab.ask()).mode == "creative"
    assert lab.status()["ttl_s"] == 3600
    lab.clock.skip(2300.0)
    assert not (await lab.ask(native)).cached


async def test_39_fifty_who_ask_the_same_are_one_call(lab: Lab) -> None:
    lab.start()
    lab.script("creative", "drip")
    prompt = lab.prompt()
    answers = await asyncio.gather(*(lab.ask(prompt) for _ in range(50)))
    assert lab.requests() == 1
    assert len({answer.id for answer in answers}) == 50
    prompt = lab.prompt()
    streams = await asyncio.gather(*(lab.hear(prompt) for _ in range(50)))
    assert lab.requests() == 2
    assert {heard.text for heard in streams} == {lab.says("creative", prompt)}


async def test_39_those_who_leave_hurt_nobody_until_the_last(lab: Lab) -> None:
    release = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await release.wait()
        exchange.head()
        exchange.say(*exchange.tokens)
        exchange.finish()

    lab.start()
    lab.script("creative", waits)
    prompt = lab.prompt()
    asking = [asyncio.create_task(lab.ask(prompt)) for _ in range(10)]
    await lab.until_asked()
    for leaving in asking[:9]:
        leaving.cancel()
    await asyncio.wait(asking[:9])
    release.set()
    assert (await asking[9]).mode == "creative"
    assert lab.primary.stats("creative").aborted == 0

    release.clear()
    prompt = lab.prompt()
    asking = [asyncio.create_task(lab.ask(prompt)) for _ in range(10)]
    await lab.until_asked(times=2)
    for leaving in asking:
        leaving.cancel()
    await lab.until_hung_up()
    await asyncio.wait(asking)


async def test_39_a_shared_failure_is_told_to_all_and_kept_for_nobody(lab: Lab) -> None:
    lab.start(modes=("creative",))
    lab.script("creative", ["cut_after_role", "ok"])
    prompt = lab.prompt()
    outcomes = await asyncio.gather(*(lab.ask(prompt) for _ in range(10)), return_exceptions=True)
    assert all(isinstance(outcome, GatewayError) for outcome in outcomes)
    assert lab.requests() == 1
    assert not (await lab.ask(prompt)).cached
    assert lab.requests() == 2


async def test_40_if_all_else_fails_a_stale_answer_is_served_and_marked(lab: Lab) -> None:
    lab.start()
    prompt = lab.prompt()
    fresh = await lab.ask(prompt)
    lab.clock.skip(3700.0)
    await lab.primary.refuse()
    await lab.standby.refuse()
    answer = await lab.ask(prompt)
    assert (answer.text, answer.mode, answer.cached) == (fresh.text, "creative", True)
    assert (answer.served.stale, answer.reason) == (True, "upstream_error")
    assert 3700 < answer.served.age_s < 3710
    heard = await lab.hear(prompt)
    assert heard.text == fresh.text and heard.served is not None and heard.served.stale

    with pytest.raises(AllModesFailed):
        await lab.ask(prompt, cache=CacheControl(stale_if_error=False))
    with pytest.raises(AllModesFailed):
        await lab.ask(lab.prompt())
    lab.clock.skip(3600.0)
    with pytest.raises(AllModesFailed):
        await lab.ask(prompt)


async def test_40_a_stale_answer_never_hides_the_callers_own_mistake(lab: Lab) -> None:
    lab.start()
    prompt = lab.prompt()
    await lab.ask(prompt)
    lab.clock.skip(3700.0)
    lab.script("creative", "400_content_openai")
    with pytest.raises(GatewayError) as caught:
        await lab.ask(prompt)
    assert caught.value.code == "content_filter"


async def test_40_a_live_lower_mode_goes_before_a_stale_answer(lab: Lab) -> None:
    lab.start()
    prompt = lab.prompt()
    await lab.ask(prompt)
    lab.clock.skip(3700.0)
    lab.script("creative", "html")
    answer = await lab.ask(prompt)
    assert (answer.mode, answer.cached, answer.served.stale) == ("balanced", False, False)


async def test_41_cache_directives_are_obeyed(lab: Lab) -> None:
    lab.start()
    prompt = lab.prompt()
    assert not (await lab.ask(prompt, cache=CacheControl(store=False))).cached
    assert lab.cached_entries() == 0
    await lab.ask(prompt)
    assert (await lab.ask(prompt, cache=CacheControl(store=False))).cached
    assert not (await lab.ask(prompt, cache=CacheControl(read=False))).cached
    assert not (await lab.ask(prompt, cache=False)).cached
    lab.clock.skip(100.0)
    assert not (await lab.ask(prompt, cache=CacheControl(max_age_s=60.0))).cached
    lab.clock.skip(50.0)
    assert (await lab.ask(prompt, cache=CacheControl(max_age_s=60.0))).cached
    assert lab.requests() == 5
