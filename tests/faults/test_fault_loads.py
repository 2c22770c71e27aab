"""Many at once, several modes broken at once, and what is spent on the dead."""

from __future__ import annotations

import asyncio

import pytest
from lab import MODES, Lab

from gateway.errors import AllModesFailed, ErrorKind, GatewayError
from gateway.simulator.scripted import Exchange


async def test_a_hundred_at_once_before_four_slots(lab: Lab) -> None:
    """The upstream refuses a fifth; the queue and the lower modes carry the rest."""
    playing = most = 0

    async def four_slots(exchange: Exchange) -> None:
        nonlocal playing, most
        if playing == 4:
            exchange.json({"object": "error", "message": "The request queue is full."}, 503)
            return
        playing += 1
        most = max(most, playing)
        try:
            await exchange.pause()
            exchange.head()
            exchange.say(*exchange.tokens)
            exchange.finish()
        finally:
            playing -= 1

    lab.start()
    lab.script("creative", four_slots)
    answers = await asyncio.gather(*(lab.ask() for _ in range(100)))
    modes = [answer.mode for answer in answers]
    assert modes.count("creative") >= 4
    assert set(modes) <= {"creative", "balanced", "fast"}
    assert most == 4
    assert lab.phase() == "closed", "a full queue is no failure"
    lab.clock.skip(5.0)
    assert (await lab.ask()).mode == "creative"
    assert lab.status()["limit"] < 512, "it takes less at once from now on"


async def test_a_limit_of_ones_own_keeps_a_hundred_in_line(lab: Lab) -> None:
    lab.start(modes=("creative",), each={"max_in_flight": 4})
    lab.script("creative", "drip")
    stats, most = lab.primary.stats("creative"), 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, stats.in_flight)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    answers = await asyncio.gather(*(lab.ask() for _ in range(100)))
    watching.cancel()
    await asyncio.wait([watching])
    assert {answer.mode for answer in answers} == {"creative"}
    assert most == 4


async def test_creative_and_balanced_both_fail_and_fast_answers(lab: Lab) -> None:
    lab.start()
    lab.script("creative", "cut_fin")
    lab.script("balanced", "one_token_then_stall")
    lab.start(balanced={"first_token_s": 0.12, "stall_s": 0.12})
    prompt = lab.prompt()
    answer = await lab.ask(prompt)
    assert (answer.mode, answer.reason, answer.served.attempts) == ("fast", "failed", 3)


async def test_whoever_starts_lower_never_climbs(lab: Lab) -> None:
    lab.start()
    lab.script("balanced", "html")
    answer = await lab.ask(mode="balanced")
    assert (answer.mode, answer.requested_mode) == ("fast", "balanced")
    lab.script("fast", "html")
    with pytest.raises(AllModesFailed) as caught:
        await lab.ask(mode="balanced")
    assert list(caught.value.causes) == ["balanced", "fast"]
    assert lab.requests("creative") == 0


@pytest.mark.parametrize("size", [64 * 1024 + 1, 9 * 1024 * 1024])
async def test_an_upstream_is_not_trusted_with_our_memory(lab: Lab, size: int) -> None:
    async def floods(exchange: Exchange) -> None:
        if size < 1024 * 1024:
            exchange.head(headers={"x-flood": "x" * size})
        else:
            exchange.head()
            exchange.write(b"data: " + b"x" * size)
        await exchange.forever()

    lab.start()
    lab.script("creative", floods)
    assert (await lab.ask()).mode == "balanced"
    assert lab.kinds() == {ErrorKind.MALFORMED}
    await lab.until_hung_up()


async def test_a_budget_bounds_what_is_spent_on_one_dead_domain(lab: Lab) -> None:
    """All modes behind one address, no circuit to help: 1.1 attempts a request and a burst (B8)."""
    lab.start(
        target={"base_url": lab.primary.base_url},
        tables={"circuit": {"failure_threshold": 10_000, "failure_ratio": 0.0}},
    )
    for mode in MODES:
        lab.primary.script(mode, ["500"])
    for _ in range(100):
        with pytest.raises(GatewayError):
            await lab.ask()
    asked = sum(lab.primary.stats(mode).requests for mode in MODES)
    assert 100 <= asked <= 1.1 * 100 + 10
