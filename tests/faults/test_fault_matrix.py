"""Every fault of the catalogue through the whole gateway: behaviour.md, *What counts*, row by row.

The truth table stands here once more in the test's own words. For each fault and each form of
call and upstream: who answers, what the caller hears, how often upstream was asked, what the
circuit makes of it, what is kept, and that the mode is used again once the upstream is well.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from lab import Heard, Lab

from gateway.errors import (
    ErrorKind,
    GatewayError,
    StreamInterrupted,
    UpstreamRejected,
)
from gateway.generation import Generation
from gateway.simulator.scripted import FAULTS, ScriptedFault

REST_S = 700.0  # longer than any hold or rest
TIMES = 3  # the failures that open a circuit


class Verdict(NamedTuple):
    """One row of the truth table.

    Attributes:
        counts: what the circuit makes of it.
        attempts: how often creative's upstream is asked for one request.
        then: answer (it is no fault), walk (balanced answers), raise.
        reason: what a degraded answer says.
        alarm: whether a person must act.
    """

    counts: str
    attempts: int = 1
    then: str = "walk"
    reason: str = "failed"
    alarm: bool = False


FAILURE = Verdict("failure")
IGNORED = Verdict("ignored")
THROTTLED = Verdict("ignored", reason="cooling")
DEAD = Verdict("ignored", alarm=True)
RAISED = Verdict("ignored", then="raise")

TABLE: dict[ErrorKind | None, Verdict] = {
    None: Verdict("success", then="answer"),
    ErrorKind.CONNECT: Verdict("failure", attempts=2),  # one quick retry (B7)
    ErrorKind.TIMEOUT: FAILURE,  # silence is never tried twice
    ErrorKind.SERVER: FAILURE,
    ErrorKind.MALFORMED: FAILURE,
    ErrorKind.INTERRUPTED: FAILURE,
    ErrorKind.EMPTY: FAILURE,
    ErrorKind.OVERLOADED: IGNORED,
    ErrorKind.LOADING: IGNORED,
    ErrorKind.RATE: THROTTLED,
    ErrorKind.BURST: THROTTLED,
    ErrorKind.TOKENS: THROTTLED,
    ErrorKind.BILLING: DEAD,
    ErrorKind.AUTH: DEAD,
    ErrorKind.MODEL: DEAD,
    ErrorKind.CONTEXT: RAISED,  # every mode has the same window here
    ErrorKind.CONTENT: RAISED,
    ErrorKind.REQUEST: RAISED,
}


def verdict(name: str, fault: ScriptedFault) -> Verdict:
    row = TABLE[fault.kind]
    if fault.kind is ErrorKind.SERVER and fault.status in (500, 502, 503):
        return row._replace(attempts=2)  # one quick retry (B7)
    if name in ("429_retry_after_zero", "429_retry_after_negative"):
        return row._replace(attempts=2)  # a Retry-After of nothing is waited for, once
    if name == "400_thinking_only":
        return row._replace(attempts=2)  # it says how to ask better, which is tried once
    return row


class Case(NamedTuple):
    """A fault and who meets it."""

    name: str
    caller: str  # whole | stream
    upstream: str  # whole | stream
    transport: str = "http1"

    @property
    def fault(self) -> ScriptedFault:
        return FAULTS[self.name]

    @property
    def interrupts(self) -> bool:
        """Whether it strikes a streaming caller after the first token."""
        return (self.caller, self.upstream) == ("stream", "stream") and self.fault.tokens > 0

    def __str__(self) -> str:
        return "-".join(self)


def cases(transport: str = "http1") -> list[Case]:
    every = [
        Case(name, caller, upstream, transport)
        for name, fault in FAULTS.items()
        for caller in ("whole", "stream")
        for upstream in ("stream", "whole")
        if fault.strikes(stream=upstream == "stream")
    ]
    if transport == "http1":
        return every
    # Of the HTTP errors, which differ in their words only, one a kind.
    words = {case.fault.kind: case.name for case in every if case.fault.status not in (0, 200)}
    return [
        case
        for case in every
        if case.name in words.values()
        or (case.fault.status in (0, 200) and case.caller == case.upstream)
    ]


@pytest.mark.parametrize("case", cases(), ids=str)
async def test_every_fault_ends_as_the_table_says(lab: Lab, case: Case) -> None:
    await check(lab, case)


@pytest.mark.parametrize("case", cases("httpx"), ids=str)
async def test_and_so_it_does_through_httpx(lab: Lab, case: Case) -> None:
    await check(lab, case)


async def check(lab: Lab, case: Case) -> None:
    expected = verdict(case.name, case.fault)
    start(lab, case)
    lab.script("creative", case.name)
    prompts = [lab.prompt() for _ in range(TIMES)]

    for number, prompt in enumerate(prompts, start=1):
        before = lab.clock()
        outcome = await ask(lab, case, prompt)
        assert lab.clock() - before < 2.0, "not bounded"
        check_outcome(lab, case, expected, prompt, outcome)
        if case.name == "400_thinking_only":
            assert lab.requests() == number + 1  # the lesson is learnt once
        else:
            assert lab.requests() == number * expected.attempts
        verdicts = {attempt.outcome for attempt in lab.attempts()}
        assert verdicts == {expected.counts}
        if expected.counts == "ignored":
            lab.clock.skip(REST_S)
    assert lab.phase() == ("open" if expected.counts == "failure" else "closed")
    assert any(rest.alarm for rest in lab.rests()) == expected.alarm
    check_kept(lab, case, expected)
    await lab.check_at_rest()

    await check_healed(lab, case, expected, prompts[0])


def start(lab: Lab, case: Case) -> None:
    silent = case.fault.kind is ErrorKind.TIMEOUT
    whole = case.upstream == "whole"
    # Unstreamed, the first token is the whole answer: the mode's deadline is what it may take.
    limits = {"deadline_s": 0.2} if silent and whole else {}
    patience = {"stall_s" if case.fault.tokens else "first_token_s": 0.15} if silent else {}
    lab.start(
        creative={
            **patience,
            **limits,
            "target": {"stream_upstream": not whole, "transport": case.transport},
        },
        target={"context_window": 8192},
        tables={"budget": {"tokens": 100}},  # enough for every quick retry
    )


async def ask(lab: Lab, case: Case, prompt: str) -> Generation | Heard | GatewayError:
    if case.caller == "stream":
        return await lab.hear(prompt, deadline=10.0)
    try:
        return await lab.gateway.generate(prompt, deadline=10.0)
    except GatewayError as error:
        return error


def check_outcome(
    lab: Lab,
    case: Case,
    expected: Verdict,
    prompt: str,
    outcome: Generation | Heard | GatewayError,
) -> None:
    error = outcome.error if isinstance(outcome, Heard) else outcome
    if case.interrupts:
        assert isinstance(outcome, Heard)
        check_interrupted(lab, case, prompt, outcome)
    elif expected.then == "raise":
        assert isinstance(error, UpstreamRejected), error
        assert error.kind is case.fault.kind
        assert error.status == case.fault.status
        if isinstance(outcome, Heard):
            assert not outcome.chunks, "a refused stream shows nothing"
    else:
        whole = outcome.whole if isinstance(outcome, Heard) else outcome
        assert isinstance(whole, Generation), error
        if isinstance(outcome, Heard):
            assert outcome.text == whole.text
            assert outcome.served == whole.served
            assert {chunk.model for chunk in outcome.chunks} == {whole.model}
        if expected.then == "answer":
            check_good(lab, case, prompt, whole)
        else:
            lab.check_answer(whole, prompt)
            assert (whole.mode, whole.model) == ("balanced", "balanced")
            assert whole.reason == expected.reason
            assert whole.finish_reason == "stop"


def check_interrupted(lab: Lab, case: Case, prompt: str, heard: Heard) -> None:
    error = heard.error
    assert isinstance(error, StreamInterrupted), error
    assert error.kind is case.fault.kind
    assert heard.whole is None
    assert heard.served is not None and heard.served.mode == error.mode == "creative"
    whole = lab.says("creative", prompt)
    assert error.partial == heard.text
    assert whole.startswith(error.partial)
    assert len(error.partial.split()) == case.fault.tokens
    assert not any(chunk.finish_reason for chunk in heard.chunks), "never a clean end"


def check_good(lab: Lab, case: Case, prompt: str, answer: Generation) -> None:
    """A good answer, however odd its form, comes whole and from creative."""
    words = lab.says("creative", prompt)
    assert (answer.mode, answer.degraded, answer.reason) == ("creative", False, None)
    assert answer.served.attempts == 1
    assert answer.text == (words if case.fault.text is None else case.fault.text)
    assert answer.model == ("creative" if case.name != "renamed_model" else "qwen-of-another-name")
    match case.name:
        case "reasoning_only":
            assert (answer.reasoning, answer.finish_reason) == (words, "length")
        case "tool_calls" | "tool_name_split":
            function = {"name": "find_notes", "arguments": '{"family": "woody"}'}
            assert answer.tool_calls == [{"id": "call_1", "type": "function", "function": function}]
            assert answer.finish_reason == "tool_calls"
        case "two_choices":
            assert [choice["message"]["content"] for choice in answer.choices] == [words, words]
        case "logprobs":
            told = [one["token"] for one in answer.choices[0]["logprobs"]["content"]]
            assert "".join(told) == words
        case "done_without_finish":
            assert answer.finish_reason is None
        case _:
            assert answer.finish_reason == "stop"


def never_kept(case: Case) -> bool:
    return case.name in ("reasoning_only", "done_without_finish")


def check_kept(lab: Lab, case: Case, expected: Verdict) -> None:
    """Whole answers are kept, and nothing else is (B22)."""
    nothing = case.interrupts or expected.then == "raise" or never_kept(case)
    assert lab.cached_entries() == (0 if nothing else TIMES)


async def check_healed(lab: Lab, case: Case, expected: Verdict, prompt: str) -> None:
    """With the upstream well and the hold over, creative answers again, and in its own words."""
    lab.script("creative", "ok")
    before = lab.requests()
    if expected.then == "answer" and not never_kept(case):
        again = await lab.gateway.generate(prompt)
        assert (again.cached, lab.requests()) == (True, before)
        check_good(lab, case._replace(caller="whole"), prompt, _uncounted(again))
        return
    lab.clock.skip(REST_S)
    again = await lab.ask(prompt, deadline=10.0)
    assert (again.mode, again.degraded, again.cached) == ("creative", False, False)
    assert lab.requests() == before + 1
    assert lab.phase() == ("recovering" if expected.counts == "failure" else "closed")


def _uncounted(hit: Generation) -> Generation:
    """A hit took no attempt at all; the rest of it is as it was."""
    assert hit.served.attempts == 0
    hit.served.attempts = 1
    return hit
