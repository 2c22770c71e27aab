"""What one request and one relayed chunk cost the service, beside the limits and the peers."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

from tests.benchmarks.cells import Cell, cpu, section
from tests.benchmarks.frames import inspect
from tests.benchmarks.goals import Field, Finding, Goal, judge
from tests.benchmarks.measure import Cores, Series
from tests.benchmarks.report import Section
from tests.benchmarks.server.load import Asking, ask, begin, end, errors
from tests.benchmarks.server.processes import Server
from tests.benchmarks.server.subjects import GRANIAN, NGINX, OURS, PEERS, SUBJECTS
from tests.benchmarks.stub import EVENTS
from tests.benchmarks.upstream import Upstream

STUB = "stub itself"
SHIPPED = "gateway, upstream streamed as shipped"
_DIRECT = (
    b"""POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n%b"""
)
_BODY = (
    b'{"model":"pretended","stream":%b,"messages":[{"role":"user","content":"################"}]}'
)

_CPU = Goal("server, CPU/request at 64 at once, on uvicorn", "≤ 100 µs", 100, ratio=5)
_RATE = Goal("server, requests/s on one core", "≥ 10k", 10_000, "", more=True)
_GRANIAN = Goal("the same, CPU/request on granian RSGI", "≤ 55 µs", 55, ratio=55 / 20)
_ADDED = Goal("server, added p50 at 1 at once", "≤ 200 µs", 200)
_BURST = Goal("server SSE relay, CPU/chunk in a burst", "≤ 3 µs", 3, ratio=3)
_PACED = Goal("server SSE relay, CPU/chunk paced", "≤ 25 µs", 25, ratio=25 / 15)


@dataclass(frozen=True, slots=True)
class Load:
    """One table."""

    title: str
    asking: Asking
    interval_s: float = 0.0
    delay_s: float = 0.0


_ONE = Load("server, one piece, 1 at once", Asking(1))
_MANY = Load("server, one piece, 64 at once", Asking(64))
_MOST = Load("server, one piece, 512 at once", Asking(512, spread_s=0.2))
_FLOWING = Load("server, SSE in a burst, 16 at once", Asking(16, stream=True))
_DRIPPING = Load("server, SSE paced 2 ms, 32 at once", Asking(32, stream=True), interval_s=0.002)
_LOADS = (
    _MANY,
    _ONE,
    Load("server, one piece, upstream takes 20 ms, 16 at once", Asking(16), delay_s=0.02),
    _FLOWING,
    _DRIPPING,
    _MOST,  # the last: who cannot keep up works on at what was left long after
)
_MOST_S = 4.0  # that all who ask at once may take to be answered once


def measure(
    upstream: Upstream,
    cores: Cores,
    servers: dict[str, Server],
    wrong: dict[str, str],
    *,
    rounds: int,
    seconds: float,
) -> list[Section]:
    """Every server under every load, in rounds A B C, A B C, one at a time under load."""
    sections = []
    before: dict[str, Cell] = {}
    complaints = _inspected(servers)
    for load in _LOADS:
        upstream.set(delay_s=load.delay_s, interval_s=load.interval_s)
        print(f"{load.title} ...", file=sys.stderr, flush=True)
        why = {**complaints, **wrong} if load.asking.stream else dict(wrong)
        cells: dict[str, Cell] = {name: Cell() for name, _, _ in _rows(load)}
        if load is _MOST:
            _leave_out_the_slow(cells, before)
        for turn in range(rounds + 1):
            for name, whose, model in _rows(load):
                cell = cells[name]
                cell.why_not = cell.why_not or why.get(whose, "")
                if cell.why_not:
                    continue
                asker = _asker(upstream, cores, servers.get(whose), load.asking, model)
                _round(cell, asker, seconds if turn else 0.4, warm=not turn)
                if whose in servers:
                    servers[whose].settle()
        if load is _MANY:
            before = cells
        sections.append(_told(load, cells))
    upstream.set()
    return sections


def _leave_out_the_slow(cells: dict[str, Cell], before: dict[str, Cell]) -> None:
    """Nobody is asked by more at once than they can answer in a few seconds."""
    for name, cell in before.items():
        volley_s = _MOST.asking.connections / cell.per_s.median if cell.per_s.values else 0.0
        if volley_s > _MOST_S:
            cells[name].why_not = f"too slow: 512 at once take {volley_s:.0f} s"


def _rows(load: Load) -> list[tuple[str, str, str]]:
    """Name in the table, name of the server, a model other than its own."""
    rows = [(STUB, STUB, ""), *((name, name, "") for name in SUBJECTS)]
    if not load.asking.stream:
        rows.insert(4, (SHIPPED, OURS, "creative"))
    return rows


def _inspected(servers: dict[str, Server]) -> dict[str, str]:
    """Whose streams do not arrive as they should, and how so: their figures would mean nothing."""
    found = {}
    for name, server in servers.items():
        status, body = server.ask(stream=True)
        complaints = inspect(body) if status == 200 else [f"status {status}"]
        if complaints:
            found[name] = f"streams are not relayed as sent: {'; '.join(complaints)}"[:160]
    return found


def direct_request(*, stream: bool) -> bytes:
    """What the load generator asks of the stub itself."""
    body = _BODY % (b"true" if stream else b"false")
    return _DIRECT % (len(body), body)


Asker = Callable[[float], tuple[SimpleNamespace, float]]


def _asker(
    upstream: Upstream, cores: Cores, server: Server | None, asking: Asking, model: str
) -> Asker:
    if server is not None:
        asked = replace(asking, model=model)
        return lambda seconds: ask(server, asked, seconds, cores.other)
    request = direct_request(stream=asking.stream)

    def direct(seconds: float) -> tuple[SimpleNamespace, float]:
        process = begin(upstream.ports[0], request, asking, seconds, cores.other)
        return end(process, seconds), 0.0

    return direct


def _round(cell: Cell, asker: Asker, seconds: float, *, warm: bool) -> None:
    try:
        told, cpu_s = asker(seconds)
    except RuntimeError as error:
        cell.why_not = str(error)
        return
    if warm:
        return
    wrong, said = errors(told)
    cell.errors += wrong
    cell.said = said or cell.said
    done = told.answers - told.bad_status
    # Streams are counted by chunks, for some may be cut off before their end.
    if told.frames:
        done = told.frames / EVENTS
    p50_ms, p99_ms = (us / 1e3 or math.nan for us in (told.latency_p50_us, told.latency_p99_us))
    cell.add(done, told.took_us / 1e6, cpu_s, p50_ms, p99_ms)


def _told(load: Load, cells: dict[str, Cell]) -> Section:
    streams = load.asking.stream
    per, unit = (EVENTS, "chunk") if streams else (1, "request")
    told = section(load.title, cells, OURS, per=per, unit=unit)
    told.columns = (*told.columns, "added p50 ms", "added p99 ms")
    for row, cell in zip(told.rows, cells.values(), strict=True):
        added = [cell.p50_ms.above(cells[STUB].p50_ms), cell.p99_ms.above(cells[STUB].p99_ms)]
        known = bool(cell.p50_ms.values) and cell is not cells[STUB]
        row.extend([_signed(one.median) for one in added] if known else ["", ""])
    told.findings += _findings(load, cells, cpu(cells, per=per))
    return told


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.2f}"


def _findings(load: Load, cells: dict[str, Cell], figures: dict[str, Series]) -> list[Finding]:
    if load is _MANY:
        rates = {name: cell.per_s for name, cell in cells.items()}
        field = Field(OURS, NGINX, PEERS)
        return [
            judge(_CPU, figures, field),
            judge(_RATE, rates, field),
            judge(_GRANIAN, figures, Field(GRANIAN, NGINX, PEERS)),
        ]
    if load is _ONE:
        base = cells[STUB].p50_ms
        added = {name: cell.p50_ms.above(base).scaled(1e3) for name, cell in cells.items()}
        return [judge(_ADDED, added, Field(OURS, NGINX, PEERS))]
    goals = {id(_FLOWING): _BURST, id(_DRIPPING): _PACED}
    goal = goals.get(id(load))
    return [judge(goal, figures, Field(OURS, NGINX, PEERS))] if goal else []
