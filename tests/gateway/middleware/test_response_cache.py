from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stage import ScriptedProvider, Stage, Step, finish, play, role, text

from gateway.errors import (
    AdmissionRejected,
    AllModesFailed,
    AuthenticationFailed,
    CircuitOpen,
    DeadlineExceeded,
    ErrorKind,
    GatewayError,
    InvalidRequest,
    UpstreamError,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.generation import CacheControl, Choice, Chunk, Delta, Generation
from gateway.middleware.base import Answer
from gateway.middleware.response_cache import ResponseCache
from gateway.policies.ttl import CacheOptions
from gateway.stores.memory import MemoryStore

TOOL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


class Cached:
    """A cache over a ladder of scripted modes."""

    def __init__(self, *scripts: list[Step], below: bool = True, **options: Any) -> None:
        self.creative = ScriptedProvider(*scripts, name="c")
        modes: dict[str, Any] = {"creative": self.creative}
        if below:
            modes["fast"] = ScriptedProvider(name="f")
        self.stage = Stage(modes)
        self.store = MemoryStore(clock=self.stage.clock)
        self.layer = ResponseCache(
            self.store, CacheOptions(**options), self.stage.ladder, self.stage.clock
        )

    async def answer(self, **more: Any) -> Answer:
        return await self.layer(self.stage.request(**more), self.stage.gearbox)

    async def ask(self, **more: Any) -> Generation:
        answer = await self.answer(**more)
        try:
            return await answer.finish()
        finally:
            answer.close()

    async def listen(self, **more: Any) -> list[Chunk]:
        answer = await self.answer(buffered=False, **more)
        try:
            chunks: list[Chunk] = []
            while batch := await answer.read():
                chunks += batch
            return chunks
        finally:
            answer.close()

    @property
    def calls(self) -> int:
        return len(self.creative.calls)


def reply(reason: str = "stop", content: str = "fine", index: int = 0) -> list[Step]:
    return [Chunk([Choice(Delta(content=content), index=index)]), finish(reason)]


@pytest.mark.parametrize(
    ("script", "kept"),
    [
        (reply("stop"), True),
        (reply("length"), False),
        (reply("content_filter"), False),
        (reply("repetition_truncation"), False),
        ([text("fine")], False),  # ended without a word about why
        ([role(), Chunk([Choice(Delta(tool_calls=[TOOL]))]), finish("tool_calls")], True),
        ([Chunk([Choice(Delta(refusal="no"))]), finish("stop")], True),
        ([Chunk([Choice(Delta(reasoning_content="hm"))]), *reply("stop")], True),
        ([text("a"), Chunk([Choice(Delta(content="b"), index=1)]),
          Chunk([Choice(Delta(), index=0, finish_reason="stop"),
                 Choice(Delta(), index=1, finish_reason="length")])], False),
        ([text("a"), Chunk([Choice(Delta(content="b"), index=1)]),
          Chunk([Choice(Delta(), index=0, finish_reason="stop"),
                 Choice(Delta(), index=1, finish_reason="stop")])], True),
        ([Chunk([Choice(Delta(tool_calls=[{**TOOL, "function": {"name": "f", "arguments": '{"a'}}]
          ))]), finish("tool_calls")], False),
    ],
    ids=range(11),
)  # fmt: skip
def test_b22_only_whole_answers_are_kept(script: list[Step], kept: bool) -> None:
    async def scenario() -> None:
        cached = Cached(script)
        first = await cached.ask()
        assert first.served.ttl_s == (3600.0 if kept else 0.0)
        second = await cached.ask()
        assert second.cached == kept
        assert second.choices == first.choices
        assert cached.calls == (1 if kept else 2)

    play(scenario)


def rich() -> list[Step]:
    logprobs = {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": []}]}
    return [
        [role(), Chunk([Choice(Delta(reasoning_content="think "))], extra={"fingerprint": "x"})],
        Chunk([Choice(Delta(reasoning_content="hard"))]),
        Chunk([Choice(Delta(content="Let me "), logprobs=logprobs)]),
        Chunk([Choice(Delta(content="see."))]),
        Chunk([Choice(Delta(tool_calls=[TOOL]))]),
        finish("tool_calls", prompt_tokens=3, completion_tokens=9, total_tokens=12),
    ]


def test_b22_everything_an_answer_bears_survives_a_hit_in_both_forms() -> None:
    async def scenario() -> None:
        cached = Cached(rich())
        first = await cached.ask()
        again = await cached.ask(id="gen-2")
        chunks = await cached.listen(id="gen-3")
        assert cached.calls == 1
        assert (again.id, again.cached, first.cached) == ("gen-2", True, False)
        for name in ("choices", "usage", "extra", "created"):
            assert getattr(again, name) == getattr(first, name), name
        assert again.reasoning == "think hard"
        assert again.tool_calls[0]["function"]["name"] == "f"
        assert "".join(chunk.text for chunk in chunks) == "Let me see."
        assert "".join(chunk.reasoning for chunk in chunks) == "think hard"
        assert chunks[-1].usage == {
            "prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12,
        }  # fmt: skip

    play(scenario)


def test_what_a_caller_does_to_a_hit_stays_with_the_caller() -> None:
    async def scenario() -> None:
        cached = Cached(rich())
        await cached.ask()
        spoilt = await cached.ask()
        spoilt.message["tool_calls"][0]["function"]["name"] = "evil"
        spoilt.message["annotations"].append("evil")
        spoilt.choices[0]["logprobs"]["content"].clear()
        spoilt.extra["fingerprint"] = "evil"
        assert "evil" not in repr(await cached.ask())

    play(scenario)


def test_requests_that_cannot_be_said_in_json_are_refused_before_anything_is_asked() -> None:
    async def scenario() -> None:
        loop_: list[Any] = []
        loop_.append(loop_)
        for wrong in ({"x": object()}, {"x": {1: 2, "a": 3}}, {"x": loop_}, {"x": "\ud800"}):
            cached = Cached()
            with pytest.raises(InvalidRequest, match="JSON"):
                await cached.ask(params=wrong)
            assert cached.calls == 0
            assert not cached.layer._flights

    play(scenario)


@pytest.mark.parametrize(
    ("error", "stale"),
    [
        (UpstreamUnavailable("x"), True),
        (UpstreamTimeout("x", phase="first_token"), True),
        (UpstreamThrottled("x"), True),
        (UpstreamRejected("our key", kind=ErrorKind.AUTH, status=401), True),
        (UpstreamRejected("no such model", kind=ErrorKind.MODEL, status=404), True),
        (AllModesFailed("x", {"creative": GatewayError("y")}), True),
        (CircuitOpen("x", mode="creative"), True),
        (DeadlineExceeded("x"), True),
        (UpstreamRejected("x", kind=ErrorKind.CONTEXT, status=400), False),
        (UpstreamRejected("x", kind=ErrorKind.CONTENT, status=400), False),
        (UpstreamError("x", kind=ErrorKind.REQUEST, status=422), False),
        (AdmissionRejected("x"), False),
        (InvalidRequest("x"), False),
        (AuthenticationFailed("x"), False),
        (GatewayError("closed"), False),
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'kind', '')}",
)
def test_b20_which_errors_a_stale_answer_may_stand_in_for(error: GatewayError, stale: bool) -> None:
    async def scenario() -> None:
        cached = Cached()
        await cached.ask()
        await asyncio.sleep(4000.0)

        async def fails(_: Any) -> Answer:
            raise error

        if stale:
            answer = await cached.layer(cached.stage.request(), fails)
            assert (answer.served.stale, answer.served.cached) == (True, True)
            assert answer.served.reason == "upstream_error"
        else:
            with pytest.raises(type(error)):
                await cached.layer(cached.stage.request(), fails)
        refusing = CacheControl(stale_if_error=False)
        with pytest.raises(type(error)):
            await cached.layer(cached.stage.request(cache=refusing), fails)

    play(scenario)


@given(
    age=st.floats(0, 8000),
    max_age=st.none() | st.floats(0, 8000),
    downshifted=st.booleans(),
    read=st.booleans(),
)
@settings(max_examples=60, derandomize=True, database=None, deadline=None)
def test_b19_b20_a_hit_is_fresh_by_every_rule_there_is(
    age: float, max_age: float | None, downshifted: bool, read: bool
) -> None:
    async def scenario() -> None:
        cached = Cached()
        await cached.ask(mode="fast" if downshifted else "creative")
        if downshifted:
            cached.stage.rung("creative").circuit.force("open")
        await asyncio.sleep(age)
        lifetime = min(300.0 if downshifted else 3600.0, math.inf if max_age is None else max_age)
        control = CacheControl(read=read, max_age_s=max_age)
        answer = await cached.ask(cache=control)
        assert answer.cached == (read and age < lifetime)
        assert answer.served.age_s == (pytest.approx(age) if answer.cached else 0.0)

    play(scenario)


def test_flights_are_shared_only_by_those_who_ask_the_same_way() -> None:
    async def scenario() -> None:
        cached = Cached([1.0, *reply()])
        same = [asyncio.ensure_future(cached.ask(id=f"gen-{number}")) for number in range(5)]
        other = [
            asyncio.ensure_future(cached.ask(tenant="b")),
            asyncio.ensure_future(cached.ask(params={"temperature": 1.0})),
            asyncio.ensure_future(cached.ask(allow_degrade=False)),
            asyncio.ensure_future(cached.ask(cache=CacheControl(read=False))),
            asyncio.ensure_future(cached.ask(cache=CacheControl(store=False))),
            asyncio.ensure_future(cached.listen()),
            asyncio.ensure_future(cached.listen(on_interrupt="continue")),
        ]
        await asyncio.sleep(0.5)
        assert cached.calls == 1 + len(other)
        assert len(cached.layer._flights) == cached.calls
        await asyncio.gather(*same, *other)
        assert not cached.layer._flights

    play(scenario)


def test_closing_ends_every_flight() -> None:
    async def scenario() -> None:
        cached = Cached([1e9])
        asking = [asyncio.ensure_future(cached.ask(tenant=str(n))) for n in range(3)]
        asking.append(asyncio.ensure_future(cached.ask(cache=CacheControl(read=False))))
        await asyncio.sleep(1.0)
        await cached.layer.aclose()
        ends = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(end, GatewayError) for end in ends)
        cached.stage.at_rest()
        cached.stage.gearbox.close()

    play(scenario)


def test_an_answer_of_a_lower_mode_is_kept_as_that_modes_own() -> None:
    async def scenario() -> None:
        cached = Cached([UpstreamUnavailable("down")])
        degraded = await cached.ask()
        assert (degraded.mode, degraded.served.ttl_s) == ("fast", 300.0)
        native = await cached.ask(mode="fast")
        assert (native.cached, native.degraded, native.served.ttl_s) == (True, False, 3600.0)

    play(scenario)


def test_a_disabled_cache_neither_reads_nor_keeps() -> None:
    async def scenario() -> None:
        cached = Cached(enabled=False)
        for _ in range(2):
            answer = await cached.ask()
            assert (answer.cached, answer.served.ttl_s) == (False, 0.0)
        assert cached.store.stats()["puts"] == cached.store.stats()["misses"] == 0

    play(scenario)
