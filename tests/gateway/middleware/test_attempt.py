from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import pytest
from stage import ScriptedProvider, Step, finish, loop, play, role, text, timers

from gateway.assembly import Assembly
from gateway.errors import ErrorKind, UpstreamRejected, UpstreamTimeout, UpstreamUnavailable
from gateway.generation import Choice, Chunk, Delta, GenerationRequest
from gateway.middleware.attempt import Attempt
from gateway.providers.base import Call


def attempt_at(
    provider: ScriptedProvider,
    *,
    deadline: float = 100.0,
    first_token_s: float = 10.0,
    stall_s: float = 5.0,
    clock: Callable[[], float] | None = None,
) -> Attempt:
    return Attempt(
        provider,
        Call([{"role": "user", "content": "hello"}], {}),
        GenerationRequest(id="gen-1", mode="creative", messages=[], deadline=deadline),
        Assembly(),
        clock or loop().time,
        loop().time(),
        first_token_s,
        stall_s,
    )


async def whole(attempt: Attempt) -> str:
    try:
        await attempt.open()
        while await attempt.read():
            pass
        return "".join(chunk.text for chunk in attempt.chunks)
    finally:
        attempt.close()


def test_open_returns_at_the_first_content_token() -> None:
    async def scenario() -> None:
        attempt = attempt_at(ScriptedProvider([role(), 2.0, "a", 1.0, "b", finish()]))
        await attempt.open()
        assert loop().time() == attempt.first_token_at == 2.0
        assert [chunk.text for chunk in attempt.chunks] == ["", "a"]
        assert await attempt.read()
        assert await attempt.read()
        assert not await attempt.read()
        assert not await attempt.read()
        assert attempt.ended
        assert attempt.received == 4
        attempt.close()

    play(scenario)


@pytest.mark.parametrize(
    "delta",
    [
        Delta(content="x"),
        Delta(reasoning_content="x"),
        Delta(refusal="x"),
        Delta(tool_calls=[{"index": 0}]),
        Delta(function_call={"name": "f"}),
        Delta(audio={"id": "1"}),
    ],
    ids=str,
)
def test_every_kind_of_content_is_a_first_token(delta: Delta) -> None:
    async def scenario() -> None:
        attempt = attempt_at(ScriptedProvider([1.0, Chunk([Choice(delta)]), finish()]))
        await attempt.open()
        assert attempt.first_token_at == 1.0
        attempt.close()

    play(scenario)


@pytest.mark.parametrize(
    ("script", "phase", "at"),
    [
        ([1e9], "first_token", 10.0),
        ([role(), 1e9], "first_token", 10.0),
        ([9.0, role(), 9.0, "late"], "first_token", 10.0),
        ([9.9, "a", 1e9], "stall", 14.9),
        (["a", 4.0, role(), 4.0, "too late"], "stall", 5.0),
        (["a", 4.0, "b", 4.0, "c", 1e9], "stall", 13.0),
        (["a", *(4.9, "b") * 10], "total", 30.0),
    ],
    ids=str,
)
def test_each_clock_speaks_in_its_own_name(script: list[Step], phase: str, at: float) -> None:
    async def scenario() -> None:
        attempt = attempt_at(ScriptedProvider(script), deadline=30.0)
        with pytest.raises(UpstreamTimeout) as late:
            await whole(attempt)
        assert late.value.phase == phase
        assert late.value.kind is ErrorKind.TIMEOUT
        assert loop().time() == pytest.approx(at)
        assert attempt.silence() == pytest.approx(5.0 if phase == "stall" else attempt.silence())
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert timers() == 0

    play(scenario)


def test_opening_is_under_the_first_token_clock_too() -> None:
    async def scenario() -> None:
        attempt = attempt_at(ScriptedProvider(opening=[1e9]))
        with pytest.raises(UpstreamTimeout, match="no first token after 10 s"):
            await whole(attempt)

    play(scenario)


def test_a_stall_may_be_shorter_than_the_first_token_may_take() -> None:
    async def scenario() -> None:
        attempt = attempt_at(
            ScriptedProvider(["a", 1e9]), first_token_s=60.0, stall_s=1.0, deadline=1000.0
        )
        with pytest.raises(UpstreamTimeout) as late:
            await whole(attempt)
        assert (late.value.phase, loop().time()) == ("stall", 1.0)

    play(scenario)


def test_the_deadline_is_asked_anew() -> None:
    async def scenario() -> None:
        attempt = attempt_at(
            ScriptedProvider([*(4.0, "x") * 4, finish()]), deadline=5.0, first_token_s=20.0
        )
        reading = asyncio.ensure_future(_whole_in_task(attempt))
        await asyncio.sleep(3.0)
        attempt._request.deadline = 50.0  # somebody with more time joined
        assert await reading == "xxxx"

    async def _whole_in_task(attempt: Attempt) -> str:
        attempt._task = asyncio.current_task()
        return await whole(attempt)

    play(scenario)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ([role(), finish()], ErrorKind.EMPTY),
        ([], ErrorKind.EMPTY),
        ([finish("tool_calls")], ErrorKind.EMPTY),
        ([finish("content_filter")], ErrorKind.CONTENT),
    ],
    ids=str,
)
def test_a_whole_answer_with_nothing_in_it(script: list[Step], kind: ErrorKind) -> None:
    async def scenario() -> None:
        with pytest.raises((UpstreamUnavailable, UpstreamRejected)) as empty:
            await whole(attempt_at(ScriptedProvider(script)))
        assert empty.value.kind is kind

    play(scenario)


def test_nothing_because_the_callers_cap_was_hit_is_an_answer() -> None:
    async def scenario() -> None:
        assert await whole(attempt_at(ScriptedProvider([role(), finish("length")]))) == ""

    play(scenario)


def test_a_cancel_from_outside_stays_a_cancel() -> None:
    async def scenario() -> None:
        provider = ScriptedProvider(["a", 1e9])
        task = asyncio.ensure_future(_attempt(provider))
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert provider.replies[0].closed == 1
        assert timers() == 0

    play(scenario)


async def _attempt(provider: ScriptedProvider, **options: Any) -> str:
    return await whole(attempt_at(provider, **options))


@pytest.mark.parametrize("own_first", [False, True])
def test_a_cancel_at_the_very_moment_of_a_timeout_stays_a_cancel(own_first: bool) -> None:
    async def scenario() -> None:
        delay = 10.0 if own_first else 10.0 - 1e-12
        task = asyncio.ensure_future(_attempt(ScriptedProvider([1e9])))
        await asyncio.sleep(0)
        loop().call_at(delay, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    play(scenario)


def test_giving_up_and_the_timer_at_one_moment_cancel_once() -> None:
    async def scenario() -> None:
        attempt = attempt_at(ScriptedProvider([1e9]))
        for late in (False, True):
            loop().call_at(10.0, functools.partial(attempt.give_up, late=late))
        with pytest.raises(UpstreamTimeout):
            await whole(attempt)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # a second cancel would come now

    play(scenario)


def test_giving_up_ends_the_wait_for_a_first_token_and_nothing_else() -> None:
    async def scenario() -> None:
        attempt = attempt_at(ScriptedProvider([1e9]))
        loop().call_later(3.0, lambda: attempt.give_up(late=True))
        with pytest.raises(UpstreamTimeout):
            await whole(attempt)
        assert loop().time() == 3.0
        assert attempt.late

        attempt = attempt_at(ScriptedProvider(["a", 2.0, "b", finish()]))
        loop().call_later(1.0, lambda: attempt.give_up(late=True))
        assert await whole(attempt) == "ab"
        assert not attempt.late

    play(scenario)


@pytest.mark.parametrize(("token_after_s", "answered"), [(0.005, True), (0.5, False)])
def test_our_own_stall_is_not_held_against_the_upstream(
    token_after_s: float, answered: bool
) -> None:
    """The clock has jumped when the timer rings: what has arrived meanwhile is read first."""

    async def scenario() -> None:
        jump = 0.0
        attempt = attempt_at(
            ScriptedProvider([10.0 + token_after_s, "a", finish()]),
            clock=lambda: loop().time() + jump,
            deadline=1000.0,
        )

        def stall() -> None:
            nonlocal jump
            jump = 60.0

        loop().call_later(9.0, stall)
        if answered:
            assert await whole(attempt) == "a"
        else:
            with pytest.raises(UpstreamTimeout):
                await whole(attempt)

    play(scenario)


def test_closing_is_idempotent_and_sets_the_timer_and_the_reply_free() -> None:
    async def scenario() -> None:
        provider = ScriptedProvider(["a", 1e9])
        attempt = attempt_at(provider)
        await attempt.open()
        assert timers() == 1
        attempt.close()
        attempt.close()
        assert provider.replies[0].closed == 1
        assert timers() == 0
        assert not await attempt.read()
        attempt_at(provider).close()  # never opened

    play(scenario)


def test_without_any_limit_no_timer_is_set() -> None:
    async def scenario() -> None:
        infinite = float("inf")
        attempt = attempt_at(
            ScriptedProvider(), deadline=infinite, first_token_s=infinite, stall_s=infinite
        )
        await attempt.open()
        assert timers() == 0
        attempt.close()

    play(scenario)


def test_chunks_that_come_together_are_all_merged() -> None:
    async def scenario() -> None:
        attempt = attempt_at(ScriptedProvider([[role(), text("a"), text("b")], [finish()]]))
        assert await whole(attempt) == "ab"
        assert attempt.received == 4
        assert attempt.assembly.text() == "ab"

    play(scenario)
