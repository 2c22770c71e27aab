"""How many paced streams a server holds without a lost or late frame, and what they weigh."""

from __future__ import annotations

import math
import sys
import time
from types import SimpleNamespace

from tests.benchmarks.goals import Field, Goal, judge, number
from tests.benchmarks.measure import Cores, Series
from tests.benchmarks.report import Section
from tests.benchmarks.server.costs import STUB, direct_request
from tests.benchmarks.server.load import LATE_S, Asking, ask, begin, end, errors
from tests.benchmarks.server.processes import Server
from tests.benchmarks.server.subjects import NGINX, OURS, PEERS, SUBJECTS
from tests.benchmarks.stub import EVENTS
from tests.benchmarks.upstream import Upstream

_HELD = Goal(
    "paced streams (64 chunks, 20 ms) held on one core", "≥ 512", 512, "streams", more=True
)
_WEIGHT = "memory per 1,000 streams"
_COUNTS = (1, 32, 128, 512)
_INTERVAL_S = 0.02
_LASTS_S = EVENTS * _INTERVAL_S
_MANY = 1000
_OPENING_S, _OPEN_S = 1.5, 4.3  # of the 6.4 s that each lasts
_LATE_SHARE = 0.001  # one frame in a thousand may come late: a busy kernel alone makes some late


def measure(
    upstream: Upstream,
    cores: Cores,
    servers: dict[str, Server],
    wrong: dict[str, str],
    *,
    quick: bool,
) -> list[Section]:
    """One step after the other until a server loses or delays frames; then the weight of many."""
    print("streams held ...", file=sys.stderr, flush=True)
    upstream.set(interval_s=_INTERVAL_S)
    counts, seconds = (_COUNTS[1:], 0.5) if quick else (_COUNTS, 2.5)
    held = Section(
        f"server, streams of {EVENTS} chunks, one each {_INTERVAL_S * 1e3:.0f} ms, held",
        (
            "who",
            "streams",
            "chunks/s",
            "lost",
            "late",
            "stalled",
            "chunk delay p50/p99 ms",
            "CPU µs/chunk",
            "core used",
            "wrong",
        ),
        remarks=[
            "As many connections as streams, each reading one after another, first starts spread"
            " over the length of one. A chunk's delay is from the upstream's `send` to the reader;"
            f" late is more than {LATE_S * 1e3:.0f} ms, stalled a connection that heard nothing in"
            f" the last second. Held: nothing lost, stalled or wrong, at most"
            f" {_LATE_SHARE:.1%} late; the next step is tried only if half of this one was well.",
        ],
    )
    most: dict[str, Series] = {}
    for name in (STUB, *SUBJECTS):
        if name in wrong:
            held.rows.append([name, wrong[name], *[""] * 8])
            continue
        most[name] = Series(
            [_steps(upstream, cores, name, servers.get(name), held, counts, seconds)]
        )
    held.findings.append(judge(_HELD, most, Field(OURS, NGINX, PEERS)))
    upstream.set()
    return [held]


def weigh(
    upstream: Upstream, cores: Cores, servers: dict[str, Server], wrong: dict[str, str]
) -> list[Section]:
    """What a thousand open streams add to each server's memory."""
    print("streams weighed ...", file=sys.stderr, flush=True)
    told = Section(
        _WEIGHT,
        ("server", "open", "before MB", "with them MB", "MB per 1,000 streams", "wrong"),
        remarks=[
            "Resident memory of all its processes after some four seconds, against before. Who has"
            " stalled streams had not begun them all: the figure is then of connections."
        ],
    )
    upstream.set(interval_s=0.1)
    for name, server in servers.items():
        before = server.memory_mb()
        asking = Asking(_MANY, stream=True, spread_s=_OPENING_S, drain_s=0)
        process = begin(server.port, server.request(stream=True), asking, _OPEN_S, cores.other)
        time.sleep(_OPEN_S - 0.3)
        after = server.memory_mb()
        found = end(process, _OPEN_S)
        count = _MANY - min(_MANY, found.bad_status + found.refused)
        weight = (after - before) / count * 1000 if count else float("nan")
        said = [errors(found)[1], f"{found.stalled} stalled" if found.stalled else ""]
        figures = [number(before), number(after), number(weight)]
        told.rows.append([name, str(count), *figures, ", ".join(filter(None, said))])
        server.settle()
    told.rows += [[name, why, "", "", "", ""] for name, why in wrong.items()]
    upstream.set()
    return [told]


def _steps(
    upstream: Upstream,
    cores: Cores,
    name: str,
    server: Server | None,
    held: Section,
    counts: tuple[int, ...],
    seconds: float,
) -> float:
    """The most streams it held, 0 for none."""
    most = 0
    for count in counts:
        asking = Asking(count, stream=True, spread_s=_LASTS_S if count > 1 else 0, drain_s=0)
        lasts = _LASTS_S + seconds
        try:
            if server is None:
                request = direct_request(stream=True)
                process = begin(upstream.ports[0], request, asking, lasts, cores.other)
                told, cpu_s = end(process, lasts), float("nan")
            else:
                told, cpu_s = ask(server, asking, lasts, cores.other)
                server.settle()
        except RuntimeError as error:
            held.rows.append([name, str(count), str(error), *[""] * 7])
            break
        held.rows.append(_row(name, count, told, cpu_s))
        if _well(told, _LATE_SHARE):
            most = count
        elif not _well(told, 0.5):
            break
    return most


def _well(told: SimpleNamespace, late_share: float) -> bool:
    broken = told.lost + told.stalled + errors(told)[0]
    return bool(told.frames) and not broken and told.late <= late_share * told.frames


def _row(name: str, count: int, told: SimpleNamespace, cpu_s: float) -> list[str]:
    wall_s = told.took_us / 1e6
    return [
        name,
        str(count),
        f"{told.frames / wall_s:,.0f}",
        str(told.lost),
        str(told.late),
        str(told.stalled),
        f"{told.delay_p50_us / 1e3:.2f}/{told.delay_p99_us / 1e3:.2f}",
        number(cpu_s / told.frames * 1e6) if told.frames else "-",
        "-" if math.isnan(cpu_s) else f"{cpu_s / wall_s:.0%}",
        errors(told)[1],
    ]
