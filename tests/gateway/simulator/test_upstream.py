"""The simulated upstream: honest tokens, honest queues, faults exactly as planned, nothing lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import (
    ConfigError,
    ErrorKind,
    UpstreamError,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from gateway.modes import TargetOptions
from gateway.providers.base import Call, Provider, Reply
from gateway.simulator.clock import VirtualLoop, run
from gateway.simulator.faults import (
    AnyFault,
    Brownout,
    ColdCapacity,
    CutStream,
    FaultPlan,
    Flapping,
    Latency,
    Outage,
    Stall,
    Throttled,
)
from gateway.simulator.service import Service, Slots
from gateway.simulator.upstream import SimulatedProvider

STEADY = Service(first_token_s=0.5, spread=0.0, tokens_per_s=10, tokens=4, round_trip_s=0.01)


def now() -> float:
    return asyncio.get_running_loop().time()


def ask(text: str = "Name three woody notes", **params: Any) -> Call:
    return Call([{"role": "user", "content": text}], params)


def target(*faults: AnyFault, service: Service = STEADY, **options: Any) -> SimulatedProvider:
    return SimulatedProvider(service=service, plan=FaultPlan(faults), **options)


async def collect(provider: SimulatedProvider, call: Call) -> str:
    reply = await provider.open(call)
    try:
        text = ""
        while chunks := await reply.read():
            text += "".join(chunk.text for chunk in chunks)
        return text
    finally:
        reply.close()


def assert_at_rest(provider: SimulatedProvider) -> None:
    stats = provider.stats
    assert stats.in_flight == 0
    assert stats.started == stats.completed + stats.cancelled + stats.failed
    assert provider.slots.queued == 0
    assert provider.slots._busy == 0


def test_an_answer_comes_token_by_token_at_its_pace() -> None:
    provider = target()

    async def main() -> list[tuple[float, str, str | None]]:
        reply = await provider.open(ask())
        assert isinstance(provider, Provider)
        assert isinstance(reply, Reply)
        seen = []
        while chunks := await reply.read():
            seen += [(round(now(), 3), chunk.text, chunk.finish_reason) for chunk in chunks]
            usage = chunks[-1].usage
        assert usage == {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}
        assert await reply.read() == []
        return seen

    tokens = provider.tokens(ask())
    assert run(main) == [
        (0.01, "", None),  # the role
        (0.51, tokens[0], None),
        (0.61, tokens[1], None),
        (0.71, tokens[2], None),
        (0.81, tokens[3], None),
        (0.81, "", "stop"),
        (0.81, "", None),  # usage
    ]
    assert_at_rest(provider)


def test_tokens_that_came_while_the_reader_was_away_come_at_once() -> None:
    async def main() -> list[str]:
        provider = target()
        reply = await provider.open(ask())
        first = await reply.read() + await reply.read()
        await asyncio.sleep(0.25)
        chunks = await reply.read()
        assert [chunk.text for chunk in first + chunks] == ["", *provider.tokens(ask())[:3]]
        await asyncio.sleep(60)
        return [chunk.text for chunk in await reply.read()]

    assert run(main) == [target().tokens(ask())[3], "", ""]


def test_answers_follow_from_prompt_model_and_seed() -> None:
    text = "".join(target().tokens(ask()))
    assert text == "".join(target().tokens(ask()))
    assert [int(word.rpartition("-")[2]) for word in text.split()] == [0, 1, 2, 3]
    others = [
        target().tokens(ask("Something else")),
        target(model="other").tokens(ask()),
        target(service=Service(tokens=4, seed=1)).tokens(ask()),
    ]
    assert len({text, *("".join(tokens) for tokens in others)}) == 4


def test_max_tokens_cuts_the_answer_and_says_so() -> None:
    async def main() -> tuple[str, str | None]:
        reply = await target().open(ask(max_tokens=2))
        text, reason = "", None
        while chunks := await reply.read():
            text += "".join(chunk.text for chunk in chunks)
            reason = next((c.finish_reason for c in chunks if c.finish_reason), reason)
        return text, reason

    assert run(main) == ("".join(target().tokens(ask())[:2]), "length")


def test_a_prefix_is_continued_where_it_ends() -> None:
    call = Call(ask().messages, {}, prefix="moss-0 fig-1 ")
    text = run(lambda: collect(target(), call))
    assert text == "".join(target().tokens(ask())[2:])


def test_without_streaming_the_answer_comes_whole_when_it_is_finished() -> None:
    async def main() -> tuple[float, list[str]]:
        reply = await target(streams=False).open(ask())
        return now(), [chunk.text for chunk in await reply.read()] + [str(round(now(), 3))]

    assert run(main) == (0.01, ["".join(target().tokens(ask())), "", "", "0.81"])


def fails_with(fault: AnyFault, **options: Any) -> UpstreamError:
    provider = target(fault, **options)
    with pytest.raises(UpstreamError) as caught:
        run(lambda: collect(provider, ask()))
    assert provider.stats.failures == {caught.value.kind: 1}
    assert_at_rest(provider)
    return caught.value


@pytest.mark.parametrize(
    ("fault", "error", "kind", "status"),
    [
        (Outage(0, 9, "refuse"), UpstreamUnavailable, ErrorKind.CONNECT, None),
        (Outage(0, 9, "reset"), UpstreamUnavailable, ErrorKind.CONNECT, None),
        (Outage(0, 9, "error500"), UpstreamUnavailable, ErrorKind.SERVER, 500),
        (Flapping(0, 9), UpstreamUnavailable, ErrorKind.SERVER, 500),
        (Brownout(0, 9, 1.0, "reset"), UpstreamUnavailable, ErrorKind.CONNECT, None),
        (Throttled(0, 9, retry_after=3), UpstreamThrottled, ErrorKind.RATE, 429),
        (CutStream(0, 9), UpstreamUnavailable, ErrorKind.INTERRUPTED, None),
        (CutStream(0, 9, after_chunks=0), UpstreamUnavailable, ErrorKind.INTERRUPTED, None),
        (CutStream(0, 9, after_chunks=4), UpstreamUnavailable, ErrorKind.INTERRUPTED, None),
    ],
)
def test_faults_fail_with_their_kind(
    fault: AnyFault, error: type[UpstreamError], kind: ErrorKind, status: int | None
) -> None:
    caught = fails_with(fault)
    assert type(caught) is error
    assert (caught.kind, caught.status) == (kind, status)
    assert caught.target == "simulated/simulated"


def test_a_throttled_call_is_told_how_long_to_wait() -> None:
    assert fails_with(Throttled(0, 9, retry_after=3)).retry_after == 3


def test_a_cut_whole_answer_gives_nothing() -> None:
    assert fails_with(CutStream(0, 9, after_chunks=3), streams=False).kind == "interrupted"


def test_a_prompt_longer_than_the_window_is_rejected() -> None:
    provider = target(context_window=3)
    with pytest.raises(UpstreamRejected, match="maximum context length") as caught:
        run(lambda: collect(provider, ask("one two three four")))
    assert caught.value.kind == ErrorKind.CONTEXT
    assert run(lambda: collect(provider, ask("one two three")))


@pytest.mark.parametrize(
    ("fault", "heard"),
    [
        (Outage(0, 9, "silent"), None),
        (Stall(0, 9, after_chunks=0), 0),
        (Stall(0, 9, after_chunks=2), 2),
        (Outage(0.55, 9, "silent"), 1),  # an outage that begins takes streams under way with it
    ],
)
def test_silence_lasts_until_the_caller_gives_up(fault: AnyFault, heard: int | None) -> None:
    provider = target(fault)

    async def main() -> int | None:
        tokens: int | None = None
        reply: Reply | None = None
        try:
            async with asyncio.timeout(3600):
                reply, tokens = await provider.open(ask()), 0
                while chunks := await reply.read():
                    tokens += sum(bool(chunk.text) for chunk in chunks)
        except TimeoutError:
            assert now() == 3600
        assert provider.stats.in_flight == (reply is not None)
        if reply:
            reply.close()
        return tokens

    assert run(main) == heard
    assert provider.stats.cancelled == 1
    assert_at_rest(provider)


def test_a_reset_breaks_streams_under_way_and_an_error_500_does_not() -> None:
    with pytest.raises(UpstreamUnavailable, match="after 2 tokens"):
        run(lambda: collect(target(Outage(0.65, 9, "reset")), ask()))
    assert run(lambda: collect(target(Outage(0.65, 9, "error500")), ask()))


def test_latency_slows_everything_and_fails_nothing() -> None:
    async def main() -> float:
        await collect(target(Latency(0, 9, 10)), ask())
        return now()

    assert run(main) == pytest.approx(8.1)


def test_first_tokens_scatter_around_their_median() -> None:
    provider = target(service=Service(first_token_s=0.4, spread=0.5))
    draws = sorted(provider.first_token_s() for _ in range(2001))
    assert draws[1000] == pytest.approx(0.4, rel=0.1)
    assert draws[0] < 0.15
    assert draws[-1] > 1.0


def test_over_capacity_answers_wait_and_above_the_queue_they_are_refused() -> None:
    provider = target(service=Service(slots=2, queue=2, first_token_s=1, spread=0, tokens=1))

    async def one(number: int) -> tuple[float, str]:
        try:
            await collect(provider, ask(str(number)))
        except UpstreamUnavailable as error:
            assert error.status == 503
            return round(now(), 3), error.kind
        return round(now(), 3), "ok"

    async def main() -> list[tuple[float, str]]:
        return await asyncio.gather(*(one(number) for number in range(6)))

    assert run(main) == [
        (1.001, "ok"),
        (1.001, "ok"),
        (2.001, "ok"),
        (2.001, "ok"),
        (0.001, "overloaded"),
        (0.001, "overloaded"),
    ]
    assert provider.stats.max_in_flight == 6
    assert_at_rest(provider)


def test_a_cold_target_serves_little_and_warms_up() -> None:
    service = Service(slots=10, queue=1000, first_token_s=1, spread=0, tokens=1, round_trip_s=0)
    provider = target(ColdCapacity(0, 100), service=service)
    ends: list[float] = []

    async def worker() -> None:
        while now() < 200:
            await collect(provider, ask())
            ends.append(now())

    async def main() -> None:
        await asyncio.gather(*(worker() for _ in range(20)))

    run(main)
    served = [sum(low <= end < low + 10 for end in ends) for low in (0, 50, 100, 150)]
    assert served[0] <= 25
    assert 50 <= served[1] <= 75
    assert 95 <= served[2] <= 105
    assert 95 <= served[3] <= 105


def test_a_place_in_the_queue_is_given_up_with_its_reply() -> None:
    provider = target(service=Service(slots=1, first_token_s=1, spread=0, tokens=1))

    async def main() -> float:
        working, waiting, last = [await provider.open(ask()) for _ in range(3)]
        await working.read()
        read = asyncio.create_task(waiting.read())
        await asyncio.sleep(0.1)
        assert provider.slots.queued == 2
        read.cancel()
        await asyncio.wait([read])
        waiting.close()
        waiting.close()
        working.close()
        while await last.read():
            pass
        return now()

    assert run(main) < 2
    assert (provider.stats.completed, provider.stats.cancelled) == (1, 2)
    assert_at_rest(provider)


def test_slots_are_handed_out_in_order_and_grow_on_demand() -> None:
    async def main() -> None:
        size = [0]
        slots = Slots(lambda: size[0])
        turns = [slots.enter() for _ in range(4)]
        assert [turn.done() for turn in turns] == [True, False, False, False]  # one there always is
        size[0] = 2
        slots.leave(turns[3])
        assert [turn.done() for turn in turns[:3]] == [True, True, False]
        slots.leave(turns[0])
        assert turns[2].done()

    run(main)


def test_calls_during_an_outage_are_counted() -> None:
    provider = target(Outage(10, 20, "error500"), Brownout(30, 40, 1.0))

    async def main() -> None:
        for at in (5, 10, 15, 20, 35):
            await asyncio.sleep(at - now())
            try:
                await collect(provider, ask())
            except UpstreamError:
                continue

    run(main)
    assert (provider.stats.started, provider.stats.in_outage, provider.stats.failed) == (5, 2, 3)
    assert list(provider.stats.times) == pytest.approx([5, 10, 15, 20, 35])


def cancelled_at(turn: int, faults: tuple[AnyFault, ...]) -> bool:
    provider = target(*faults, service=Service(slots=1, first_token_s=1, spread=0, tokens=2))

    async def main() -> bool:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        tasks = [asyncio.create_task(collect(provider, ask(str(n)))) for n in range(3)]
        loop.at_turn(loop.turns + turn, lambda: [task.cancel() for task in tasks[1:]])
        await asyncio.wait(tasks)
        return any(task.cancelled() for task in tasks)

    hit = run(main)
    assert_at_rest(provider)
    return hit


def test_cancelled_at_every_await_nothing_is_left_behind() -> None:
    turn = 0
    while cancelled_at(turn, ()):
        turn += 1
    assert turn > 10


async def chaos(provider: SimulatedProvider) -> tuple[list[str], list[float]]:
    async def one(number: int) -> str:
        await asyncio.sleep(number * 0.2)
        try:
            async with asyncio.timeout(4):
                return await collect(provider, ask(str(number)))
        except (UpstreamError, TimeoutError) as error:
            return repr(error)

    results = await asyncio.gather(*(one(number) for number in range(60)))
    return results, list(provider.stats.times)


@given(seed=st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_a_chaotic_run_loses_nothing_and_repeats_from_its_seed(seed: int) -> None:
    faults = (
        Brownout(0, 6, 0.3, "silent"),
        CutStream(2, 8, 0.3, 2),
        Stall(4, 9, 0.3),
        Flapping(9, 12, 0.5, 0.5, "reset"),
    )

    def once() -> tuple[SimulatedProvider, tuple[list[str], list[float]]]:
        provider = target(*faults, service=Service(slots=3, tokens=4, seed=seed))
        return provider, run(lambda: chaos(provider), seed=seed)

    provider, trace = once()
    assert_at_rest(provider)
    assert trace == once()[1]
    for number, result in enumerate(trace[0]):
        if "Upstream" not in result and "Timeout" not in result:
            assert result == "".join(provider.tokens(ask(str(number))))


def test_it_is_configured_from_a_target() -> None:
    options = TargetOptions(
        kind="simulated",
        model="qwen-pretend",
        base_url="datacentre-1",
        context_window=100,
        options={
            "tokens": 2,
            "spread": 0,
            "faults": [{"kind": "outage", "start": 5, "end": 9, "how": "reset"}],
        },
    )
    provider = SimulatedProvider.from_options(options)
    assert (provider.name, provider.model) == ("simulated/qwen-pretend", "qwen-pretend")
    assert (provider.domain, provider.context_window) == ("datacentre-1", 100)
    assert provider.service.tokens == 2

    async def main() -> None:
        await asyncio.sleep(1000)  # the plan's clock starts at the first call
        assert await collect(provider, ask()) == "".join(provider.tokens(ask()))
        await asyncio.sleep(5)
        with pytest.raises(UpstreamUnavailable, match="reset"):
            await collect(provider, ask())

    run(main)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tokns": 3}, r"tokns.*known options: slots"),
        ({"tokens": "many"}, "tokens"),
        ({"slots": 0}, "slots"),
        ({"tokens_per_s": 0}, "tokens_per_s"),
        ({"faults": [{"kind": "outage"}]}, "start"),
    ],
)
def test_a_wrong_configuration_names_what_is_wrong(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        SimulatedProvider.from_options(TargetOptions(kind="simulated", options=options))


def test_twenty_minutes_of_traffic_take_seconds() -> None:
    provider = target(service=Service(tokens=4))

    async def main() -> None:
        tasks = []
        for number in range(2400):
            await asyncio.sleep(0.5)
            tasks.append(asyncio.create_task(collect(provider, ask(str(number)))))
        await asyncio.gather(*tasks)

    run(main)
    assert provider.stats.completed == 2400
    assert_at_rest(provider)
