"""Callers who go away, slots, queues and reloads, over real sockets (B17, B23).

However a call ends, upstream sees the connection close within a second, and the slot is free.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from lab import Lab, begin

from gateway.errors import AdmissionRejected, ConfigError, GatewayError, UpstreamRejected
from gateway.events import Event
from gateway.generation import Generation
from gateway.simulator.scripted import Exchange

TRANSPORTS = pytest.mark.parametrize("transport", ["http1", "httpx"])


async def speaks_and_stops(exchange: Exchange) -> None:
    await begin(exchange, 2)
    await exchange.forever()


async def half_a_body(exchange: Exchange) -> None:
    exchange.head(content_type="application/json", length=1000)
    exchange.write(b'{"choices": [')
    await exchange.forever()


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


# 42: gone before the first token, in mid-stream, and waiting for a whole answer.


@TRANSPORTS
@pytest.mark.parametrize("silence", ["silent", "headers_then_silence", "pings_only"])
async def test_42_gone_before_the_first_token(lab: Lab, transport: str, silence: str) -> None:
    lab.start(target={"transport": transport}, each={"max_in_flight": 1})
    lab.script("creative", [silence, silence, "ok"])
    for times, ask in enumerate((lab.ask, lab.hear), start=1):
        asking: asyncio.Task[Any] = asyncio.create_task(ask())
        await lab.until_asked(times=times)
        await cancel(asking)
        await lab.until_hung_up(times=times)
        await lab.check_at_rest()
    assert (await lab.ask(allow_degrade=False)).mode == "creative"
    assert [event.error for event in lab.finished()] == ["abandoned", "abandoned", ""]
    assert [attempt.outcome for attempt in lab.attempts()] == ["ignored", "ignored", "success"]


@TRANSPORTS
@pytest.mark.parametrize("how", ["leaves", "cancelled", "raises", "dropped"])
async def test_42_gone_in_mid_stream(lab: Lab, transport: str, how: str) -> None:
    lab.start(target={"transport": transport}, each={"max_in_flight": 1})
    lab.script("creative", [speaks_and_stops, "ok"])
    reading = asyncio.Event()

    async def read() -> None:
        async with lab.reading() as stream:
            async for chunk in stream:
                if chunk.text:
                    reading.set()
                    if how == "leaves":
                        return
                    if how == "raises":
                        raise KeyError
                    if how == "dropped":
                        break

    task = asyncio.create_task(read())
    await reading.wait()
    if how == "cancelled":
        await cancel(task)
    else:
        await asyncio.wait([task])
        assert isinstance(task.exception(), KeyError if how == "raises" else type(None))
    await lab.until_hung_up()
    await lab.check_at_rest()
    assert (await lab.ask(allow_degrade=False)).mode == "creative"
    assert lab.finished()[0].error == "abandoned"
    assert lab.cached_entries() == 1


@TRANSPORTS
@pytest.mark.parametrize("play", ["silent", half_a_body], ids=["silent", "half_a_body"])
async def test_42_gone_while_waiting_for_a_whole_answer(
    lab: Lab, transport: str, play: Any
) -> None:
    lab.start(target={"transport": transport, "stream_upstream": False}, each={"max_in_flight": 1})
    lab.script("creative", [play, "ok"])
    asking = asyncio.create_task(lab.ask())
    await lab.until_asked()
    await cancel(asking)
    await lab.until_hung_up()
    await lab.check_at_rest()
    assert (await lab.ask(allow_degrade=False)).mode == "creative"


@TRANSPORTS
@pytest.mark.parametrize("connection", ["new", "pooled"])
async def test_42_gone_at_any_moment(lab: Lab, transport: str, connection: str) -> None:
    """Cancelled after 0, 1, 2, ... turns of the loop, until the answer is there before that."""
    lab.start(target={"transport": transport}, each={"max_in_flight": 1})
    for turns in itertools.count():
        if connection == "pooled":
            await lab.ask(allow_degrade=False)
        asking = asyncio.create_task(lab.ask(allow_degrade=False))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        await lab.check_at_rest()
        if not asking.cancelled():
            break
    assert turns > 5
    assert (await asking).mode == "creative"
    assert {attempt.outcome for attempt in lab.attempts()} == {"ignored", "success"}


@TRANSPORTS
async def test_42_closing_the_gateway_ends_everything_under_way(lab: Lab, transport: str) -> None:
    gateway = lab.start(target={"transport": transport})
    lab.script("creative", speaks_and_stops)
    asking = asyncio.create_task(lab.ask())
    hearing = asyncio.create_task(lab.hear())
    await lab.until_asked(times=2)
    await gateway.aclose()
    await lab.until_hung_up(times=2)
    with pytest.raises(GatewayError, match="closed"):
        await asking
    assert (await hearing).error is not None


async def test_42_gone_while_a_target_asked_to_wait(lab: Lab) -> None:
    lab.start(each={"max_in_flight": 1, "deadline_s": 100.0})
    lab.script("creative", ["429_retry_after_ms", "ok"])
    asking = asyncio.create_task(lab.ask())
    await lab.until_asked()
    while not lab.rests():
        await asyncio.sleep(0)
    await cancel(asking)
    await lab.check_at_rest()
    lab.clock.skip(1.5)
    assert (await lab.ask(allow_degrade=False)).mode == "creative"
    assert lab.requests() == 2


@TRANSPORTS
async def test_42_a_callers_own_timeout_is_its_own(lab: Lab, transport: str) -> None:
    lab.start(target={"transport": transport}, each={"max_in_flight": 1})
    lab.script("creative", ["ok", "silent", speaks_and_stops, "ok"])
    await lab.ask()  # so that what is slow the first time is done
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.2):
            await lab.ask()
    assert not isinstance(caught.value, GatewayError)
    await lab.until_hung_up()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), lab.reading() as stream:
            async for _ in stream:
                pass
    await lab.until_hung_up(times=2)
    assert (await lab.ask(allow_degrade=False)).mode == "creative"


async def test_42_a_script_without_a_loop_walks_down_as_well(lab: Lab) -> None:
    gateway = lab.start()
    lab.script("creative", ["cut_fin", "400_content_openai"])

    def script() -> Generation:
        answer = gateway.generate_sync("hello")
        with pytest.raises(UpstreamRejected):
            gateway.generate_sync("hello again")
        gateway.close()
        return answer

    answer = await asyncio.to_thread(script)
    lab.check_answer(answer, "hello")
    assert answer.mode == "balanced"
    lab.forget()


PLAYS = ["ok", "drip", "silent", "pings_only", "500", "reset", "cut_fin", "html", "429_burst"]


@TRANSPORTS
@pytest.mark.parametrize("seed", [1, 2])
async def test_42_two_hundred_random_cancels_leak_nothing(
    lab: Lab, transport: str, seed: int
) -> None:
    dice = random.Random(seed)
    each = {"max_in_flight": 8, "first_token_s": 0.5}
    lab.start(target={"transport": transport}, each=each)
    ends: Counter[str] = Counter()

    async def one() -> None:
        lab.script("creative", [dice.choice(PLAYS) for _ in range(8)])
        ask = dice.choice((lab.ask, lab.hear))
        task: asyncio.Task[Any] = asyncio.create_task(ask(lab.prompt()))
        for _ in range(dice.randrange(40)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        lab.clock.skip(5.0)
        ends["cancelled" if task.cancelled() else "done"] += 1

    for _ in range(25):
        await asyncio.gather(*(one() for _ in range(8)))
    assert ends.total() == 200
    assert min(ends["cancelled"], ends["done"]) >= 10, ends
    await lab.check_at_rest()
    lab.script("creative", "ok")
    lab.clock.skip(700.0)
    assert (await lab.ask(allow_degrade=False)).mode == "creative"
    await lab.check_at_rest()


# 43: a slot is free again, whatever took it.

Trouble = Callable[[Lab], Awaitable[object]]


async def _abort_a_stream(lab: Lab) -> None:
    lab.script("creative", speaks_and_stops)
    async with lab.reading() as stream:
        await anext(aiter(stream))


async def _time_out(lab: Lab) -> None:
    lab.script("creative", "silent")
    with pytest.raises(GatewayError):
        await lab.ask(deadline=0.1)


async def _be_refused(lab: Lab) -> None:
    lab.script("creative", "422_fastapi")
    with pytest.raises(UpstreamRejected):
        await lab.ask()


async def _break_off(lab: Lab) -> None:
    lab.script("creative", "cut_rst")
    assert (await lab.hear()).error is not None


async def _never_read(lab: Lab) -> None:
    lab.script("creative", "ok")
    async with lab.reading():
        pass


@pytest.mark.parametrize(
    "trouble", [_abort_a_stream, _time_out, _be_refused, _break_off, _never_read]
)
async def test_43_the_only_slot_is_free_again(lab: Lab, trouble: Trouble) -> None:
    lab.start(modes=("creative",), each={"max_in_flight": 1})
    for _ in range(2):
        await trouble(lab)
        lab.script("creative", "ok")
        assert (await lab.ask(deadline=5.0)).mode == "creative"


async def test_43_a_listener_that_raises_holds_no_slot(lab: Lab) -> None:
    gateway = lab.start(modes=("creative",), each={"max_in_flight": 1})

    def broken(event: Event) -> None:
        raise OSError("disk full")

    stop = gateway.listen(broken)
    for _ in range(3):
        assert (await lab.ask()).mode == "creative"
    assert gateway.status()["listener_faults"] > 0
    stop()
    gateway._events.faults = 0


# 44: a queue that is honest.


async def test_44_a_full_queue_says_when_to_come_back(lab: Lab) -> None:
    lab.start(
        modes=("creative",), each={"max_in_flight": 1}, tables={"admission": {"max_queue": 1}}
    )
    lab.script("creative", ["silent", "ok"])
    first = asyncio.create_task(lab.ask())
    await lab.until_asked()
    queued = asyncio.create_task(lab.ask())
    while not lab.gateway.status()["queued"]:
        await asyncio.sleep(0)
    with pytest.raises(AdmissionRejected) as caught:
        await lab.ask()
    assert caught.value.http_status == 429
    assert caught.value.retry_after is not None and caught.value.retry_after >= 1
    await cancel(first)
    assert (await queued).mode == "creative"


async def test_44_who_waits_too_long_is_refused(lab: Lab) -> None:
    lab.start(
        modes=("creative",), each={"max_in_flight": 1}, tables={"admission": {"max_wait_s": 0.05}}
    )
    lab.script("creative", "silent")
    first = asyncio.create_task(lab.ask())
    await lab.until_asked()
    with pytest.raises(AdmissionRejected):
        await lab.ask()
    await cancel(first)


async def test_44_the_urgent_overtake(lab: Lab) -> None:
    lab.start(modes=("creative",), each={"max_in_flight": 1})
    lab.script("creative", ["silent", "ok"])
    order: list[int] = []

    async def ask(priority: int) -> None:
        await lab.ask(priority=priority)
        order.append(priority)

    first = asyncio.create_task(lab.ask())
    await lab.until_asked()
    waiting = [asyncio.create_task(ask(priority)) for priority in (2, 1, 0)]
    while lab.gateway.status()["queued"] < 3:
        await asyncio.sleep(0)
    await cancel(first)
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2]


# 47: a new configuration under load.


async def test_47_a_reload_harms_nobody_under_way(lab: Lab) -> None:
    gateway = lab.start()
    lab.script("creative", "drip")
    config = gateway._in_force.pipeline.config
    answers = []
    for _ in range(10):
        asking = [asyncio.create_task(lab.ask()) for _ in range(4)]
        await lab.until_asked(times=lab.requests() + 1)
        gateway.reload(config)
        answers += await asyncio.gather(*asking)
    assert {answer.mode for answer in answers} == {"creative"}


async def test_47_a_broken_file_keeps_the_old_configuration(lab: Lab, tmp_path: Any) -> None:
    gateway = lab.start()
    broken = tmp_path / "config.toml"
    broken.write_text("[modes.creative]\nfirst_token_ms = 3\n")
    with pytest.raises(ConfigError, match="first_token_ms"):
        gateway.reload(broken)
    assert (await lab.ask()).mode == "creative"
