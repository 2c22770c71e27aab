"""Small things every request or every look does, and what one request makes without a clock."""

from __future__ import annotations

import asyncio
import cProfile
import gc
import itertools
import statistics
import sys
import time
import tracemalloc
from contextlib import AsyncExitStack

from gateway.detectors.failures import Outcome
from gateway.gateway import Gateway
from gateway.policies.circuit import Circuit
from gateway.policies.downshift import Ladder, Visit
from gateway.policies.phases import CircuitOptions
from gateway.validation import build_request
from tests.benchmarks.goals import Field, Goal, judge, number
from tests.benchmarks.library.asking import Call, Given
from tests.benchmarks.library.callers import clients, ours
from tests.benchmarks.measure import Cores, Series, new_loop, timed
from tests.benchmarks.report import Section, spread
from tests.benchmarks.upstream import Upstream

_HIT = Goal("cache hit, library, end to end", "≤ 15 µs", 15)
_ADMISSION = Goal("admission decision", "≤ 50 µs", 50)
_MANY = 512
_PROMPT = "Name three woody perfume notes. " * 16  # some 500 bytes, as a short chat has


def measure(upstream: Upstream, cores: Cores, *, quick: bool) -> list[Section]:
    """Everything here in this process, on the core of what is measured."""
    with cores.measuring(), asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(_measure(Given([upstream.url()]), 2000 if quick else 5000))


async def _measure(given: Given, times: int) -> list[Section]:
    async with AsyncExitStack() as stack:
        gateway = ours.gateway_for(given, stream=False)
        stack.push_async_callback(gateway.aclose)
        return [await _small(gateway, times), await _counted(stack, gateway, given)]


async def _small(gateway: Gateway, times: int) -> Section:
    section = Section("Small things", ("what", "CPU µs", "rounds"))

    def add(name: str, series: Series, goal: Goal | None = None) -> None:
        section.rows.append([name, number(series.median), spread(series)])
        if goal:
            section.findings.append(judge(goal, {name: series}, Field(name)))

    await gateway.generate(_PROMPT, "creative", temperature=0.2)
    add("cache hit, `generate` to its return", await _hits(gateway, times), _HIT)
    add("`status()`, three modes", timed(gateway.status, times // 10))
    add("admission: a mode entered and left", _enter(gateway, times), _ADMISSION)
    add("circuit: admit + first_token + settle", _circuit(times))
    add(f"the same with {_MANY} others waiting", _circuit(times, waiting=_MANY))
    add(f"circuit: sweep over {_MANY} waiting", _sweep(times // 50))
    add("circuit: refusal by an open mode", _refused(times))
    add("cache key of a 500-byte question", _key(gateway, times))
    add("request built from a prompt", timed(_build, times))
    return section


async def _hits(gateway: Gateway, times: int) -> Series:
    series = Series()
    for _ in range(5):
        gc.collect()
        start = time.process_time()
        for _ in range(times):
            await gateway.generate(_PROMPT, "creative", temperature=0.2)
        series.values.append((time.process_time() - start) / times * 1e6)
    return series


def _ladder(gateway: Gateway) -> Ladder:
    return gateway._in_force.pipeline.ladder


def _enter(gateway: Gateway, times: int) -> Series:
    rung = _ladder(gateway).rungs[0]

    def visit() -> None:
        entry = rung.enter(native=True)
        assert isinstance(entry, Visit)
        rung.circuit.first_token(entry.permit)
        entry.outcome = Outcome.SUCCESS
        entry.leave()

    return timed(visit, times)


def _circuit(times: int, *, waiting: int = 0) -> Series:
    circuit = Circuit("creative", CircuitOptions(), time.monotonic)
    for _ in range(waiting):
        circuit.admit()

    def visit() -> None:
        permit = circuit.admit()
        assert permit is not None
        circuit.first_token(permit)
        circuit.settle(permit, Outcome.SUCCESS)

    return timed(visit, times)


def _sweep(times: int) -> Series:
    # The clock stands, or they would be overdue before the measuring ends, and open the circuit.
    circuit = Circuit("creative", CircuitOptions(), lambda: 0.0)
    for _ in range(_MANY):
        circuit.admit()
    return timed(circuit.sweep, times)


def _refused(times: int) -> Series:
    circuit = Circuit("creative", CircuitOptions(), time.monotonic)
    for _ in range(3):
        permit = circuit.admit()
        assert permit is not None
        circuit.settle(permit, Outcome.FAILURE)
    return timed(circuit.admit, times)


def _key(gateway: Gateway, times: int) -> Series:
    cache = gateway._in_force.pipeline.cache
    request = build_request(_PROMPT, mode="creative", now=0.0, params={"temperature": 0.2})
    return timed(lambda: cache._question(request), times)


def _build() -> object:
    return build_request(_PROMPT, mode="creative", now=0.0, params={"temperature": 0.2})


async def _counted(stack: AsyncExitStack, gateway: Gateway, given: Given) -> Section:
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
    bare, alone = await ours.bare(stack, given), await ours.provider(stack, given)
    cached = await ours.generate(stack, given)
    uncached = await ours.generate_uncached(stack, given)
    for name, call in (
        ("bare client, JSON", bare["json"]),
        ("provider alone, JSON", alone["json"]),
        ("gateway.generate, JSON", cached["json"]),
        ("gateway.generate, cache=False, JSON", uncached["json"]),
        ("cache hit", lambda _: gateway.generate(_PROMPT, "creative", temperature=0.2)),
        ("bare client, stream", bare["stream"]),
        ("provider alone, stream", alone["stream"]),
        ("gateway.generate, stream", cached["stream"]),
        ("gateway.stream, stream", cached["iterate"]),
        ("httpx.AsyncClient, JSON", (await clients.by_httpx(stack, given))["json"]),
        ("openai SDK, JSON", (await clients.by_openai(stack, given))["json"]),
    ):
        kept, peak = await _allocations(call)
        made = await _function_calls(call)
        section.rows.append([name, f"{made:,.0f}", f"{kept:.1f}", f"{peak:.1f}"])
    return section


_count = itertools.count(1)


async def _ask(call: Call, times: int) -> None:
    for _ in range(times):
        await call(next(_count))


async def _allocations(call: Call, times: int = 300) -> tuple[float, float]:
    """Memory blocks one call leaves behind after a full collection; KiB one needs at its height."""
    await _ask(call, 30)
    gc.collect()
    blocks = sys.getallocatedblocks()
    await _ask(call, times)
    gc.collect()
    kept = (sys.getallocatedblocks() - blocks) / times
    peaks = []
    tracemalloc.start()
    for _ in range(20):
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        await _ask(call, 1)
        peaks.append((tracemalloc.get_traced_memory()[1] - before) / 1024)
    tracemalloc.stop()
    return kept, statistics.median(peaks)


async def _function_calls(call: Call, times: int = 200) -> float:
    """How many function calls one call makes, coroutines resumed and C functions included."""
    profile = cProfile.Profile()
    profile.enable()
    await _ask(call, times)
    profile.disable()
    return sum(entry.callcount for entry in profile.getstats()) / times
