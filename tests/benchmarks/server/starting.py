"""Cold start of the service and its peers, and what they weigh before and after the load."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from urllib.request import urlopen

from tests.benchmarks.goals import Field, Goal, judge, number
from tests.benchmarks.measure import Cores, Series
from tests.benchmarks.report import Section, spread
from tests.benchmarks.server.load import make, start
from tests.benchmarks.server.processes import Server
from tests.benchmarks.server.subjects import NGINX, OURS, PEERS, SUBJECTS
from tests.benchmarks.upstream import Upstream

_FIRST = Goal("start of the server to its first answer", "≤ 0.7 s", 0.7, "s")
_MEMORY = Goal("memory of the serving process after the load", "≤ 60 MB", 60, "MB")
_SLOW_S = 5.0  # who needs longer is started once only


class Fleet:
    """All servers, started; what they took for it and weighed; use as a context manager.

    Args:
        rounds: how often each is started; the last stays.

    Attributes:
        servers: those that answer.
        wrong: why the others do not.
    """

    def __init__(self, upstream: Upstream, cores: Cores, *, rounds: int) -> None:
        self._upstream, self._cores = upstream, cores
        self._rounds = rounds
        self._stack = ExitStack()
        self.servers: dict[str, Server] = {}
        self.wrong: dict[str, str] = {}
        self._start_s: dict[str, Series] = {}
        self._memory_mb: dict[str, float] = {}

    def __enter__(self) -> Fleet:
        print("servers starting ...", file=sys.stderr, flush=True)
        with self._stack:
            self.servers, self.wrong = start(self._stack, self._upstream, self._cores)
            for name, server in self.servers.items():
                self._start_s[name] = Series([server.start_s])
                self._memory_mb[name] = server.memory_mb()
            for _ in range(self._rounds - 1):
                for name, server in self.servers.items():
                    if server.start_s < _SLOW_S:
                        self._start_s[name].values.append(self._started(name))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _started(self, name: str) -> float:
        with ExitStack() as stack:
            again = make(stack, name, self._upstream.ports, self._cores.subject)
            assert again is not None
            return stack.enter_context(again).start_s

    def told(self) -> Section:
        """Starting and memory; to be called when the load is over."""
        section = Section(
            "Servers: starting and memory",
            ("server", "first answer s", "rounds", "memory MB", "after the load MB"),
        )
        after = {name: server.memory_mb() for name, server in self.servers.items()}
        for name in SUBJECTS:
            if name not in self.servers:
                section.rows.append([name, self.wrong[name], "", "", ""])
                continue
            took = self._start_s[name]
            memory = [number(self._memory_mb[name]), number(after[name])]
            section.rows.append([name, number(took.median), spread(took), *memory])
        field = Field(OURS, NGINX, PEERS)
        weights = {name: Series([value]) for name, value in after.items()}
        section.findings.append(judge(_FIRST, self._start_s, field))
        section.findings.append(judge(_MEMORY, weights, field))
        if OURS in self.servers:
            section.remarks.append(
                f"The gateway keeps answers, the others do not: {_cached(self.servers[OURS])} after"
                " the load ([cache] max_bytes bounds them, 64 MiB as shipped)."
            )
        return section


def _cached(server: Server) -> str:
    """What its cache holds, as our server tells it."""
    with urlopen(f"http://127.0.0.1:{server.port}/status", timeout=5) as response:
        cache = json.load(response)["cache"]
    return f"{cache['entries']:,} of {cache['bytes'] / 1e6:.0f} MB"
