"""The lab's upstream: the model's name picks the fault, and every hit is known."""

from __future__ import annotations

import asyncio

import pytest
from fakes import run

from gateway.faultlab.client import get, post
from gateway.faultlab.endpoints import Given
from gateway.faultlab.plays import FAILS, refuses_prefill
from gateway.faultlab.scenario import Grade, Run, Until
from gateway.faultlab.trial import Address, LabUnreachable, Trial
from gateway.faultlab.upstream import Lab
from gateway.faultlab.words import Question, answer_text, answer_tokens, find_question


async def _asked(lab: Lab, wanted: Run, mark: str = "", model: str = "") -> Trial:
    """A caller that asks the lab itself, with no gateway between."""
    return Trial(wanted, Address(f"{lab.url}/v1", model or wanted.model()), lab.url)


async def test_an_answer_names_its_model_and_its_question_and_counts() -> None:
    wanted = run()
    async with Lab([wanted]) as lab:
        t = await _asked(lab, wanted)
        answer = await t.ask()
        assert answer.text == answer_text("creative-s0-stream", answer.number)
        assert answer.text.startswith(f"creative-s0-stream on {answer.number}: 1 2 3 ")
        assert (answer.finish, answer.done, answer.roles) == ("stop", True, 1)
        assert t.right_usage(answer, "creative")
        assert not t.right_usage(answer, "balanced")
        assert t.judge(answer).grade is Grade.PASS
        hit = (await t.hits())[0]
        assert (hit.question, hit.stream, hit.whole, hit.left_at) == (
            answer.number, True, True, None,
        )  # fmt: skip


async def test_entries_follow_one_another_and_the_last_repeats() -> None:
    wanted = run("whole", plays={"creative": [FAILS, "ok"]})
    async with Lab([wanted]) as lab:
        t = await _asked(lab, wanted)
        assert [a.status for a in await t.ask_each("", "", "")] == [500, 200, 200]
        await t.begin()
        assert await t.count() == 0
        assert (await t.ask()).status == 500, "a run begins anew"


async def test_a_mark_picks_the_play_and_each_question_counts_for_itself() -> None:
    wanted = run("whole", plays={"creative": {"once": [FAILS, "ok"]}})
    async with Lab([wanted]) as lab:
        t = await _asked(lab, wanted)
        first, second = t.number(), t.number()
        asked = [await t.ask("once", number=number) for number in (first, second, first)]
        assert [answer.status for answer in asked] == [500, 500, 200]
        assert (await t.ask("unknown")).status == 200


async def test_a_play_that_ends_by_the_clock() -> None:
    over = run("whole", plays={"creative": [Until(0, FAILS)]})
    lasting = run("stream", plays={"creative": [Until(3600, FAILS)]})
    async with Lab([over, lasting]) as lab:
        assert (await (await _asked(lab, over)).ask()).status == 200
        assert (await (await _asked(lab, lasting)).ask()).status == 500


async def test_a_prefix_before_the_model_is_no_matter() -> None:
    wanted = run("whole", plays={"creative": [FAILS]})
    async with Lab([wanted]) as lab:
        t = await _asked(lab, wanted, model="openai/creative-s0-whole")
        assert (await t.ask()).status == 500


async def test_who_hangs_up_is_seen() -> None:
    wanted = run(plays={"creative": ["silent"]})
    async with Lab([wanted]) as lab:
        t = await _asked(lab, wanted)
        asking = asyncio.create_task(t.ask(leave_after_s=0.2))
        assert await t.until(lambda hits: len(hits) == 1, within_s=5)
        assert (await asking).ended == "left"
        assert await t.until(lambda hits: hits[0].left_at is not None, within_s=5)


async def test_whoever_sends_a_beginning_gets_the_rest_or_is_refused() -> None:
    wanted = run("whole", plays={"balanced": [refuses_prefill]})
    begun = "".join(answer_tokens("creative-s0-whole", "qabx1")[:20])
    messages = [
        {"role": "user", "content": Question("qabx1", "").text},
        {"role": "assistant", "content": begun},
    ]
    async with Lab([wanted]) as lab:
        url = f"{lab.url}/v1/chat/completions"
        body = {"model": "fast-s0-whole", "messages": messages}
        answer = await post(url, body, {}, patience_s=5)
        assert begun + answer.text == answer_text("creative-s0-whole", "qabx1")
        answer = await post(url, {**body, "model": "balanced-s0-whole"}, {}, patience_s=5)
        assert answer.status == 400


async def test_three_ports_play_everything_and_one_may_be_dead() -> None:
    wanted, refused = run(), run("whole", refused=True, ladder=3)
    async with Lab([wanted, refused]) as lab:
        assert list(lab.urls(wanted)) == ["creative", "balanced"]
        urls = lab.urls(refused)
        assert len(set(urls.values())) == 3
        answer = await post(f"{urls['creative']}/chat/completions", {}, {}, patience_s=5)
        assert answer.ended == "none"


async def test_what_the_lab_does_not_know_is_said() -> None:
    wanted, other = run(), run("whole")
    async with Lab([wanted]) as lab:
        assert (await get(f"{lab.url}/lab/begin/s0-whole")).status == 404
        with pytest.raises(LabUnreachable, match="gateway faultlab upstream"):
            await (await _asked(lab, other)).begin()


def test_a_question_is_found_in_whatever_a_gateway_makes_of_the_chat() -> None:
    text = Question("qabx7", "cut").text
    chat = [{"content": "Be brief."}, {"content": [{"type": "text", "text": text}]}]
    assert find_question(chat) == ("qabx7", "cut")
    assert find_question([{"content": None}]) == ("", "")


async def test_a_given_gateway_may_have_names_of_its_own() -> None:
    wanted = run()
    models = {"creative": "lab/{run}"}
    async with Given("http://x/v1", {"a": "b"}, models).open(wanted, {}) as address:
        assert address == Address("http://x/v1", "lab/s0-stream", {"a": "b"})
    async with Given("http://x/v1", {}, {"s0-stream": "mine"}).open(wanted, {}) as address:
        assert address.model == "mine"
    async with Given("http://x/v1").open(wanted, {}) as address:
        assert address.model == "creative-s0-stream"
