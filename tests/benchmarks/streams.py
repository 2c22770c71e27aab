"""What one chunk of a stream costs on its way to the caller, in a burst and paced."""

from __future__ import annotations

from gateway.sse import SSESplitter
from tests.benchmarks import calls
from tests.benchmarks.calls import Callers, Make, generate, iterate
from tests.benchmarks.measure import Subject, interleave, timed
from tests.benchmarks.report import Goal, Section
from tests.benchmarks.stub import EVENT_BYTES, EVENTS
from tests.benchmarks.upstream import Upstream

_BURST = Goal(
    "library SSE, µs/chunk in a burst",
    "≤ 5 (2.1 × the limit)",
    5,
    "limit 2.4 · TensorZero 58 · LiteLLM 558",
    5 / 2.4,
)
_PACED = Goal(
    "library SSE, µs/chunk paced",
    "≤ 12 (1.6 × the limit)",
    12,
    "limit 7.7 · TensorZero 102 · LiteLLM 558",
    12 / 7.7,
)
_COLUMNS = ("who", "CPU µs/chunk", "spread", "chunks/s", "× bare")
_CONCURRENT = 16
_INTERVAL_S = 0.002


async def measure(upstream: Upstream, callers: Callers, *, quick: bool) -> list[Section]:
    """Burst, paced, and the splitter alone."""
    burst = await _flowing(callers, requests=160 if quick else 640, quick=quick)
    burst.title = f"SSE in a burst, {_CONCURRENT} concurrent"
    upstream.set(interval_s=_INTERVAL_S)
    try:
        paced = await _flowing(callers, requests=32 if quick else 64, quick=quick, paced=True)
    finally:
        upstream.set()
    paced.title = f"SSE paced, one chunk each 2 ms, {_CONCURRENT} concurrent"
    return [burst, paced, _splitting()]


async def _flowing(callers: Callers, *, requests: int, quick: bool, paced: bool = False) -> Section:
    gateway = callers.gateway(stream=True)
    found: list[tuple[str, Make | None, int]] = [
        (calls.BARE, callers.bare_stream, requests),
        (calls.PROVIDER, callers.provider(stream=True), requests),
        (calls.STREAM, iterate(gateway), requests),
        (calls.BATCHES, iterate(gateway, batches=True), requests),
        (calls.GENERATE, generate(gateway), requests),
        (calls.OPENAI, callers.by_openai(stream=True), 32),
    ]
    subjects = [
        Subject(name, make, count, per=EVENTS) for name, make, count in found if make is not None
    ]
    series = await interleave(subjects, rounds=3 if quick else 5, concurrency=_CONCURRENT)
    section = Section("", _COLUMNS)
    section.costs(series, calls.BARE)
    section.judge(_PACED if paced else _BURST, series[calls.STREAM], series[calls.BARE])
    return section


def _splitting() -> Section:
    section = Section("The splitter alone", ("how the bytes come", "µs/chunk"))
    whole = b"".join(EVENT_BYTES)
    halves = [whole[i : i + 200] for i in range(0, len(whole), 200)]
    for name, pieces in (
        ("all 64 events at once", [whole]),
        ("one event at a time", EVENT_BYTES),
        ("cut every 200 bytes", halves),
    ):

        def split(pieces: list[bytes] = pieces) -> None:
            splitter = SSESplitter()
            for piece in pieces:
                splitter.feed(piece)

        section.rows.append([name, f"{timed(split, 500).cpu / EVENTS:.2f}"])
    return section
