"""What `generate` costs above the bare client, and what the peers cost beside it."""

from __future__ import annotations

from tests.benchmarks import calls
from tests.benchmarks.calls import Callers, Make, generate, iterate
from tests.benchmarks.measure import Series, Subject, allocations, function_calls, interleave
from tests.benchmarks.report import Goal, Section, number, spread

_JSON = Goal(
    "library `generate`, one JSON response, CPU µs/request at 64 concurrent",
    "≤ 45 (2.5 × the raw client)",
    45,
    "raw httptools client 18 · TensorZero 320 · default httpx 1,689 · LiteLLM Router 4,310",
    45 / 18,
)
_STREAMED = Goal(
    "the same, upstream streamed (64 chunks read and joined)",
    "≤ 250 (1.6 × the bare client)",
    250,
    "bare client 154 · TensorZero ~3,700",
    250 / 154,
)
_OVERHEAD = Goal("gateway overhead above our own bare client", "≤ 25 µs", 25)
_HTTPX_THEN = 1689  # CPU µs/request at 64 concurrent, the same version of httpx
_COLUMNS = ("who", "CPU µs/request", "spread", "requests/s", "× bare")


async def measure(callers: Callers, *, quick: bool) -> list[Section]:
    """Both kinds at 1 and 64 concurrent."""
    sections = [
        await _one(callers, stream=stream, concurrency=concurrency, quick=quick)
        for stream in (False, True)
        for concurrency in (64, 1)
    ]
    return [*sections, await _without_clock(callers)]


async def _one(callers: Callers, *, stream: bool, concurrency: int, quick: bool) -> Section:
    gateway = callers.gateway(stream=stream)
    requests = (800 if stream else 6400) if concurrency > 1 else (400 if stream else 1600)
    requests //= 2 if quick else 1
    peers = max(concurrency, requests // 20)
    found: list[tuple[str, Make | None, int]] = [
        (calls.BARE, callers.bare_stream if stream else callers.bare, requests),
        (calls.PROVIDER, callers.provider(stream=stream), requests),
        (calls.GENERATE, generate(gateway), requests),
        (calls.NO_CACHE, generate(gateway, cache=False), requests),
        (calls.HTTPX, callers.by_httpx(stream=stream), peers),
        (calls.HTTPX_OURS, callers.by_httpx_over_ours(stream=stream), 2 * peers),
        (calls.OPENAI, callers.by_openai(stream=stream), peers),
        (calls.OPENAI_OURS, callers.by_openai_over_ours(gateway, stream=stream), peers),
    ]
    subjects = [Subject(name, make, count) for name, make, count in found if make is not None]
    series = await interleave(subjects, rounds=3 if quick else 5, concurrency=concurrency)
    kind = "streamed upstream, 64 chunks in a burst" if stream else "one JSON answer"
    section = Section(f"generate, {kind}, {concurrency} concurrent", _COLUMNS)
    section.costs(series, calls.BARE)
    above = series[calls.GENERATE].above(series[calls.BARE])
    section.remarks.append(
        f"Above the bare client: {number(above.cpu)} µs ({spread(above)}) per request; "
        f"above the provider: {_above(series, calls.PROVIDER)}."
    )
    if concurrency == 64:
        section.judge(_STREAMED if stream else _JSON, series[calls.GENERATE], series[calls.BARE])
        if not stream:
            section.judge(_OVERHEAD, above)
            slower = series[calls.HTTPX].cpu / _HTTPX_THEN
            section.remarks.append(
                f"Default httpx took {_HTTPX_THEN:,} µs on the machine the goals were set on, so"
                f" code like this runs {slower:.1f} times as long here and now; the goals above are"
                " not scaled by it."
            )
    return section


def _above(series: dict[str, Series], name: str) -> str:
    above = series[calls.GENERATE].above(series[name])
    return f"{number(above.cpu)} µs ({spread(above)})"


async def _without_clock(callers: Callers) -> Section:
    """What no busy machine can blur: calls made, blocks kept, bytes at the height."""
    section = Section(
        "One request without a clock",
        ("who", "function calls", "blocks kept", "KiB at its height"),
        remarks=[
            "Function calls are Python's and C's together, resumed coroutines included. Blocks kept"
            " with the cache on are the stored answers, bounded by `[cache] max_bytes`; with"
            " `cache=False` anything much above 0 is what stays behind for a while (ratings wait"
            " for the last generations' ids), or a leak."
        ],
    )
    whole, streamed = callers.gateway(stream=False), callers.gateway(stream=True)
    await whole.generate("the same", "creative")
    for name, make in (
        (f"{calls.BARE}, JSON", callers.bare),
        (f"{calls.PROVIDER}, JSON", callers.provider(stream=False)),
        (f"{calls.GENERATE}, JSON", generate(whole)),
        (f"{calls.NO_CACHE}, JSON", generate(whole, cache=False)),
        ("cache hit", lambda _: whole.generate("the same", "creative")),
        (f"{calls.BARE}, stream", callers.bare_stream),
        (f"{calls.PROVIDER}, stream", callers.provider(stream=True)),
        (f"{calls.GENERATE}, stream", generate(streamed)),
        (f"{calls.STREAM}, stream", iterate(streamed)),
        (f"{calls.HTTPX}, JSON", callers.by_httpx(stream=False)),
        (f"{calls.OPENAI}, JSON", callers.by_openai(stream=False)),
    ):
        if make is not None:
            subject = Subject(name, make, 0)
            kept, peak = await allocations(subject)
            made = await function_calls(subject)
            section.rows.append([name, f"{made:,.0f}", f"{kept:.1f}", f"{peak:.1f}"])
    return section
