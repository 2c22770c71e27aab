"""Where a request's time went: `Served.upstream_s` and `queued_s`, on every way out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from stage import ScriptedProvider, Stage, finish, loop, play

from gateway.errors import (
    AllModesFailed,
    DeadlineExceeded,
    ErrorKind,
    StreamInterrupted,
    UpstreamError,
)
from gateway.generation import Served
from gateway.middleware.response_cache import ResponseCache
from gateway.policies.ttl import CacheOptions
from gateway.stores.memory import MemoryStore


def down() -> UpstreamError:
    return UpstreamError("down", kind=ErrorKind.TIMEOUT)


def test_failed_attempts_are_counted_in() -> None:
    async def scenario() -> None:
        creative = ScriptedProvider([1.5, down()])
        below = ScriptedProvider(["a", 2.0, finish()], name="b", opening=[0.25])
        stage = Stage({"creative": creative, "balanced": below})
        answer = await stage.gearbox(stage.request(queued_s=0.5))
        generation = await answer.finish()
        answer.close()
        assert generation.served.upstream_s == loop().time() == 1.5 + 0.25 + 2.0
        assert generation.served.queued_s == 0.5

    play(scenario)


def test_a_wait_between_two_attempts_is_not_the_upstreams() -> None:
    async def scenario() -> None:
        busy = UpstreamError("slow down", kind=ErrorKind.RATE, retry_after=1.0)
        solo = ScriptedProvider([0.5, busy], ["a", 0.5, finish()])
        stage = Stage({"solo": solo})
        answer = await stage.gearbox(stage.request("solo"))
        generation = await answer.finish()
        assert loop().time() == 2.0
        assert (generation.served.upstream_s, generation.served.attempts) == (1.0, 2)

    play(scenario)


def test_a_stream_tells_so_far_when_it_commits_and_all_at_its_end() -> None:
    async def scenario() -> None:
        stage = Stage({"solo": ScriptedProvider([1.0, "a", 2.0, finish()])})
        answer = await stage.gearbox(stage.request("solo", buffered=False))
        served = answer.served
        assert served.upstream_s == 1.0
        await answer.finish()
        assert served is answer.served
        assert served.upstream_s == 3.0
        answer.close()

    play(scenario)


async def _served(stage: Stage, ends: Any, **more: Any) -> Served:
    answer = await stage.gearbox(stage.request("creative", buffered=False, **more))
    try:
        await ends(answer)
    finally:
        answer.close()
    return answer.served


def test_left_early_broken_and_late_streams_tell_it_too() -> None:
    async def scenario() -> None:
        async def leaves(answer: Any) -> None:
            await answer.read()
            await asyncio.sleep(1.0)

        async def breaks(answer: Any) -> None:
            with pytest.raises(StreamInterrupted):
                await answer.finish()

        async def is_late(answer: Any) -> None:
            with pytest.raises(DeadlineExceeded):
                await answer.finish()

        def stage(*script: Any) -> Stage:
            return Stage({"creative": ScriptedProvider(script)})

        assert (await _served(stage("a", 9.0), leaves)).upstream_s == 1.0
        assert (await _served(stage("a", 2.0, down()), breaks)).upstream_s == 2.0
        until = loop().time() + 4.0
        assert (await _served(stage("a", 9.0), is_late, deadline=until)).upstream_s == 4.0

    play(scenario)


@pytest.mark.parametrize("continues", [True, False])
def test_a_text_that_the_next_mode_continues(continues: bool) -> None:
    async def scenario() -> None:
        creative = ScriptedProvider(["a", 2.0, down()])
        script = [0.5, "b", 1.0, finish()] if continues else [3.0, down()]
        stage = Stage({"creative": creative, "balanced": ScriptedProvider(script, name="b")})
        answer = await stage.gearbox(stage.request(buffered=False, on_interrupt="continue"))
        if continues:
            assert (await answer.finish()).text == "ab"
        else:
            with pytest.raises(StreamInterrupted):
                await answer.finish()
        answer.close()
        assert answer.served.mode == ("balanced" if continues else "creative")
        assert answer.served.upstream_s == loop().time() == (3.5 if continues else 5.0)

    play(scenario)


def test_an_answer_from_the_store_took_no_time_of_anybodys() -> None:
    async def scenario() -> None:
        stage = Stage({"creative": ScriptedProvider(["a", 2.0, finish()], [1.0, down()])})
        store = MemoryStore(clock=stage.clock)
        cache = ResponseCache(store, CacheOptions(), stage.ladder, stage.clock)

        async def ask() -> Served:
            answer = await cache(stage.request(queued_s=0.5), stage.gearbox)
            answer.close()
            return answer.served

        first = await ask()
        assert (first.upstream_s, first.queued_s) == (2.0, 0.5)
        for waited_s, stale in ((0.0, False), (CacheOptions().ttl_s + 1.0, True)):
            await asyncio.sleep(waited_s)
            hit = await ask()
            assert (hit.cached, hit.stale) == (True, stale)
            assert (hit.upstream_s, hit.queued_s) == (0.0, 0.0)

    play(scenario)


def test_a_request_nobody_answered_knows_how_often_it_was_tried_and_for_how_long() -> None:
    async def scenario() -> None:
        creative = ScriptedProvider([1.5, down()])
        below = ScriptedProvider([0.5, down()], name="b")
        stage = Stage({"creative": creative, "balanced": below})
        request = stage.request()
        with pytest.raises(AllModesFailed):
            await stage.gearbox(request)
        assert (request.attempts, request.upstream_s) == (2, 2.0)

    play(scenario)
