"""Scenarios 1 to 23: a provider fails once, for ever, late, half-way, or without saying so."""

from __future__ import annotations

import asyncio
from typing import Final

from gateway.faultlab.plays import (
    DOWN,
    FAILS,
    THROTTLED,
    broken_event,
    cut_after,
    error,
    late,
    paced,
    refuses_prefill,
    stall_after,
    throttled_in_stream,
    tokenless,
)
from gateway.faultlab.scenario import STREAM, WHOLE, Grade, Scenario, Until, Verdict
from gateway.faultlab.trial import Trial

TEN_SECONDS = {
    "x-stainless-timeout": "10",
    "x-litellm-timeout": "10",
    "x-portkey-request-timeout": "10000",
}
"""How a caller says that it waits for ten seconds: OpenAI's SDKs unasked, others by request."""

PARTIAL, SAFE, FAIL = Grade.PARTIAL, Grade.SAFE, Grade.FAIL


def _times(count: int) -> str:
    return f"creative asked {count}×"


async def retries_when_told(t: Trial) -> Verdict:
    """429 with a wait: not before it is over, and not often."""
    answer = await t.ask()
    at = [hit.at for hit in await t.hits()]
    gaps = [later - at[0] for later in at[1:]]
    verdict = t.judge(answer).note(_times(len(at)))
    verdict.demand(
        all(gap >= 1.8 for gap in gaps), PARTIAL, f"asked again after {min(gaps, default=0):.1f} s"
    )
    return verdict.demand(
        sum(gap < 1.5 for gap in gaps) <= 1, FAIL, "hammered a throttled upstream"
    )


async def spares_a_throttled(t: Trial) -> Verdict:
    """429 for ever: few attempts, then somebody else."""
    answer = await t.ask()
    at = [hit.at for hit in await t.hits()]
    verdict = t.judge(answer).note(_times(len(at)))
    early = sum(one - at[0] <= 3 for one in at) if at else 0
    return verdict.demand(early <= 4 and len(at) <= 6, PARTIAL, "hammered a throttled upstream")


async def retries_once(t: Trial) -> Verdict:
    """A single quick failure: the same upstream is asked again and answers."""
    answer = await t.ask()
    verdict = t.judge(answer).note(_times(await t.count()))
    if verdict.grade is Grade.PASS:
        verdict.demand(t.role(answer) == "creative", PARTIAL, "not asked again")
    return verdict


async def goes_on(t: Trial) -> Verdict:
    """A single failure: the answer is complete, whoever gives it."""
    answer = await t.ask()
    return t.judge(answer).note(_times(await t.count()))


async def stands_in(t: Trial) -> Verdict:
    """A dead upstream: another answers, within 30 s and six attempts."""
    answer = await t.ask()
    count = await t.count()
    verdict = t.judge(answer).note(_times(count))
    verdict.demand(answer.took_s <= 30, PARTIAL, "took more than 30 s")
    return verdict.demand(count <= 6, PARTIAL, "more than 6 attempts")


async def one_timeout(t: Trial) -> Verdict:
    """A silent upstream is waited for once."""
    answer = await t.ask()
    count = await t.count()
    verdict = t.judge(answer).note(_times(count))
    verdict.demand(count == 1, PARTIAL, "a silent upstream was asked again")
    return verdict.demand(answer.took_s <= 100, FAIL, "took more than 100 s")


async def first_token_limit(t: Trial) -> Verdict:
    """No first token: somebody else has answered within 15 s."""
    answer = await t.ask()
    verdict = t.judge(answer).note(_times(await t.count()))
    return verdict.demand(answer.took_s <= 15, PARTIAL, "took more than 15 s")


async def never_truncated(t: Trial) -> Verdict:
    """Broken after the first tokens: an answer or an error, and the next request is well."""
    answer = await t.ask("bad", patience_s=50)
    verdict = t.judge_late(answer)
    verdict.demand(answer.took_s < 45, PARTIAL, "took 45 s or more")
    after = await t.ask("ok")
    well = t.look(after).kind == "complete"
    return verdict.demand(well, FAIL, "the next, healthy request failed")


async def finishes_without_done(t: Trial) -> Verdict:
    """No [DONE] from upstream: the caller gets it all the same, and the usage."""
    answer = await t.ask()
    verdict = t.judge(answer)
    verdict.demand(answer.took_s <= 8, PARTIAL, "took more than 8 s")
    return verdict.demand(t.right_usage(answer, "creative"), PARTIAL, "no usage, or another's")


async def asks_once_for_too_long(t: Trial) -> Verdict:
    """The prompt is too long: one attempt each; it says nothing about the upstream's health."""
    answers = await t.ask_each(*["long"] * 4)
    count = await t.count()
    verdict = t.judge_all(answers).note(_times(count))
    if verdict.grade is SAFE:
        verdict.grade = Grade.PASS  # the error is the answer, where no window is larger
    verdict.demand(count == 4, PARTIAL, f"{count} attempts for 4 requests")
    after = await t.ask("ok")
    return verdict.demand(t.role(after) == "creative", PARTIAL, "creative was given up for it")


async def not_routed_around(t: Trial) -> Verdict:
    """A refusal of the content is told, not shopped around."""
    answer = await t.ask()
    finding, count, others = t.look(answer), await t.count(), await t.count("balanced")
    verdict = Verdict(Grade.PASS, [finding.says, _times(count)])
    told = any("content policy" in said for said in answer.errors)
    verdict.demand(told or finding.kind == "complete", PARTIAL, "the reason is lost")
    verdict.demand(count == 1, PARTIAL, f"{count} attempts")
    verdict.demand(others == 0, PARTIAL, "another model was asked instead")
    return verdict.demand(finding.kind != "lie", FAIL, finding.says)


async def prefill_is_not_the_end(t: Trial) -> Verdict:
    """Whoever continues an answer must not end in the next upstream's refusal to."""
    answer = await t.ask()
    verdict = t.judge_late(answer)
    refused = any("prefill" in said for said in answer.errors)
    return verdict.demand(not refused, FAIL, "the refused prefill is the caller's error")


async def recovers(t: Trial) -> Verdict:
    """A minute's outage under traffic: everyone is served, and creative is back soon after."""
    outage_s, every_s = 60.0, 4.0
    began = asyncio.get_running_loop().time()
    answers, back_s = [], None
    for number in range(23):
        await asyncio.sleep(max(0.0, began + number * every_s - asyncio.get_running_loop().time()))
        asked_s = asyncio.get_running_loop().time() - began
        answers.append(await t.ask(patience_s=30))
        if asked_s >= outage_s and t.role(answers[-1]) == "creative":
            back_s = asked_s - outage_s
            if number >= 19:
                break
    verdict = t.judge_all(answers)
    during = [hit for hit in await t.hits() if hit.at < outage_s]
    share = len(during) / (outage_s / every_s)
    verdict.note(f"{len(during)} hits on dead creative by {outage_s / every_s:.0f} requests")
    verdict.demand(share < 1, PARTIAL, "hit it with every request")
    if back_s is None:
        return verdict.demand(False, PARTIAL, "not back on creative 28 s after it healed")
    return verdict.note("back on creative within 30 s")


async def tells_who_answered(t: Trial) -> Verdict:
    """The model and the usage are those of who answered."""
    answer = await t.ask()
    role = t.role(answer)
    verdict = t.judge(answer).note(f"model {answer.model!r}")
    if role:
        verdict.demand(t.right_usage(answer, role), PARTIAL, "the usage is not the answerer's")
        named = role in answer.model
        verdict.demand(named, PARTIAL, f"model {answer.model!r} does not name {role}")
    return verdict


async def refused_cleanly(t: Trial) -> Verdict:
    """All fail before a token: an HTTP error, and not one chunk before it."""
    answer = await t.ask()
    finding = t.look(answer)
    verdict = Verdict(Grade.PASS, [f"{finding.says} ({answer.took_s:.1f} s)"])
    verdict.demand(finding.kind == "error", FAIL, finding.says)
    verdict.demand(not answer.roles, FAIL, "a role chunk, then an error")
    return verdict.demand(answer.status >= 400, PARTIAL, "an error inside a 200")


async def one_error_event(t: Trial) -> Verdict:
    """Nobody left to ask, in mid-stream: one error event, then quiet."""
    answer = await t.ask()
    verdict = t.judge_late(answer)
    verdict.demand(len(answer.errors) <= 1, PARTIAL, f"{len(answer.errors)} error events")
    verdict.demand(answer.took_s < 5, PARTIAL, "took 5 s or more")
    before = await t.count()
    await asyncio.sleep(2)
    return verdict.demand(await t.count() == before, PARTIAL, "goes on asking afterwards")


async def keeps_the_deadline(t: Trial) -> Verdict:
    """Three silent upstreams, ten seconds: over by then, whatever each alone may take."""
    answer = await t.ask(headers=TEN_SECONDS, patience_s=50)
    finding = t.look(answer)
    verdict = Verdict(Grade.PASS, [f"{finding.says} ({answer.took_s:.1f} s)"])
    verdict.demand(finding.kind == "error", FAIL, finding.says)
    return verdict.demand(answer.took_s <= 10.2, PARTIAL, "took more than 10 s")


TOLD_TO_WAIT = error(429, "Too many requests", "rate_limit_error", retry_after=2)
CONTEXT, CONTENT = "400_context_openai", "400_content_openai"

RESILIENCE: Final = [
    Scenario(
        id="1", title="429 once, Retry-After: 2",
        demands="complete; asked again after the wait, or somebody else asked",
        plays={"creative": [TOLD_TO_WAIT, "ok"]},
        check=retries_when_told,
    ),
    Scenario(
        id="2", title="429 for ever, no Retry-After",
        demands="at most 4 attempts in 3 s and 6 in all, then another answers",
        plays={"creative": [THROTTLED]}, check=spares_a_throttled,
    ),
    Scenario(
        id="3", title="500 once", demands="creative asked again, complete",
        plays={"creative": [FAILS, "ok"]}, check=retries_once,
    ),
    Scenario(
        id="4", title="503 for ever", demands="another answers; at most 6 attempts, 30 s",
        plays={"creative": [DOWN]}, check=stands_in,
    ),
    Scenario(
        id="5", title="connection reset before headers, once", demands="complete",
        plays={"creative": ["reset", "ok"]}, check=goes_on,
    ),
    Scenario(
        id="6", title="takes the request and is silent",
        demands="another answers after one time-out, within 100 s",
        plays={"creative": ["silent"]}, check=one_timeout, limit_s=110,
    ),
    Scenario(
        id="7", title="headers at once, first token after 20 s",
        demands="another answers, 15 s in all",
        plays={"creative": [late(20)]}, check=first_token_limit, limit_s=70,
    ),
    Scenario(
        id="8", title="cut off after 40 of 60 tokens",
        demands="a whole answer or an explicit error, never a truncated success",
        plays={"creative": {"bad": [cut_after(40)]}}, check=never_truncated, limit_s=70,
    ),
    Scenario(
        id="9", title="20 tokens, then 30 s of silence",
        demands="over within 45 s, nothing truncated, the next request well",
        plays={"creative": {"bad": [stall_after(20, 30)]}}, check=never_truncated, limit_s=70,
    ),
    Scenario(
        id="10", title="10th event is broken JSON",
        demands="skipped or an explicit error; the next request well",
        plays={"creative": {"bad": [broken_event(10)]}}, check=never_truncated, limit_s=70,
    ),
    Scenario(
        id="11", title="complete stream without [DONE]",
        demands="finished within 8 s, [DONE] and usage included",
        plays={"creative": ["no_done"]}, check=finishes_without_done, forms=STREAM,
    ),
    Scenario(
        id="12", title="400 context_length_exceeded",
        demands="one attempt; the upstream is not given up for it",
        plays={"creative": {"long": [CONTEXT]}}, check=asks_once_for_too_long,
    ),
    Scenario(
        id="13", title="400 content policy",
        demands="one attempt, the reason told, nobody else asked",
        plays={"creative": [CONTENT]}, check=not_routed_around,
    ),
    Scenario(
        id="14", title="cut off; the next refuses prefill",
        demands="the refusal is not the caller's error",
        plays={"creative": [cut_after(40)], "balanced": [refuses_prefill]},
        check=prefill_is_not_the_end,
    ),
    Scenario(
        id="15", title="503 for 60 s under traffic",
        demands="all served; back on creative within 30 s; spared meanwhile",
        plays={"creative": [Until(60, DOWN)]}, check=recovers, limit_s=150, early_probe=True,
    ),
    Scenario(
        id="16", title="503 for ever: the facts", demands="model and usage are the answerer's",
        plays={"creative": [DOWN]}, check=tells_who_answered, facts=True,
    ),
    Scenario(
        id="17a", title="body cut at 60 %", demands="complete, never a 200 with garbage",
        plays={"creative": [cut_after(36)]}, check=goes_on, forms=WHOLE,
    ),
    Scenario(
        id="17b", title="headers, then silence", demands="another answers after one time-out",
        plays={"creative": ["headers_then_silence"]}, check=one_timeout, forms=WHOLE, limit_s=110,
    ),
    Scenario(
        id="17c", title="a body of broken JSON", demands="complete, never a 200 with garbage",
        plays={"creative": [broken_event(0)]}, check=goes_on, forms=WHOLE,
    ),
    Scenario(
        id="18", title="role chunk, then an error inside the 200",
        demands="another answers, one clean stream",
        plays={"creative": ["error_after_role"]}, check=goes_on, forms=STREAM,
    ),
    Scenario(
        id="19", title="all fail before a token",
        demands="an HTTP error status, no chunk before it",
        plays={"creative": ["error_after_role"], "balanced": ["error_after_role"]},
        check=refused_cleanly, forms=STREAM,
    ),
    Scenario(
        id="20a", title="comments every 5 s, never a token",
        demands="another answers after one time-out",
        plays={"creative": [tokenless(5, pings=True)]},
        check=one_timeout, forms=STREAM, limit_s=110,
    ),
    Scenario(
        id="20b", title="empty deltas every 5 s, never a token",
        demands="another answers after one time-out",
        plays={"creative": [tokenless(5, pings=False)]},
        check=one_timeout, forms=STREAM, limit_s=110,
    ),
    Scenario(
        id="21", title="one token a second for 20 s", demands="slow is not dead: complete",
        plays={"creative": [paced(1, 20)]}, check=goes_on, forms=STREAM,
    ),
    Scenario(
        id="22", title="429 in mid-stream, nobody stands in", demands="one error event, then quiet",
        plays={"creative": [throttled_in_stream]}, check=one_error_event, forms=STREAM, ladder=1,
    ),
    Scenario(
        id="23", title="three silent upstreams, caller has 10 s", demands="over within 10 s",
        plays={role: ["silent"] for role in ("creative", "balanced", "fast")},
        check=keeps_the_deadline, forms=WHOLE, ladder=3,
    ),
]  # fmt: skip
"""Scenarios 1 to 23."""
