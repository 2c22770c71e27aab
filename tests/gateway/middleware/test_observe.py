from __future__ import annotations

import asyncio

import pytest

from gateway.errors import (
    AdmissionRejected,
    AllModesFailed,
    AuthenticationFailed,
    CircuitOpen,
    DeadlineExceeded,
    ErrorKind,
    GatewayError,
    InvalidRequest,
    StreamInterrupted,
    UpstreamRejected,
    UpstreamThrottled,
)
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
        prompt_tokens=3, completion_tokens=4, outcome="degraded", status=200, upstream_s=0.0,
        overhead_s=0.0, inter_token_s=0.0,
    )  # fmt: skip
    [(generation, error)] = seen.ends
    assert generation is not None
    assert error is None


@pytest.mark.parametrize(
    ("error", "code", "outcome", "status"),
    [
        (CircuitOpen("x", mode="creative"), "circuit_open", "refused", 503),
        (AdmissionRejected("x"), "rate_limit_exceeded", "refused", 429),
        (InvalidRequest("x"), "invalid_request", "invalid", 400),
        (AuthenticationFailed("x"), "invalid_api_key", "invalid", 401),
        (UpstreamRejected("x", status=422), "upstream_rejected", "invalid", 422),
        (UpstreamRejected("x", kind=ErrorKind.CONTENT), "content_filter", "invalid", 400),
        (UpstreamRejected("x", kind=ErrorKind.MODEL), "model_not_found", "failed", 404),
        (UpstreamThrottled("x"), "rate_limit_exceeded", "failed", 429),
        (DeadlineExceeded("x"), "deadline_exceeded", "failed", 504),
        (AllModesFailed("x", {"creative": GatewayError("y")}), "all_modes_failed", "failed", 503),
        (asyncio.CancelledError(), "abandoned", "abandoned", 499),
        (ValueError("x"), "internal_error", "failed", 500),
    ],
    ids=repr,
)
async def test_an_error_before_the_answer_is_told_and_raised(
    error: BaseException, code: str, outcome: str, status: int
) -> None:
    seen = Observed()
    with pytest.raises(type(error)):
        await seen.ask(error)
    [event] = seen.events
    assert (event.error, event.mode, event.finish_reason) == (code, "", None)
    assert (event.outcome, event.status) == (outcome, status)
    assert (event.upstream_s, event.overhead_s, event.inter_token_s) == (None, None, None)
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


# -- where the time went --------------------------------------------------------------------------


async def told(
    *,
    buffered: bool = True,
    tokens: int = 5,
    details: dict[str, object] | None = None,
    took_s: float = 4.0,
    **served: object,
) -> RequestFinished:
    """What is told of an answer that took the upstream until 4 s after the door."""
    seen = Observed()
    seen.request.buffered = buffered
    answer = Told()
    fields = {"mode": "creative", "first_token_s": 2.0, "upstream_s": 3.5, "attempts": 1, **served}
    answer.served = Served(requested_mode="creative", **fields)  # type: ignore[arg-type]
    await seen.ask(answer)
    usage = Usage(3, tokens, 3 + tokens, details or {})  # type: ignore[arg-type]
    answer._ended(
        Generation(id="g", choices=[], served=answer.served, usage=usage, duration_s=took_s), None
    )
    [event] = seen.events
    return event


async def test_the_overhead_is_what_neither_queue_nor_upstream_took() -> None:
    event = await told(queued_s=0.25)
    assert (event.queued_s, event.upstream_s, event.overhead_s) == (0.25, 3.5, 0.25)
    assert event.inter_token_s == 0.5  # four gaps in the two seconds after the first token


async def test_a_slow_reader_adds_nothing_to_the_overhead() -> None:
    event = await told(buffered=False)  # reads to its end 2 s after the upstream's
    assert (event.duration_s, event.overhead_s, event.inter_token_s) == (6.0, 0.5, 0.5)


async def test_who_boarded_a_flight_late_has_no_overhead_that_could_be_told() -> None:
    event = await told(took_s=1.0)
    assert (event.upstream_s, event.overhead_s, event.inter_token_s) == (3.5, None, None)


async def test_a_hit_is_all_overhead_and_its_reader_is_not() -> None:
    hit = {"cached": True, "attempts": 0, "upstream_s": 0.0, "first_token_s": 0.001}
    whole = await told(took_s=0.002, **hit)
    assert (whole.overhead_s, whole.inter_token_s, whole.upstream_s) == (0.002, None, 0.0)
    stream = await told(buffered=False, **hit)
    assert (stream.overhead_s, stream.inter_token_s) == (0.001, None)


async def test_nobody_knows_what_the_attempts_before_a_stale_answer_took() -> None:
    event = await told(cached=True, stale=True, upstream_s=0.0)
    assert (event.outcome, event.upstream_s, event.overhead_s) == ("stale", None, None)


@pytest.mark.parametrize("tokens", [0, 1])
async def test_one_token_has_no_gaps(tokens: int) -> None:
    assert (await told(tokens=tokens)).inter_token_s is None


@pytest.mark.parametrize(
    ("details", "counts"),
    [
        (
            {
                "prompt_tokens_details": {"cached_tokens": 2},
                "completion_tokens_details": {"reasoning_tokens": 4},
            },
            (2, 4),
        ),
        ({"prompt_tokens_details": None, "completion_tokens_details": {}}, (0, 0)),
        ({"prompt_tokens_details": {"cached_tokens": "2"}, "completion_tokens_details": 3}, (0, 0)),
        ({}, (0, 0)),
    ],
)
async def test_what_the_upstream_says_in_detail(
    details: dict[str, object], counts: tuple[int, int]
) -> None:
    event = await told(details=details)
    assert (event.cached_tokens, event.reasoning_tokens) == counts


async def test_a_broken_stream_knows_its_upstream_and_an_abandoned_one_does_not() -> None:
    seen = Observed()
    for end in (StreamInterrupted("cut"), None):
        answer = Told()
        await seen.ask(answer)
        answer.served.upstream_s = 1.5
        answer._ended(None, end)
    assert [event.upstream_s for event in seen.events] == [1.5, None]
    assert [event.outcome for event in seen.events] == ["failed", "abandoned"]


@pytest.mark.parametrize(("raw", "operation"), [(False, "chat"), (True, "text_completion")])
async def test_which_operation_it_was(raw: bool, operation: str) -> None:
    seen = Observed()
    seen.request.raw = raw
    await (await seen.ask(Told())).finish()
    assert seen.events[0].operation == operation


async def test_whose_request_it_was() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    seen = Observed()
    for given in (trace, "injected\n{}", ""):
        seen.request.key, seen.request.trace, seen.request.queued_s = "team", given, 0.5
        with pytest.raises(AdmissionRejected):
            await seen.ask(AdmissionRejected("x"))
    assert [event.trace for event in seen.events] == [trace, "", ""]
    assert {(event.key, event.queued_s) for event in seen.events} == {("team", 0.5)}
