"""Scenarios 24 to 32: when a failing upstream is left alone, and when it is asked again."""

from __future__ import annotations

import asyncio
from typing import Final

from gateway.faultlab.plays import FAILS, cut_after, error, slow
from gateway.faultlab.scenario import STREAM, Elsewhere, Entry, Grade, Scenario, Script, Verdict
from gateway.faultlab.trial import Trial

PARTIAL, SAFE, FAIL = Grade.PARTIAL, Grade.SAFE, Grade.FAIL

WRONG = error(400, "n must be at least 1", "invalid_request_error")

ENOUGH = 6
"""Failures after which any breaker has tripped that ever will in so short a time."""


async def _trip(t: Trial, mark: str = "bad") -> Verdict:
    """Fail three times, and check that creative is left alone then."""
    answers = await t.ask_each(*[mark] * 3)
    verdict = t.judge_all(answers)
    before = await t.count()
    answer = await t.ask("ok")
    finding = t.look(answer)
    verdict.demand(finding.kind != "lie", FAIL, finding.says)
    verdict.demand(finding.kind != "error", SAFE, f"the 4th: {finding.says}")
    left_alone = await t.count() == before
    return verdict.demand(left_alone, PARTIAL, "the 4th request went to creative again")


async def trips(t: Trial) -> Verdict:
    """Three failures in a row open the breaker."""
    return await _trip(t)


async def stays_closed(t: Trial) -> Verdict:
    """A hundred refusals of what callers sent say nothing about the upstream."""
    answers = []
    for _ in range(50):
        answers += await t.ask_each("400", "422")
    kinds = [t.look(answer).kind for answer in answers]
    verdict = Verdict(Grade.PASS, [f"{kinds.count('error')} of 100 told their callers"])
    verdict.demand("lie" not in kinds, FAIL, "a refusal became something else")
    verdict.demand(await t.count() == 100, PARTIAL, f"creative asked {await t.count()}×")
    after = await t.ask("ok")
    return verdict.demand(t.role(after) == "creative", PARTIAL, "creative was given up for it")


async def counts_past_refusals(t: Trial) -> Verdict:
    """F F 4xx F: the refusal between does not save the breaker."""
    answers = await t.ask_each("bad", "bad")
    await t.ask("400")
    answers += await t.ask_each("bad")
    verdict = t.judge_all(answers)
    before = await t.count()
    answer = await t.ask("ok")
    verdict.demand(t.look(answer).kind == "complete", SAFE, t.look(answer).says)
    return verdict.demand(await t.count() == before, PARTIAL, "did not trip on the third failure")


async def _hold(t: Trial) -> Verdict | None:
    """Fail a lone upstream until it is left alone, and wait until the first may ask again.

    The verdict if it is never left alone.
    """
    await t.ask_each(*["bad"] * ENOUGH)
    before = await t.count()
    answers = await t.ask_each("ok", "ok")
    if await t.count() != before:
        kinds = [t.look(answer).kind for answer in answers]
        lied = "lie" in kinds
        return Verdict(FAIL if lied else PARTIAL, ["never left alone: it has no breaker to probe"])
    return None


async def _healed(t: Trial, mark: str, within_s: float = 40.0) -> bool:
    """Ask every half second until a request reaches the upstream again; whether one did."""
    before = await t.count()
    clock = asyncio.get_running_loop().time
    end = clock() + within_s
    while clock() < end:
        asking = asyncio.create_task(t.ask(mark, patience_s=10))
        reached = await t.until(lambda hits: len(hits) > before, within_s=0.5)
        if reached:
            return True
        await asking
    return False


async def one_probe(t: Trial) -> Verdict:
    """When the hold is over, one of fifty probes; the others are refused honestly, or wait."""
    if never := await _hold(t):
        return never
    before = await t.count()
    clock = asyncio.get_running_loop().time
    end = clock() + 40
    while clock() < end:
        answers = await t.ask_together(50, "slow", patience_s=20)
        hits = (await t.hits())[before:]
        if hits:
            break
        await asyncio.sleep(0.5)
    else:
        return Verdict(SAFE, ["no probe within 40 s"])
    first_s = hits[0].at
    probes = sum(hit.at - first_s < 0.9 for hit in hits)
    verdict = Verdict(Grade.PASS, [f"{probes} of 50 probed"])
    lies = [t.look(answer) for answer in answers if t.look(answer).kind == "lie"]
    verdict.demand(not lies, FAIL, lies[0].says if lies else "")
    return verdict.demand(probes <= 3, PARTIAL, "a stampede")


async def probe_fails(t: Trial) -> Verdict:
    """A failed probe: creative is left alone again at once."""
    if never := await _hold(t):
        return never
    if not await _healed(t, "bad"):
        return Verdict(SAFE, ["no probe within 40 s"])
    before = await t.count()
    answers = await t.ask_each("ok", "ok", "ok")
    finding = t.look(answers[-1])
    verdict = Verdict(Grade.PASS, [f"after a failed probe: {finding.says}"])
    verdict.demand(finding.kind != "lie", FAIL, finding.says)
    return verdict.demand(await t.count() == before, PARTIAL, "asked on after a failed probe")


async def probe_leaves(t: Trial) -> Verdict:
    """Whoever probed hangs up: the next may probe instead."""
    if never := await _hold(t):
        return never
    before = await t.count()
    reached = False
    for _ in range(80):
        await t.ask("silent", leave_after_s=0.5)
        if reached := await t.count() > before:
            break
        await asyncio.sleep(0.5)
    if not reached:
        return Verdict(SAFE, ["no probe within 40 s"])
    clock = asyncio.get_running_loop().time
    left = clock()
    while clock() < left + 35:
        answer = await t.ask("ok", patience_s=10)
        if t.role(answer):
            took = clock() - left
            verdict = Verdict(Grade.PASS, [f"answered {took:.1f} s after the probe's caller left"])
            return verdict.demand(took < 10, PARTIAL, "its place was held")
        await asyncio.sleep(0.5)
    return Verdict(FAIL, ["nobody was let in any more after a probe's caller left"])


async def ignores_stragglers(t: Trial) -> Verdict:
    """A success that was begun before the trip does not close the breaker."""
    straggler = asyncio.create_task(t.ask("slow"))
    await t.until(lambda hits: len(hits) == 1, within_s=5)
    verdict = await _trip(t)
    late = t.look(await straggler)
    verdict.demand(late.kind == "complete", SAFE, f"the straggler: {late.says}")
    before = await t.count()
    await t.ask("ok")
    return verdict.demand(await t.count() == before, PARTIAL, "a late success closed the breaker")


async def counts_broken_streams(t: Trial) -> Verdict:
    """Three answers that break half-way open the breaker."""
    answers = await t.ask_each("cut", "cut", "cut")
    verdicts = [t.judge_late(answer) for answer in answers]
    verdict = max(verdicts, key=lambda verdict: verdict.grade)
    before = await t.count()
    await t.ask("ok")
    return verdict.demand(
        await t.count() == before, PARTIAL, "the 4th request went to creative again"
    )


async def ignores_leavers(t: Trial) -> Verdict:
    """Six callers that hang up say nothing about the upstream."""
    for _ in range(6):
        await t.ask("slow", leave_after_s=0.3)
    answer = await t.ask("ok")
    verdict = t.judge(answer)
    return verdict.demand(t.role(answer) == "creative", PARTIAL, "creative was given up for it")


async def walks_down(t: Trial) -> Verdict:
    """Creative and balanced down: fast answers. All down: refused, with the time to come back."""
    answers = await t.ask_each(*["two"] * 4)
    roles = [t.role(answer) for answer in answers]
    verdict = t.judge_all(answers)
    verdict.demand(roles == ["fast"] * 4, SAFE, "fast did not answer them all")
    last = (await t.ask_each(*["all"] * 5))[-1]
    finding = t.look(last)
    verdict.note(f"all down: {finding.says}, Retry-After {last.headers.get('retry-after', 'none')}")
    verdict.demand(finding.kind == "error", FAIL, finding.says)
    verdict.demand(last.status in (429, 503), PARTIAL, f"all down is told as {last.status}")
    waits = last.retry_after is not None and last.retry_after >= 1
    return verdict.demand(waits, PARTIAL, "no Retry-After")


async def one_is_no_trend(t: Trial) -> Verdict:
    """One failure of one request trips nothing."""
    first = await t.ask("bad")
    verdict = t.judge(first)
    before = await t.count()
    answer = await t.ask("ok")
    verdict.demand(await t.count() > before, PARTIAL, "tripped on the first failure")
    return verdict.demand(t.role(answer) == "creative", PARTIAL, "creative was given up for it")


async def half_is_too_much(t: Trial) -> Verdict:
    """Every other request fails: after twelve, creative is left alone."""
    answers = await t.ask_each(*["ok", "bad"] * 6)
    verdict = t.judge_all(answers)
    before = await t.count()
    await t.ask("ok")
    return verdict.demand(await t.count() == before, PARTIAL, "a rate of 50 % trips nothing")


_BAD: Final[dict[str, list[Entry]]] = {"bad": [FAILS], "400": [WRONG]}
_LONE: Final[dict[str, Script]] = {
    "creative": {"bad": [FAILS], "slow": [slow(1)], "silent": ["silent"]}
}

BREAKER: Final = [
    Scenario(
        id="24", title="three 500s in a row", demands="the 4th request does not touch creative",
        plays={"creative": _BAD}, check=trips,
    ),
    Scenario(
        id="25", title="a hundred 400s and 422s", demands="the breaker stays closed",
        plays={"creative": {"400": [WRONG], "422": ["422_fastapi"]}},
        check=stays_closed,
    ),
    Scenario(
        id="26", title="500 500 400 500", demands="trips on the third failure",
        plays={"creative": _BAD}, check=counts_past_refusals,
    ),
    Scenario(
        id="27", title="the hold is over, 50 ask at once", demands="one (at most three) probe it",
        plays=_LONE, check=one_probe, ladder=1, limit_s=90, crowd=True,
    ),
    Scenario(
        id="28a", title="the probe fails", demands="left alone again",
        plays=_LONE, check=probe_fails, ladder=1, limit_s=90,
    ),
    Scenario(
        id="28b", title="the probe's caller hangs up", demands="its place is free again",
        plays=_LONE, check=probe_leaves, ladder=1, limit_s=120,
    ),
    Scenario(
        id="29", title="a slow success from before the trip", demands="does not close the breaker",
        plays={"creative": {**_BAD, "slow": [slow(6)]}}, check=ignores_stragglers,
    ),
    Scenario(
        id="30a", title="three answers break half-way", demands="that counts: left alone",
        plays={"creative": {"cut": [cut_after(20)]}}, check=counts_broken_streams, forms=STREAM,
    ),
    Scenario(
        id="30b", title="six callers hang up", demands="that counts for nothing",
        plays={"creative": {"slow": [slow(3)]}}, check=ignores_leavers,
    ),
    Scenario(
        id="31", title="two down, then all three",
        demands="fast answers; then 503 with Retry-After",
        plays={
            "creative": {"two": [FAILS], "all": [FAILS]},
            "balanced": {"two": [FAILS], "all": [FAILS]},
            "fast": {"all": [FAILS]},
        },
        check=walks_down, ladder=3,
    ),
    Scenario(
        id="32a", title="one failure of one request", demands="trips nothing",
        plays={"creative": {"bad": [FAILS]}}, check=one_is_no_trend,
    ),
    Scenario(
        id="32b", title="every other request fails", demands="trips within twelve requests",
        plays={"creative": {"bad": [FAILS]}}, check=half_is_too_much,
    ),
]  # fmt: skip
"""What of scenarios 24 to 32 can be seen from outside."""

ELSEWHERE: Final = [
    Elsewhere("24", "the one probe at +300 s", "takes the shipped hold of 300 s",
              "tests/faults/test_fault_breaker.py"),
    Elsewhere("25", "4xx during a probe; 401 and 404 x100", "takes the hold; a dead key rests "
              "for minutes, which hides the breaker", "tests/faults/test_fault_breaker.py"),
    Elsewhere("29", "a late failure does not lengthen the hold", "takes the hold",
              "tests/faults/test_fault_breaker.py"),
    Elsewhere("33", "restart, second worker: shared state", "needs the gateway's processes",
              "tests/server/test_workers.py"),
    Elsewhere("34", "clock jumps, time zones", "needs the gateway's clock",
              "tests/faults/test_fault_breaker.py"),
]  # fmt: skip
