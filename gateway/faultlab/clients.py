"""Scenarios 42 to 44: callers that hang up, and callers that come all at once."""

from __future__ import annotations

from collections import Counter
from typing import Final

from gateway.faultlab.plays import paced, slow
from gateway.faultlab.scenario import STREAM, Elsewhere, Grade, Scenario, Verdict
from gateway.faultlab.trial import Trial
from gateway.faultlab.upstream import Hit

PARTIAL, SAFE, FAIL = Grade.PARTIAL, Grade.SAFE, Grade.FAIL


def _gone(hits: list[Hit]) -> bool:
    return bool(hits) and all(hit.left_at is not None for hit in hits)


async def _let_go(t: Trial) -> Verdict:
    """The caller has just hung up: the upstream must see it within a second."""
    if await t.until(_gone, within_s=1.0):
        verdict = Verdict(Grade.PASS, ["upstream let go within 1 s"])
    elif await t.until(_gone, within_s=4.0):
        verdict = Verdict(PARTIAL, ["upstream let go within 5 s"])
    else:
        verdict = Verdict(FAIL, ["upstream works on for nobody"])
    after = t.look(await t.ask("ok"))
    return verdict.demand(after.kind == "complete", FAIL, f"the next request: {after.says}")


async def leaves_before_a_token(t: Trial) -> Verdict:
    """The caller hangs up while the upstream is silent."""
    await t.ask("silent", leave_after_s=1.0)
    return await _let_go(t)


async def leaves_in_mid_answer(t: Trial) -> Verdict:
    """The caller hangs up while the answer is being made."""
    if t.form == "stream":
        await t.ask("paced", leave=lambda answer: len(answer.text.split()) >= 5)
    else:
        await t.ask("paced", leave_after_s=1.5)
    return await _let_go(t)


async def leaks_no_slot(t: Trial) -> Verdict:
    """Forty callers that hang up and twenty that are refused take no place for good."""
    for _ in range(4):
        await t.ask_together(10, "paced", leave_after_s=0.4)
    await t.ask_each(*["400"] * 20)
    answers = await t.ask_together(20, "ok")
    verdict = t.judge_all(answers)
    own = all(t.role(answer) == "creative" for answer in answers)
    return verdict.demand(own, PARTIAL, "creative was given up for it")


async def takes_a_crowd(t: Trial) -> Verdict:
    """Two hundred at once: answered, or refused at once and told when to come back."""
    answers = await t.ask_together(200, "slow")
    statuses = Counter(answer.status for answer in answers)
    slowest = max(answer.took_s for answer in answers)
    told = ", ".join(f"{count}x {status}" for status, count in sorted(statuses.items()))
    verdict = Verdict(Grade.PASS, [f"{told}; slowest {slowest:.1f} s"])
    lies = [t.look(answer).says for answer in answers if t.look(answer).kind == "lie"]
    verdict.demand(not lies, FAIL, f"{len(lies)} lies: {lies[0]}" if lies else "")
    refused = [answer for answer in answers if answer.status >= 400]
    fitting = all(answer.status in (408, 429, 503) for answer in refused)
    verdict.demand(fitting, SAFE, "refused in words that do not say why")
    waits = all(answer.retry_after is not None for answer in refused)
    return verdict.demand(waits, PARTIAL, "refused without Retry-After")


CLIENTS: Final = [
    Scenario(
        id="42a", title="the caller leaves before a token", demands="upstream let go within 1 s",
        plays={"creative": {"silent": ["silent"]}}, check=leaves_before_a_token,
    ),
    Scenario(
        id="42b", title="the caller leaves in mid-answer", demands="upstream let go within 1 s",
        plays={"creative": {"paced": [paced(0.2, 50)]}}, check=leaves_in_mid_answer,
    ),
    Scenario(
        id="43", title="40 hang up, 20 are refused, 20 ask at once", demands="no place is lost",
        plays={"creative": {"paced": [paced(0.2, 50)], "400": ["422_fastapi"]}},
        check=leaks_no_slot, forms=STREAM, crowd=True,
    ),
    Scenario(
        id="44", title="200 at once, each takes 2 s",
        demands="answered, or refused with 408, 429 or 503 and Retry-After",
        plays={"creative": {"slow": [slow(2)]}}, check=takes_a_crowd, limit_s=90,
        crowd=True,
    ),
]  # fmt: skip
"""What of scenarios 42 to 45 can be seen from outside."""

ELSEWHERE: Final = [
    Elsewhere("43", "max concurrency 1; slow logging sink", "needs its configuration",
              "tests/faults/test_fault_clients.py"),
    Elsewhere("44", "priority 0 overtakes", "needs keys", "tests/faults/test_fault_clients.py"),
    Elsewhere("45", "eight at once on a tiny budget", "needs keys",
              "tests/gateway/policies/test_quota.py"),
]  # fmt: skip
