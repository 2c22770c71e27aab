from __future__ import annotations

import pytest
from stage import ScriptedProvider, Stage, loop, play

from gateway.errors import DeadlineExceeded
from gateway.generation import GenerationRequest
from gateway.middleware.base import Answer
from gateway.middleware.deadline import Deadline


async def passed_on(stage: Stage, request: GenerationRequest) -> float | None:
    """The deadline the next layer sees, None if it sees no request."""
    seen: list[float] = []

    async def call_next(request: GenerationRequest) -> Answer:
        seen.append(request.deadline)
        raise LookupError

    with pytest.raises((LookupError, DeadlineExceeded)):
        await Deadline(stage.ladder, stage.clock)(request, call_next)
    return seen[0] if seen else None


def two_modes() -> Stage:
    return Stage(
        {"creative": ScriptedProvider(), "fast": ScriptedProvider()},
        mode_options={"creative": {"deadline_s": 180.0}, "fast": {"deadline_s": 7.5}},
    )


@pytest.mark.parametrize(("mode", "expected"), [("creative", 183.0), ("fast", 10.5)])
def test_without_one_the_modes_own_counts_from_the_door(mode: str, expected: float) -> None:
    async def scenario() -> None:
        stage = two_modes()
        request = stage.request(mode, deadline=float("inf"), started=3.0)
        assert await passed_on(stage, request) == expected

    play(scenario)


def test_the_callers_own_is_kept() -> None:
    async def scenario() -> None:
        stage = two_modes()
        assert await passed_on(stage, stage.request("fast", deadline=1000.0)) == 1000.0

    play(scenario)


@pytest.mark.parametrize("left", [0.0, -1.0])
def test_one_that_has_passed_is_not_sent_on(left: float) -> None:
    async def scenario() -> None:
        stage = two_modes()
        request = stage.request(deadline=loop().time() + left)
        assert await passed_on(stage, request) is None

    play(scenario)
