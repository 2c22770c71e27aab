"""2 What each key may use: reserved when a request comes in, settled however it ends (B23).

An answer from the cache costs a request and no tokens. Callers who share a flight each pay for
what they get, as they would have alone: whose luck it was is nobody's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final

from gateway.clock import Clock
from gateway.errors import DeadlineExceeded
from gateway.generation import Generation, GenerationRequest
from gateway.middleware.base import Answer, Handler
from gateway.policies.downshift import Ladder
from gateway.policies.quota import Account, Accounts
from gateway.policies.rate import Ledger, MemoryLedger
from gateway.policies.tokens import (
    answer_tokens,
    prompt_tokens,
    says_how_long,
    text_tokens,
    written_tokens,
)

# What a busy model writes, rather more than less. Only for answers that were given up before
# anything of them was seen.
_TOKENS_PER_S: Final = 100


class Quota:
    """Holds each key to its limits.

    Args:
        accounts: what each key may use and has used.
        ladder: knows how long each mode's answers may be.
        clock: monotonic seconds.
    """

    def __init__(self, accounts: Accounts, ladder: Ladder, clock: Clock) -> None:
        self._accounts = accounts
        self._ladder = ladder
        self._clock = clock

    def __call__(self, request: GenerationRequest, call_next: Handler) -> Awaitable[Answer]:
        """Pass the request on if its key has enough left.

        Raises:
            QuotaRefused: it has not; says which limit, and when to come back.
        """
        account = self._accounts.find(request.key)
        return call_next(request) if account is None else self._held(request, account, call_next)

    async def _held(
        self, request: GenerationRequest, account: Account, call_next: Handler
    ) -> Answer:
        prompt, longest, said = self._estimate(request)
        reservation = account.reserve(
            prompt + longest, at_least=prompt + longest if said else prompt
        )
        try:
            answer = await call_next(request)
        except BaseException as error:
            reservation.settle(self._given_up(request, error, prompt, longest))
            raise
        answer.when_done(
            lambda generation, _: reservation.settle(_used(answer, generation, prompt))
        )
        return answer

    def _estimate(self, request: GenerationRequest) -> tuple[int, int, bool]:
        """Tokens of the prompt, at most of the answer, and whether the caller said how many."""
        mode = self._ladder.by_name[request.mode].mode
        prompt = prompt_tokens(request.messages, request.params)
        longest = answer_tokens(request.params, mode.sampling)
        return prompt, longest, says_how_long(request.params)

    def _given_up(
        self, request: GenerationRequest, error: BaseException, prompt: int, longest: int
    ) -> int:
        """Tokens of a request without an answer: none if that is our fault.

        One that its caller gave up, or had no time for, has kept a model busy. A stream had not
        come to its first token; of a whole answer nobody knows how much was written.
        """
        if not isinstance(error, (asyncio.CancelledError, DeadlineExceeded)):
            return 0
        if not request.buffered:
            return prompt
        busy_s = max(0.0, self._clock() - request.started - request.queued_s)
        return prompt + min(longest, int(busy_s * _TOKENS_PER_S))


def _used(answer: Answer, generation: Generation | None, prompt: int) -> int:
    """Tokens of an answer: as the upstream counts them, else by what there is of it."""
    if answer.served.cached:
        return 0
    if generation is None:
        return prompt + text_tokens(answer.arrived())
    return generation.usage.total_tokens or prompt + written_tokens(generation)


def open_usage(path: str) -> Ledger:
    """The ledger of the months: outlives restarts and power cuts, and is shared by workers."""
    if path == ":memory:":
        return MemoryLedger()
    from gateway.stores.shared import SharedStore  # noqa: PLC0415 - most need no file

    return SharedStore(path, lasting=True)
