"""6 The gearbox: walks the ladder its circuits allow, and settles every attempt.

The first mode whose answer commits wins. A caller who wants one piece commits at the end, so a
failure half-way restarts clean on the next mode; a stream commits at its first content token and
is never silently re-run after it (B15, B16).
"""

from __future__ import annotations

import msgspec

from gateway.clock import Clock
from gateway.detectors.failures import Outcome
from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    StreamInterrupted,
    UpstreamError,
    UpstreamTimeout,
)
from gateway.events import EventBus
from gateway.generation import Chunk, Generation, GenerationRequest, Usage
from gateway.middleware.base import Answer
from gateway.middleware.walk import Walk
from gateway.middleware.watch import OverdueWatch
from gateway.policies.downshift import Ladder

_SUCCESS = Outcome.SUCCESS  # a look into the enumeration costs 0.2 µs


class CircuitBreaker:
    """The innermost layer: answers from the highest mode that can.

    Args:
        ladder: the modes with their circuits, limits and targets.
        clock: monotonic seconds.
        events: told of each attempt.
    """

    def __init__(self, ladder: Ladder, clock: Clock, events: EventBus) -> None:
        self._ladder = ladder
        self._clock = clock
        self._events = events
        self._watch = OverdueWatch(clock)

    async def __call__(self, request: GenerationRequest) -> LadderAnswer:
        """Walk down until a mode answers.

        Raises:
            AllModesFailed: every allowed mode failed or was closed to it.
            CircuitOpen: degrading was forbidden and the mode is open.
            UpstreamError: the fault is the caller's, or degrading was forbidden.
            AdmissionRejected: every allowed mode is at its limit.
            DeadlineExceeded: time ran out on the way.
        """
        walk = Walk(request, self._ladder, self._watch, self._clock, self._events)
        await walk.descend()
        return LadderAnswer(walk)

    def close(self) -> None:
        """Stop the timers that watch for overdue attempts."""
        self._watch.close()


class LadderAnswer(Answer):
    """An answer from the ladder, committed; it settles its visit when it ends, however it ends."""

    __slots__ = ("_generation", "_walk")

    def __init__(self, walk: Walk) -> None:
        self.served = walk.served()
        self._done = None
        self._walk = walk
        self._generation: Generation | None = None

    @property
    def partial(self) -> str:
        """The text that has arrived."""
        return self._walk.assembly.text()

    async def read(self) -> list[Chunk]:
        """Return what has arrived; when it breaks, do what the caller's policy says (B16)."""
        walk = self._walk
        while (attempt := walk.attempt) is not None:
            if attempt.chunks:
                chunks, attempt.chunks = attempt.chunks, []
                return chunks
            try:
                if not await attempt.read():
                    walk.settle(_SUCCESS)
                elif walk.probing:
                    walk.prove()
            except UpstreamError as error:
                await self._broken(error)
        return []

    async def finish(self) -> Generation:
        """Read to the end and return the whole."""
        attempt = self._walk.attempt
        if attempt is not None and attempt.ended:
            self._walk.settle(_SUCCESS)  # it was read to its end before it committed
        else:
            while await self.read():
                pass
        if self._generation is None:
            walk = self._walk
            assembly, request = walk.assembly, walk.request
            self._generation = Generation(
                id=request.id,
                choices=assembly.choices(),
                served=self.served,
                usage=Usage.of(assembly.usage),
                created=assembly.created,
                extra=assembly.extra,
                duration_s=walk.clock() - request.started,
            )
        return self._generation

    def close(self) -> None:
        """Let go, finished or not."""
        self._walk.abandoned()

    async def _broken(self, error: UpstreamError) -> None:
        walk, partial, mode = self._walk, self.partial, self.served.mode
        walk.broken(error)
        if isinstance(error, UpstreamTimeout) and error.phase == "total":
            raise DeadlineExceeded("the deadline passed mid-answer", partial=partial) from error
        if self._may_continue():
            # Half this mode's, half that one's: nobody's own answer, so nobody's to keep (B18).
            walk.request.cache = msgspec.structs.replace(walk.request.cache, store=False)
            try:
                await walk.descend(prefix=partial)
            except GatewayError:
                pass  # nobody can continue it: the break itself is what the caller should hear
            else:
                first_token_s = self.served.first_token_s
                self.served = walk.served()
                self.served.first_token_s = first_token_s
                return
        raise StreamInterrupted(
            f"the answer broke off: {error}",
            kind=error.kind,
            target=error.target,
            mode=mode,
            partial=partial,
        ) from error

    def _may_continue(self) -> bool:
        """Whether a broken answer may be continued: the caller wishes it, and its text is all there
        was of it. Reasoning, half a tool call or one of several choices would have to begin anew,
        before the caller's eyes (B15).
        """
        request = self._walk.request
        wished = request.on_interrupt == "continue" and request.params.get("n") in (None, 1)
        return wished and self._walk.assembly.continuable()
