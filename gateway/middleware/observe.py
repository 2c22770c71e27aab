"""1 Tells the listeners what happened to each request, once, however it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.clock import Clock
from gateway.errors import GatewayError
from gateway.events import EventBus, RequestFinished
from gateway.generation import Generation, GenerationRequest, Served
from gateway.middleware.base import Answer, Handler


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
        answer.when_done(
            lambda generation, error: self._tell(request, answer.served, generation, error)
        )
        return answer

    def _tell(
        self,
        request: GenerationRequest,
        served: Served | None,
        generation: Generation | None,
        error: BaseException | None,
    ) -> None:
        self._on_end(generation, error)
        if not self._events.heard:
            return
        served = served or Served(requested_mode=request.mode, mode="")
        self._events.emit(
            RequestFinished(
                at=self._clock(),
                request_id=request.id,
                requested_mode=request.mode,
                mode=served.mode,
                model=served.model,
                target=served.target,
                tenant=request.tenant,
                stream=not request.buffered,
                degraded=served.degraded,
                reason=served.reason,
                cached=served.cached,
                stale=served.stale,
                attempts=served.attempts,
                error="" if generation else _code(error),
                finish_reason=generation.finish_reason if generation else None,
                first_token_s=served.first_token_s,
                duration_s=self._clock() - request.started,
                prompt_tokens=generation.usage.prompt_tokens if generation else 0,
                completion_tokens=generation.usage.completion_tokens if generation else 0,
            )
        )


def _code(error: BaseException | None) -> str:
    if isinstance(error, GatewayError):
        return error.code
    if error is None or isinstance(error, asyncio.CancelledError):
        return "abandoned"
    return "internal_error"
