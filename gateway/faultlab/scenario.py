"""The words of the fault lab: grades and verdicts, scenarios and their runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, NamedTuple, TypeAlias

from gateway.simulator.scripted.fault import Play

Form: TypeAlias = Literal["stream", "whole"]
STREAM: tuple[Form, ...] = ("stream",)
WHOLE: tuple[Form, ...] = ("whole",)
BOTH: tuple[Form, ...] = ("stream", "whole")

ROLES = ("creative", "balanced", "fast")
"""The upstreams behind one model of the gateway: who should answer, and who stands in."""


class Grade(IntEnum):
    """How well it went, best first.

    PASS: all that the scenario demands. PARTIAL: answered, but late, too costly for the upstream,
    or wrong about who answered. SAFE: an honest error where an answer was possible. FAIL: a
    truncated or foreign answer given for a whole one, garbage, silence, or what was forbidden.
    """

    PASS = 0
    PARTIAL = 1
    SAFE = 2
    FAIL = 3


@dataclass(slots=True)
class Verdict:
    """A grade, and what speaks for it; the worst things first."""

    grade: Grade
    says: list[str] = field(default_factory=list)

    def demand(self, held: bool, otherwise: Grade, says: str) -> Verdict:
        """Lower the grade to `otherwise`, and say why, unless something held."""
        if not held:
            self.says.insert(0 if otherwise >= self.grade else len(self.says), says)
            self.grade = max(self.grade, otherwise)
        return self

    def note(self, says: str) -> Verdict:
        """Say something that changes no grade."""
        self.says.append(says)
        return self

    @property
    def evidence(self) -> str:
        """All of it in one line."""
        return "; ".join(self.says)


@dataclass(frozen=True, slots=True)
class Until:
    """Play one thing until so many seconds after the run began, then another."""

    seconds: float
    first: str | Play
    then: str | Play = "ok"


Entry: TypeAlias = "str | Play | Until"
Script: TypeAlias = "Sequence[Entry] | Mapping[str, Sequence[Entry]]"
"""What one upstream plays: entries, one a request, of which the last repeats; or such a list for
each mark that a question can bear, counted question by question. A mark not named plays `ok`."""

Check: TypeAlias = Callable[[Any], Awaitable[Verdict]]
"""From a `trial.Trial`, which knows this module and so cannot be named in it, to its verdict."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scenario:
    """One way to fail, and what is demanded of a gateway that meets it.

    Attributes:
        id: its number in the scorecard, such as "17a".
        title: what the upstream does.
        demands: what passing takes.
        check: asks the gateway and grades what comes.
        plays: what each upstream plays; one left out answers well.
        forms: asked for as a stream, as one piece, or both.
        ladder: how many of `ROLES` stand behind the model.
        limit_s: the run is a failure if it takes longer, seconds.
        early_probe: demands a recovery sooner than a fixed hold of 300 s would allow.
        refused: nobody listens where creative should be.
        crowd: asks so much at once that it would disturb others at the same gateway.
        facts: another's name on an answer lowers the grade. It is one fault, which would lower
            every scenario where somebody stands in; elsewhere it is noted.
        group: the part of the scorecard it stands in; filled in by the catalogue.
    """

    id: str
    title: str
    demands: str
    check: Check
    plays: Mapping[str, Script] = field(default_factory=dict)
    forms: tuple[Form, ...] = BOTH
    ladder: int = 2
    limit_s: float = 60.0
    early_probe: bool = False
    refused: bool = False
    crowd: bool = False
    facts: bool = False
    group: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """A scenario in one form: what the gateway knows as one model of its own."""

    scenario: Scenario
    form: Form

    @property
    def name(self) -> str:
        """Such as `s08-stream`."""
        return f"s{self.scenario.id}-{self.form}"

    @property
    def roles(self) -> tuple[str, ...]:
        """Who stands behind the model, best first."""
        return ROLES[: self.scenario.ladder]

    def model(self, role: str = ROLES[0]) -> str:
        """The upstream's model that plays a role here: its name picks the fault."""
        return f"{role}-{self.name}"


class Elsewhere(NamedTuple):
    """A scenario that a caller cannot see, or not within minutes.

    Attributes:
        id: its number.
        title: what it is about.
        why: what keeps it from being seen.
        tested: the file that tests it instead.
    """

    id: str
    title: str
    why: str
    tested: str
