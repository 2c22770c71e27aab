"""CPU time of one answer, and of one chunk of a stream, beside the bare client and the peers."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.cells import Cell, cpu, section
from tests.benchmarks.goals import Field, Goal, judge
from tests.benchmarks.library.asking import Given
from tests.benchmarks.library.workers import Worker
from tests.benchmarks.measure import Cores
from tests.benchmarks.peers import ABSENT, PEERS
from tests.benchmarks.report import Section
from tests.benchmarks.stub import EVENTS
from tests.benchmarks.upstream import Upstream

BARE, PROVIDER = "bare client", "provider alone"
GENERATE, UNCACHED = "gateway.generate", "gateway.generate, cache=False"
STREAM, BATCHES = "gateway.stream", "gateway.stream, batches()"
TENSORZERO, LITELLM = "TensorZero embedded", "LiteLLM Router"
_HTTPX = "httpx.AsyncClient, default"
_MOST_S = 3.0  # that all who ask at once may take to be answered once
_HTTPX_THEN = 1689  # CPU µs/request at 64 concurrent when the goals were set, same version

_JSON = Goal("library `generate`, one JSON response, CPU/request", "≤ 45 µs", 45, ratio=45 / 18)
_STREAMED = Goal("the same, upstream streamed (64 chunks)", "≤ 250 µs", 250, ratio=250 / 154)
_ABOVE = Goal("gateway overhead above our own bare client", "≤ 25 µs", 25)
_BURST = Goal("library SSE, CPU/chunk in a burst", "≤ 5 µs", 5, ratio=5 / 2.4)
_PACED = Goal("library SSE, CPU/chunk paced", "≤ 12 µs", 12, ratio=12 / 7.7)


@dataclass(frozen=True, slots=True)
class Subject:
    """Who asks, by which caller, in whose environment."""

    name: str
    caller: str
    peer: str = ""


_SUBJECTS = (
    Subject(BARE, "ours.bare"),
    Subject(PROVIDER, "ours.provider"),
    Subject(GENERATE, "ours.generate"),
    Subject(UNCACHED, "ours.generate_uncached"),
    Subject(_HTTPX, "clients.by_httpx"),
    Subject("httpx.AsyncClient over HTTP1Transport", "clients.by_httpx_over_ours"),
    Subject("openai SDK, default", "clients.by_openai"),
    Subject("openai SDK over gateway.transport()", "clients.by_openai_over_ours"),
    Subject(TENSORZERO, "tensorzero_embedded.make", "tensorzero"),
    Subject(LITELLM, "litellm_router.make", "litellm"),
)
_PEERS = (TENSORZERO, LITELLM)


@dataclass(frozen=True, slots=True)
class Load:
    """One table: which kind of call, how many at once, on what beat the chunks come."""

    title: str
    kind: str
    concurrency: int
    interval_s: float = 0.0
    goal: Goal | None = None


_LOADS = (
    Load("generate, one JSON answer, 64 concurrent", "json", 64, goal=_JSON),
    Load("generate, one JSON answer, 1 concurrent", "json", 1),
    Load("generate, one JSON answer, 512 concurrent", "json", 512),
    Load("generate, upstream streamed in a burst, 64 concurrent", "stream", 64, goal=_STREAMED),
    Load("generate, upstream streamed in a burst, 1 concurrent", "stream", 1),
    Load("generate, upstream streamed in a burst, 512 concurrent", "stream", 512),
    Load("streams in a burst, read chunk by chunk, 16 concurrent", "iterate", 16, goal=_BURST),
    Load("streams paced, a chunk each 2 ms, 16 concurrent", "iterate", 16, 0.002, goal=_PACED),
)


def measure(upstream: Upstream, cores: Cores, *, quick: bool) -> list[Section]:
    """Every subject under every load, in rounds A B C, A B C; without 512 at once if in a hurry."""
    rounds, seconds = (1, 0.4) if quick else (3, 0.5)
    sections = []
    with ExitStack() as stack:
        workers, wrong = _start(stack, Given([upstream.url()], cores.subject))
        for load in _LOADS:
            if quick and load.concurrency > 64:
                continue
            upstream.set(interval_s=load.interval_s)
            print(f"{load.title} ...", file=sys.stderr, flush=True)
            sections.append(_told(load, _cells(load, workers, wrong, rounds, seconds)))
        upstream.set()
    return sections


def _start(stack: ExitStack, given: Given) -> tuple[dict[str, Worker], dict[str, str]]:
    """Everyone's process, all at once; who is absent or does not start, and why."""
    workers: dict[str, Worker] = {}
    wrong: dict[str, str] = {}
    for subject in _SUBJECTS:
        if subject.peer and not (PEERS / subject.peer).exists():
            wrong[subject.name] = ABSENT
        else:
            worker = Worker(subject.caller, given, peer=subject.peer)
            workers[subject.name] = stack.enter_context(worker)
    for name, worker in list(workers.items()):
        try:
            worker.ready()
        except RuntimeError as error:
            wrong[name] = str(error)
            del workers[name]
    return workers, wrong


def _rows(load: Load) -> list[tuple[str, str, str]]:
    """Who stands in a table: its name there, whose process it is, the kind of call."""
    if load.kind != "iterate":
        return [(subject.name, subject.name, load.kind) for subject in _SUBJECTS]
    return [
        (BARE, BARE, "stream"),
        (PROVIDER, PROVIDER, "stream"),
        (STREAM, GENERATE, "iterate"),
        (BATCHES, GENERATE, "batches"),
        (GENERATE, GENERATE, "stream"),
        ("openai SDK, default", "openai SDK, default", "iterate"),
        *((peer, peer, "iterate") for peer in _PEERS),
    ]


def _cells(
    load: Load, workers: dict[str, Worker], wrong: dict[str, str], rounds: int, seconds: float
) -> dict[str, Cell]:
    cells = {name: Cell(why_not=wrong.get(whose, "")) for name, whose, _ in _rows(load)}
    for turn in range(rounds + 1):
        for name, whose, kind in _rows(load):
            cell = cells[name]
            if cell.why_not or whose not in workers:
                continue
            worker = workers[whose]
            try:
                if not turn:
                    cell.why_not = _warm(worker, kind, load)
                else:
                    _add(cell, worker.closed(kind, load.concurrency, seconds))
            except RuntimeError as error:
                cell.why_not = wrong[whose] = str(error)
                del workers[whose]
    return cells


def _warm(worker: Worker, kind: str, load: Load) -> str:
    """Connections, caches, first-call imports; why it is too slow for this load, if it is."""
    worker.closed(kind, 1, 0.01)
    few = worker.closed(kind, 4, 0.05)
    if not few["answers"]:
        return str(few["said"]) or "no answer"
    volley_s = few["cpu_s"] / few["answers"] * load.concurrency
    if volley_s > _MOST_S:
        return f"too slow: {load.concurrency} at once take {volley_s:.0f} s"
    worker.closed(kind, load.concurrency, 0.05)
    return ""


def _add(cell: Cell, told: dict[str, Any]) -> None:
    p50_ms, p99_ms = told["p50_s"] * 1e3, told["p99_s"] * 1e3
    cell.add(told["answers"], told["wall_s"], told["cpu_s"], p50_ms, p99_ms)
    cell.errors += told["errors"]
    cell.said = f"{cell.errors} ({told['said']})" if told["said"] else cell.said


def _told(load: Load, cells: dict[str, Cell]) -> Section:
    streams = load.kind == "iterate"
    per, unit = (EVENTS, "chunk") if streams else (1, "request")
    told = section(load.title, cells, BARE, per=per, unit=unit)
    figures = cpu(cells, per=per)
    if load.goal:
        ours = STREAM if streams else GENERATE
        told.findings.append(judge(load.goal, figures, Field(ours, BARE, _PEERS)))
    if load.goal is _JSON:
        above = figures[GENERATE].above(figures[BARE])
        told.findings.append(judge(_ABOVE, {GENERATE: above}, Field(GENERATE)))
        if figures[_HTTPX].values:
            slower = figures[_HTTPX].median / _HTTPX_THEN
            told.remarks.append(
                f"Default httpx took {_HTTPX_THEN:,} µs on the machine the goals were set on, so"
                f" code like it runs {slower:.1f} times as long here and now; the goals are not"
                " scaled by it."
            )
    return told
