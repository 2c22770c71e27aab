"""Rolling figures: windows forget, percentiles are near, workers add up, sentences say why."""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.events import (
    AttemptFinished,
    CircuitChanged,
    ConfigReloaded,
    Event,
    HTTPFinished,
    RequestFinished,
    TargetResting,
)
from gateway.telemetry import histogram
from gateway.telemetry.live import Live
from gateway.telemetry.picture import History, picture
from gateway.telemetry.snapshot import Snapshot, merge

MODES = ("creative", "balanced", "fast")


@dataclass
class Stage:
    """A Live on a clock and a status that a test sets."""

    now: float = 1000.0
    phases: dict[str, str] = field(default_factory=lambda: dict.fromkeys(MODES, "closed"))
    board: Any = None
    epoch: int = 0

    def __post_init__(self) -> None:
        self.live = Live(self.status, clock=lambda: self.now, board=self.board)

    def status(self) -> dict[str, Any]:
        return {
            "modes": {
                name: {
                    "phase": phase,
                    "downshifted": phase in ("open", "probing", "probe_due", "forced_open"),
                    "until_s": 299.0 if phase == "open" else None,
                    "ttl_s": 300.0 if phase == "open" else 3600.0,
                    "cap": 64,
                    "limit": 64,
                    "in_flight": {"native": 2, "downshifted": 1},
                    "rating": {"count": 2, "mean": 4.5, "std": 0.5},
                    "targets": [
                        {
                            "name": f"vllm/{name}",
                            "model": name,
                            "in_flight": 3,
                            "resting_s": 0.0,
                            "budget_tokens": 9.5,
                        }
                    ],
                }
                for name, phase in self.phases.items()
            },
            "cache": {"enabled": True, "entries": 3, "bytes": 100, "max_bytes": 1000, "hits": 1},
            "queued": 1,
            "in_flight": 4,
            "config": {"source": "config.toml", "last_reload": "none", "on_trial": False},
        }

    def request(self, asked: str = "creative", by: str = "", **fields: Any) -> None:
        self.live(request(self.now, asked, by or asked, **fields))

    def failed_attempt(self, mode: str, request_id: str, kind: str = "connect") -> None:
        self.live(
            AttemptFinished(
                at=self.now,
                request_id=request_id,
                mode=mode,
                target="t",
                outcome="failure",
                kind=kind,
                duration_s=0.1,
            )
        )

    def circuit(self, mode: str, old: str, new: str, cause: str, until: float | None = None) -> str:
        """Move a circuit; returns what the log says of it."""
        self.now += 1
        self.epoch += 1
        self.phases[mode] = new
        self.live(
            CircuitChanged(
                at=self.now, mode=mode, old=old, new=new, cause=cause, epoch=self.epoch, until=until
            )
        )
        return self.log()[-1]

    def log(self) -> list[str]:
        return [event["text"] for event in self.picture()["events"]]

    def picture(self) -> dict[str, Any]:
        return picture(self.live.snapshot())


def request(at: float, asked: str, by: str, **fields: Any) -> RequestFinished:
    known: dict[str, Any] = {
        "at": at,
        "request_id": "r",
        "requested_mode": asked,
        "mode": by,
        "model": "m",
        "target": "t",
        "tenant": "",
        "stream": False,
        "degraded": asked != by,
        "reason": None,
        "cached": False,
        "stale": False,
        "attempts": 1,
        "error": "",
        "finish_reason": "stop",
        "first_token_s": 0.2,
        "duration_s": 1.0,
        "prompt_tokens": 5,
        "completion_tokens": 10,
        "overhead_s": 0.001,
        "outcome": "ok" if asked == by else "degraded",
    }
    return RequestFinished(**{**known, **fields})


# -- windows --------------------------------------------------------------------------------------


def test_nothing_yet_is_said_as_nothing() -> None:
    shown = Stage().picture()
    assert shown["per_s"] == 0
    assert shown["minute"]["requests"] == 0
    assert shown["minute"]["hit_share"] is None
    assert shown["minute"]["latency_ms"] == {"p50": None, "p95": None, "p99": None}
    assert shown["events"] == []
    assert shown["headline"] == {"tone": "good", "text": "Every mode answers for itself."}


def test_who_serves_whom() -> None:
    stage = Stage()
    stage.request("creative", "balanced")
    stage.request("creative", "balanced")
    stage.request("creative", "creative", cached=True)
    stage.request("creative", "balanced", outcome="stale", stale=True)
    stage.request("creative", "", outcome="failed", error="all_modes_failed")
    stage.request("fast", "", outcome="refused", error="rate_limit_exceeded")
    stage.request("fast", "", outcome="abandoned", error="abandoned")
    stage.request("fast", "", outcome="invalid", error="invalid_request")
    minute = stage.picture()["minute"]
    assert minute["flow"] == {
        "creative": {"balanced": 2, ":cache": 2, ":failed": 1},
        "fast": {":refused": 1},
    }
    assert minute["requests"] == 8
    assert minute["answered"] == 4
    assert minute["hit_share"] == 0.5
    assert minute["by_mode"]["balanced"]["answers"] == 2


def test_the_minute_and_the_ten_minutes_forget() -> None:
    stage = Stage()
    stage.request()
    stage.now += 59
    assert stage.picture()["minute"]["requests"] == 1
    stage.now += 2
    assert stage.picture()["minute"]["requests"] == 0
    assert stage.picture()["ten_minutes"]["requests"] == 1
    stage.now += 540
    assert stage.picture()["ten_minutes"]["requests"] == 0


def test_the_rate_is_of_the_last_ten_whole_seconds() -> None:
    stage = Stage()
    for _ in range(30):
        for _ in range(4):
            stage.request()
        stage.now += 1
    assert stage.picture()["per_s"] == 4.0
    stage.now += 5
    assert stage.picture()["per_s"] == 2.0
    stage.now += 10
    assert stage.picture()["per_s"] == 0.0


def test_the_history_is_aligned_and_ends_with_the_last_whole_step() -> None:
    stage = Stage(now=1001.0)
    stage.request()
    stage.request("creative", "fast")
    history = stage.picture()["history"]
    assert len(history["per_s"]) == 120
    assert sum(history["per_s"]) == 0  # its step is not over
    stage.now = 1005.0
    history = stage.picture()["history"]
    assert history["per_s"][-1] == 2 / 5
    assert history["degraded_per_s"][-1] == 1 / 5
    assert history["latency_p50_ms"][-1] == pytest.approx(1000, rel=histogram.ERROR + 0.01)
    assert history["latency_p50_ms"][-2] is None
    stage.now = 1015.0
    assert stage.picture()["history"]["per_s"][-3] == 2 / 5


def test_a_history_that_remembers_shows_what_one_that_does_not_would() -> None:
    stage, history = Stage(now=1001.0), History()
    for _ in range(20):
        stage.request(duration_s=stage.now / 1000)
        shown = picture(stage.live.snapshot(), history)["history"]
        assert shown == stage.picture()["history"]
        stage.now += 3
    stage.now += 700
    assert sum(picture(stage.live.snapshot(), history)["history"]["per_s"]) == 0


def test_cache_hits_do_not_flatter_the_first_token() -> None:
    stage = Stage()
    stage.request(first_token_s=0.4)
    for _ in range(9):
        stage.request(cached=True, first_token_s=0.0001, duration_s=0.0001)
    minute = stage.picture()["minute"]
    assert minute["first_token_ms"]["p50"] == pytest.approx(400, rel=0.03)
    assert minute["latency_ms"]["p50"] == pytest.approx(0.1, rel=0.03)
    assert minute["tokens_per_s"] > 0


def test_turned_away_requests_are_counted_and_those_of_the_pipeline_are_not() -> None:
    stage = Stage()
    for refused, status in ((True, 401), (True, 200), (False, 503)):
        stage.live(
            HTTPFinished(at=stage.now, method="GET", route="/", status=status, refused=refused)
        )
    assert stage.picture()["minute"]["turned_away"] == 1


def test_memory_is_bounded_whatever_comes() -> None:
    stage, chance = Stage(), random.Random(1)
    for number in range(8_000):
        stage.now += chance.random()
        took = 10 ** chance.uniform(-6, 6)
        stage.request(
            "creative", chance.choice(MODES), duration_s=took, first_token_s=took, overhead_s=took
        )
        stage.failed_attempt("creative", f"r{number}")
        stage.request("fast", "", outcome="failed", error=f"e{number % 300}")
        stage.live(ConfigReloaded(at=stage.now, result="refused", detail=str(number)))
    snapshot = stage.live.snapshot()
    assert len(snapshot.lines) == 200
    assert len(snapshot.history) <= 120
    assert max(len(tally.duration) for tally in snapshot.history.values()) < 480
    assert len(stage.live._repeats) <= 400
    assert len(msgspec.msgpack.encode(snapshot)) < 200_000


# -- sentences ------------------------------------------------------------------------------------


def test_an_opening_says_after_how_many_failures_why_who_answers_and_until_when() -> None:
    stage = Stage()
    for name in ("a", "a", "b", "c"):  # request a tried twice
        stage.failed_attempt("creative", name)
    assert (
        stage.circuit("creative", "closed", "open", "connect", until=300.0)
        == "creative opened after 3 failures: no connection; balanced answers, "
        "back in 300 s at the earliest"
    )
    assert stage.picture()["headline"] == {
        "tone": "warn",
        "text": "Creative is out, balanced answers for it.",
    }


def test_a_success_in_between_starts_the_count_anew() -> None:
    stage = Stage()
    stage.failed_attempt("creative", "a")
    stage.live(
        AttemptFinished(
            at=stage.now,
            request_id="b",
            mode="creative",
            target="t",
            outcome="success",
            kind="",
            duration_s=1,
        )
    )
    stage.failed_attempt("creative", "c", "timeout")
    text = stage.circuit("creative", "closed", "open", "timeout", until=300.0)
    assert text.startswith("creative opened after 1 failure: no answer in time;")


def test_the_whole_story_of_a_mode() -> None:
    stage = Stage()
    stage.phases["balanced"] = "open"
    text = stage.circuit("creative", "closed", "open", "overdue", until=300.0)
    assert text == (
        "creative opened: answers are overdue; fast answers, back in 300 s at the earliest"
    )
    assert stage.circuit("creative", "open", "probing", "probe") == (
        "creative is being tried again with one request"
    )
    text = stage.circuit("creative", "probing", "open", "lease over", until=300.0)
    assert text.startswith("creative is not back, its probe failed: no answer in time; fast")
    text = stage.circuit("creative", "probing", "recovering", "")
    assert text == "creative is back; it starts with a few requests"
    assert stage.circuit("fast", "closed", "forced_open", "operator") == (
        "fast was forced open by an operator; no mode below it can answer"
    )
    text = stage.circuit("fast", "forced_open", "recovering", "operator")
    assert text.startswith("fast was given back to its circuit")
    assert "forced closed" in stage.circuit("fast", "closed", "forced_closed", "operator")


@pytest.mark.parametrize(
    ("phases", "tone", "text"),
    [
        ("closed recovering closed", "info", "Every mode answers; balanced is still recovering."),
        ("open open closed", "warn", "Creative and balanced are out, fast answers for them."),
        ("open closed open", "bad", "Creative is out, balanced answers for it; fast is out, "
         "nobody answers for it."),
        ("open open forced_open", "bad", "No mode answers. Answers kept in the cache still go "
         "out."),
    ],
)  # fmt: skip
def test_the_headline_says_how_it_stands(phases: str, tone: str, text: str) -> None:
    stage = Stage(phases=dict(zip(MODES, phases.split(), strict=True)))
    assert stage.picture()["headline"] == {"tone": tone, "text": text}


def test_what_repeats_is_counted_not_repeated() -> None:
    stage = Stage()
    news: list[int] = []
    stage.live.on_news = lambda: news.append(1)
    for _ in range(500):
        stage.live(
            TargetResting(
                at=stage.now, mode="fast", target="vllm/x", kind="rate", for_s=20, alarm=False
            )
        )
        stage.now += 0.1
    (event,) = stage.picture()["events"]
    assert event["text"] == "vllm/x of fast rests 20 s: too many requests a minute"
    assert event["times"] == 500
    assert len(news) == 1
    stage.now += 31
    stage.live(
        TargetResting(
            at=stage.now, mode="fast", target="vllm/x", kind="auth", for_s=600, alarm=True
        )
    )
    assert stage.log()[-1] == (
        "vllm/x of fast: our key is refused; left out for 10 min: a person must act"
    )
    stage.live(ConfigReloaded(at=stage.now, result="rolled_back", detail="old.toml"))
    assert stage.log()[-1] == "failures jumped; back to the earlier configuration: old.toml"


# -- percentiles ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(1e-4, 86_400), min_size=1, max_size=200),
    st.lists(st.floats(0, 1), min_size=1, max_size=3),
)
def test_percentiles_are_within_the_buckets_error(values: list[float], shares: list[float]) -> None:
    counts: dict[int, int] = {}
    for value in values:
        histogram.add(counts, {histogram.bucket(value): 1})
    ranked, shares = sorted(values), sorted(shares)
    for share, found in zip(shares, histogram.percentiles(counts, shares), strict=True):
        exact = next(
            value for rank, value in enumerate(ranked, 1) if rank >= share * len(ranked) - 1e-9
        )
        assert found == pytest.approx(exact, rel=histogram.ERROR + 1e-9)


def test_times_out_of_range_count_as_the_nearest() -> None:
    assert histogram.bucket(0.0) == histogram.bucket(1e-9) == 0
    assert histogram.bucket(1e9) == histogram.bucket(86_400)


# -- several workers ------------------------------------------------------------------------------


@dataclass
class Wall:
    """A blackboard on which a test writes."""

    worker: str
    posts: dict[str, dict[str, Any]]
    age_s: float = 0.0

    def put(self, worker: str, name: str, value: bytes) -> None:
        self.posts.setdefault(name, {})[worker] = value

    def all(self, name: str) -> dict[str, Any]:
        return {
            worker: Posted(value, self.age_s) for worker, value in self.posts.get(name, {}).items()
        }


@dataclass
class Posted:
    value: bytes
    age_s: float


def test_workers_see_each_other_on_the_board_while_somebody_looks() -> None:
    posts: dict[str, dict[str, Any]] = {}
    here, there = Stage(board=Wall("a", posts)), Stage(board=Wall("b", posts))
    here.request()
    there.request("creative", "balanced")
    assert not there.live.wanted()
    assert picture(here.live.together())["minute"]["requests"] == 1
    assert there.live.wanted()
    assert not here.live.wanted()
    there.live.put_up(there.live.snapshot())
    shown = picture(here.live.together())
    assert shown["workers"] == 2
    assert shown["minute"]["flow"] == {"creative": {"creative": 1, "balanced": 1}}
    assert shown["in_flight"] == 8
    assert shown["modes"][0]["cap"] == 128
    assert shown["modes"][0]["rating"] == {"count": 4, "mean": 4.5}
    here.board.age_s = there.board.age_s = 6.0  # b has gone, and a looks no more
    assert picture(here.live.together())["workers"] == 1
    assert not there.live.wanted()


def test_failures_of_long_ago_did_not_lead_to_it() -> None:
    stage = Stage()
    stage.failed_attempt("creative", "long ago")
    stage.now += 100
    stage.failed_attempt("creative", "now")
    assert "after 1 failure:" in stage.circuit("creative", "closed", "open", "server", until=300.0)


def test_one_move_of_a_shared_circuit_is_one_line_that_counts_what_each_worker_saw() -> None:
    here, there = Stage(), Stage()
    for stage, name in ((here, "a"), (there, "b"), (here, "c")):
        stage.failed_attempt("creative", name)
    here.circuit("creative", "closed", "open", "connect", until=300.0)
    there.now += 0.2
    there.circuit("creative", "closed", "open", "connect", until=299.8)
    (event,) = picture(merge([here.live.snapshot(), there.live.snapshot()]))["events"]
    assert event["text"].startswith("creative opened after 3 failures: no connection")


def test_the_newest_worker_speaks_for_the_phase() -> None:
    here, there = Stage(), Stage()
    there.now += 1
    there.phases["creative"] = "open"
    shown = picture(merge([there.live.snapshot(), here.live.snapshot()]))
    assert shown["modes"][0]["phase"] == "open"
    assert shown["modes"][0]["stand_in"] == "balanced"


def test_nobody_cannot_be_merged() -> None:
    with pytest.raises(ValueError, match="at least one"):
        merge([])


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 700),
        st.sampled_from(MODES),
        st.sampled_from([*MODES, ":cached", ":failed"]),
        st.floats(1e-5, 100),
    ),
    max_size=12,
)


def _snapshot(number: int, events: list[tuple[int, str, str, float]]) -> Snapshot:
    stage = Stage(board=Wall(str(number), {}))
    for later, asked, by, took in sorted(events):
        stage.now = 1000.0 + later
        if by == ":failed":
            stage.request(asked, "", outcome="failed", error="timeout")
            stage.failed_attempt(asked, f"{number}-{later}")
            stage.circuit(asked, "closed", "open", "timeout", until=took)
        else:
            stage.request(asked, asked, cached=by == ":cached", duration_s=took)
    return stage.live.snapshot()


@settings(max_examples=40, deadline=None)
@given(st.lists(EVENTS, min_size=3, max_size=3))
def test_merging_is_associative_and_commutative(
    workers: list[list[tuple[int, str, str, float]]],
) -> None:
    snapshots = [_snapshot(number, events) for number, events in enumerate(workers)]
    whole = merge(snapshots)
    for order in itertools.permutations(snapshots):
        assert merge(order) == whole
        assert functools.reduce(lambda a, b: merge([a, b]), order) == whole
    assert whole.minute.requests == sum(one.minute.requests for one in snapshots)
    assert merge([whole]) == whole


def test_an_unknown_event_is_no_fault() -> None:
    stage = Stage()
    stage.live(Event(at=stage.now))
    assert stage.log() == []
