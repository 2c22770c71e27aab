"""What else goes over a wire: odd but legal answers, cuts at any byte, errors in all forms.

The plays are those of the catalogue that the gateway's own tests use, a question for each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from gateway.faultlab.client import Answer
from gateway.faultlab.plays import FAILS, slow
from gateway.faultlab.scenario import Elsewhere, Grade, Scenario, Verdict
from gateway.faultlab.trial import Trial
from gateway.simulator.scripted import FAULTS, cut_at_byte

PARTIAL, SAFE, FAIL = Grade.PARTIAL, Grade.SAFE, Grade.FAIL

ODD: Final = (
    "drip", "byte_by_byte", "split_utf8", "comments", "crlf", "sse_fields", "no_done",
    "done_without_finish", "lingers",
)  # fmt: skip
EARLY: Final = (
    "close", "reset", "cut_after_role", "error_in_200", "error_after_role",
    "dashscope_error_event", "html", "empty", "broken_json", "500_text", "500_broken_json",
    "502_html", "504_html", "503_text",
)  # fmt: skip
LATE: Final = (
    "cut_fin", "cut_rst", "cut_mid_event", "cut_clean", "body_cut", "error_mid_stream",
    "error_finish", "malformed_event", "invalid_utf8",
)  # fmt: skip
CUTS: Final = (1, 20, 90, 170, 400, 900, 3000)
"""Bytes into the response, head included: in the head, at its end, in the role, in tokens."""
SLOW_DOWN: Final = (
    "429_retry_after_zero", "429_retry_after_negative", "429_retry_after_ms",
    "429_retry_after_seconds", "429_retry_after_date", "429_retry_after_words", "429_tgi",
    "429_requests", "429_native", "429_text", "429_burst", "429_tokens", "429_free_quota",
    "429_overdue", "429_retry_after_absurd",
)  # fmt: skip


async def _each(t: Trial, marks: Iterable[str], *, late: bool) -> Verdict:
    """One request a mark, with healthy ones between, so that no breaker opens; the worst counts."""
    grade, wrong, complete, told, total = Grade.PASS, [], 0, 0, 0
    for mark in marks:
        answer = await t.ask(mark, patience_s=20)
        verdict = t.judge_late(answer) if late else t.judge(answer)
        total += 1
        complete += t.look(answer).kind == "complete"
        told += t.look(answer).kind == "error"
        if verdict.grade is not Grade.PASS:
            wrong.append(f"{mark}: {verdict.evidence}")
        grade = max(grade, verdict.grade)
        await t.ask_each("fine", "fine")
    errors = f", {told} explicit errors" if told else ""
    return Verdict(grade, [f"{complete} of {total} complete{errors}", *wrong])


async def understands(t: Trial) -> Verdict:
    """Odd but legal: every word comes through."""
    wrong = [mark for mark in ODD if not _is_whole(t, mark, await t.ask(mark, patience_s=8))]
    verdict = Verdict(Grade.PASS, [f"{len(ODD) - len(wrong)} of {len(ODD)} complete"])
    return verdict.demand(not wrong, FAIL, f"not understood: {', '.join(wrong)}")


def _is_whole(t: Trial, mark: str, answer: Answer) -> bool:
    """Every word, and an end that a client sees; one that stops reading at [DONE] does."""
    wanted = {t.texts(answer.number)["creative"], FAULTS[mark].text}
    ended = answer.done if answer.stream else answer.ended == "whole"
    return answer.text in wanted and ended and not answer.garbage and not answer.errors


async def early(t: Trial) -> Verdict:
    """Whatever fails before the first token is mended unseen."""
    return await _each(t, EARLY, late=False)


async def late(t: Trial) -> Verdict:
    """Whatever fails after the first tokens is mended or told."""
    return await _each(t, LATE, late=True)


async def cut_anywhere(t: Trial) -> Verdict:
    """A cut at any byte is mended or told."""
    marks = [f"{end}-{byte}" for byte in CUTS for end in ("fin", "rst")]
    return await _each(t, marks, late=True)


async def goes_on(t: Trial) -> Verdict:
    """Nobody listens: another answers."""
    return t.judge(await t.ask())


async def all_served(t: Trial) -> Verdict:
    """Every request is answered, whoever answers it."""
    answers, clock = [], asyncio.get_running_loop().time
    end = clock() + 30
    while clock() < end:
        answers.append(await t.ask(patience_s=20))
        await asyncio.sleep(1)
    return t.judge_all(answers).note(f"creative asked {await t.count()}×")


async def comes_back_soon(t: Trial) -> Verdict:
    """Loading for a moment: all served, and creative is back within 20 s."""
    answers = [await t.ask()]
    for _ in range(40):
        if t.role(answers[-1]) == "creative":
            break
        await asyncio.sleep(0.5)
        answers.append(await t.ask())
    verdict = t.judge_all(answers)
    back = t.role(answers[-1]) == "creative"
    return verdict.demand(back, PARTIAL, "creative was given up for it")


async def brown_out(t: Trial) -> Verdict:
    """Slow, but it answers: all served."""
    return t.judge_all(await t.ask_together(20)).note("creative takes 3 s")


WIRE: Final = [
    Scenario(
        id="w1", title="nobody listens", demands="another answers", check=goes_on, refused=True,
    ),
    Scenario(
        id="w2", title="odd but legal streams, 9 kinds",
        demands="every word comes through",
        plays={"creative": {name: [name] for name in ODD}}, check=understands,
    ),
    Scenario(
        id="w3", title="failures before a token, 14 kinds", demands="mended unseen",
        plays={"creative": {name: [name] for name in EARLY}}, check=early, limit_s=90,
    ),
    Scenario(
        id="w4", title="failures after three tokens, 9 kinds", demands="mended or told",
        plays={"creative": {name: [name] for name in LATE}}, check=late, limit_s=90,
    ),
    Scenario(
        id="w5", title="cut at byte 1 to 3000, FIN and RST", demands="mended or told",
        plays={
            "creative": {
                f"{end}-{byte}": [cut_at_byte(byte, rst=end == "rst")]
                for byte in CUTS for end in ("fin", "rst")
            },
        },
        check=cut_anywhere, limit_s=90,
    ),
    Scenario(
        id="w6", title="429 in up to 15 forms, 30 s", demands="all served",
        plays={"creative": list(SLOW_DOWN)}, check=all_served, limit_s=90,
    ),
    Scenario(
        id="w7", title="503 loading twice, then well", demands="all served, back within 20 s",
        plays={"creative": ["503_loading", "503_loading", "ok"]}, check=comes_back_soon,
    ),
    Scenario(
        id="w8", title="flapping: two fail, two succeed", demands="all served",
        plays={"creative": [FAILS, FAILS, "ok", "ok"] * 12}, check=all_served, limit_s=90,
    ),
    Scenario(
        id="w9", title="brown-out: 3 s to a token, 20 at once", demands="all served",
        plays={"creative": [slow(3)]}, check=brown_out,
    ),
]  # fmt: skip
"""The fault list of the design, as far as it can be seen from outside."""

ELSEWHERE: Final = [
    Elsewhere("w", "recovery at 10 % of capacity", "takes minutes of a moved clock",
              "tests/faults/test_fault_loads.py"),
]  # fmt: skip
