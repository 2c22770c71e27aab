"""A report as text that reads from top to bottom: what happened when, and what it came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gateway.report import CACHE, Incident, Note, Report, Row, Standing

_WORDS = {
    "connect": "no connection",
    "interrupted": "answers broke off",
    "server": "errors 500",
    "timeout": "answers too late",
    "overdue": "answers overdue",
    "failure ratio": "half of the calls failed",
    "lease over": "no answer in time",
}


def timeline(report: Report) -> str:
    """The whole report."""
    return "\n".join([*_head(report), "", *_rows(report), "", *_summary(report), ""])


def clock(seconds: float) -> str:
    """Seconds as `mm:ss`."""
    minutes, rest = divmod(int(seconds + 1e-6), 60)
    return f"{minutes:02d}:{rest:02d}"


def _head(report: Report) -> Iterator[str]:
    yield f"{report.scenario}: {report.story}"
    rate = f"{report.requests_per_s:g} request{'' if report.requests_per_s == 1 else 's'} a second"
    yield f"{report.minutes:g} simulated minutes, {rate}, seed {report.seed}"


# -- what happened --------------------------------------------------------------------------------


def _rows(report: Report) -> Iterator[str]:
    modes = list(report.shares)
    width = max(
        len(f"{s.phase} {s.ttl_s:g}") for r in report.timeline for s in r.standings.values()
    )
    width = max(width, *(len(mode) for mode in modes)) + 2
    yield f"time   {''.join(mode.ljust(width) for mode in modes)}who answers"
    yield "       phase, TTL s"
    for row in report.timeline:
        # What led to a row stands above it, what happened while it lasted below it.
        before = [note for note in row.notes if note.at_s <= row.at_s]
        yield from (_note(note) for note in before)
        standings = (_standing(one).ljust(width) for one in row.standings.values())
        yield f"{clock(row.at_s)}  {''.join(standings)}{_who(row)}"
        yield from (_note(note) for note in row.notes if note not in before)


def _standing(standing: Standing) -> str:
    return f"{standing.phase} {standing.ttl_s:g}"


def _note(note: Note) -> str:
    what, _, cause = note.what.partition(": ")
    text = f"{note.mode}: {what}" + (f" ({_WORDS.get(cause, cause)})" if cause else "")
    if note.times > 1:
        text += f", {note.times} times until {clock(note.until_s)}"
    return f"{clock(note.at_s)}    * {text}"


def _who(row: Row) -> str:
    """Who answers whom; a mode that answers for itself needs no words."""
    told = [f"{mode}: {_shares(who)}" for mode, who in row.answered.items() if _helped(mode, who)]
    return "; ".join(told) or ("each mode itself" if row.answered else "nobody asks")


def _helped(mode: str, who: Mapping[str, int]) -> bool:
    return any(name not in (mode, CACHE) for name in who)


def _shares(who: Mapping[str, float]) -> str:
    total = sum(who.values())
    return ", ".join(f"{name} {_percent(count / total)}" for name, count in who.items())


def _percent(share: float) -> str:
    """Never 0 % for something, nor 100 % for not quite everything."""
    if 0 < share < 0.01:
        return "<1 %"
    return ">99 %" if 0.995 <= share < 1 else f"{share * 100:.0f} %"


# -- what it came to ------------------------------------------------------------------------------


def _summary(report: Report) -> Iterator[str]:
    requests = report.requests
    served = f"{requests.asked} asked, {requests.served} served, {requests.failed} failed"
    errors = ", ".join(f"{code} {count}" for code, count in requests.errors.items())
    yield _line("requests", served + (f" ({errors})" if errors else ""))
    by = ", ".join(f"{name} {count}" for name, count in requests.answered_by.items() if count)
    yield _line("answered by", by or "nobody")
    yield _line(
        "of these",
        f"cached {requests.cached}, stale {requests.stale}, degraded {requests.degraded}",
    )
    yield _line(
        "upstream",
        f"{report.attempts} attempts for {requests.asked - requests.cached} requests past the "
        f"cache: amplification {report.amplification:.3f}; {report.failed_attempts} of them failed",
    )
    yield _line(
        "answers",
        f"half of them within {requests.p50_s:.1f} s, 99 % within {requests.p99_s:.1f} s, "
        f"the slowest after {requests.slowest_s:.1f} s",
    )
    for incident in report.incidents:
        yield from _incident(incident)
    yield ""
    yield "who answered, by the mode asked for and its phase"
    for mode, by_phase in report.shares.items():
        for phase, who in by_phase.items():
            yield _line(mode, f"{phase:<12} {_shares(who)}")


def _line(label: str, text: str) -> str:
    return f"{label:<12} {text}"


def _incident(incident: Incident) -> Iterator[str]:
    mode, asked, attempts = incident.mode, incident.asked, incident.attempts
    told = f"{asked} requests wanted {mode}, {attempts} attempts tried it"
    if 0 < incident.attempts_while_down < attempts:
        told += f", {incident.attempts_while_down} while it was down"
    window = f"{clock(incident.start_s)}-{clock(incident.end_s)}"
    yield _line(mode, f"{incident.fault} {window}: {told}")
    moves = []
    if incident.opened_after_s is not None:
        moves.append(f"circuit open {incident.opened_after_s:.1f} s after it began")
    if incident.back_after_s is None:
        moves.append(f"{mode} not back by the end")
    elif incident.back_after_s > 0:
        moves.append(f"{mode} back {incident.back_after_s:.1f} s after it ended")
    if moves:
        yield _line("", "; ".join(moves))
