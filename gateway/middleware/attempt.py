"""One attempt at one target, under five clocks.

connect and response headers are the transport's; first token, stall and total are kept here, at
token level: keep-alive comments and empty deltas are no progress (B3). One timer serves all
three: moving a limit back is an attribute write, and the timer looks again when it rings.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from gateway.assembly import Assembly
from gateway.clock import Clock
from gateway.errors import ErrorKind, UpstreamRejected, UpstreamTimeout, UpstreamUnavailable
from gateway.generation import Chunk, GenerationRequest
from gateway.providers.base import Call, Provider, Reply

# A timer that rings this late says more about our loop than about the upstream: look again after
# the sockets have been read, so that our own stall is not held against the other side.
_LATE_S = 0.1
_GRACE_S = 0.01
_NEVER = float("inf")


class Attempt(msgspec.Struct, eq=False):
    """One call to one provider.

    Must be opened, read and closed in one task: running out of time cancels that task's await.

    Args:
        provider: who is called.
        call: what is asked.
        request: whose call it is; its absolute deadline is looked up each time it matters.
        assembly: where the chunks are merged.
        clock: monotonic seconds.
        started: when it is opened, on the clock.
        first_token_s: silence allowed before the first content token.
        stall_s: silence allowed between tokens.

    Attributes:
        assembly, started: see above.
        first_token_at: when the first content token came, None before.
        ended: whether the clean end was read.
        late: whether it stopped waiting because its mode was open; its failure tells nothing new.
        received: how many chunks came in all.
        chunks: what has been read and not yet handed on.
    """

    _provider: Provider
    _call: Call
    _request: GenerationRequest
    assembly: Assembly
    _clock: Clock
    started: float
    _first_token_s: float
    _stall_s: float
    first_token_at: float | None = None
    ended: bool = False
    late: bool = False
    received: int = 0
    chunks: list[Chunk] = []
    _heard: float = 0.0
    _due: float = 0.0
    _expired: str = ""
    _reply: Reply | None = None
    _task: asyncio.Task[Any] | None = None
    _cancelling: int = 0
    _timer: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Send the call and read until the first content token, or to a whole answer without one.

        Raises:
            UpstreamError: anything went wrong; `UpstreamTimeout.phase` says which clock.
        """
        self._task = task = asyncio.current_task()
        self._cancelling = task.cancelling() if task else 0
        now = self._heard = self.started
        self._due = now + self._first_token_s
        self._set_timer(now)
        try:
            self._reply = await self._provider.open(self._call)
        except asyncio.CancelledError:
            self._raise_if_expired()
            raise
        while self.first_token_at is None:
            if not await self.read():
                self._check_not_empty()
                return

    async def read(self) -> bool:
        """Read on into `chunks`. Returns False at the clean end.

        Raises:
            UpstreamError: the answer broke or stalled.
        """
        reply = self._reply
        if self.ended or reply is None:
            return False
        try:
            chunks = await reply.read()
        except asyncio.CancelledError:
            self._raise_if_expired()
            raise
        if not chunks:
            self.ended = True
            return False
        self._take(chunks)
        return True

    def give_up(self, *, late: bool) -> None:
        """Stop waiting for a first token that is overdue. No effect once one came."""
        if self.first_token_at is None and not self._expired:
            self.late = late
            self._expire()

    def silence(self) -> float:
        """Seconds since the last content token, or since it was opened."""
        return self._clock() - self._heard

    def close(self) -> None:
        """Drop the reply and the timer. Idempotent, synchronous."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        reply, self._reply = self._reply, None
        if reply is not None:
            reply.close()

    def _take(self, chunks: list[Chunk]) -> None:
        self.assembly.add_all(chunks)
        self.chunks += chunks
        self.received += len(chunks)
        for chunk in chunks:
            choices = chunk.choices
            if (choices and choices[0].delta.content) or chunk.carries():  # text, as a rule
                now = self._heard = self._clock()
                self._due = now + self._stall_s
                if self.first_token_at is None:
                    self.first_token_at = now
                return

    def _check_not_empty(self) -> None:
        """A complete answer with nothing in it is a failure, unless the caller's cap was hit."""
        finish_reason = self.assembly.finish_reason
        if finish_reason == "content_filter":
            raise UpstreamRejected(
                f"the content filter of {self._provider.name} withheld the answer",
                kind=ErrorKind.CONTENT,
                target=self._provider.name,
            )
        if finish_reason != "length":
            raise UpstreamUnavailable(
                f"{self._provider.name} sent a complete answer with nothing in it",
                kind=ErrorKind.EMPTY,
                target=self._provider.name,
            )

    # -- the timer ------------------------------------------------------------------------------

    def _set_timer(self, now: float) -> None:
        # Never for longer than a stall, so that the first token need not set it anew: the limit
        # that holds from then on ends later than this.
        due = min(self._due, now + self._stall_s, self._request.deadline)
        if due < _NEVER:
            self._call_later(max(0.0, due - now), due)

    def _call_later(self, delay: float, due: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay, self._ring, due)

    def _ring(self, meant_for: float) -> None:
        now = self._clock()
        if min(self._due, self._request.deadline) > now + 1e-3:
            self._set_timer(now)  # it was early, or progress was made meanwhile
        elif now - meant_for > _LATE_S:
            self._call_later(_GRACE_S, now + _GRACE_S)
        else:
            self._expire()

    def _expire(self) -> None:
        if self._expired:
            return  # one cancel is taken back; a second would end the whole request
        phase = "first_token" if self.first_token_at is None else "stall"
        self._expired = phase if self._due <= self._request.deadline else "total"
        if self._task is not None:
            self._task.cancel()

    def _raise_if_expired(self) -> None:
        """Turn our own timer's cancellation into `UpstreamTimeout` (as asyncio does)."""
        if self._expired and self._task is not None and self._task.uncancel() <= self._cancelling:
            raise self._timeout() from None

    def _timeout(self) -> UpstreamTimeout:
        waited = self._clock() - self.started
        what = {
            "first_token": "no first token",
            "stall": f"no further token for {self._stall_s:g} s",
            "total": "not finished by the caller's deadline",
        }[self._expired]
        return UpstreamTimeout(
            f"{self._provider.name}: {what} after {waited:.3g} s",
            phase=self._expired,
            target=self._provider.name,
        )
