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


@pytest.mark.parametrize("fault", ["500", "html", "reset"])
async def test_of_two_targets_the_well_one_is_used(lab: Lab, fault: str) -> None:
    """A target that fails comes last for a while, so it costs few requests and opens nothing."""
    lab.primary.script("sick", [fault])
    place = {"kind": "vllm", "base_url": lab.primary.base_url}
    targets = [{**place, "model": "sick"}, {**place, "model": "creative"}]
    lab.start(creative={"targets": targets})
    modes = [(await lab.ask()).mode for _ in range(40)]
    assert modes.count("creative") >= 39
    assert lab.primary.stats("sick").requests <= 3
    assert lab.phase() == "closed"

    lab.primary.script("sick", ["ok"])
    lab.clock.skip(60.0)
    await asyncio.gather(*(lab.gateway.generate(lab.prompt()) for _ in range(10)))
    assert lab.primary.stats("sick").requests >= 5, "well again, it takes its share"


async def test_a_brown_out_opens_by_its_rate_and_costs_no_answer(lab: Lab) -> None:
    lab.start()
    for number in range(60):
        lab.script("creative", "html" if number % 2 else "ok")
        assert (await lab.ask()).text
        lab.clock.skip(1.0)
    assert lab.phase() == "open"
    assert lab.requests() < 20


async def test_a_backend_that_comes_back_weak_is_not_stampeded(lab: Lab) -> None:
    """After the probe the ramp lets in few at a time, and more as time goes by (B6)."""
    release = asyncio.Event()

    async def held(exchange: Exchange) -> None:
        await release.wait()
        exchange.head()
        exchange.say(*exchange.tokens)
        exchange.finish()

    lab.start(each={"max_in_flight": 20})
    await lab.fail(3)
    lab.script("creative", ["ok", held])
    lab.clock.skip(300.0)
    assert (await lab.ask()).mode == "creative"
    for let_in in (1, 2, 7):
        release.clear()
        asking = [asyncio.create_task(lab.ask()) for _ in range(10)]
        while sum(task.done() for task in asking) < 10 - let_in:
            await asyncio.sleep(0)
        stats = lab.primary.stats("creative")
        await lab.primary.until(lambda: stats.in_flight == let_in)  # noqa: B023 - awaited at once
        assert {task.result().reason for task in asking if task.done()} == {"recovering"}
        release.set()
        answers = await asyncio.gather(*asking)
        assert [answer.mode for answer in answers].count("creative") == let_in
        lab.clock.skip({1: 5.0, 2: 15.0, 7: 0.0}[let_in])  # of a ramp of 60 s
    assert lab.phase() == "recovering"


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
