"""The judge catches liars: each of them over a real socket, and honest ones beside them."""

from __future__ import annotations

import pytest
from fakes import (
    BALANCED,
    DONE,
    ERROR,
    ROLE,
    STOP,
    Respond,
    completion,
    delta,
    document,
    event,
    sse,
    tokens,
    trial,
)

from gateway.faultlab.judge import graded
from gateway.faultlab.scenario import Grade
from gateway.faultlab.words import answer_text

STREAMED: dict[str, tuple[Respond, Grade, str]] = {
    "whole": (lambda q: sse(ROLE + tokens(q) + STOP + DONE), Grade.PASS, "creative answered"),
    "crlf": (
        lambda q: sse((ROLE + tokens(q) + STOP + DONE).replace(b"\n", b"\r\n")),
        Grade.PASS,
        "creative answered",
    ),
    "truncated, then stop": (
        lambda q: sse(ROLE + tokens(q, 40) + STOP + DONE),
        Grade.FAIL,
        "truncated after 40 tokens, given for a whole answer",
    ),
    "truncated, then [DONE]": (
        lambda q: sse(ROLE + tokens(q, 40) + DONE),
        Grade.FAIL,
        "truncated",
    ),
    "truncated, then a clean end of the body": (
        lambda q: sse(ROLE + tokens(q, 40)),
        Grade.FAIL,
        "without finish_reason, [DONE] or error",
    ),
    "truncated, then length": (
        lambda q: sse(ROLE + tokens(q, 40) + delta({}, "length") + DONE),
        Grade.FAIL,
        "truncated",
    ),
    "a token lost": (
        lambda q: sse(ROLE + tokens(q).replace(b'"17 "', b'""') + STOP + DONE),
        Grade.FAIL,
        "nobody's answer",
    ),
    "the beginning of one, all of another": (
        lambda q: sse(ROLE + tokens(q, 40) + tokens(q, model=BALANCED) + STOP + DONE),
        Grade.FAIL,
        "nobody's answer",
    ),
    "another question's answer": (
        lambda q: sse(ROLE + tokens("qffx1") + STOP + DONE),
        Grade.FAIL,
        "nobody's answer",
    ),
    "balanced's answer in creative's name": (
        lambda q: sse(
            tokens(q, model=BALANCED).replace(b'"model": "balanced', b'"model": "creative')
            + STOP
            + DONE
        ),
        Grade.PARTIAL,
        "says 'creative-s0-stream', but balanced answered",
    ),
    "a role chunk, then an error": (
        lambda q: sse(ROLE + ERROR),
        Grade.FAIL,
        "a role chunk, then an error",
    ),
    "an error, said in the stream": (
        lambda q: sse(ROLE + tokens(q, 40) + ERROR),
        Grade.SAFE,
        "error event after 40 tokens: worker died",
    ),
    "an error after a normal end": (
        lambda q: sse(ROLE + tokens(q, 40) + STOP + ERROR + DONE),
        Grade.FAIL,
        "an error after finish_reason stop",
    ),
    "cut off": (
        lambda q: sse(ROLE + tokens(q, 40), ended=False),
        Grade.SAFE,
        "broken off after 40 tokens",
    ),
    "broken JSON": (
        lambda q: sse(ROLE + tokens(q, 4) + b'data: {"choi\n\n' + STOP + DONE),
        Grade.FAIL,
        "garbage",
    ),
    "a chunk that is none": (
        lambda q: sse(event({"hello": 1}) + tokens(q) + STOP + DONE),
        Grade.FAIL,
        "garbage: an event that is no chunk",
    ),
    "choices that are none": (
        lambda q: sse(event({"choices": [None]}) + tokens(q) + STOP + DONE),
        Grade.FAIL,
        "garbage: a choice that is none",
    ),
    "nothing, given for an answer": (
        lambda q: sse(ROLE + STOP + DONE),
        Grade.FAIL,
        "an empty answer",
    ),
    "whole, but no [DONE]": (
        lambda q: sse(ROLE + tokens(q) + STOP),
        Grade.PARTIAL,
        "no [DONE]",
    ),
    "two beginnings": (
        lambda q: sse(ROLE + ROLE + tokens(q) + STOP + DONE),
        Grade.PARTIAL,
        "2 role chunks",
    ),
}
"""What a gateway streams, and what the judge must make of it."""

WHOLE: dict[str, tuple[Respond, Grade, str]] = {
    "whole": (
        lambda q: document(completion(answer_text("creative-s0-whole", q))),
        Grade.PASS,
        "creative answered",
    ),
    "truncated": (
        lambda q: document(completion(answer_text("creative-s0-whole", q)[:60])),
        Grade.FAIL,
        "truncated",
    ),
    "an error inside a 200": (
        lambda q: document({"error": {"message": "worker died"}}),
        Grade.FAIL,
        "an error inside a 200: worker died",
    ),
    "broken JSON": (lambda q: document(b'{"choices": [{"mess'), Grade.FAIL, "garbage"),
    "a web page": (lambda q: document(b"<html></html>"), Grade.FAIL, "garbage"),
    "cut off": (
        lambda q: document(b'{"choices": [{"mess', length=500),
        Grade.SAFE,
        "broken off",
    ),
    "an honest error": (
        lambda q: document({"error": {"message": "all down"}}, 503),
        Grade.SAFE,
        "HTTP 503: all down",
    ),
    "no response": (lambda q: b"\r\n", Grade.FAIL, "hung up without an answer"),
}


@pytest.mark.parametrize("case", STREAMED)
async def test_streams(case: str) -> None:
    respond, grade, says = STREAMED[case]
    async with trial(respond) as t:
        verdict = t.judge(await t.ask(patience_s=5))
    assert (verdict.grade, says in verdict.evidence) == (grade, True), verdict


@pytest.mark.parametrize("case", WHOLE)
async def test_whole_answers(case: str) -> None:
    respond, grade, says = WHOLE[case]
    async with trial(respond, "whole") as t:
        verdict = t.judge(await t.ask(patience_s=5))
    assert (verdict.grade, says in verdict.evidence) == (grade, True), verdict


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n"])
async def test_who_hangs_fails(answer: bytes) -> None:
    async with trial(lambda _: answer or b"") as t:
        patience_s = 0.05 if not answer else 5
        verdict = t.judge(await t.ask(patience_s=patience_s))
    assert verdict.grade is Grade.FAIL


async def test_nobody_there_is_no_answer() -> None:
    async with trial(lambda _: b"") as t:
        pass  # closed now
    answer = await t.ask(patience_s=5)
    assert (answer.ended, answer.status) == ("none", 0)
    assert t.judge(answer).grade is Grade.FAIL


async def test_half_way_an_error_event_is_all_that_honesty_demands() -> None:
    async with trial(lambda q: sse(ROLE + tokens(q, 40) + ERROR)) as t:
        assert t.judge_late(await t.ask()).grade is Grade.PASS
    async with trial(lambda q: sse(ROLE + tokens(q, 40), ended=False)) as t:
        assert t.judge_late(await t.ask()).grade is Grade.SAFE, "broken off tells no reason"
    async with trial(lambda q: sse(ERROR)) as t:
        assert t.judge_late(await t.ask()).grade is Grade.SAFE, "nothing was lost yet"


async def test_who_answered_is_demanded_once_and_noted_elsewhere() -> None:
    swapped, grade, says = STREAMED["balanced's answer in creative's name"]
    async with trial(swapped) as t:
        answer = await t.ask()
        assert t.judge(answer).grade is grade
        noted = graded(answer, t.texts(answer.number), t.models(), facts=False)
    assert noted.grade is Grade.PASS
    assert says in noted.evidence


async def test_of_many_the_worst_counts() -> None:
    answered = 0

    def second_is_truncated(number: str) -> bytes:
        nonlocal answered
        answered += 1
        return sse(ROLE + tokens(number, 40 if answered == 2 else 60) + STOP + DONE)

    async with trial(second_is_truncated) as t:
        verdict = t.judge_all(await t.ask_each("", "", ""))
    assert verdict.grade is Grade.FAIL
    assert "3 requests: 2 by creative" in verdict.evidence
    assert "truncated" in verdict.evidence


async def test_a_caller_can_leave_when_it_has_seen_enough() -> None:
    async with trial(lambda q: sse(ROLE + tokens(q), ended=False)) as t:
        answer = await t.ask(leave=lambda answer: bool(answer.text))
    assert answer.ended == "left"
    assert answer.text
