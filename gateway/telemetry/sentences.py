"""Events as sentences for people: what moved, why, who answers now, and when it may be back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from gateway.events import CircuitChanged, ConfigReloaded, RequestFinished, TargetResting

Tone = Literal["good", "info", "warn", "bad"]


class Told(NamedTuple):
    """A sentence, and how glad one is of it."""

    tone: Tone
    text: str


_AFTER_FAILURES = "{after failures}"
_CAUSES = {
    "connect": "no connection",
    "timeout": "no answer in time",
    "server": "server errors",
    "malformed": "broken answers",
    "interrupted": "answers broke off",
    "empty": "empty answers",
    "overdue": "answers are overdue",
    "failure ratio": "too many of its calls failed",
    "lease over": "no answer in time",
    "abandoned": "callers gave up waiting",
    "overloaded": "its queue is full",
    "loading": "its model is loading",
    "rate": "too many requests a minute",
    "burst": "requests grew too quickly",
    "tokens": "too many tokens a minute",
    "billing": "the bill is not paid",
    "auth": "our key is refused",
    "model": "it does not know the model",
}


def cause_words(cause: str) -> str:
    """An error kind or a circuit's cause in words."""
    return _CAUSES.get(cause, cause.replace("_", " "))


def stand_in(mode: str, modes: Mapping[str, Mapping[str, Any]]) -> str:
    """Who answers for a mode that does not: the next one down that does; "" is nobody.

    Args:
        mode: a mode's name.
        modes: `Gateway.status()["modes"]`, best first.
    """
    names = list(modes)
    below = names[names.index(mode) + 1 :] if mode in modes else []
    return next((name for name in below if not modes[name]["downshifted"]), "")


def duration_words(seconds: float) -> str:
    """A span of time: `45 s`, `5 min`, `4 min 32 s`."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes or seconds < 100:
        return f"{round(seconds)} s"
    return f"{minutes} min" + (f" {rest} s" if rest else "")


def circuit_words(event: CircuitChanged, instead: str) -> Told:
    """A circuit's move. What led to it is counted by all workers: see `with_failures`.

    Args:
        event: the move.
        instead: who answers now in its place; "" is nobody.
    """
    mode, why = event.mode, cause_words(event.cause)
    by_hand = {
        "forced_open": f"{mode} was forced open by an operator; {_now(instead)}",
        "forced_closed": f"{mode} was forced closed by an operator; failures no longer open it",
    }
    if event.new in by_hand:
        return Told("warn", by_hand[event.new])
    if event.new == "open":
        text = f"{_opened(event)}: {why}; {_now(instead)}{_again(event.until)}"
        return Told("bad", text)
    if event.new == "probing":
        return Told("info", f"{mode} is being tried again with one request")
    if event.cause == "operator":
        return Told("info", f"{mode} was given back to its circuit; it starts with a few requests")
    return Told("good", f"{mode} is back; it starts with a few requests")


def with_failures(text: str, failures: int) -> str:
    """A sentence of `circuit_words`, with how many requests in a row had failed; 0 is unknown."""
    many = f" after {failures} failure{'s' * (failures > 1)}" if failures else ""
    return text.replace(_AFTER_FAILURES, many)


def _opened(event: CircuitChanged) -> str:
    if event.old == "probing":
        return f"{event.mode} is not back, its probe failed"
    if event.cause in ("overdue", "failure ratio"):
        return f"{event.mode} opened"
    return f"{event.mode} opened{_AFTER_FAILURES}"


def resting_words(event: TargetResting) -> Told:
    """A target is left alone for a while."""
    why = cause_words(event.kind)
    if event.alarm:
        rest = f"left out for {duration_words(event.for_s)}: a person must act"
        return Told("bad", f"{event.target} of {event.mode}: {why}; {rest}")
    return Told("warn", f"{event.target} of {event.mode} rests {_short(event.for_s)}: {why}")


def config_words(event: ConfigReloaded) -> Told:
    """A reload, and how it went."""
    what = f": {event.detail}" if event.detail else ""
    return {
        "applied": Told("info", f"a new configuration is in force{what}"),
        "refused": Told("warn", f"a new configuration was refused{what}"),
        "rolled_back": Told("bad", f"failures jumped; back to the earlier configuration{what}"),
        "not_rolled_back": Told("bad", f"failures jumped, and there is no way back{what}"),
    }.get(event.result, Told("info", f"configuration {event.result.replace('_', ' ')}{what}"))


def unanswered_words(event: RequestFinished) -> Told:
    """A request that got no answer, by fault of upstream or for lack of room."""
    why = (event.error or "unknown error").replace("_", " ")
    if event.outcome == "refused":
        return Told("warn", f"a request for {event.requested_mode} was refused: {why}")
    return Told("bad", f"a request for {event.requested_mode} failed: {why}")


def headline(modes: Sequence[Mapping[str, Any]]) -> Told:
    """How it stands, in one sentence.

    Args:
        modes: as in `gateway.telemetry.picture`, best first.
    """
    down = [mode for mode in modes if mode["downshifted"]]
    if not down:
        back = [mode["name"] for mode in modes if mode["phase"] == "recovering"]
        if back:
            is_are = "is" if len(back) == 1 else "are"
            return Told("info", f"Every mode answers; {_and(back)} {is_are} still recovering.")
        return Told("good", "Every mode answers for itself.")
    if len(down) == len(modes):
        return Told("bad", "No mode answers. Answers kept in the cache still go out.")
    parts = []
    for instead in dict.fromkeys(mode["stand_in"] for mode in down):
        names = [mode["name"] for mode in down if mode["stand_in"] == instead]
        is_are, it = ("is", "it") if len(names) == 1 else ("are", "them")
        who = f"{instead} answers for {it}" if instead else f"nobody answers for {it}"
        parts.append(f"{_and(names)} {is_are} out, {who}")
    text = "; ".join(parts)
    nobody = any(not mode["stand_in"] for mode in down)
    return Told("bad" if nobody else "warn", text[:1].upper() + text[1:] + ".")


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _now(instead: str) -> str:
    return f"{instead} answers" if instead else "no mode below it can answer"


def _again(until: float | None) -> str:
    return f", back in {_short(until)} at the earliest" if until else ""


def _short(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"
