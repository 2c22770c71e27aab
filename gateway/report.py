"""What a simulation showed: plain records, measured from what the gateway told its listeners.

    recording (events and looks) --measure--> Report --timeline, plot, JSON--> people

Everything follows from the recording, so equal runs give equal reports, byte for byte.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from gateway.events import AttemptFinished, CircuitChanged, RequestFinished
from gateway.policies.phases import Phase
from gateway.scenarios import Scenario
from gateway.simulator.faults import AnyFault, Fault, FaultPlan

CACHE, FAILED = "cache", "failed"
"""What stands beside the modes' names where it is said who answered."""

BUCKET_S = 30.0
"""Width of the buckets a picture is drawn from, seconds."""

# A standing this short is a step on the way to the next one.
_FLEETING_S = 1.0
_NOTICED_S = 30.0
_THERE = frozenset({Phase.CLOSED, Phase.RECOVERING, "cooling"})


class Standing(NamedTuple):
    """How a mode stands: its phase (`cooling` while its targets rest) and the TTL in force."""

    phase: str
    ttl_s: float


class Look(NamedTuple):
    """How all modes stand from a moment on."""

    at: float
    standings: dict[str, Standing]


@dataclass(slots=True)
class Recording:
    """What there is to see and hear of a run; seconds count from its beginning."""

    looks: list[Look] = field(default_factory=list)
    changes: list[CircuitChanged] = field(default_factory=list)
    attempts: list[AttemptFinished] = field(default_factory=list)
    requests: list[RequestFinished] = field(default_factory=list)


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened: `times` in a row, at `at_s` first and at `until_s` last."""

    at_s: float
    mode: str
    what: str
    times: int = 1
    until_s: float = 0.0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """How things stood from `at_s` to the next row.

    Attributes:
        notes: what happened at its beginning.
        standings: by mode.
        answered: of the requests begun meanwhile, by the mode asked for: who answered how many;
            `cache` and `failed` beside the modes.
    """

    at_s: float
    notes: list[Note]
    standings: dict[str, Standing]
    answered: dict[str, dict[str, int]]


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """One fault and what came of it.

    Attributes:
        opened_after_s: from its start until the circuit opened; None if it did not.
        back_after_s: from its end until the mode answered for itself again; None if it did not.
        asked: requests for this mode that began while it lasted.
        attempts: attempts at it that began while it lasted, `attempts_while_down` of them while
            nothing there could answer.
    """

    mode: str
    fault: str
    start_s: float
    end_s: float
    opened_after_s: float | None
    back_after_s: float | None
    asked: int
    attempts: int
    attempts_while_down: int


class Requests(msgspec.Struct, frozen=True, kw_only=True):
    """All requests. `answered_by` adds up to `served`; degraded and stale ones are among them."""

    asked: int
    served: int
    failed: int
    answered_by: dict[str, int]
    cached: int
    stale: int
    degraded: int
    errors: dict[str, int]
    p50_s: float
    p99_s: float
    slowest_s: float


class Buckets(msgspec.Struct, frozen=True, kw_only=True):
    """Counts over time: requests, when they began, by who answered; attempts, when they failed,
    by mode.
    """

    every_s: float
    answered: dict[str, list[int]]
    failed_attempts: dict[str, list[int]]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one run of a scenario showed. Field names are public and stay.

    Attributes:
        amplification: upstream attempts per request that the cache did not answer.
        shares: by the mode asked for and its phase: who answered, as shares of 1.
    """

    scenario: str
    story: str
    seed: int
    minutes: float
    requests_per_s: float
    requests: Requests
    attempts: int
    failed_attempts: int
    amplification: float
    incidents: list[Incident]
    shares: dict[str, dict[str, dict[str, float]]]
    timeline: list[Row]
    buckets: Buckets

    def json(self) -> str:
        """The report as JSON, indented."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()


def answerer(request: RequestFinished) -> str:
    """Who answered: a mode, `cache` or `failed`."""
    return FAILED if request.error else CACHE if request.cached else request.mode


def measure(scenario: Scenario, seed: int, recording: Recording) -> Report:
    """Make a report of a recording."""
    modes = list(scenario.ladder)
    requests = _requests(modes, recording.requests)
    rows = _rows(scenario, recording)
    uncached = requests.asked - requests.cached
    return Report(
        scenario=scenario.name,
        story=scenario.story,
        seed=seed,
        minutes=scenario.minutes,
        requests_per_s=scenario.requests_per_s,
        requests=requests,
        attempts=len(recording.attempts),
        failed_attempts=sum(attempt.kind != "" for attempt in recording.attempts),
        amplification=_rounded(len(recording.attempts) / max(1, uncached)),
        incidents=[
            _incident(mode, fault, recording)
            for mode, faults in scenario.faults.items()
            for fault in faults
        ],
        shares={mode: _shares(mode, rows) for mode in modes},
        timeline=rows,
        buckets=_buckets(scenario, recording),
    )


def _rounded(seconds: float) -> float:
    return round(seconds, 3)


def _began(ended: AttemptFinished | RequestFinished) -> float:
    return ended.at - ended.duration_s


def _requests(modes: Sequence[str], finished: Sequence[RequestFinished]) -> Requests:
    by = Counter(answerer(request) for request in finished)
    failed = by.pop(FAILED, 0)
    times = sorted(request.duration_s for request in finished if not request.error)

    def percentile(share: float) -> float:
        return (
            _rounded(times[min(len(times) - 1, math.floor(share * len(times)))]) if times else 0.0
        )

    return Requests(
        asked=len(finished),
        served=len(finished) - failed,
        failed=failed,
        answered_by={name: by.get(name, 0) for name in (*modes, CACHE)},
        cached=by.get(CACHE, 0),
        stale=sum(request.stale for request in finished),
        degraded=sum(request.degraded and not request.error for request in finished),
        errors=dict(sorted(Counter(r.error for r in finished if r.error).items())),
        p50_s=percentile(0.5),
        p99_s=percentile(0.99),
        slowest_s=percentile(1.0),
    )


# -- the timeline ---------------------------------------------------------------------------------


def _rows(scenario: Scenario, recording: Recording) -> list[Row]:
    """One row for each change of standings, and for what happened without changing them."""
    looks = recording.looks
    ends = [look.at for look in looks[1:]] + [math.inf]
    lasting = [look for look, end in zip(looks, ends, strict=True) if end - look.at >= _FLEETING_S]
    starts: list[float] = []
    drafts: list[tuple[dict[str, Standing], list[Note]]] = []
    notes = sorted(_notes(scenario, recording), key=lambda note: note.at_s)
    for look, end in zip(lasting, [*(later.at for later in lasting[1:]), math.inf], strict=True):
        if not drafts or drafts[-1][0] != look.standings:
            starts.append(look.at)
            drafts.append((look.standings, []))
        # A fleeting step on the way here happened just before: it belongs to this row.
        while notes and notes[0].at_s < end - _FLEETING_S:
            _add(drafts[-1][1], notes.pop(0))
    answered = _answered(list(scenario.ladder), starts, recording.requests)
    return [
        Row(at_s=_rounded(at), notes=told, standings=standings, answered=who)
        for at, (standings, told), who in zip(starts, drafts, answered, strict=True)
    ]


def _add(notes: list[Note], note: Note) -> None:
    """Add a note, or count it where the same was noted before."""
    for index, known in enumerate(notes):
        if (known.mode, known.what) == (note.mode, note.what):
            notes[index] = msgspec.structs.replace(known, times=known.times + 1, until_s=note.at_s)
            return
    notes.append(note)


def _notes(scenario: Scenario, recording: Recording) -> Iterable[Note]:
    for mode, faults in scenario.faults.items():
        for fault in faults:
            yield _note(fault.start, mode, f"{_kind(fault)} begins")
            yield _note(fault.end, mode, f"{_kind(fault)} ends")
    for change in recording.changes:
        if change.new == Phase.OPEN:
            how = "probe failed" if change.old == Phase.PROBING else "circuit opens"
            yield _note(change.at, change.mode, f"{how}: {change.cause}")
        elif change.old == Phase.PROBING:
            yield _note(change.at, change.mode, "probe answered")


def _note(at: float, mode: str, what: str) -> Note:
    at = _rounded(at)
    return Note(at_s=at, mode=mode, what=what, until_s=at)


def _kind(fault: Fault) -> str:
    return str(fault.__struct_config__.tag).replace("_", " ")


def _answered(
    modes: Sequence[str], starts: Sequence[float], requests: Iterable[RequestFinished]
) -> list[dict[str, dict[str, int]]]:
    """Who answered the requests that began between one start and the next."""
    counts: list[dict[str, Counter[str]]] = [{mode: Counter() for mode in modes} for _ in starts]
    for request in requests:
        row = max(0, bisect_right(starts, _began(request)) - 1)
        counts[row][request.requested_mode][answerer(request)] += 1
    order = (*modes, CACHE, FAILED)
    return [
        {mode: {name: by[name] for name in order if by[name]} for mode, by in row.items() if by}
        for row in counts
    ]


def _shares(mode: str, rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    by_phase: dict[str, Counter[str]] = {}
    for row in rows:
        by_phase.setdefault(row.standings[mode].phase, Counter()).update(row.answered.get(mode, {}))
    return {
        phase: {name: _rounded(count / by.total()) for name, count in by.items()}
        for phase, by in by_phase.items()
        if by
    }


# -- incidents and buckets ------------------------------------------------------------------------


def _incident(mode: str, fault: AnyFault, recording: Recording) -> Incident:
    start, end = fault.start, fault.end
    plan = FaultPlan((fault,))
    asked = [r for r in recording.requests if r.requested_mode == mode]
    attempts = [_began(a) for a in recording.attempts if a.mode == mode]
    during = [at for at in attempts if start <= at < end]
    opened = [
        change.at
        for change in recording.changes
        if change.mode == mode and change.new == Phase.OPEN and change.old != Phase.PROBING
        # An answer that broke in the fault's last moment is noticed a little later.
        if start <= change.at < end + _NOTICED_S
    ]
    return Incident(
        mode=mode,
        fault=_kind(fault),
        start_s=start,
        end_s=end,
        # An answer that broke in the fault's last moment is noticed a little later.
        opened_after_s=next(
            (_rounded(at - start) for at in opened if start <= at < end + 30), None
        ),
        back_after_s=_back_after_s(mode, end, recording.looks),
        asked=sum(start <= _began(request) < end for request in asked),
        attempts=len(during),
        attempts_while_down=sum(plan.outage(at) is not None for at in during),
    )


def _back_after_s(mode: str, end: float, looks: Sequence[Look]) -> float | None:
    """Seconds from `end` until the mode is there, 0 if it was there all the time."""
    then = max(0, bisect_right(looks, end, key=lambda look: look.at) - 1)
    for look in looks[then:]:
        if look.standings[mode].phase in _THERE:
            return _rounded(max(0.0, look.at - end))
    return None


def _buckets(scenario: Scenario, recording: Recording) -> Buckets:
    number = max(1, math.ceil(scenario.minutes * 60 / BUCKET_S))

    def bucket(at: float) -> int:
        return min(number - 1, max(0, int(at / BUCKET_S)))

    answered = {name: [0] * number for name in (*scenario.ladder, CACHE, FAILED)}
    for request in recording.requests:
        answered[answerer(request)][bucket(_began(request))] += 1
    failed = {mode: [0] * number for mode in scenario.ladder}
    for attempt in recording.attempts:
        failed[attempt.mode][bucket(attempt.at)] += attempt.kind != ""
    return Buckets(every_s=BUCKET_S, answered=answered, failed_attempts=failed)
