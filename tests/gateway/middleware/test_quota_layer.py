"""Limits hold, and however a request ends it is settled, once and for what it used."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway import Config, Gateway
from gateway.errors import (
    AdmissionRejected,
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    StreamInterrupted,
    UpstreamUnavailable,
)
from gateway.generation import Chunk, Generation, GenerationRequest, Served
from gateway.middleware.base import Answer
from gateway.middleware.quota import Quota
from gateway.policies.keys import key_hash
from gateway.policies.quota import Account
from gateway.policies.tokens import text_tokens
from gateway.simulator.clock import run

PROMPT = "Name three woody perfume notes, please: one, two, three."
ASKED = 4 + text_tokens(PROMPT)
LIMITS = {"requests_per_min": 100, "monthly_tokens": 10_000, "concurrency": 3}


def config(**limits: Any) -> Config:
    options = {"spread": 0.0, "first_token_s": 1.0, "tokens_per_s": 10.0, "tokens": 40}
    return Config.from_dict(
        {
            "modes": {
                "best": {
                    "max_tokens": 500,
                    "targets": [{"kind": "simulated", "options": options}],
                }
            },
            "server": {"usage_path": ":memory:"},
            "keys": {"alice": {"hash": key_hash("alice"), **LIMITS, **limits}},
        }
    )


def play(scenario: Callable[[Gateway, Account], Awaitable[None]]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with Gateway(config(), clock=loop.time) as gateway:
            account = gateway.accounts.find("alice")
            assert account is not None
            await scenario(gateway, account)
            assert account.in_flight == 0

    run(main)


def used(account: Account) -> int:
    return account.used_this_month()


def test_a_whole_answer_pays_what_the_upstream_counts() -> None:
    async def scenario(gateway: Gateway, account: Account) -> None:
        asking = asyncio.create_task(gateway.generate(PROMPT, key="alice", max_tokens=400))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (account.in_flight, used(account)) == (1, ASKED + 400)
        answer = await asking
        assert account.in_flight == 0
        assert used(account) == answer.usage.total_tokens > 0

    play(scenario)


def test_the_mode_says_how_long_where_the_caller_does_not() -> None:
    async def scenario(gateway: Gateway, account: Account) -> None:
        async with gateway.stream(PROMPT, key="alice", cache=False) as stream:
            assert (account.in_flight, used(account)) == (1, ASKED + 500)
            await stream.finish()
        assert account.in_flight == 0

    play(scenario)


def test_a_hit_costs_a_request_and_no_tokens() -> None:
    async def scenario(gateway: Gateway, account: Account) -> None:
        paid = (await gateway.generate(PROMPT, key="alice")).usage.total_tokens
        await asyncio.sleep(60)
        for _ in range(5):
            assert (await gateway.generate(PROMPT, key="alice")).cached
        assert account.requests.left(100) == 95
        async with gateway.stream(PROMPT, key="alice") as stream:  # left before its end
            assert stream.served.cached
        assert used(account) == paid

    play(scenario)


def test_a_stream_left_early_pays_for_what_had_come() -> None:
    async def scenario(gateway: Gateway, account: Account) -> None:
        async with gateway.stream(PROMPT, key="alice", cache=False) as stream:
            text = ""
            async for chunk in stream:
                text += chunk.text
                if len(text) > 60:
                    break
        assert account.in_flight == 0
        lost = used(account)
        assert ASKED < lost <= ASKED + text_tokens(text) + 2

    play(scenario)


def test_a_stream_given_up_before_its_first_token_pays_its_prompt() -> None:
    async def scenario(gateway: Gateway, account: Account) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5), gateway.stream(PROMPT, key="alice"):
                raise AssertionError
        assert (account.in_flight, used(account)) == (0, ASKED)

    play(scenario)


@pytest.mark.parametrize(("after_s", "written"), [(0.5, 50), (3.0, 300), (4.9, 400)])
def test_a_whole_answer_given_up_pays_by_the_time_it_kept_a_model_busy(
    after_s: float, written: int
) -> None:
    async def scenario(gateway: Gateway, account: Account) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(after_s):
                await gateway.generate(PROMPT, key="alice", max_tokens=400)
        assert account.in_flight == 0
        assert used(account) == pytest.approx(ASKED + written, abs=1)

    play(scenario)


def test_a_deadline_is_the_callers_too() -> None:
    async def scenario(gateway: Gateway, account: Account) -> None:
        with pytest.raises(GatewayError):
            await gateway.generate(PROMPT, key="alice", max_tokens=400, deadline=2.0)
        assert account.in_flight == 0

    play(scenario)


def test_what_fails_for_our_reasons_is_free() -> None:
    async def scenario(gateway: Gateway, account: Account) -> None:
        async def fail(call: Any) -> Any:
            raise UpstreamUnavailable("down")

        _, provider = gateway._in_force.pipeline.providers[0]
        provider.open = fail  # type: ignore[method-assign]
        with pytest.raises(UpstreamUnavailable):
            await gateway.generate(PROMPT, key="alice")
        assert (account.in_flight, used(account)) == (0, 0)
        assert account.requests.left(100) == 99

    play(scenario)


def test_a_request_that_makes_no_sense_is_free() -> None:
    async def scenario(gateway: Gateway, account: Account) -> None:
        with pytest.raises(InvalidRequest):
            await gateway.generate(PROMPT, key="alice", odd=object())
        assert (account.in_flight, used(account)) == (0, 0)

    play(scenario)


def test_limits_refuse_and_others_are_not_concerned() -> None:
    async def scenario(gateway: Gateway, account: Account) -> None:
        asked = [
            asyncio.create_task(gateway.generate(f"{PROMPT} {i}", key=key))
            for i, key in enumerate(["alice"] * 5 + ["", "nobody"])
        ]
        ended = await asyncio.gather(*asked, return_exceptions=True)
        refused = [end for end in ended if isinstance(end, AdmissionRejected)]
        assert len(refused) == 2
        assert all("concurrency" in str(error) for error in refused)
        assert sum(isinstance(end, Generation) for end in ended) == 5

    play(scenario)


def test_callers_who_share_a_flight_each_pay() -> None:
    async def scenario(gateway: Gateway, account: Account) -> None:
        shared = [gateway.generate(PROMPT, key="alice") for _ in range(3)]
        answers = await asyncio.gather(*shared)
        each = answers[0].usage.total_tokens
        assert account.in_flight == 0
        assert used(account) == 3 * each > 0

    play(scenario)


def test_accounts_outlive_a_reload() -> None:
    async def scenario(gateway: Gateway, account: Account) -> None:
        async with gateway.stream(PROMPT, key="alice", cache=False) as stream:
            gateway.reload(config(concurrency=1))
            assert gateway.accounts.find("alice") is account
            with pytest.raises(AdmissionRejected, match="concurrency"):
                await gateway.generate("another", key="alice")
            await stream.finish()
        await gateway.generate("another", key="alice")

    play(scenario)


def test_a_tighter_limit_is_no_reason_to_take_a_configuration_back() -> None:
    async def scenario(gateway: Gateway, account: Account) -> None:
        for i in range(20):
            await gateway.generate(f"{PROMPT} {i}", key="alice")
            await asyncio.sleep(1)
        tighter = config(requests_per_min=1)
        gateway.reload(tighter)
        await asyncio.sleep(60)
        for i in range(60):
            try:
                await gateway.generate(f"{PROMPT} once more {i}", key="alice")
            except AdmissionRejected:
                await asyncio.sleep(0.1)
        assert gateway.config is tighter

    play(scenario)


def test_without_keys_there_is_no_layer() -> None:
    async def main() -> None:
        async with Gateway(
            Config.from_dict({"modes": {"best": {"targets": [{"kind": "simulated"}]}}}),
            clock=asyncio.get_running_loop().time,
        ) as gateway:
            assert gateway.accounts.find("alice") is None
            await gateway.generate(PROMPT, key="alice")

    run(main)


# -- the end of an answer -------------------------------------------------------------------------


class Ended(Answer):
    async def read(self) -> list[Chunk]:
        return []

    async def finish(self) -> Generation:
        raise NotImplementedError

    def close(self) -> None:
        self._ended(None, None)


def test_all_who_ask_are_told_of_the_end_once_inner_ones_first() -> None:
    answer, told = Ended(Served(requested_mode="best", mode="best")), []

    def failing(*_: object) -> None:
        told.append("inner")
        raise RuntimeError

    answer.when_done(failing)
    answer.when_done(lambda *_: told.append("middle"))
    answer.when_done(lambda *_: told.append("outer"))
    with pytest.raises(RuntimeError):
        answer.close()
    answer.close()
    assert told == ["inner", "middle", "outer"]


@pytest.mark.parametrize(
    ("error", "buffered", "tokens"),
    [
        (asyncio.CancelledError(), True, 10 + 200),
        (asyncio.CancelledError(), False, 10),
        (DeadlineExceeded("late"), True, 10 + 200),
        (StreamInterrupted("broke"), True, 0),
        (RuntimeError("ours"), True, 0),
    ],
)
def test_who_pays_for_nothing(error: BaseException, buffered: bool, tokens: int) -> None:
    layer = Quota(None, None, lambda: 7.0)  # type: ignore[arg-type]
    request = GenerationRequest(
        id="g", mode="best", messages=[], buffered=buffered, started=4.0, queued_s=1.0
    )
    assert layer._given_up(request, error, 10, 500) == tokens
