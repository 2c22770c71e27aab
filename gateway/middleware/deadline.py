"""3 One absolute deadline, made at the door and subtracted everywhere below (B1).

The layers below read `request.deadline` each time they wait; nothing restarts a clock.
"""

from __future__ import annotations

from collections.abc import Awaitable

from gateway.clock import Clock
from gateway.errors import DeadlineExceeded
from gateway.generation import GenerationRequest
from gateway.middleware.base import Answer, Handler
from gateway.policies.downshift import Ladder

_NONE = float("inf")


class Deadline:
    """Gives a request without a deadline that of its mode; refuses one whose time is up.

    Args:
        ladder: knows each mode's `deadline_s`.
        clock: monotonic seconds.
    """

    def __init__(self, ladder: Ladder, clock: Clock) -> None:
        self._ladder = ladder
        self._clock = clock

    def __call__(self, request: GenerationRequest, call_next: Handler) -> Awaitable[Answer]:
        """Pass the request on with a finite deadline.

        Raises:
            DeadlineExceeded: the deadline had passed before anything was done.
        """
        deadline = request.deadline
        if deadline == _NONE:
            mode = self._ladder.by_name[request.mode].mode
            deadline = request.deadline = request.started + mode.deadline_s
        if deadline <= self._clock():
            raise DeadlineExceeded("the deadline had passed before the request was sent")
        return call_next(request)
