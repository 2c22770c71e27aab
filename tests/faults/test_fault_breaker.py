"""A circuit over real failures, scenario by scenario: when it opens, how it holds, how it closes.

The numbers are those of the scenario list that other gateways are measured by. A hold of 300 s
passes by moving the gateway's clock, everything else is real.
"""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from lab import Lab, begin

from gateway.errors import AllModesFailed, CircuitOpen, GatewayError, UpstreamRejected
from gateway.simulator.scripted import Exchange

NO_BUDGET_LIMIT = {"budget": {"tokens": 1000}}


@pytest.mark.parametrize("fault", ["html", "500", "reset", "cut_after_role", "empty"])
async def test_24_three_failures_send_requests_down_for_300_s_then_one_probe(
    lab: Lab, fault: str
) -> None:
    lab.start()
    lab.script("creative", fault)
    for _ in range(3):
        assert lab.phase() == "closed"
        answer = await lab.ask()
        assert (answer.mode, answer.reason) == ("balanced", "failed")
    opened, seen = lab.clock(), lab.requests()
    assert lab.phase() == "open"

    answer = await lab.ask()
    assert (answer.mode, answer.degraded, answer.reason) == ("balanced", True, "circuit_open")
    assert answer.until is not None and 299 < answer.until <= 300
    assert answer.served.ttl_s == 300
    lab.clock.skip(opened + 299.0 - lab.clock())
    assert (await lab.ask()).mode == "balanced"
    assert lab.requests() == seen, "not one request reaches an open mode"

    lab.script("creative", "ok")
    lab.clock.skip(opened + 300.1 - lab.clock())
    assert (await lab.ask()).mode == "creative"
    assert lab.requests() == seen + 1
    assert lab.phase() == "recovering"
    lab.clock.skip(60.0)
    assert lab.phase() == "closed"


async def test_24_whoever_forbids_degrading_is_told_when_to_come_back(lab: Lab) -> None:
    lab.start()
    await lab.fail(3)
    with pytest.raises(CircuitOpen) as caught:
        await lab.ask(allow_degrade=False)
    assert caught.value.http_status == 503
    assert caught.value.retry_after is not None and 299 < caught.value.retry_after <= 300
    assert lab.requests("balanced") == 3


@pytest.mark.parametrize("fault", ["422_fastapi", "401", "404_vllm", "400_content_openai"])
async def test_25_a_hundred_4xx_open_nothing(lab: Lab, fault: str) -> None:
    lab.start()
    lab.script("creative", fault)
    for _ in range(100):
        try:
            await lab.gateway.generate(lab.prompt())
        except UpstreamRejected:
            continue
        lab.clock.skip(601.0)  # a dead key or model is left alone for minutes
    assert lab.requests() == 100
    assert lab.phase() == "closed"


@pytest.mark.parametrize("fault", ["422_fastapi", "429_requests", "503_loading"])
async def test_25_what_says_nothing_about_health_neither_closes_nor_reopens(
    lab: Lab, fault: str
) -> None:
    lab.start()
    await lab.fail(3)
    lab.script("creative", [fault, "ok"])
    lab.clock.skip(300.0)
    try:
        await lab.ask()
    except UpstreamRejected:
        assert fault == "422_fastapi"
    assert lab.phase() == "probe_due"
    lab.clock.skip(10.0)  # its rest, if it has one
    assert (await lab.ask()).mode == "creative"
    assert lab.phase() == "recovering"


async def test_26_a_4xx_between_failures_does_not_save_a_mode(lab: Lab) -> None:
    lab.start()
    for fault in ("html", "html", "422_fastapi"):
        await lab.fail(1, fault)
    assert lab.phase() == "closed"
    await lab.fail(1, "html")
    assert lab.phase() == "open"


async def test_26_a_success_between_failures_does(lab: Lab) -> None:
    lab.start()
    for fault in ("html", "html", "ok", "html", "html"):
        await lab.fail(1, fault)
    assert lab.phase() == "closed"


async def test_26_failures_far_apart_open_nothing(lab: Lab) -> None:
    lab.start()
    for _ in range(5):
        await lab.fail(1)
        lab.clock.skip(31.0)
    assert lab.phase() == "closed"


async def test_26_one_request_is_one_failure_however_often_it_tried(lab: Lab) -> None:
    lab.start(tables=NO_BUDGET_LIMIT)
    await lab.fail(2, "500")
    assert lab.requests() == 4
    assert lab.phase() == "closed"


@pytest.mark.parametrize("transport", ["http1", "httpx"])
async def test_27_of_fifty_at_once_one_probes(lab: Lab, transport: str) -> None:
    lab.start(target={"transport": transport})
    await lab.fail(3)
    seen = lab.requests()
    lab.script("creative", "drip")
    lab.clock.skip(300.0)
    answers = await asyncio.gather(*(lab.ask() for _ in range(50)))
    assert lab.requests() == seen + 1
    modes = [answer.mode for answer in answers]
    assert (modes.count("creative"), modes.count("balanced")) == (1, 49)
    assert {a.reason for a in answers if a.degraded} == {"circuit_open"}


async def test_28_a_failed_probe_costs_its_caller_nothing_and_holds_again(lab: Lab) -> None:
    lab.start()
    await lab.fail(3)
    seen = lab.requests()
    lab.clock.skip(300.0)
    assert (await lab.ask()).mode == "balanced"
    assert lab.requests() == seen + 1
    assert lab.phase() == "open"
    until = lab.status()["until_s"]
    assert 299 < until <= 300
    assert (await lab.ask()).mode == "balanced"
    assert lab.requests() == seen + 1


async def test_28_a_silent_probe_gives_up_early_and_falls_to_the_next_mode(lab: Lab) -> None:
    lab.start(tables={"circuit": {"slow_s": 0.1}})
    await lab.fail(3)
    lab.script("creative", "silent")
    lab.clock.skip(300.0)
    started = lab.clock()
    assert (await lab.ask()).mode == "balanced"
    assert lab.clock() - started < 1.5, "a probe has a first-token limit of its own"
    assert lab.phase() == "open"
    await lab.until_hung_up()


async def test_28_a_probe_whose_caller_leaves_makes_room_for_the_next(lab: Lab) -> None:
    lab.start()
    await lab.fail(3)
    seen = lab.requests()
    lab.script("creative", ["silent", "ok"])
    lab.clock.skip(300.0)
    probe = asyncio.create_task(lab.ask())
    await lab.until_asked(times=seen + 1)
    assert lab.phase() == "probing"
    probe.cancel()
    await asyncio.wait([probe])
    await lab.until_hung_up()
    assert (await lab.ask()).mode == "creative"
    assert lab.requests() == seen + 2


async def test_28_a_probe_that_outstays_its_lease_counts_no_more(lab: Lab) -> None:
    lab.start()
    await lab.fail(3)
    seen = lab.requests()
    lab.script("creative", "silent")
    lab.clock.skip(300.0)
    probe = asyncio.create_task(lab.ask())
    await lab.until_asked(times=seen + 1)
    lab.clock.skip(30.0)  # the lease, and with it the probe's own limit
    assert lab.phase() == "open"
    assert (await lab.ask()).mode == "balanced"
    probe.cancel()
    await asyncio.wait([probe])


async def test_29_stragglers_neither_lengthen_a_hold_nor_end_it(lab: Lab) -> None:
    release = asyncio.Event()

    async def fails_late(exchange: Exchange) -> None:
        await release.wait()
        exchange.json({"error": {"message": "died"}}, 504)

    async def succeeds_late(exchange: Exchange) -> None:
        await release.wait()
        exchange.head()
        exchange.say(*exchange.tokens)
        exchange.finish()

    lab.start(each={"deadline_s": 1000.0, "first_token_s": 1000.0})
    lab.script("creative", [fails_late, succeeds_late, "html"])
    stragglers = []
    for number in (1, 2):
        stragglers.append(asyncio.create_task(lab.ask()))
        await lab.until_asked(times=number)
    for _ in range(3):
        await lab.ask()
    lab.clock.skip(100.0)
    status = lab.status()
    assert (status["phase"], round(status["until_s"])) == ("open", 200)

    release.set()
    modes = [answer.mode for answer in await asyncio.gather(*stragglers)]
    assert modes == ["balanced", "creative"], "each still gets its answer"
    status = lab.status()
    assert (status["phase"], round(status["until_s"])) == ("open", 200)
    assert status["late_outcomes"] == 2


async def test_30_breaking_in_mid_stream_counts_and_hanging_up_does_not(lab: Lab) -> None:
    async def endless(exchange: Exchange) -> None:
        await begin(exchange, 2)
        await exchange.forever()

    lab.start()
    lab.script("creative", endless)
    for number in range(1, 6):
        async with lab.reading() as stream:
            await anext(aiter(stream))
        await lab.until_hung_up(times=number)
    assert lab.phase() == "closed"
    assert {attempt.outcome for attempt in lab.attempts()} == {"ignored"}
    lab.script("creative", "cut_fin")
    for _ in range(3):
        assert (await lab.hear()).error is not None
    assert lab.phase() == "open"


async def test_31_fast_answers_when_both_above_are_open(lab: Lab) -> None:
    lab.start()
    lab.script("creative", "html")
    lab.script("balanced", "html")
    modes = [(await lab.ask()).mode for _ in range(4)]
    assert modes == ["fast"] * 4
    assert (lab.requests("creative"), lab.requests("balanced")) == (3, 3)


async def test_31_with_all_open_the_error_says_when_to_come_back(lab: Lab) -> None:
    lab.start(tables=NO_BUDGET_LIMIT)
    for mode in ("creative", "balanced", "fast"):
        lab.script(mode, "html")
    for _ in range(3):
        with pytest.raises(AllModesFailed):
            await lab.ask()
    assert [lab.phase(mode) for mode in ("creative", "balanced", "fast")] == ["open"] * 3
    with pytest.raises(AllModesFailed):
        await lab.ask()  # the one trial of the panic rule
    seen = [lab.requests(mode) for mode in ("creative", "balanced", "fast")]
    with pytest.raises(AllModesFailed) as caught:
        await lab.ask()
    assert [lab.requests(mode) for mode in ("creative", "balanced", "fast")] == seen
    assert caught.value.http_status == 503
    assert caught.value.retry_after is not None and 0 < caught.value.retry_after <= 5
    assert set(caught.value.causes) == {"creative", "balanced", "fast"}


async def test_31_a_total_outage_ends_within_five_seconds(lab: Lab) -> None:
    lab.start()
    for mode in ("creative", "balanced", "fast"):
        lab.script(mode, "html")
    for _ in range(4):
        with pytest.raises(AllModesFailed):
            await lab.ask()
    for mode in ("creative", "balanced", "fast"):
        lab.script(mode, "ok")
    lab.clock.skip(5.0)
    answer = await lab.ask()
    assert answer.text


async def test_32_one_failure_of_one_call_is_no_rate(lab: Lab) -> None:
    lab.start(tables={"circuit": {"failure_threshold": 1000}})
    await lab.fail(1)
    assert lab.phase() == "closed"


async def test_32_half_of_many_calls_is(lab: Lab) -> None:
    lab.start(
        tables={
            "circuit": {"failure_threshold": 1000, "minimum_throughput": 81},
            **NO_BUDGET_LIMIT,
        }
    )
    for number in range(80):
        await lab.fail(1, "html" if number % 2 else "ok")
    assert lab.phase() == "closed"
    await lab.fail(1, "html")
    assert lab.phase() == "open"


async def test_33_a_reload_keeps_what_is_open_open(lab: Lab) -> None:
    gateway = lab.start()
    await lab.fail(3)
    seen = lab.requests()
    lab.clock.skip(100.0)
    gateway.reload(gateway._in_force.pipeline.config)
    status = lab.status()
    assert (status["phase"], round(status["until_s"])) == ("open", 200)
    assert (await lab.ask()).mode == "balanced"
    assert lab.requests() == seen


async def test_34_wall_clocks_and_time_zones_change_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.start()
    await lab.fail(3)
    seen, wall = lab.requests(), time.time
    try:
        for zone, hours in (("Asia/Shanghai", 1), ("America/New_York", -1), ("UTC", 10_000)):
            monkeypatch.setitem(os.environ, "TZ", zone)
            time.tzset()
            monkeypatch.setattr(time, "time", lambda hours=hours: wall() + hours * 3600)
            assert (await lab.ask()).mode == "balanced"
            assert 299 < lab.status()["until_s"] <= 300
    finally:
        monkeypatch.undo()
        time.tzset()
    assert lab.requests() == seen
    lab.script("creative", "ok")
    lab.clock.skip(300.0)
    assert (await lab.ask()).mode == "creative"


async def test_a_process_that_dies_and_comes_back_is_found_again(lab: Lab) -> None:
    lab.start()
    assert (await lab.ask()).mode == "creative"
    await lab.primary.refuse()
    for _ in range(3):
        answer = await lab.ask()
        assert (answer.mode, answer.reason) == ("balanced", "failed")
    assert lab.phase() == "open"
    await lab.primary.listen()
    assert (await lab.ask()).mode == "balanced"
    lab.clock.skip(300.0)
    assert (await lab.ask()).mode == "creative"


async def test_a_process_that_dies_in_mid_answer(lab: Lab) -> None:
    started = asyncio.Event()

    async def speaking(exchange: Exchange) -> None:
        await begin(exchange, 2)
        started.set()
        await exchange.forever()

    lab.start()
    lab.script("creative", speaking)
    hearing = asyncio.create_task(lab.hear())
    asking = asyncio.create_task(lab.ask())
    await lab.until_asked(times=2)
    await started.wait()
    await lab.primary.refuse()
    heard, answer = await hearing, await asking
    assert isinstance(heard.error, GatewayError)
    assert (heard.text, heard.whole) == ("t0 t1 ", None)
    assert (answer.mode, answer.reason) == ("balanced", "failed")
    await lab.primary.listen()


@pytest.mark.parametrize(("early_probe_s", "wasted"), [(0.0, 20), (10.0, 135)])
async def test_flapping_never_costs_an_answer(lab: Lab, early_probe_s: float, wasted: int) -> None:
    """Well for 20 s, broken for 20 s, and so on for half an hour: a request every 5 s.

    What is wasted is three failures each time it opens: once a hold, or with early probes, which
    notice each recovery, once a broken phase.
    """
    lab.start(tables={"circuit": {"early_probe_s": early_probe_s}})
    modes = []
    for number in range(360):
        lab.script("creative", "html" if number % 8 >= 4 else "ok")
        modes.append((await lab.ask()).mode)
        lab.clock.skip(5.0)
    assert set(modes) == {"creative", "balanced"}
    assert lab.requests() - modes.count("creative") <= wasted
