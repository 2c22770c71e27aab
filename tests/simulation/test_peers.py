"""The peers' policies do what their documentation says: no strawmen."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from gateway.errors import GatewayError, StreamInterrupted, UpstreamThrottled, UpstreamUnavailable
from gateway.simulator.clock import run
from gateway.simulator.faults import AnyFault, CutStream, FaultPlan, Outage, Throttled
from gateway.simulator.service import Service
from gateway.simulator.upstream import SimulatedProvider
from tests.simulation.baselines import (
    PEERS,
    Breaker,
    Cooldown,
    LongCooldown,
    NoResilience,
    Retries,
    Unavailable,
    answer_in_time,
)
from tests.simulation.schedule import MODES, Ask

QUICK = Service(first_token_s=0.1, spread=0.0, tokens=3, tokens_per_s=100.0)
DOWN = Outage(0.0, 1e6, "error500")

# Driven as it comes, aiobreaker 1.2 asks `datetime.utcnow`, which Python 3.12 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:.*utcnow:DeprecationWarning")


def ask(*, stream: bool = False, deadline_s: float | None = None, degrade: bool = True) -> Ask:
    return Ask(0.0, "creative", "why", True, stream, deadline_s, None, degrade)


def meet(
    kind: type[NoResilience],
    scenario: Callable[[NoResilience, Callable[[str], int]], Awaitable[None]],
    **faults: AnyFault,
) -> None:
    """Let a policy meet faults; the scenario gets it, and who counts a mode's calls."""

    async def main() -> None:
        upstreams = {
            mode: SimulatedProvider(
                mode, service=QUICK, plan=FaultPlan((faults[mode],) if mode in faults else ())
            )
            for mode in MODES
        }
        await scenario(
            kind(upstreams, random.Random(1)), lambda mode: upstreams[mode].stats.started
        )
        assert all(upstream.stats.in_flight == 0 for upstream in upstreams.values())

    run(main)


@pytest.mark.parametrize("kind", PEERS)
def test_all_answer_from_the_mode_asked_for_while_all_is_well(kind: type[NoResilience]) -> None:
    async def scenario(policy: NoResilience, calls: Callable[[str], int]) -> None:
        assert [await policy.answer(ask()) for _ in range(5)] == ["creative"] * 5
        assert (calls("creative"), calls("balanced")) == (5, 0)

    meet(kind, scenario)


@pytest.mark.parametrize("kind", PEERS)
def test_none_waits_past_the_deadline(kind: type[NoResilience]) -> None:
    async def scenario(policy: NoResilience, calls: Callable[[str], int]) -> None:
        with pytest.raises(TimeoutError):
            await answer_in_time(policy, ask(deadline_s=3.0))
        assert policy.now() == 3.0

    meet(kind, scenario, creative=Outage(0.0, 1e6, "silent"))


@pytest.mark.parametrize("kind", PEERS)
def test_none_repeats_a_stream_that_was_heard(kind: type[NoResilience]) -> None:
    async def scenario(policy: NoResilience, calls: Callable[[str], int]) -> None:
        with pytest.raises(StreamInterrupted):
            await policy.answer(ask(stream=True))
        assert (calls("creative"), calls("balanced")) == (1, 0)

    meet(kind, scenario, creative=CutStream(0.0, 1e6, 1.0, 2))


def test_without_resilience_the_failure_is_the_callers() -> None:
    async def scenario(policy: NoResilience, calls: Callable[[str], int]) -> None:
        with pytest.raises(UpstreamUnavailable):
            await policy.answer(ask())
        assert (calls("creative"), calls("balanced")) == (1, 0)

    meet(NoResilience, scenario, creative=DOWN)


def test_retries_are_three_tries_with_pauses_and_then_the_fallback() -> None:
    async def scenario(policy: NoResilience, calls: Callable[[str], int]) -> None:
        assert await policy.answer(ask()) == "balanced"
        assert (calls("creative"), calls("balanced")) == (3, 1)
        assert 0.375 + 0.75 < policy.now() < 0.5 + 1.0 + 0.5

    meet(Retries, scenario, creative=DOWN)


def test_retries_obey_a_retry_after() -> None:
    async def scenario(policy: NoResilience, calls: Callable[[str], int]) -> None:
        assert await policy.answer(ask()) == "creative"
        assert calls("creative") == 2
        assert 7.0 < policy.now() < 7.5

    meet(Retries, scenario, creative=Throttled(0.0, 5.0, retry_after=7.0))


@pytest.mark.parametrize(("kind", "cooldown_s"), [(Cooldown, 5.0), (LongCooldown, 60.0)])
def test_a_cooldown_begins_with_the_fourth_failure_and_lets_all_return_at_once(
    kind: type[NoResilience], cooldown_s: float
) -> None:
    async def scenario(policy: NoResilience, calls: Callable[[str], int]) -> None:
        for _ in range(10):
            assert await policy.answer(ask()) == "balanced"
        assert calls("creative") == 4
        await asyncio.sleep(cooldown_s)
        crowd = await asyncio.gather(*(policy.answer(ask()) for _ in range(20)))
        assert set(crowd) == {"balanced"}
        assert calls("creative") >= 24  # nobody holds them back

    meet(kind, scenario, creative=DOWN)


def test_a_429_cools_for_its_retry_after_and_no_longer_than_a_minute() -> None:
    async def scenario(policy: NoResilience, calls: Callable[[str], int]) -> None:
        assert await policy.answer(ask()) == "balanced"
        await asyncio.sleep(59.0)
        assert await policy.answer(ask()) == "balanced"
        await asyncio.sleep(1.0)
        assert await policy.answer(ask()) == "creative"
        assert calls("creative") == 2

    meet(Cooldown, scenario, creative=Throttled(0.0, 30.0, retry_after=600.0))


def test_when_all_cool_nobody_is_asked() -> None:
    async def scenario(policy: NoResilience, calls: Callable[[str], int]) -> None:
        with pytest.raises(UpstreamThrottled):
            await policy.answer(ask())
        with pytest.raises(Unavailable):
            await policy.answer(ask())
        assert [calls(mode) for mode in MODES] == [1, 1, 1]

    throttled = Throttled(0.0, 1e6, retry_after=30.0)
    meet(Cooldown, scenario, creative=throttled, balanced=throttled, fast=throttled)


def test_aiobreaker_opens_at_three_and_tries_once_after_five_minutes() -> None:
    async def scenario(policy: NoResilience, calls: Callable[[str], int]) -> None:
        for _ in range(5):
            assert await policy.answer(ask()) == "balanced"
        opened = policy.now()
        assert calls("creative") == 3
        await asyncio.sleep(299.0)
        assert await policy.answer(ask()) == "balanced"
        assert calls("creative") == 3
        await asyncio.sleep(opened + 300.0 - policy.now())
        crowd = await asyncio.gather(*(policy.answer(ask()) for _ in range(20)))
        assert crowd.count("creative") == 1
        assert calls("creative") == 4
        assert await policy.answer(ask()) == "creative"

    meet(Breaker, scenario, creative=Outage(0.0, 200.0, "error500"))


def test_who_forbids_a_fallback_gets_none() -> None:
    async def scenario(policy: NoResilience, calls: Callable[[str], int]) -> None:
        with pytest.raises(GatewayError):
            await policy.answer(ask(degrade=False))
        assert calls("balanced") == 0

    for kind in PEERS:
        meet(kind, scenario, creative=DOWN)
