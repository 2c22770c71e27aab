"""1 Tells the listeners what happened to each request, once, however it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from gateway.clock import Clock
from gateway.errors import (
    AuthenticationFailed,
    ErrorKind,
    GatewayError,
    InvalidRequest,
    RequestRejected,
    UpstreamRejected,
)
from gateway.events import EventBus, RequestFinished, traceparent
from gateway.generation import Generation, GenerationRequest, Served, Usage
from gateway.middleware.base import Answer, Handler

# Two sums of the same seconds may differ in their last bit.
_ROUNDING_S = 1e-9
_NO_USAGE = Usage()
_PROMPT, _ANSWER = "prompt_tokens_details", "completion_tokens_details"
# Refusals of an upstream that are its answer to the caller; a wrong key or model name is ours.
_CALLERS = frozenset({ErrorKind.CONTEXT, ErrorKind.CONTENT, ErrorKind.REQUEST})


class Observe:
    """The outermost layer.

    Args:
        events: who is told.
        clock: monotonic seconds.
        on_end: told of every request's end: the answer or the error; both None if abandoned.
    """

    def __init__(
        self,
        events: EventBus,
        clock: Clock,
        on_end: Callable[[Generation | None, BaseException | None], None],
    ) -> None:
        self._events = events
        self._clock = clock
        self._on_end = on_end

    async def __call__(self, request: GenerationRequest, call_next: Handler) -> Answer:
        """Pass the request on and listen for its end."""
        try:
            answer = await call_next(request)
        except BaseException as error:
            self._tell(request, None, None, error)
            raise
        answer.when_done(partial(self._tell, request, answer))
        return answer

    def _tell(
        self,
        request: GenerationRequest,
        answer: Answer | None,
        generation: Generation | None,
        error: BaseException | None,
    ) -> None:
        self._on_end(generation, error)
        if not self._events.heard:
            return
        now, served = self._clock(), answer.served if answer else None
        outcome = _outcome(served, generation, error)
        upstream_s = _upstream_s(served, outcome)
        if served is None:  # no mode answered; the request knows how often it was tried
            served = Served(requested_mode=request.mode, mode="", attempts=request.attempts)
            if outcome == "failed" and request.attempts:
                upstream_s = request.upstream_s
        queued_s = served.queued_s or request.queued_s
        usage = generation.usage if generation else _NO_USAGE
        details = usage.details
        overhead_s, inter_token_s = _own_times(request, served, generation, queued_s)
        self._events.emit(
            RequestFinished(  # in the order of its fields: see `Event`
                now,
                request.id,
                request.mode,
                served.mode,
                served.model,
                served.target,
                request.tenant,
                not request.buffered,
                served.degraded,
                served.reason,
                served.cached,
                served.stale,
                served.attempts,
                "" if generation else _code(error),
                generation.finish_reason if generation else None,
                served.first_token_s,
                now - request.started,
                usage.prompt_tokens,
                usage.completion_tokens,
                "text_completion" if request.raw else "chat",
                outcome,
                200 if generation else _status(error),
                request.key,
                traceparent(request.trace) if request.trace else "",
                queued_s,
                upstream_s,
                overhead_s,
                inter_token_s,
                _detail(details, _PROMPT, "cached_tokens") if _PROMPT in details else 0,
                _detail(details, _ANSWER, "reasoning_tokens") if _ANSWER in details else 0,
            )
        )


def _left(error: BaseException | None) -> bool:
    """Whether the caller went away."""
    return error is None or isinstance(error, asyncio.CancelledError)


def _code(error: BaseException | None) -> str:
    if isinstance(error, GatewayError):
        return error.code
    return "abandoned" if _left(error) else "internal_error"


def _status(error: BaseException | None) -> int:
    if isinstance(error, GatewayError):
        return error.http_status
    return 499 if _left(error) else 500


def _outcome(
    served: Served | None, generation: Generation | None, error: BaseException | None
) -> str:
    """One of the words of `RequestFinished.outcome`."""
    if generation is not None:
        served = served or generation.served
        return "stale" if served.stale else "degraded" if served.degraded else "ok"
    if _left(error):
        return "abandoned"
    if isinstance(error, (InvalidRequest, AuthenticationFailed)):
        return "invalid"
    if isinstance(error, UpstreamRejected):
        return "invalid" if error.kind in _CALLERS else "failed"
    return "refused" if isinstance(error, RequestRejected) else "failed"


def _upstream_s(served: Served | None, outcome: str) -> float | None:
    """Seconds in attempts, where somebody added them up to the end."""
    if served is None or served.stale or outcome == "abandoned":
        return None
    return served.upstream_s


def _own_times(
    request: GenerationRequest, served: Served, generation: Generation | None, queued_s: float
) -> tuple[float | None, float | None]:
    """Overhead, and mean time between tokens; see `RequestFinished`.

    `Generation.duration_s` ends where the upstream did: a flight reads at the upstream's pace, and
    its readers at their own. Who boarded a flight late spent less time than the flight did, so
    neither figure can be told for them; who read a hit as a stream had it whole at its first token.
    """
    if generation is None or served.stale:
        return None, None
    if served.cached:
        replayed = None if request.buffered else served.first_token_s
        return generation.duration_s if replayed is None else replayed, None
    overhead_s = generation.duration_s - queued_s - served.upstream_s
    if overhead_s < -_ROUNDING_S:
        return None, None
    inter_token_s = None
    gaps = generation.usage.completion_tokens - 1
    if gaps > 0 and served.first_token_s is not None:
        inter_token_s = max(0.0, generation.duration_s - served.first_token_s) / gaps
    return max(0.0, overhead_s), inter_token_s


def _detail(usage: dict[str, Any], part: str, name: str) -> int:
    """A count inside the upstream's usage object, 0 where it does not say."""
    details = usage[part]
    count = details.get(name) if isinstance(details, dict) else None
    return count if isinstance(count, int) else 0
