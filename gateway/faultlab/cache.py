"""Scenarios 35 to 41: what may be answered from memory, and what never."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from gateway.faultlab.plays import FAILS, cut_after, filtered, invalid_tool_call, length, slow
from gateway.faultlab.scenario import Elsewhere, Grade, Scenario, Until, Verdict
from gateway.faultlab.trial import Trial

PARTIAL, SAFE, FAIL = Grade.PARTIAL, Grade.SAFE, Grade.FAIL

_OUTAGE_S: Final = 5.0

_TOOL: Final = {
    "type": "function",
    "function": {"name": "find_notes", "parameters": {"type": "object", "properties": {}}},
}
CHANGES: Final[dict[str, Any]] = {
    "temperature": 0.3,
    "seed": 7,
    "stop": ["~"],
    "max_tokens": 77,
    "response_format": {"type": "text"},
    "tools": [_TOOL],
    "user": "another",
}
"""Parameters that change what is asked."""


async def hits(t: Trial) -> Verdict:
    """The same question again: the same answer, and upstream is not asked."""
    number = t.number()
    first = await t.ask(number=number)
    second = await t.ask(number=number)
    verdict = t.judge(second)
    verdict.demand(second.text == first.text, FAIL, "not the same answer")
    count = await t.count()
    return verdict.demand(count == 1, SAFE, "asked upstream again: no cache")


async def replays_in_the_other_form(t: Trial) -> Verdict:
    """Kept as a stream, asked in one piece, and the other way round; tool calls too."""
    stream = t.form == "stream"
    number, tools = t.number(), t.number()
    await t.ask(number=number, stream=not stream)
    second = await t.ask(number=number)
    verdict = t.judge(second)
    first_call = await t.ask("tool", number=tools, stream=not stream, tools=[_TOOL])
    second_call = await t.ask("tool", number=tools, tools=[_TOOL])
    kept = second_call.tools and second_call.finish == "tool_calls"
    verdict.demand(kept or not first_call.tools, FAIL, "the tool call is lost")
    count = await t.count()
    return verdict.demand(count == 2, SAFE, f"asked upstream {count}× for 2 questions in 2 forms")


async def misses_on_any_change(t: Trial) -> Verdict:
    """Another parameter is another question."""
    number = t.number()
    answers = [await t.ask(number=number)]
    shared = []
    for name, value in CHANGES.items():
        before = await t.count()
        answers.append(await t.ask(number=number, **{name: value}))
        if await t.count() == before:
            shared.append(name)
    verdict = t.judge_all(answers)
    return verdict.demand(not shared, FAIL, f"same answer whatever {', '.join(shared)} is")


async def keeps_nothing_bad(t: Trial) -> Verdict:
    """Broken, filtered, truncated, invalid: asked again, upstream is asked again."""
    kept, wrong = [], []
    for mark in ("cut", "500", "filter", "length", "badtool"):
        number = t.number()
        first = await t.ask(mark, number=number, tools=[_TOOL])
        if t.look(first).kind == "complete":
            continue  # mended unseen; there was nothing bad to keep
        before = await t.count()
        second = await t.ask(mark, number=number, tools=[_TOOL])
        if await t.count() == before:
            kept.append(mark)
        elif t.look(second).kind != "complete":
            wrong.append(f"{mark}: {t.look(second).says}")
        await t.ask_each("ok", "ok")  # so that no breaker opens meanwhile
    verdict = Verdict(Grade.PASS).demand(not wrong, SAFE, "; ".join(wrong))
    verdict.demand(not kept, FAIL, f"kept: {', '.join(kept)}")
    return verdict if verdict.says else verdict.note("each time upstream was asked again")


async def degraded_is_no_stand_in(t: Trial) -> Verdict:
    """What a lower model answered is not creative's answer once creative is well."""
    number = t.number()
    first = await t.ask(number=number)
    await asyncio.sleep(_OUTAGE_S + 0.5)
    second = await t.ask(number=number)
    verdict = t.judge_all([first, second])
    if t.role(first) == "balanced":
        fresh = t.role(second) == "creative"
        verdict.demand(fresh, FAIL, "balanced's answer was kept as creative's")
    return verdict


async def flies_once(t: Trial) -> Verdict:
    """Fifty identical questions at once are one question."""
    answers = await t.ask_together(50, "slow", number=t.number())
    verdict = t.judge_all(answers)
    count = await t.count()
    verdict.note(f"creative asked {count}×")
    return verdict.demand(count == 1, PARTIAL, "no single flight")


async def leaver_hurts_nobody(t: Trial) -> Verdict:
    """Of three that ask the same, the first hangs up: the others are answered."""
    number = t.number()
    first = asyncio.create_task(t.ask("slow", number=number, leave_after_s=0.7))
    await t.until(bool, within_s=5)
    answers = await asyncio.gather(*(t.ask("slow", number=number) for _ in range(2)))
    await first
    return t.judge_all(list(answers)).note(f"creative asked {await t.count()}×")


async def failure_is_not_kept(t: Trial) -> Verdict:
    """Fifty share a failure; whoever asks afterwards is answered."""
    number = t.number()
    together = await t.ask_together(20, "once", number=number)
    lies = [t.look(answer).says for answer in together if t.look(answer).kind == "lie"]
    answer = await t.ask("well", number=t.number())
    again = await t.ask("once", number=number)
    verdict = t.judge_all([answer, again])
    return verdict.demand(not lies, FAIL, lies[0] if lies else "")


async def minds_cache_control(t: Trial) -> Verdict:
    """no-cache, no-store and max-age=0 in the caller's hand."""
    disobeyed = []
    for directive in ("no-cache", "max-age=0"):
        number = t.number()
        await t.ask(number=number)
        before = await t.count()
        await t.ask(number=number, headers={"cache-control": directive})
        if await t.count() == before:
            disobeyed.append(directive)
    number = t.number()
    await t.ask(number=number, headers={"cache-control": "no-store"})
    before = await t.count()
    answer = await t.ask(number=number)
    if await t.count() == before:
        disobeyed.append("no-store")
    verdict = t.judge(answer)
    return verdict.demand(not disobeyed, FAIL, f"ignored: {', '.join(disobeyed)}")


CACHE: Final = [
    Scenario(
        id="35a", title="the same question twice", demands="the same answer, upstream asked once",
        check=hits,
    ),
    Scenario(
        id="35b", title="kept in one form, asked in the other",
        demands="replayed properly, tool calls included",
        plays={"creative": {"tool": ["tool_calls"]}}, check=replays_in_the_other_form,
    ),
    Scenario(
        id="36", title="one parameter changed", demands="upstream is asked",
        check=misses_on_any_change,
    ),
    Scenario(
        id="37a", title="cut, 500, filtered, truncated, invalid tool call", demands="never kept",
        plays={
            "creative": {
                "cut": [cut_after(20), "ok"], "500": [FAILS, FAILS, "ok"],
                "filter": [filtered, "ok"], "length": [length, "ok"],
                "badtool": [invalid_tool_call, "ok"],
            },
        },
        check=keeps_nothing_bad, ladder=1,
    ),
    Scenario(
        id="37b", title="a stand-in's answer, then creative is well", demands="creative is asked",
        plays={"creative": [Until(_OUTAGE_S, FAILS)]}, check=degraded_is_no_stand_in,
    ),
    Scenario(
        id="39a", title="50 identical questions at once", demands="upstream asked once",
        plays={"creative": {"slow": [slow(1)]}}, check=flies_once, crowd=True,
    ),
    Scenario(
        id="39b", title="the first of three identical ones hangs up",
        demands="the others are answered",
        plays={"creative": {"slow": [slow(2)]}}, check=leaver_hurts_nobody,
    ),
    Scenario(
        id="39c", title="20 identical ones fail together", demands="the failure is not kept",
        plays={"creative": {"once": [slow(0.5, FAILS), FAILS, "ok"]}},
        check=failure_is_not_kept, ladder=1,
    ),
    Scenario(
        id="41", title="Cache-Control: no-cache, no-store, max-age=0", demands="obeyed",
        check=minds_cache_control,
    ),
]  # fmt: skip
"""What of scenarios 35 to 41 can be seen from outside."""

ELSEWHERE: Final = [
    Elsewhere("36", "another tenant misses", "needs keys, which are not configured by default",
              "tests/faults/test_fault_cache.py"),
    Elsewhere("38", "3600 s, 300 s while downshifted", "takes an hour",
              "tests/faults/test_fault_cache.py"),
    Elsewhere("40", "stale if error", "takes an entry older than an hour",
              "tests/faults/test_fault_cache.py"),
]  # fmt: skip
