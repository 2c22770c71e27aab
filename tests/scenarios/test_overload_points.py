"""Too much to do: point 20, the queue of B23 and the share of B14."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from world import FOREVER, MODES, World, ladder, play

from gateway.config import Config
from gateway.errors import AdmissionRejected, AllModesFailed, CircuitOpen
from gateway.generation import Generation
from gateway.simulator.faults import Outage
from gateway.simulator.traffic import merge, steady
from gateway.simulator.traffic import play as traffic

SLOTS, ANSWER_S = 8, 0.6
CAPACITY = SLOTS / ANSWER_S  # requests a second of one mode
SERVICE = {"slots": SLOTS, "first_token_s": 0.3, "tokens": 2, "tokens_per_s": 3.3, "spread": 0.2}


def overloaded(config: Config, modes: tuple[str, ...], **options: Any) -> dict[str, float]:
    """8 s at 80 % of capacity, 25 s at three times it, 16 s at 80 %: what share is well used."""
    capacity = CAPACITY * len(config.modes)

    async def scenario(world: World) -> dict[str, float]:
        ended: list[tuple[float, object]] = []

        async def ask(number: int) -> None:
            end = await world.outcome(modes[number % len(modes)], cache=False, **options)
            ended.append((world.now, end))

        load = merge(
            steady(0.8 * capacity, end=8),
            steady(3.0 * capacity, start=8, end=33),
            steady(0.8 * capacity, start=33, end=49),
        )
        await traffic(load, ask)

        def goodput(start: float, end: float) -> float:
            well = sum(start <= at < end and isinstance(e, Generation) for at, e in ended)
            return well / (end - start) / capacity

        return {"over": goodput(13, 33), "back": goodput(43, 49) / 0.8}

    return play(scenario, config)


@pytest.mark.parametrize("deadline", [None, 3.0])
@pytest.mark.parametrize(
    "setting",
    [
        {"queue": 0, "max_in_flight": SLOTS},  # we know its capacity
        {"queue": 32, "max_in_flight": 512},  # it queues itself, and says when that is full
    ],
    ids=["known capacity", "upstream queue"],
)
def test_20_goodput_at_three_times_overload(
    setting: dict[str, int], deadline: float | None
) -> None:
    service = {**SERVICE, "queue": setting["queue"]}
    solo = {"service": service, "max_in_flight": setting["max_in_flight"]}
    share = overloaded(ladder(modes={"solo": solo}), ("solo",), deadline=deadline)
    hidden = deadline is not None and setting["queue"]  # the patience is spent in a queue unseen
    assert share["over"] >= (0.6 if hidden else 0.9)
    assert share["back"] >= 0.98


def test_20_an_upstream_that_only_ever_refuses_is_found_out() -> None:
    """No queue and nobody told us its size: each 503 costs a second of rest, so few must come."""
    solo = {"service": {**SERVICE, "queue": 0}, "max_in_flight": 64}
    share = overloaded(ladder(modes={"solo": solo}), ("solo",))
    assert share["over"] >= 0.85


@pytest.mark.parametrize("asked", [("creative",), MODES], ids=["creative", "all"])
def test_20_goodput_of_the_whole_ladder(asked: tuple[str, ...]) -> None:
    one = {"service": {**SERVICE, "queue": 16}}
    share = overloaded(ladder(modes=dict.fromkeys(MODES, one)), asked)
    assert share["over"] >= 0.9
    assert share["back"] >= 0.95


def test_20_hurried_callers_do_not_make_it_collapse() -> None:
    """The upstream's own queue is longer than anybody's patience: time runs out in it."""
    one = {"service": {**SERVICE, "queue": 256}}
    share = overloaded(ladder(modes={"solo": one}), ("solo",), deadline=3.0)
    assert share["over"] >= 0.4  # it was 0.1 before time that ran out in a queue shrank the limit
    assert share["back"] >= 0.98


# -- the queue -------------------------------------------------------------------------------------


def one_slot(**admission: Any) -> Config:
    return ladder(modes={"solo": {"max_in_flight": 1}}, admission=admission)


def test_waiters_are_served_in_order_and_by_priority() -> None:
    async def scenario(world: World) -> None:
        order: list[str] = []

        async def ask(name: str, priority: int) -> None:
            await world.ask("solo", priority=priority)
            order.append(name)

        tasks = []
        for name, priority in (("first", 1), ("b", 1), ("c", 1), ("d", 2), ("urgent", 0)):
            tasks.append(asyncio.ensure_future(ask(name, priority)))
            await asyncio.sleep(0.01)
        assert world.gateway.status()["queued"] == 4
        await asyncio.gather(*tasks)
        assert order == ["first", "urgent", "b", "c", "d"]

    play(scenario, one_slot())


@pytest.mark.parametrize("seed", range(5))
def test_no_slot_stays_empty_while_somebody_waits(seed: int) -> None:
    async def scenario(world: World) -> None:
        ends = await world.many(60, "solo", deadline=30.0)
        assert all(isinstance(end, Generation) for end in ends)
        assert world.upstream("solo").stats.max_in_flight == 7
        assert world.now == pytest.approx(-(-60 // 7) * 0.161, rel=0.05)

    play(scenario, ladder(modes={"solo": {"max_in_flight": 7}}), seed=seed)


def test_a_slot_that_somebody_else_was_quicker_to_take_costs_nobody_their_place() -> None:
    """Two modes free a slot at once; what both callers could use is one slot short."""

    async def scenario(world: World) -> None:
        ends = await asyncio.gather(
            *(world.outcome("creative") for _ in range(12)),
            *(world.outcome("fast") for _ in range(12)),
        )
        assert all(isinstance(end, Generation) for end in ends)

    one = {"max_in_flight": 2}
    for seed in range(8):
        play(scenario, ladder(modes={"creative": one, "fast": one}), seed=seed)


def test_a_full_queue_refuses_at_once() -> None:
    async def scenario(world: World) -> None:
        tasks = [asyncio.ensure_future(world.outcome("solo")) for _ in range(5)]
        await asyncio.sleep(0.01)
        began = world.now
        with pytest.raises(AdmissionRejected) as refused:
            await world.ask("solo")
        assert world.now == began
        assert refused.value.http_status == 429
        assert refused.value.retry_after is not None
        assert 1.0 <= refused.value.retry_after <= 60.0
        assert world.calls("solo") == 1
        await asyncio.gather(*tasks)

    play(scenario, one_slot(max_queue=4))


def test_a_wait_that_would_be_too_long_is_refused_at_once() -> None:
    async def scenario(world: World) -> None:
        for _ in range(10):
            await world.ask("solo")  # the pace is known: 0.16 s each
        tasks = [asyncio.ensure_future(world.outcome("solo")) for _ in range(11)]
        await asyncio.sleep(0.01)
        began = world.now
        with pytest.raises(AdmissionRejected):
            await world.ask("solo", deadline=1.0)
        assert world.now == began
        ends = await asyncio.gather(*tasks)
        assert all(isinstance(end, Generation) for end in ends)

    play(scenario, one_slot(max_wait_s=20.0))


def test_nobody_waits_longer_than_its_patience() -> None:
    async def scenario(world: World) -> None:
        holder = asyncio.ensure_future(world.outcome("solo", deadline=100.0))
        await asyncio.sleep(0.01)
        ended = {}

        async def wait(deadline: float) -> None:
            began = world.now
            with pytest.raises(AdmissionRejected):
                await world.ask("solo", deadline=deadline)
            ended[deadline] = world.now - began

        await asyncio.gather(wait(100.0), wait(4.0), wait(0.5))
        assert ended == pytest.approx({100.0: 5.0, 4.0: 2.0, 0.5: 0.25}, abs=0.01)
        await holder

    slow = {"max_in_flight": 1, "service": {"first_token_s": 12.0}}
    play(scenario, ladder(modes={"solo": slow}))


def test_a_free_lower_mode_is_used_rather_than_waited_for() -> None:
    async def scenario(world: World) -> None:
        ends = await world.many(6)
        modes = sorted(end.mode for end in ends if isinstance(end, Generation))
        assert modes == ["balanced"] * 2 + ["creative"] * 2 + ["fast"] * 2
        reasons = {end.reason for end in ends if isinstance(end, Generation) and end.degraded}
        assert reasons == {"saturated"}
        assert max(end.duration_s for end in ends if isinstance(end, Generation)) < 0.2

    two = {"max_in_flight": 2}
    play(scenario, ladder(modes=dict.fromkeys(MODES, two)))


def test_an_open_mode_is_no_reason_to_queue() -> None:
    async def scenario(world: World) -> None:
        world.gateway.force("solo", "open")
        with pytest.raises(CircuitOpen):
            await world.ask("solo")
        assert world.now == 0.0

    play(scenario, one_slot())


def test_strict_waiters_do_not_keep_others_from_a_free_lower_mode() -> None:
    """One caller insists on creative, which is full and slow; another is happy with balanced."""

    async def scenario(world: World) -> None:
        holder = asyncio.ensure_future(world.outcome())
        await asyncio.sleep(0.01)
        strict = asyncio.ensure_future(world.outcome(allow_degrade=False))
        await asyncio.sleep(0.01)
        for _ in range(20):
            answer = await world.ask()
            assert (answer.mode, answer.reason) == ("balanced", "saturated")
            await asyncio.sleep(0.1)
        assert isinstance(await strict, AdmissionRejected)
        await holder

    slow = {"max_in_flight": 1, "service": {"first_token_s": 9.0}}
    play(scenario, ladder(modes={"creative": slow, "balanced": {}}))


def test_waiters_go_on_when_their_mode_opens() -> None:
    """The mode they wait for fails: they are not kept waiting for it."""

    async def scenario(world: World) -> None:
        world.plan("solo", Outage(0.0, FOREVER, "error500"))
        ends = await world.many(8, "solo")
        assert world.now < 1.0
        assert not [end for end in ends if isinstance(end, Generation)]

    play(scenario, one_slot())


def test_the_line_outlives_a_reload() -> None:
    async def scenario(world: World) -> None:
        tasks = [asyncio.ensure_future(world.outcome("solo")) for _ in range(4)]
        await asyncio.sleep(0.01)
        world.gateway.reload(one_slot(max_wait_s=4.0))
        world.watch_upstreams()
        tasks += [asyncio.ensure_future(world.outcome("solo")) for _ in range(4)]
        await asyncio.sleep(0.01)
        assert world.gateway.status()["queued"] == 7
        ends = await asyncio.gather(*tasks)
        assert all(isinstance(end, Generation) for end in ends)
        assert world.upstream("solo").stats.max_in_flight == 1
        assert world.now == pytest.approx(8 * 0.161, rel=0.05)

    play(scenario, one_slot())


# -- B14 -------------------------------------------------------------------------------------------


def test_b14_downshifted_traffic_takes_at_most_half_while_native_traffic_wants_it() -> None:
    async def scenario(world: World) -> None:
        world.gateway.force("creative", "open")
        limit = world.rung("balanced").limit
        most = 0

        async def ask(number: int) -> object:
            nonlocal most
            if limit.native or limit.native_waiting:
                most = max(most, limit.downshifted)
            return await world.outcome(("creative", "balanced")[number % 2])

        ends = await traffic(steady(60, end=20), ask)
        assert most <= 5
        native = [e for e in ends if isinstance(e, Generation) and e.requested_mode == "balanced"]
        assert len(native) >= 0.95 * len(ends) / 2
        assert {answer.mode for answer in native} <= {"balanced", "fast"}
        assert sum(answer.mode == "balanced" for answer in native) >= 0.45 * len(native)

    balanced = {"max_in_flight": 10, "service": {"first_token_s": 0.2}}
    play(scenario, ladder(modes={"creative": {}, "balanced": balanced, "fast": {}}))


def test_b14_without_native_traffic_downshifted_traffic_may_take_it_all() -> None:
    async def scenario(world: World) -> None:
        world.gateway.force("creative", "open")
        ends = await world.many(10)
        assert {end.mode for end in ends if isinstance(end, Generation)} == {"balanced"}
        assert world.upstream("balanced").stats.max_in_flight == 10

    play(scenario, ladder(modes={"creative": {}, "balanced": {"max_in_flight": 10}, "fast": {}}))


def test_retry_after_is_truthful() -> None:
    """Whoever comes back when told to is served."""

    async def scenario(world: World) -> None:
        refused = 0

        async def patient(_: int) -> object:
            nonlocal refused
            for _ in range(20):
                try:
                    return await world.ask("solo")
                except (AdmissionRejected, AllModesFailed) as error:
                    refused += 1
                    await asyncio.sleep(error.retry_after or 1.0)
            raise AssertionError("never served")

        ends = await traffic(steady(20, end=10), patient)
        assert refused
        assert all(isinstance(end, Generation) for end in ends)

    play(scenario, one_slot(max_queue=8))
