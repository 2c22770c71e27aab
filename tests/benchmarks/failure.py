"""What callers notice when the primary breaks: the library, the service, and the peers of both.

Open loop, primary and backup 20 ms each, an attempt limited to 1 s: two seconds healthy, then the
primary answers 500 (or is silent) for eight, then it is well again. Each of the two faults meets
everyone freshly started. Ours runs with a probe each 5 s (`early_probe_s`), as the peers that have
a breaker leave it open for 5 s.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field

from tests.benchmarks.goals import Field, Goal, judge, number
from tests.benchmarks.library.asking import Given
from tests.benchmarks.library.workers import Worker
from tests.benchmarks.measure import Cores, Series, percentile
from tests.benchmarks.peers import ABSENT, PEERS
from tests.benchmarks.report import Section
from tests.benchmarks.server.load import make
from tests.benchmarks.server.subjects import FERROGW, LITELLM, OURS, PORTKEY
from tests.benchmarks.upstream import Upstream

_DELAY_S = 0.02
_WARM_S, _BROKEN_S, _MENDED_S = 2.0, 8.0, 7.0
_FAULTS = {"error": "500s", "hang": "silence"}

Asked = list[tuple[float, float, str]]
"""When asked (`time.monotonic()`), how long it took, what went wrong."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is asked: a library through `caller`, or else the server of that name."""

    name: str
    caller: str = ""
    kind: str = "json"
    peer: str = ""
    rate: float = 40.0


_LIBRARY, _SERVER = "gateway.generate", f"{OURS} (server)"
_TENSORZERO, _ROUTER = "TensorZero embedded", "LiteLLM Router"
# Those of a group run side by side, for a few requests a second hardly use a core. Portkey and
# LiteLLM would at 40/s, so they are asked less often; the first two groups are one when in a hurry.
_GROUPS = (
    (Subject(_LIBRARY, "ours.generate", "stream"), Subject(_SERVER)),
    (
        Subject(_TENSORZERO, "tensorzero_embedded.make", peer="tensorzero"),
        Subject(FERROGW),
        Subject(PORTKEY, rate=20),
    ),
    (
        Subject(_ROUTER, "litellm_router.make", peer="litellm", rate=10),
        Subject(LITELLM, rate=5),
    ),
)


@dataclass(slots=True)
class Outcome:
    """One subject and one fault, round by round."""

    healthy_p50_ms: Series = field(default_factory=Series)
    p50_ms: Series = field(default_factory=Series)
    p99_s: Series = field(default_factory=Series)
    success: Series = field(default_factory=Series)  # percent
    hits: Series = field(default_factory=Series)  # on the broken primary, per request
    back_s: Series = field(default_factory=Series)
    mostly_back_s: Series = field(default_factory=Series)
    wrong: Counter[str] = field(default_factory=Counter)
    why_not: str = ""

    def add(self, asked: Asked, began: float, mended: float, hits: int) -> None:
        """Take in one round, from the moments the primary broke and was mended."""
        healthy = [took for at, took, wrong in asked if at < began and not wrong]
        broken = [one for one in asked if began <= one[0] < mended]
        answered = [took for _, took, wrong in broken if not wrong]
        self.wrong.update(wrong for _, _, wrong in broken if wrong)
        self.healthy_p50_ms.values.append(percentile(healthy, 0.5) * 1e3)
        self.p50_ms.values.append(percentile(answered, 0.5) * 1e3)
        self.p99_s.values.append(percentile(answered, 0.99))
        self.success.values.append(100 * len(answered) / len(broken) if broken else 0.0)
        self.hits.values.append(hits / len(broken) if broken else 0.0)


def mostly_back(samples: list[tuple[float, int, int]], share: float = 0.8) -> float:
    """When the primary first had `share` of the requests of half a second; NaN if it never had.

    Args:
        samples: seconds since it was mended, requests seen so far by the primary and the backup.
        share: of all requests.
    """
    for index, (_, primary, backup) in enumerate(samples):
        for later, more, others in samples[index + 1 :]:
            if later - samples[index][0] >= 0.45:
                own = more - primary
                if own and own >= share * (own + others - backup):
                    return later
                break
    return float("nan")


def measure(upstream: Upstream, cores: Cores, *, quick: bool) -> list[Section]:
    """Both faults for every group; ours twice but when in a hurry, LiteLLM only when not."""
    found: dict[str, dict[str, Outcome]] = {fault: {} for fault in _FAULTS}
    ours, light, heavy = _GROUPS
    groups = [ours + light] if quick else [ours, ours, light, heavy]
    for fault, outcomes in found.items():
        outcomes.update({subject.name: Outcome() for group in _GROUPS for subject in group})
        for subject in heavy if quick else ():
            outcomes[subject.name].why_not = "takes a minute: not with --quick"
        for subjects in groups:
            names = ", ".join(subject.name for subject in subjects)
            print(f"failure, {_FAULTS[fault]}: {names} ...", file=sys.stderr, flush=True)
            _run(upstream, cores, subjects, fault, outcomes)
    return [_told(found)]


def _run(
    upstream: Upstream,
    cores: Cores,
    subjects: tuple[Subject, ...],
    fault: str,
    outcomes: dict[str, Outcome],
) -> None:
    """One fault for those of one group, each with two backends of its own."""
    with ExitStack() as stack:
        workers: dict[Subject, tuple[Worker, int]] = {}
        for place, subject in enumerate(subjects):
            for port in (2 * place, 2 * place + 1):
                upstream.set(port, delay_s=_DELAY_S)
            try:
                worker = _worker(stack, upstream, cores, subject, 2 * place)
                if worker is None:
                    outcomes[subject.name].why_not = ABSENT
                    continue
                worker.ready()
                worker.closed(subject.kind, 1, 0.3)
                workers[subject] = (worker, 2 * place)
            except (RuntimeError, OSError) as error:
                outcomes[subject.name].why_not = str(error)[-120:]
        for subject, (worker, _) in workers.items():
            worker.begin_open(subject.rate, _WARM_S + _BROKEN_S + _MENDED_S)
        time.sleep(_WARM_S)
        primaries = [port for _, port in workers.values()]
        hits = {port: upstream.requests(port) for port in primaries}
        began = time.monotonic()
        for port in primaries:
            upstream.set(port, mode=fault, delay_s=_DELAY_S)
        time.sleep(_BROKEN_S)
        hits = {port: upstream.requests(port) - hits[port] for port in primaries}
        mended = time.monotonic()
        for port in primaries:
            upstream.set(port, delay_s=_DELAY_S)
        samples = _watch(upstream, primaries, mended)
        for subject, (worker, port) in workers.items():
            outcome = outcomes[subject.name]
            try:
                outcome.add(worker.end_open(_MENDED_S), began, mended, hits[port])
            except RuntimeError as error:
                outcome.why_not = str(error)
                continue
            first = upstream.first_s(port)
            outcome.back_s.values.append(first - mended if first else float("nan"))
            outcome.mostly_back_s.values.append(mostly_back(samples[port]))
        for port in range(len(upstream.ports)):
            upstream.set(port)


def _watch(
    upstream: Upstream, primaries: list[int], mended: float
) -> dict[int, list[tuple[float, int, int]]]:
    """Who gets the requests, from the moment the primary is well again."""
    samples: dict[int, list[tuple[float, int, int]]] = {port: [] for port in primaries}
    while (now := time.monotonic() - mended) < _MENDED_S:
        for port in primaries:
            samples[port].append((now, upstream.requests(port), upstream.requests(port + 1)))
        time.sleep(0.1)
    return samples


def _worker(
    stack: ExitStack, upstream: Upstream, cores: Cores, subject: Subject, port: int
) -> Worker | None:
    """Who asks, started; before it the server, if it is one. None if it is not installed."""
    urls = [upstream.url(port), upstream.url(port + 1)]
    if subject.caller:
        if subject.peer and not (PEERS / subject.peer).exists():
            return None
        given = Given(urls, cores.subject, failover=True)
        return stack.enter_context(Worker(subject.caller, given, peer=subject.peer))
    name = OURS if subject.name == _SERVER else subject.name
    ports = upstream.ports[port : port + 2]
    server = make(stack, name, ports, cores.subject, failover=True)
    if server is None:
        return None
    stack.enter_context(server)
    told = {
        "port": server.port,
        "path": server.path,
        "headers": server.headers,
        "body": {"model": server.models.whole, "temperature": 0.2},
    }
    return stack.enter_context(Worker("over_http.make", Given(urls, cores.other, server=told)))


def _told(found: dict[str, dict[str, Outcome]]) -> Section:
    section = Section(
        "When the primary breaks",
        (
            "fault",
            "who",
            "asked/s",
            "healthy p50 ms",
            "success",
            "p50 ms",
            "p99 ms",
            "hits on the primary per request",
            "first back after s",
            "80 % back after s",
            "wrong",
        ),
        remarks=[
            f"{_WARM_S:g} s healthy, {_BROKEN_S:g} s broken, {_MENDED_S:g} s mended; figures are of"
            " the questions put while it was broken. Hits are counted then, too: slow retries of"
            " LiteLLM spill over and are not. First back: the mended primary's first answer; about"
            " 0 means that it never left it. `-` means not within the seconds watched.",
            "A circuit that opens costs a fixed number of hits, so hits per request fall with the"
            f" length of the outage; the goal is for {40 * _BROKEN_S:g} requests.",
        ],
    )
    rates = {subject.name: subject.rate for group in _GROUPS for subject in group}
    for fault, outcomes in found.items():
        for name, one in outcomes.items():
            if not one.p50_ms.values:
                section.rows.append([_FAULTS[fault], name, one.why_not, *[""] * 8])
                continue
            section.rows.append(
                [
                    _FAULTS[fault],
                    name,
                    f"{rates[name]:g}",
                    number(one.healthy_p50_ms.median),
                    f"{one.success.median:.1f} %",
                    number(one.p50_ms.median),
                    number(one.p99_s.scaled(1e3).median),
                    number(one.hits.median),
                    number(one.back_s.median),
                    number(one.mostly_back_s.median),
                    ", ".join(f"{count} x {why}" for why, count in one.wrong.most_common(2)),
                ]
            )
    for what, who in (
        ("library", Field(_LIBRARY, peers=(_TENSORZERO, _ROUTER))),
        ("server", Field(_SERVER, peers=(FERROGW, PORTKEY, LITELLM))),
    ):
        _judge(section, found, what, who)
    return section


def _judge(section: Section, found: dict[str, dict[str, Outcome]], what: str, who: Field) -> None:
    errors, silence = found["error"], found["hang"]
    # Who leaves questions unanswered is not quick, and who never leaves a primary is not back soon.
    answering = {
        name: one for name, one in silence.items() if name == who.ours or one.success.median == 100
    }
    leaving = {
        name: one for name, one in errors.items() if name == who.ours or one.hits.median < 0.5
    }
    for goal, figures in (
        (
            Goal(f"{what}, primary returns 500: p50 above healthy", "+≤ 1 ms", 1, "ms"),
            {name: one.p50_ms.above(one.healthy_p50_ms) for name, one in errors.items()},
        ),
        (
            Goal(f"{what}, primary returns 500: hits on it per request", "≤ 0.02", 0.02, ""),
            {name: one.hits for name, one in errors.items()},
        ),
        (
            Goal(f"{what}, primary hangs: success", "100 %", 100, "%", more=True),
            {name: one.success for name, one in silence.items()},
        ),
        (
            Goal(f"{what}, primary hangs: p50 above healthy", "+≤ 1 ms", 1, "ms"),
            {name: one.p50_ms.above(one.healthy_p50_ms) for name, one in answering.items()},
        ),
        (
            Goal(f"{what}, primary hangs: p99", "≤ 0.5 s", 0.5, "s"),
            {name: one.p99_s for name, one in answering.items()},
        ),
        (
            Goal(
                f"{what}: back on the mended primary", "≤ 1 probe interval + first token", 5.1, "s"
            ),
            {name: one.back_s for name, one in leaving.items()},
        ),
    ):
        section.findings.append(judge(goal, figures, who))
