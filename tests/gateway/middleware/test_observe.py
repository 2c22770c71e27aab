from __future__ import annotations

import asyncio

import pytest

from gateway.errors import AllModesFailed, CircuitOpen, GatewayError
from gateway.events import EventBus, RequestFinished
from gateway.generation import Chunk, Generation, GenerationRequest, Served, Usage
from gateway.middleware.base import Answer
from gateway.middleware.observe import Observe


class Told(Answer):
    """An answer that ends as it is told to."""

    def __init__(self) -> None:
        super().__init__(
            Served(requested_mode="creative", mode="fast", model="m", target="t", degraded=True,
                   reason="failed", attempts=2, first_token_s=0.5)
        )  # fmt: skip

    async def read(self) -> list[Chunk]:
        return []

    async def finish(self) -> Generation:
        choice = {"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}
        generation = Generation(
            id="gen-1", choices=[choice], served=self.served, usage=Usage(3, 4, 7)
        )
        self._ended(generation, None)
        return generation

    def fail(self, error: BaseException) -> None:
        self._ended(None, error)

    def close(self) -> None:
        self._ended(None, None)


class Observed:
    def __init__(self, *, listening: bool = True) -> None:
        self.events: list[RequestFinished] = []
        self.ends: list[tuple[Generation | None, BaseException | None]] = []
        bus = EventBus()
        if listening:
            bus.listen(self.events.append)  # type: ignore[arg-type]
        self.now = 10.0
        self.layer = Observe(bus, lambda: self.now, lambda *end: self.ends.append(end))
        self.request = GenerationRequest(
            id="gen-1", mode="creative", messages=[], started=4.0, tenant="a", buffered=False
        )

    async def ask(self, outcome: Answer | BaseException) -> Answer:
        async def call_next(_: GenerationRequest) -> Answer:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        return await self.layer(self.request, call_next)


async def test_an_answer_is_told_when_it_ends_and_once() -> None:
    seen = Observed()
    answer = await seen.ask(Told())
    assert seen.events == []
    await answer.finish()
    answer.close()
    answer.close()
    [event] = seen.events
    assert event == RequestFinished(
        at=10.0, request_id="gen-1", requested_mode="creative", mode="fast", model="m", target="t",
        tenant="a", stream=True, degraded=True, reason="failed", cached=False, stale=False,
        attempts=2, error="", finish_reason="stop", first_token_s=0.5, duration_s=6.0,
        prompt_tokens=3, completion_tokens=4,
    )  # fmt: skip
    [(generation, error)] = seen.ends
    assert generation is not None
    assert error is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CircuitOpen("x", mode="creative"), "circuit_open"),
        (AllModesFailed("x", {"creative": GatewayError("y")}), "all_modes_failed"),
        (asyncio.CancelledError(), "abandoned"),
        (ValueError("x"), "internal_error"),
    ],
    ids=str,
)
async def test_an_error_before_the_answer_is_told_and_raised(
    error: BaseException, code: str
) -> None:
    seen = Observed()
    with pytest.raises(type(error)):
        await seen.ask(error)
    [event] = seen.events
    assert (event.error, event.mode, event.finish_reason) == (code, "", None)
    assert seen.ends == [(None, error)]


async def test_an_answer_that_breaks_or_is_left_is_told_too() -> None:
    seen = Observed()
    answer = Told()
    await seen.ask(answer)
    answer.fail(GatewayError("broke"))
    await seen.ask(left := Told())
    left.close()
    assert [event.error for event in seen.events] == ["gateway_error", "abandoned"]
    assert [event.mode for event in seen.events] == ["fast", "fast"]
    assert len(seen.ends) == 2


async def test_nobody_listening_costs_no_event_but_the_end_is_still_known() -> None:
    seen = Observed(listening=False)
    await (await seen.ask(Told())).finish()
    assert seen.events == []
    assert len(seen.ends) == 1
