"""The load generator as the measuring side holds it, and the servers under it."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from tests.benchmarks.measure import Cores
from tests.benchmarks.native import compiled
from tests.benchmarks.peers import ABSENT
from tests.benchmarks.server.processes import Server
from tests.benchmarks.server.subjects import PEERS, SUBJECTS, Place
from tests.benchmarks.upstream import Upstream

LATE_S = 0.02
"""A frame is late that comes later than the next was due, on the beat that streams are held at."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How a server is asked.

    Args:
        connections: how many at once.
        stream: for streams.
        spread_s: over which the first questions are spread.
        drain_s: for how long at most those under way at the end are waited for.
        model: other than the one this kind of question is usually put to.
    """

    connections: int
    stream: bool = False
    spread_s: float = 0.0
    drain_s: float = 3.0
    model: str = ""


def begin(port: int, request: bytes, asking: Asking, seconds: float, core: int) -> Any:
    """Start to ask one port; ended and read by `end`."""
    program = compiled("load")
    assert program is not None
    spread, late = round(asking.spread_s * 1e3), round(LATE_S * 1e6)
    numbers = (core, port, asking.connections, seconds, spread, late, asking.drain_s)
    process = subprocess.Popen(
        [str(program), *map(str, numbers)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(request)
    process.stdin.close()
    return process


def end(process: Any, seconds: float) -> SimpleNamespace:
    """Wait until it has asked for `seconds`; what came of it, by the names in `load.c`.

    Raises:
        RuntimeError: it did not end in time.
    """
    try:
        told = process.stdout.read() if process.wait(timeout=seconds + 30) == 0 else b""
    except subprocess.TimeoutExpired:
        told = b""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    if not told:
        raise RuntimeError("the load generator gave up")
    return SimpleNamespace(**json.loads(told))


def ask(server: Server, asking: Asking, seconds: float, core: int) -> tuple[SimpleNamespace, float]:
    """Ask a server for `seconds`; what came of it, and the CPU seconds it took the server."""
    request = server.request(stream=asking.stream, model=asking.model)
    before = server.cpu_s()
    told = end(begin(server.port, request, asking, seconds, core), seconds)
    return told, server.cpu_s() - before


def errors(told: SimpleNamespace) -> tuple[int, str]:
    """How many answers were none, and what was wrong."""
    wrong = {
        f"status {told.first_bad}": told.bad_status,
        "connections refused": told.refused,
        "cut": told.cut,
        "out of order": told.malformed,
    }
    said = ", ".join(f"{count} x {name}" for name, count in wrong.items() if count)
    return sum(wrong.values()), said


def start(
    stack: ExitStack, upstream: Upstream, cores: Cores
) -> tuple[dict[str, Server], dict[str, str]]:
    """Every server that can be started, one after the other; why the others are not."""
    servers: dict[str, Server] = {}
    wrong: dict[str, str] = {}
    for name in SUBJECTS:
        server = make(stack, name, upstream.ports, cores.subject)
        if server is None:
            wrong[name] = ABSENT if name in PEERS else "not installed"
            continue
        try:
            servers[name] = stack.enter_context(server)
        except (RuntimeError, OSError) as error:
            wrong[name] = f"did not start: {error}"
    return servers, wrong


def make(
    stack: ExitStack, name: str, ports: list[int], core: int, *, failover: bool = False
) -> Server | None:
    """A server in a folder of its own, not yet started; None if it is not installed."""
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
    return SUBJECTS[name](Place(ports, core, folder, failover))
