"""Measure, print, and perhaps keep: `python -m tests.benchmarks --help`."""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import failure, peers
from tests.benchmarks.library import costs, micro, starting
from tests.benchmarks.measure import Cores, Quiet
from tests.benchmarks.native import compiled
from tests.benchmarks.report import Section, document, header, machine, slug
from tests.benchmarks.server import costs as server_costs
from tests.benchmarks.server import held
from tests.benchmarks.server.starting import Fleet
from tests.benchmarks.upstream import Upstream

_RESULTS = Path(__file__).with_name("results")
_PARTS = ("library", "server", "streams", "failure", "starting", "micro")


class Run:
    """One run: the parts asked for, what each brought and how long it took.

    Args:
        upstream: the stub everyone asks.
        cores: who runs where.
        quick: a round of short ones instead of three.
        parts: which of them.
    """

    def __init__(
        self, upstream: Upstream, cores: Cores, *, quick: bool, parts: tuple[str, ...]
    ) -> None:
        self._upstream, self._cores = upstream, cores
        self._quick, self._parts = quick, parts
        self._took: list[list[str]] = []
        self.sections: list[Section] = []
        self.quiet = Quiet()

    def all(self) -> None:
        """Every part in turn; one that breaks is told of and does not hide the others."""
        where = (self._upstream, self._cores)
        quick = self._quick
        if "library" in self._parts:
            self._part("library", lambda: costs.measure(*where, quick=quick))
        if {"server", "streams"} & set(self._parts):
            self._part("server and streams", self._servers)
        if "failure" in self._parts:
            self._part("failure", lambda: failure.measure(*where, quick=quick))
        if "starting" in self._parts:
            self._part("starting", lambda: starting.measure(*where, quick=quick))
        if "micro" in self._parts:
            self._part("micro", lambda: micro.measure(*where, quick=quick))
        total = sum(float(row[1]) for row in self._took)
        rows = [*self._took, ["all", f"{total:.0f}"]]
        self.sections.append(Section("How long it took", ("part", "s"), rows))

    def _servers(self) -> list[Section]:
        if compiled("load") is None:
            why = "The load generator needs a C compiler (`cc`) and Linux."
            return [Section("servers: not measured", (), remarks=[why])]
        if shutil.which("taskset") is None and self._cores.subject >= 0:
            return [Section("servers: not measured", (), remarks=["Needs `taskset`."])]
        quick, rounds = self._quick, 1 if self._quick else 3
        sections: list[Section] = []
        with Fleet(self._upstream, self._cores, rounds=rounds) as fleet:
            who = (self._upstream, self._cores, fleet.servers, fleet.wrong)
            if "server" in self._parts:
                seconds = 1.0 if quick else 2.0
                sections += server_costs.measure(*who, rounds=rounds, seconds=seconds)
            if "streams" in self._parts:
                sections += held.measure(*who, quick=quick)
                sections += held.weigh(*who)
            sections.append(fleet.told())
        return sections

    def _part(self, name: str, measure: Callable[[], list[Section]]) -> None:
        began = time.perf_counter()
        self._look()
        print(f"== {name}", file=sys.stderr, flush=True)
        try:
            self.sections += measure()
        except Exception as error:
            traceback.print_exc()
            told = f"{type(error).__name__}: {error}"
            self.sections.append(Section(f"{name}: could not be measured", (), remarks=[told]))
        self._look()
        self._took.append([name, f"{time.perf_counter() - began:.0f}"])

    def _look(self) -> None:
        with self._cores.measuring():
            self.quiet.look()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description="What the gateway costs, beside its peers."
    )
    parser.add_argument("--quick", action="store_true", help="one round; at most six minutes")
    parser.add_argument("--write", action="store_true", help="keep the report under results/")
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=_PARTS, help="only these")
    parser.add_argument(
        "--install-peers", action="store_true", help=f"into {peers.PEERS}, then stop"
    )
    options = parser.parse_args()
    if options.install_peers:
        peers.install()
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a thousand streams, both sides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: ends what was started
    load, cores = os.getloadavg(), Cores.split()
    with Upstream(cores.other) as upstream:
        run = Run(upstream, cores, quick=options.quick, parts=tuple(options.only))
        run.all()
        remarks = [
            f"Peers: {peers.versions()}",
            f"Upstream: a stub in {upstream.language}; servers under load by"
            f" {'a generator in C' if compiled('load') else 'nobody'}; subjects on core"
            f" {cores.subject}, stub and load on core {cores.other}",
        ]
    given = "".join(f" {argument}" for argument in sys.argv[1:])
    report = document(header(run.quiet, given, load, remarks), run.sections)
    print(report)
    if options.write:
        date = time.strftime("%Y-%m-%d", time.gmtime())
        path = _RESULTS / f"bench_{slug(machine())}_{date}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(report, encoding="utf-8")
        print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
