"""Is an answer honest? Whole, or an explicit error; never anything in between.

complete            all of one upstream's answer to this question, said to be finished
error               an error that every client sees as one
lie                 anything else
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

from gateway.faultlab.client import Answer
from gateway.faultlab.scenario import Grade, Verdict

Kind: TypeAlias = Literal["complete", "error", "lie", "left"]

_NORMAL = ("stop", "length", "tool_calls", "function_call", "content_filter")
"""Reasons to finish that clients take for a normal end."""


class Finding(NamedTuple):
    """What an answer is.

    Attributes:
        kind: see above; `left` if we hung up ourselves.
        says: in words.
        role: whose answer it is, "" if nobody's.
    """

    kind: Kind
    says: str
    role: str = ""


def look(answer: Answer, texts: Mapping[str, str]) -> Finding:
    """Say what an answer is.

    Args:
        answer: what came.
        texts: by role, the whole answers that may be given to this question.
    """
    if answer.ended == "left":
        return Finding("left", "we hung up")
    if answer.ended == "late":
        return Finding("lie", f"still no end after {answer.took_s:.0f} s")
    if answer.ended == "none":
        return Finding("lie", "hung up without an answer")
    if answer.garbage:
        return Finding("lie", f"garbage: {answer.garbage[0]}")
    if answer.status >= 400:
        said = answer.errors[0] if answer.errors else "without OpenAI's envelope"
        return Finding("error", f"HTTP {answer.status}: {_short(said)}")
    return _success(answer, texts)


def _success(answer: Answer, texts: Mapping[str, str]) -> Finding:
    """What an answer is that begins with a 200."""
    role = next((role for role, text in texts.items() if answer.text == text), "")
    if answer.errors:
        return _error_inside(answer)
    said_so = bool(answer.finish) and (answer.done or not answer.stream)
    if answer.ended == "cut" and not (role and said_so):
        return Finding("error", f"broken off after {_words(answer)}, with no word of why")
    if role and answer.finish == "stop":
        return Finding("complete", "complete", role)
    return Finding("lie", _falsehood(answer, texts))


def _falsehood(answer: Answer, texts: Mapping[str, str]) -> str:
    """What is wrong with what is neither complete nor an error."""
    if not answer.text and not answer.tools:
        return "an empty answer given for a whole one"
    if not any(text.startswith(answer.text) for text in texts.values()):
        return f"nobody's answer: ...{answer.text[-40:]!r}"
    if answer.finish in _NORMAL or answer.done or not answer.stream:
        return f"truncated after {_words(answer)}, given for a whole answer"
    return f"ends after {_words(answer)} without finish_reason, [DONE] or error"


def _error_inside(answer: Answer) -> Finding:
    if not answer.stream:
        return Finding("lie", f"an error inside a {answer.status}: {_short(answer.errors[0])}")
    if answer.finish in _NORMAL:
        return Finding("lie", f"an error after finish_reason {answer.finish}")
    return Finding("error", f"error event after {_words(answer)}: {_short(answer.errors[0])}")


def graded(
    answer: Answer, texts: Mapping[str, str], models: Mapping[str, str], *, facts: bool = True
) -> Verdict:
    """The verdict on one answer: complete passes, an error is safe, a lie fails.

    Args:
        answer: what came.
        texts: by role, the whole answers that may be given to this question.
        models: by role, the upstream's model.
        facts: whether another's name on an answer lowers the grade, or is only noted.
    """
    kind, says, role = look(answer, texts)
    if kind == "lie":
        return Verdict(Grade.FAIL, [says])
    if kind == "left":
        return Verdict(Grade.PASS, [says])
    if kind == "error":
        verdict = Verdict(Grade.SAFE, [f"{says} ({answer.took_s:.1f} s)"])
        leaked = answer.status == 200 and answer.roles > 0 and not answer.text
        return verdict.demand(not leaked, Grade.FAIL, "a role chunk, then an error")
    verdict = Verdict(Grade.PASS, [f"{role} answered in {answer.took_s:.1f} s"])
    others = [name for other, name in models.items() if other != role]
    if answer.model in others:
        worst = Grade.PARTIAL if facts else Grade.PASS
        verdict.demand(False, worst, f"says {answer.model!r}, but {role} answered")
    if answer.stream:
        verdict.demand(answer.done, Grade.PARTIAL, "no [DONE]")
        verdict.demand(answer.roles <= 1, Grade.PARTIAL, f"{answer.roles} role chunks")
    return verdict


def _words(answer: Answer) -> str:
    count = len(answer.text.split())
    return "no token" if not count else f"{count} tokens"


def _short(said: str, most: int = 100) -> str:
    said = " ".join(said.split())
    return said if len(said) <= most else f"{said[: most - 1]}…"
