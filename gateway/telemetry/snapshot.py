"""How one worker stands at one moment, and how those of several add up to one service."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from gateway.telemetry import tally
from gateway.telemetry.sentences import Tone
from gateway.telemetry.tally import Tally

_K = TypeVar("_K")
_T = TypeVar("_T")


class Line(msgspec.Struct, frozen=True):
    """One line of the event log.

    Attributes:
        key: what happened; the same in all workers that saw the same.
        at: when it last happened, on the clock.
        text: a sentence; see `gateway.telemetry.sentences.with_failures`.
        failures: how many requests in a row had failed before it.
        times: how often it happened.
    """

    key: str
    at: float
    tone: Tone
    text: str
    failures: int = 0
    times: int = 1


class TargetStanding(msgspec.Struct, frozen=True):
    """One target; units as in `Gateway.status()`."""

    name: str
    model: str
    in_flight: int
    resting_s: float
    budget_tokens: float


class ModeStanding(msgspec.Struct, frozen=True):
    """One mode. `place` is its rung, 0 the best; `rating_sum` is in thousandths."""

    at: float
    place: int
    phase: str
    downshifted: bool
    until_s: float | None
    ttl_s: float
    cap: int
    limit: int
    native: int
    helping: int
    rating_count: int
    rating_sum: int
    targets: dict[str, TargetStanding]


class Snapshot(msgspec.Struct):
    """How it stands.

    Attributes:
        at, since: when it was taken and when the oldest worker began, on the clock.
        workers: how many are in it.
        recent: requests that ended in the last ten whole seconds.
        minute: the last minute.
        history: ten minutes in steps of five seconds, by their number on the clock.
        modes: by name.
        lines: the event log by key, at most 200 of each worker.
        store: the response cache's own counts.
        config: where the configuration came from and how its last reload went.
    """

    at: float
    since: float
    workers: int
    recent: int
    minute: Tally
    history: dict[int, Tally]
    modes: dict[str, ModeStanding]
    lines: dict[str, Line]
    queued: int
    in_flight: int
    store: dict[str, int]
    config: dict[str, Any]


def standing_of(status: Mapping[str, Any], at: float) -> dict[str, ModeStanding]:
    """The modes of a `Gateway.status()`."""
    return {
        name: ModeStanding(
            at=at,
            place=place,
            phase=mode["phase"],
            downshifted=mode["downshifted"],
            until_s=mode["until_s"],
            ttl_s=mode["ttl_s"],
            cap=mode["cap"],
            limit=mode["limit"],
            native=mode["in_flight"]["native"],
            helping=mode["in_flight"]["downshifted"],
            rating_count=int(mode["rating"]["count"]),
            rating_sum=round(mode["rating"]["mean"] * mode["rating"]["count"] * 1000),
            targets={
                # Two targets of a mode may have one name: the same model on two machines.
                f"{number} {target['name']}": TargetStanding(
                    name=target["name"],
                    model=target["model"],
                    in_flight=target["in_flight"],
                    resting_s=target["resting_s"],
                    budget_tokens=target["budget_tokens"],
                )
                for number, target in enumerate(mode["targets"])
            },
        )
        for place, (name, mode) in enumerate(status["modes"].items())
    }


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Several workers as one service, in whatever order and grouping they come.

    Counts and histograms add. Workers agree on phases; where one lags behind, the newest speaks.

    Raises:
        ValueError: of no snapshot at all.
    """
    all_of = list(snapshots)
    if not all_of:
        raise ValueError("merge needs at least one snapshot")
    if len(all_of) == 1:
        return all_of[0]
    newest = max(all_of, key=lambda one: (one.at, str(one.config)))
    return Snapshot(
        at=newest.at,
        since=min(one.since for one in all_of),
        workers=sum(one.workers for one in all_of),
        recent=sum(one.recent for one in all_of),
        minute=tally.total(one.minute for one in all_of),
        history=_by_key((one.history for one in all_of), tally.total),
        modes=_by_key((one.modes for one in all_of), _mode),
        lines=_by_key((one.lines for one in all_of), _line),
        queued=sum(one.queued for one in all_of),
        in_flight=sum(one.in_flight for one in all_of),
        store=_by_key((one.store for one in all_of), sum),
        config=newest.config,
    )


def _by_key(
    mappings: Iterable[Mapping[_K, _T]], together: Callable[[list[_T]], _T]
) -> dict[_K, _T]:
    gathered: dict[_K, list[_T]] = {}
    for mapping in mappings:
        for key, value in mapping.items():
            gathered.setdefault(key, []).append(value)
    return {key: together(values) for key, values in gathered.items()}


def _mode(modes: list[ModeStanding]) -> ModeStanding:
    newest = max(modes, key=lambda m: (m.at, m.phase, m.downshifted, m.until_s or -1.0, m.ttl_s))
    return msgspec.structs.replace(
        newest,
        place=min(mode.place for mode in modes),
        cap=sum(mode.cap for mode in modes),
        limit=sum(mode.limit for mode in modes),
        native=sum(mode.native for mode in modes),
        helping=sum(mode.helping for mode in modes),
        rating_count=sum(mode.rating_count for mode in modes),
        rating_sum=sum(mode.rating_sum for mode in modes),
        targets=_by_key((mode.targets for mode in modes), _target),
    )


def _target(targets: list[TargetStanding]) -> TargetStanding:
    return TargetStanding(
        name=targets[0].name,
        model=max(target.model for target in targets),
        in_flight=sum(target.in_flight for target in targets),
        resting_s=max(target.resting_s for target in targets),
        budget_tokens=min(target.budget_tokens for target in targets),
    )


def _line(lines: list[Line]) -> Line:
    latest = max(lines, key=lambda line: (line.at, line.times, line.text, line.tone))
    return msgspec.structs.replace(latest, failures=sum(line.failures for line in lines))
