"""Measure the service beside its peers: `python -m tests.benchmarks.server --help`."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.measure import Quiet, pin
from tests.benchmarks.report import Section, document, header, machine, number, slug
from tests.benchmarks.server.processes import Server
from tests.benchmarks.server.subjects import OURS, PEERS, SUBJECTS, WHOLE, lua
from tests.benchmarks.stub import EVENTS
from tests.benchmarks.upstream import Upstream

_RESULTS = Path(__file__).parents[1] / "results"
_INSTALL = (
    ("python3", "-m", "venv", "ferrogw"),
    ("ferrogw/bin/pip", "install", "-q", "ferrogw==1.5.10"),
    ("python3", "-m", "venv", "litellm"),
    ("litellm/bin/pip", "install", "-q", "litellm[proxy]==1.106.2", "opentelemetry-api",
     "opentelemetry-sdk", "opentelemetry-exporter-otlp"),
    ("npm", "install", "--silent", "--prefix", "portkey", "@portkey-ai/gateway@1.15.2"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Load:
    """One way to ask: how many at once, whole or streamed, how fast the upstream's chunks come."""

    name: str
    connections: int
    stream: bool = False
    interval_s: float = 0.0
    delay_s: float = 0.0


_LOADS = (
    Load("1 at once", 1),
    Load("64 at once", 64),
    Load("512 at once", 512),
    Load("20 ms upstream, 16 at once", 16, delay_s=0.02),
    Load("SSE burst, 16 at once", 16, stream=True),
    Load("SSE paced 2 ms, 32 at once", 32, stream=True, interval_s=0.002),
)


@dataclass(slots=True)
class Cell:
    """What one subject did under one load, round by round."""

    per_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    errors: int = 0


def _wrk(server: Server, load: Load, seconds: float, core: int, folder: Path) -> Cell:
    script = folder / "ask.lua"
    script.write_text(lua(server, stream=load.stream))
    url = f"http://127.0.0.1:{server.port}{server.path}"
    before = server.cpu_s()
    told = subprocess.run(
        ["taskset", "-c", str(core), "wrk", "-t1", f"-c{load.connections}", f"-d{seconds:g}s",
         "--timeout", "10s", "-s", str(script), url],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    cpu_s = server.cpu_s() - before
    line = next(line for line in told.splitlines() if line.startswith("RESULT"))
    requests, took_us, errors, p50, p99 = map(int, line.split()[1:])
    done = max(1, requests)
    return Cell([done / took_us * 1e6], [cpu_s / done * 1e6], [p50 / 1e3], [p99 / 1e3], errors)


def measure(names: list[str], *, rounds: int, seconds: float) -> list[Section]:
    """Every subject under every load, in rounds A B C, A B C, one server at a time under load."""
    other = pin()  # the stub's and wrk's core; the servers get this process's own
    own = min(os.sched_getaffinity(0))
    cells: dict[tuple[str, str], Cell] = {}
    sections, absent = [], []
    starting = Section("Starting and memory", ("server", "first answer s", "memory MB"))
    with Upstream(other) as upstream, ExitStack() as stack:
        servers: dict[str, Server] = {}
        for name in names:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            server = SUBJECTS[name](upstream.ports[0], own, folder)
            if server is None:
                absent.append(name)
                continue
            try:
                servers[name] = stack.enter_context(server)
            except RuntimeError as error:
                absent.append(f"{name} ({' '.join(str(error).split())[:200]})")
                continue
            told = [name, f"{server.start_s:.2f}", f"{server.memory_mb():.0f}"]
            starting.rows.append(told)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for load in _LOADS:
            upstream.set(delay_s=load.delay_s, interval_s=load.interval_s)
            for turn in range(rounds + 1):  # the first is warm-up
                for name, server in servers.items():
                    if load.stream and (name == WHOLE or server.ask(stream=True) != 200):
                        continue  # it would relay one big chunk, which compares with nothing
                    print(f"{load.name}: {name} ...", file=sys.stderr, flush=True)
                    got = _wrk(server, load, seconds if turn else 1, other, scratch)
                    if turn:
                        cell = cells.setdefault((load.name, name), Cell())
                        cell.per_s += got.per_s
                        cell.cpu_us += got.cpu_us
                        cell.p50_ms += got.p50_ms
                        cell.p99_ms += got.p99_ms
                        cell.errors += got.errors
            sections.append(_section(load, {n: cells.get((load.name, n)) for n in servers}))
        for row, server in zip(starting.rows, servers.values(), strict=True):
            row[2] += f" → {server.memory_mb():.0f} after the load"
    if absent:
        starting.remarks.append(f"Not measured: {'; '.join(absent)}.")
    return [*sections, starting]


def _section(load: Load, cells: dict[str, Cell | None]) -> Section:
    unit = "µs/chunk" if load.stream else "CPU µs"
    section = Section(
        load.name, ("server", "requests/s", unit, "spread", "p50 ms", "p99 ms", "x ours", "errors")
    )
    share = EVENTS if load.stream else 1
    # Who is asked for one piece compares with those who ask their upstream for one piece.
    ours = (None if load.stream else cells.get(WHOLE)) or cells.get(OURS)
    for name, cell in cells.items():
        if cell is None:
            section.rows.append([name, "not streamed", *[""] * 6])
            continue
        cpu = [one / share for one in cell.cpu_us]
        times = "1"
        if ours is not None and cell is not ours:
            pairs = zip(cell.cpu_us, ours.cpu_us, strict=True)
            times = f"{statistics.median(a / b for a, b in pairs):.2f}"
        section.rows.append(
            [
                name,
                f"{statistics.median(cell.per_s):,.0f}",
                number(statistics.median(cpu)),
                f"{number(min(cpu))}-{number(max(cpu))}",
                f"{statistics.median(cell.p50_ms):.2f}",
                f"{statistics.median(cell.p99_ms):.2f}",
                times,
                str(cell.errors),
            ]
        )
    return section


def _install() -> None:
    PEERS.mkdir(exist_ok=True)
    for command in _INSTALL:
        program = command[0] if "/" not in command[0] else str((PEERS / command[0]).resolve())
        print(" ".join(command), file=sys.stderr, flush=True)
        subprocess.run([program, *command[1:]], check=True, cwd=PEERS)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.server", description="What the service costs."
    )
    parser.add_argument("--quick", action="store_true", help="one round of 3 s instead of 3 of 5")
    parser.add_argument("--write", action="store_true", help="keep the report under results/")
    parser.add_argument("--only", nargs="+", choices=list(SUBJECTS), help="only these servers")
    parser.add_argument("--install-peers", action="store_true", help=f"into {PEERS}, then stop")
    options = parser.parse_args()
    if options.install_peers:
        _install()
        return
    if shutil.which("wrk") is None or shutil.which("taskset") is None:
        parser.error("needs wrk and taskset: apt-get install wrk util-linux")
    load, quiet = os.getloadavg(), Quiet()
    quiet.look()
    rounds, seconds = (1, 3.0) if options.quick else (3, 5.0)
    sections = measure(options.only or list(SUBJECTS), rounds=rounds, seconds=seconds)
    quiet.look()
    given = "".join(f" {argument}" for argument in sys.argv[1:])
    report = document(header(quiet, given, load), sections)
    report = report.replace("# Library", "# Server", 1).replace("benchmarks`", "benchmarks.server`")
    print(report)
    if options.write:
        date = time.strftime("%Y-%m-%d", time.gmtime())
        path = _RESULTS / f"server_{slug(machine())}_{date}.md"
        path.write_text(report, encoding="utf-8")
        print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
