"""What a report makes of a recording, on recordings small enough to check by hand."""

from __future__ import annotations

from gateway.events import AttemptFinished, CircuitChanged, RequestFinished
from gateway.report import Look, Note, Recording, Report, Standing, measure
from gateway.scenarios import Scenario
from gateway.simulator.faults import Outage
from gateway.simulator.service import Service

STORY = Scenario(
    name="hand",
    story="made by hand",
    faults={"top": (Outage(100, 200),)},
    ladder={"top": Service(), "low": Service()},
    minutes=10,
)
WELL, OPEN = Standing("closed", 3600.0), Standing("open", 300.0)
PROBING, BACK = Standing("probing", 300.0), Standing("recovering", 3600.0)


def request(began: float, mode: str, by: str, **fields: object) -> RequestFinished:
    known: dict[str, object] = {
        "at": began + 2,
        "request_id": "r",
        "requested_mode": mode,
        "mode": by,
        "model": "m",
        "target": "t",
        "tenant": "",
        "stream": False,
        "degraded": by != mode,
        "reason": None,
        "cached": False,
        "stale": False,
        "attempts": 1,
        "error": "",
        "finish_reason": "stop",
        "first_token_s": 0.1,
        "duration_s": 2.0,
        "prompt_tokens": 1,
        "completion_tokens": 1,
    }
    return RequestFinished(**{**known, **fields})  # type: ignore[arg-type]


def attempt(began: float, mode: str, kind: str = "") -> AttemptFinished:
    return AttemptFinished(
        at=began + 1,
        request_id="r",
        mode=mode,
        target="t",
        outcome="failure" if kind else "success",
        kind=kind,
        duration_s=1.0,
    )


def change(at: float, old: str, new: str, cause: str = "connect") -> CircuitChanged:
    return CircuitChanged(at=at, mode="top", old=old, new=new, cause=cause, epoch=1)


def look(at: float, top: Standing) -> Look:
    return Look(at, {"top": top, "low": WELL})


def report(**parts: object) -> Report:
    recording = Recording(**{"looks": [look(0, WELL)], **parts})  # type: ignore[arg-type]
    return measure(STORY, 0, recording)


def test_answers_are_counted_by_who_gave_them() -> None:
    requests = report(
        requests=[
            request(1, "top", "top"),
            request(2, "top", "low"),
            request(3, "top", "top", cached=True),
            request(4, "top", "low", cached=True, stale=True),
            request(5, "low", "", error="all_modes_failed", degraded=False),
        ],
        attempts=[attempt(1, "top"), attempt(2, "top", "connect"), attempt(2, "low")],
    )
    told = requests.requests
    assert (told.asked, told.served, told.failed) == (5, 4, 1)
    assert told.answered_by == {"top": 1, "low": 1, "cache": 2}
    assert (told.cached, told.stale, told.degraded) == (2, 1, 2)
    assert told.errors == {"all_modes_failed": 1}
    assert requests.amplification == 1.0  # three attempts for three requests past the cache
    assert requests.failed_attempts == 1


def test_a_row_begins_where_a_standing_changes_and_counts_who_began_in_it() -> None:
    rows = report(
        looks=[look(0, WELL), look(110, OPEN), look(410, BACK)],
        requests=[
            request(109, "top", "low"),
            request(111, "top", "low"),
            request(411, "top", "top"),
        ],
    ).timeline
    assert [row.at_s for row in rows] == [0, 110, 410]
    assert [row.answered for row in rows] == [
        {"top": {"low": 1}},
        {"top": {"low": 1}},
        {"top": {"top": 1}},
    ]


def test_a_step_shorter_than_a_second_makes_no_row() -> None:
    rows = report(
        looks=[look(0, WELL), look(110, OPEN), look(410, PROBING), look(410.01, OPEN)],
        changes=[
            change(110, "closed", "open"),
            change(410, "open", "probing"),
            change(410.01, "probing", "open"),
        ],
    ).timeline
    assert [(row.at_s, row.standings["top"]) for row in rows] == [(0, WELL), (110, OPEN)]
    assert [note.what for note in rows[1].notes] == [
        "circuit opens: connect",
        "outage ends",
        "probe failed: connect",
    ]


def test_equal_notes_of_a_row_are_told_once_and_counted() -> None:
    rows = report(
        looks=[look(0, WELL), look(110, OPEN)],
        changes=[change(110 + n, "probing", "open") for n in (5, 10, 15)],
    ).timeline
    assert (
        Note(at_s=115, mode="top", what="probe failed: connect", times=3, until_s=125)
        in rows[1].notes
    )


def test_an_incident_is_measured_from_its_fault() -> None:
    told = report(
        looks=[look(0, WELL), look(104, OPEN), look(404, PROBING), look(406, BACK)],
        changes=[change(104, "closed", "open"), change(406, "probing", "recovering")],
        requests=[
            request(99, "top", "top"),
            request(150, "top", "low"),
            request(150, "low", "low"),
        ],
        attempts=[attempt(99, "top"), attempt(100, "top", "connect"), attempt(150, "low")],
    )
    (incident,) = told.incidents
    assert incident.opened_after_s == 4
    assert incident.back_after_s == 206
    assert (incident.asked, incident.attempts, incident.attempts_while_down) == (1, 1, 1)


def test_a_mode_that_never_left_is_back_at_once_and_one_that_stays_away_is_not() -> None:
    assert report().incidents[0].back_after_s == 0
    away = report(looks=[look(0, WELL), look(104, OPEN)])
    assert away.incidents[0].back_after_s is None


def test_shares_are_by_the_phase_of_the_mode_asked_for() -> None:
    told = report(
        looks=[look(0, WELL), look(104, OPEN)],
        requests=[
            request(1, "top", "top"),
            request(110, "top", "low"),
            request(111, "top", "low"),
            request(112, "top", "top", cached=True),
            request(113, "top", "", error="deadline_exceeded"),
        ],
    )
    assert told.shares == {
        "top": {"closed": {"top": 1.0}, "open": {"low": 0.5, "cache": 0.25, "failed": 0.25}},
        "low": {},
    }


def test_buckets_hold_every_request_and_every_failure() -> None:
    buckets = report(
        requests=[request(at, "top", "top") for at in (0, 29, 30, 599, 601)],
        attempts=[attempt(28.9, "top", "server"), attempt(29.1, "top", "server")],
    ).buckets
    assert buckets.answered["top"][:2] == [2, 1]
    assert buckets.answered["top"][-1] == 2  # what came late belongs to the last one
    assert buckets.failed_attempts["top"][:2] == [1, 1]  # by when they failed


def test_nothing_asked_is_a_report_too() -> None:
    told = report()
    assert told.requests.asked == 0 and told.requests.p99_s == 0
    assert told.amplification == 0
