"""What callers notice when the primary breaks: open loop, primary and backup each take 20 ms.

The protocol is that of the table of goals: requests at a steady rate whatever happens, a 1 s limit
per attempt, 320 requests per phase. Each phase has a gateway of its own, warmed up on a healthy
primary. `slow_s` is 0.3 s, as a 1 s limit asks for; the default of 10 s belongs to the default
limit of 15 s.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import Any

from gateway.config import Config
from gateway.errors import GatewayError
from gateway.gateway import Gateway
from tests.benchmarks.measure import percentile
from tests.benchmarks.report import Goal, Section
from tests.benchmarks.upstream import Upstream, modes

_ERRORS = Goal(
    "primary returns 500: p50 above healthy", "+≤ 1 ms", 1.0, "ferrogw +2 ms · LiteLLM +2.3 s"
)
_HITS = Goal(
    "primary returns 500: hits on it per request",
    "≤ 0.02",
    0.02,
    "ferrogw 0.02 · TensorZero 1.0 · LiteLLM 1.9",
)
_SUCCESS = Goal(
    "primary hangs: requests without an answer", "100 % success", 0, "ferrogw 61 % success"
)
_P50 = Goal("primary hangs: p50 above healthy", "+≤ 1 ms", 1.0, "TensorZero +1.0 s")
_P99 = Goal("primary hangs: p99", "≤ 0.5 s", 0.5, "reference breaker 1.03 s")
_BACK = Goal(
    "time to be back on the recovered primary, early probe each 1 s",
    "≤ 1 probe interval + first token",
    1.05,
    "ferrogw 2.2 s",
)

_DELAY_S = 0.02
_REQUESTS, _RATE = 320, 40.0  # per phase, per second
_SLOW_S, _LIMIT_S, _PROBE_S = 0.3, 1.0, 1.0


@dataclass(slots=True)
class Phase:
    """What callers saw in one phase, and what the primary saw."""

    latencies_s: list[float]
    failed: int
    primary_hits: int

    @property
    def p50_ms(self) -> float:
        return statistics.median(self.latencies_s) * 1e3

    @property
    def p99_ms(self) -> float:
        return percentile(self.latencies_s, 0.99) * 1e3

    @property
    def hits(self) -> float:
        return self.primary_hits / (len(self.latencies_s) + self.failed)


def _gateway(upstream: Upstream, **circuit: float) -> Gateway:
    tables: dict[str, Any] = {
        "modes": modes(upstream),
        "circuit": {"slow_s": _SLOW_S, **circuit},
        "cache": {"enabled": False},
    }
    for mode in tables["modes"].values():
        mode["first_token_s"] = _LIMIT_S
    return Gateway(Config.from_dict(tables))


class _Load:
    """Asks at a steady rate; remembers when, how long it took, and who answered."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.answers: list[tuple[float, float, str]] = []  # done at, latency, mode
        self.failed = 0

    async def run(self, requests: int, upstream: Upstream | None = None) -> Phase:
        """Ask `requests` times and wait for every answer."""
        self.answers.clear()
        self.failed = 0
        hits = upstream.requests() if upstream else 0
        loop = asyncio.get_running_loop()
        begin = loop.time()
        tasks: list[asyncio.Task[None]] = []
        for number in range(requests):
            await asyncio.sleep(max(0.0, begin + number / _RATE - loop.time()))
            tasks.append(loop.create_task(self._ask(number)))
        await asyncio.gather(*tasks)
        hits = upstream.requests() - hits if upstream else 0
        return Phase([latency for _, latency, _ in self.answers], self.failed, hits)

    async def until_back(self) -> float:
        """Keep asking until the primary answers; seconds from now."""
        self.answers.clear()
        begin = time.perf_counter()
        tasks: list[asyncio.Task[None]] = []
        while not any(mode == "creative" for _, _, mode in self.answers):
            tasks.append(asyncio.get_running_loop().create_task(self._ask(len(tasks))))
            await asyncio.sleep(1 / _RATE)
            if time.perf_counter() - begin > 20:
                break
        back = time.perf_counter() - begin
        await asyncio.gather(*tasks)
        times = [at - begin for at, _, mode in self.answers if mode == "creative"]
        return min(times, default=back)

    async def _ask(self, number: int) -> None:
        began = time.perf_counter()
        try:
            answer = await self._gateway.generate(f"question {number}", "creative")
        except GatewayError:
            self.failed += 1
        else:
            now = time.perf_counter()
            self.answers.append((now, now - began, answer.mode))


async def measure(core: int, *, quick: bool) -> list[Section]:
    """Healthy, 500s, hang, and the way back; each several times, told as medians."""
    with Upstream(core, exact=True) as upstream:
        return await _measure(upstream, rounds=1 if quick else 3)


async def _measure(upstream: Upstream, rounds: int) -> list[Section]:
    seen: dict[str, list[Phase]] = {"ok": [], "error": [], "hang": []}
    back: dict[str, list[float]] = {"error": [], "hang": []}
    for number in range(3):
        upstream.set(number, delay_s=_DELAY_S)
    for _ in range(rounds):
        for mode, phases in seen.items():
            async with _gateway(upstream) as gateway:
                load = _Load(gateway)
                await load.run(40)
                upstream.set(mode=mode, delay_s=_DELAY_S)
                phases.append(await load.run(_REQUESTS, upstream))
                upstream.set(delay_s=_DELAY_S)
        for mode, times in back.items():
            times.append(await _recover(upstream, mode))
    return [_told(seen, back, rounds)]


async def _recover(upstream: Upstream, mode: str) -> float:
    """Break the primary for 2.5 s, mend it, and see when it answers again."""
    async with _gateway(upstream, early_probe_s=_PROBE_S) as gateway:
        load = _Load(gateway)
        await load.run(40)
        upstream.set(mode=mode, delay_s=_DELAY_S)
        await load.run(int(2.5 * _RATE))
        upstream.set(delay_s=_DELAY_S)
        return await load.until_back()


def _told(seen: dict[str, list[Phase]], back: dict[str, list[float]], rounds: int) -> Section:
    section = Section(
        "When the primary breaks",
        ("primary", "answered", "p50 ms", "p99 ms", "hits on primary per request", "back after s"),
    )
    names = {"ok": "healthy", "error": "returns 500", "hang": "hangs"}
    for mode, phases in seen.items():
        failed = sum(phase.failed for phase in phases)
        asked = sum(len(phase.latencies_s) + phase.failed for phase in phases)
        section.rows.append(
            [
                names[mode],
                f"{asked - failed} of {asked}",
                f"{_median(phases, 'p50_ms'):.1f}",
                f"{_median(phases, 'p99_ms'):.1f}",
                f"{_median(phases, 'hits'):.3f}",
                ", ".join(f"{seconds:.2f}" for seconds in back.get(mode, [])) or "-",
            ]
        )
    healthy = _median(seen["ok"], "p50_ms")
    for goal, mode, name in ((_ERRORS, "error", "p50_ms"), (_P50, "hang", "p50_ms")):
        added = _median(seen[mode], name) - healthy
        section.find(goal, added, f"{added:+.2f} ms")
    hits = _median(seen["error"], "hits")
    section.find(_HITS, hits, f"{hits:.3f}")
    unanswered = sum(phase.failed for phase in seen["hang"])
    section.find(_SUCCESS, unanswered, f"{unanswered} unanswered")
    p99 = _median(seen["hang"], "p99_ms") / 1e3
    section.find(_P99, p99, f"{p99:.2f} s")
    worst = max(back["error"])
    section.find(_BACK, worst, f"{worst:.2f} s at worst, after 500s")
    section.remarks += [
        f"{_REQUESTS} requests per phase at {_RATE:g}/s, {rounds} round(s); attempt limit"
        f" {_LIMIT_S:g} s, `slow_s` {_SLOW_S:g} s; the way back with `early_probe_s` {_PROBE_S:g},"
        " measured from the moment the primary is mended to its first answer.",
        "A circuit that opens costs a fixed number of hits (three failures, of which the budget"
        " lets some be tried twice), so hits per request fall with the length of the outage.",
        "After a hang, a probe may still be waiting for the broken primary when it is mended; the"
        " way back then lasts until that probe gives up, and one interval more.",
    ]
    return section


def _median(phases: list[Phase], name: str) -> float:
    values: list[float] = [getattr(phase, name) for phase in phases]
    return statistics.median(values)
