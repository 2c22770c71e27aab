"""What needs a process of its own: importing, the first answer, an outage on virtual time."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from tests.benchmarks.goals import Field, Goal, judge
from tests.benchmarks.measure import Cores, Series
from tests.benchmarks.report import ROOT, Section
from tests.benchmarks.upstream import Upstream, modes

_SIMULATION = Goal("20 simulated minutes of outage, CPU", "about a second", 1.5, "s")

_NOTHING = "import json, time; cpu_s = time.process_time(); extra = {}"
_IMPORT = """
import json, time
import gateway
cpu_s, extra = time.process_time(), {}
"""
_ANSWER = """
import asyncio, json, sys, time
start = time.perf_counter()
from gateway import Config, Gateway
imported = time.perf_counter()
async def main():
    async with Gateway(Config.from_dict(json.loads(sys.argv[1]))) as gateway:
        built = time.perf_counter()
        await gateway.generate("Name a woody perfume note", "creative")
        return built
built = asyncio.run(main())
answered, cpu_s = time.perf_counter(), time.process_time()
extra = {"import": imported - start, "build": built - imported, "answer": answered - built}
"""
_OUTAGE = """
import json, time
from gateway.simulate import run_scenario
start = time.process_time()
report = run_scenario("outage", seed=1, minutes=20)
cpu_s = time.process_time()
requests = report.requests
extra = {"simulated": cpu_s - start, "asked": requests.asked, "failed": requests.failed}
"""
# Not getrusage: what it calls the peak outlives exec, so a child would report its parent's.
_TELL = """
try:
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
except OSError:
    peak = float("nan")
print(json.dumps({"cpu_s": cpu_s, "peak_mb": peak, **extra}))
"""


def _python(code: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run `code` in a Python of its own; `wall_s` counts from before it was started."""
    began = time.perf_counter()
    found = subprocess.run(
        [sys.executable, "-c", code + _TELL, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    wall_s = time.perf_counter() - began
    return {**json.loads(found.stdout), "wall_s": wall_s}


def _repeated(times: int, run: Callable[[], dict[str, Any]]) -> dict[str, float]:
    found = [run() for _ in range(times)]
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def measure(upstream: Upstream, cores: Cores, *, quick: bool) -> list[Section]:
    """Import, first answer, simulation, in processes on the core of what is measured."""
    times = 3 if quick else 9
    with cores.measuring():  # the children inherit it; this process only waits
        return [_starting(upstream, times), _simulating(2 if quick else 3)]


def _starting(upstream: Upstream, times: int) -> Section:
    section = Section(
        "Library: starting",
        ("a process that", "CPU ms", "wall ms", "peak memory MB", "above bare Python"),
    )
    tables = json.dumps({"modes": modes([upstream.url()])})

    def cold() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as empty:
            return _python(_IMPORT, PYTHONPYCACHEPREFIX=empty)

    bare = _repeated(times, lambda: _python(_NOTHING))
    runs = {
        "does nothing (bare Python)": bare,
        "imports gateway": _repeated(times, lambda: _python(_IMPORT)),
        "imports gateway, nothing compiled yet": _repeated(max(3, times // 3), cold),
        "imports, builds a Gateway, has one answer": _repeated(
            times, lambda: _python(_ANSWER, tables)
        ),
    }
    for name, one in runs.items():
        section.rows.append(
            [
                name,
                f"{one['cpu_s'] * 1e3:.0f}",
                f"{one['wall_s'] * 1e3:.0f}",
                f"{one['peak_mb']:.1f}",
                f"+{(one['cpu_s'] - bare['cpu_s']) * 1e3:.0f} ms CPU, "
                f"+{one['peak_mb'] - bare['peak_mb']:.1f} MB",
            ]
        )
    first = runs["imports, builds a Gateway, has one answer"]
    parts = (first["import"], first["build"], first["answer"])
    section.remarks += [
        "Of the first answer, wall ms: import {:.0f}, `Gateway(...)` {:.0f}, connecting and"
        " answering {:.0f}.".format(*(part * 1e3 for part in parts)),
        f"`python -X importtime`: `import gateway` {_import_ms(times):.0f} ms in all.",
        "Wall ms are from before the process is started to after it has ended.",
    ]
    return section


def _import_ms(times: int) -> float:
    """Median of what `-X importtime` says for the whole package."""
    found = []
    for _ in range(times):
        told = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", "import gateway"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        ).stderr
        line = re.search(r"\|\s*(\d+) \| gateway$", told, re.MULTILINE)
        assert line is not None
        found.append(int(line[1]) / 1e3)
    return statistics.median(found)


def _simulating(times: int) -> Section:
    section = Section(
        "Twenty simulated minutes of outage",
        ("requests", "failed", "CPU s", "CPU µs/request", "peak memory MB"),
    )
    one = _repeated(times, lambda: _python(_OUTAGE))
    section.rows.append(
        [
            f"{one['asked']:,.0f}",
            f"{one['failed']:.0f}",
            f"{one['simulated']:.2f}",
            f"{one['simulated'] / one['asked'] * 1e6:.0f}",
            f"{one['peak_mb']:.1f}",
        ]
    )
    took = {"ours": Series([one["simulated"]])}
    section.findings.append(judge(_SIMULATION, took, Field("ours")))
    return section
