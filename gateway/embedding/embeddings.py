"""The face: checks what is asked, lets it walk, tells how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from gateway.clock import Clock
from gateway.config import Config
from gateway.embedding.places import MODE, Places
from gateway.embedding.vectors import Embedding
from gateway.embedding.walk import Walk
from gateway.errors import DeadlineExceeded, GatewayError, InvalidRequest
from gateway.events import EventBus, RequestFinished, traceparent
from gateway.generation import Usage
from gateway.policies.quota import Accounts
from gateway.validation import new_id

DEADLINE_S = 120.0
"""Where the caller sets none."""

MOST_INPUTS = 2048
"""Inputs in one request; OpenAI's own limit."""

MOST_CHARACTERS = 10_000_000
_CHARACTERS_PER_TOKEN = 4


class Embeddings:
    """Embeds texts with the targets of `[[embeddings.targets]]`.

    Args:
        clock: monotonic seconds.
        events: told of attempts, requests and circuits, under the mode `embeddings`.
    """

    def __init__(self, clock: Clock, events: EventBus) -> None:
        self.places = Places(clock, events)
        self._clock = clock
        self._events = events

    async def embed(
        self,
        config: Config,
        accounts: Accounts,
        texts: Any,
        model: str | None,
        fields: Mapping[str, Any],
        *,
        deadline: float | None = None,
        tenant: str = "",
        key: str = "",
        trace: str = "",
        generation_id: str = "",
    ) -> Embedding:
        """Embed texts under a configuration; see `Gateway.embed`.

        `accounts` hold the limits of keys, which count here as they do for generations.
        """
        self.places.configure(config)
        places = self.places.of(model)
        length = _check_input(texts)
        if deadline is not None and not _is_time(deadline):
            raise InvalidRequest("deadline must be a positive number of seconds", param="deadline")
        tokens = length // _CHARACTERS_PER_TOKEN + 1
        reservation = accounts.reserve(key, tokens)
        walk = Walk(
            places,
            {**fields, "input": texts},
            request_id=generation_id or new_id(),
            deadline_s=DEADLINE_S if deadline is None else deadline,
            clock=self._clock,
            events=self._events,
        )
        embedding: Embedding | None = None
        error: BaseException | None = None
        try:
            embedding = await walk.run()
        except BaseException as failed:
            error = failed
            raise
        finally:
            reservation.settle(_used(embedding, error, tokens))
            if self._events.heard:
                self._tell(walk, embedding, error, tenant=tenant, key=key, trace=trace)
        return embedding

    async def aclose(self) -> None:
        """Close connections."""
        await self.places.aclose()

    def _tell(
        self,
        walk: Walk,
        embedding: Embedding | None,
        error: BaseException | None,
        **whose: str,
    ) -> None:
        now = self._clock()
        took = now - walk.started
        usage = embedding.usage if embedding else Usage()
        outcome, status, code = _end(error)
        self._events.emit(
            RequestFinished(
                at=now,
                request_id=walk.id,
                requested_mode=MODE,
                mode=MODE if embedding else "",
                model=embedding.model if embedding else "",
                target=embedding.target if embedding else "",
                tenant=whose["tenant"],
                stream=False,
                degraded=False,
                reason=None,
                cached=False,
                stale=False,
                attempts=walk.attempts,
                error=code,
                finish_reason=None,
                first_token_s=None,
                duration_s=took,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                outcome=outcome,
                status=status,
                key=whose["key"],
                trace=traceparent(whose["trace"]),
                upstream_s=walk.upstream_s,
                overhead_s=max(0.0, took - walk.upstream_s) if embedding else None,
            )
        )


def _used(embedding: Embedding | None, error: BaseException | None, tokens: int) -> int:
    """Tokens a request has used: as the upstream counts them, else as we guess; none if it failed.

    One that its caller gave up, or had no time for, has kept a model busy.
    """
    if embedding is not None:
        return embedding.usage.total_tokens or tokens
    return tokens if isinstance(error, asyncio.CancelledError | DeadlineExceeded) else 0


def _end(error: BaseException | None) -> tuple[str, int, str]:
    """Outcome, status and code of `RequestFinished`."""
    if error is None:
        return "ok", 200, ""
    if isinstance(error, GatewayError):
        status = error.http_status
        outcome = "invalid" if status < 429 else "refused" if status == 503 else "failed"
        return outcome, status, error.code
    if isinstance(error, asyncio.CancelledError):
        return "abandoned", 499, "abandoned"
    return "failed", 500, "internal_error"


def _is_time(seconds: Any) -> bool:
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return number and 0 < seconds < 1e9


def _check_input(texts: Any) -> int:
    """A text, a list of texts, one text's tokens, or a list of those; returns their length.

    Raises:
        InvalidRequest: anything else, nothing at all, or too much.
    """
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list | tuple) or not texts:
        raise InvalidRequest("input must be a text or a list of texts", param="input")
    if all(_is_token(token) for token in texts):
        return len(texts) * _CHARACTERS_PER_TOKEN
    if len(texts) > MOST_INPUTS:
        raise InvalidRequest(f"input must be a list of at most {MOST_INPUTS}", param="input")
    length = 0
    for number, text in enumerate(texts):
        tokens = isinstance(text, list | tuple) and all(_is_token(token) for token in text)
        if not text or not (isinstance(text, str) or tokens):
            raise InvalidRequest(
                f"input[{number}] must be a text that is not empty", param=f"input[{number}]"
            )
        length += len(text) * (_CHARACTERS_PER_TOKEN if tokens else 1)
    if length > MOST_CHARACTERS:
        raise InvalidRequest(
            f"input has {length} characters; at most {MOST_CHARACTERS} are taken", param="input"
        )
    return length


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
