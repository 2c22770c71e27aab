"""Circuits of several workers over one file: what each rule says, it says of all together."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.clock import ManualClock
from gateway.detectors.failures import Outcome
from gateway.policies.circuit import Circuit
from gateway.policies.phases import CircuitOptions, Permit, Phase, Transition
from gateway.stores.cell import Cell
from gateway.stores.shared import SharedStore

S, F, N = Outcome.SUCCESS, Outcome.FAILURE, Outcome.IGNORED


class Worker:
    """One worker's circuit, on a clock that all share."""

    def __init__(self, path: Path, clock: ManualClock, options: CircuitOptions) -> None:
        self.store = SharedStore(path, clock=clock)
        self.heard: list[Transition] = []
        self.circuit = Circuit(
            "creative",
            options,
            clock,
            limit=lambda: 100,
            on_change=self.heard.append,
            agreement=Cell(self.store, "creative"),
        )

    def admit(self) -> Permit:
        permit = self.circuit.admit()
        assert permit is not None
        return permit

    def run(self, *outcomes: Outcome) -> Phase:
        for outcome in outcomes:
            self.circuit.settle(self.admit(), outcome, "test")
        return self.circuit.phase()

    def served(self) -> None:
        permit = self.admit()
        self.circuit.first_token(permit)
        self.circuit.settle(permit, S)


Hire = Callable[..., Worker]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


@pytest.fixture
def hire(tmp_path: Path, clock: ManualClock) -> Iterator[Hire]:
    workers: list[Worker] = []

    def hire(options: CircuitOptions | None = None) -> Worker:
        workers.append(Worker(tmp_path / "shared.sqlite", clock, options or CircuitOptions()))
        return workers[-1]

    yield hire
    for worker in workers:
        worker.store.close()


def test_three_failures_anywhere_open_it_everywhere(hire: Hire) -> None:
    a, b, c = hire(), hire(), hire()
    assert [a.run(F), b.run(F)] == [Phase.CLOSED] * 2
    assert c.run(F) is Phase.OPEN
    assert (a.circuit.admit(), b.circuit.admit()) == (None, None)
    assert a.circuit.breaker.current_state is c.circuit.breaker.current_state
    assert [worker.heard[0].new for worker in (a, b, c)] == [Phase.OPEN] * 3
    assert {(moved.cause, moved.epoch) for w in (a, b, c) for moved in w.heard} == {("test", 1)}


def test_a_success_anywhere_ends_the_row(hire: Hire) -> None:
    a, b = hire(), hire()
    assert a.run(F, F) is Phase.CLOSED
    b.run(S)
    assert a.run(F, F) is Phase.CLOSED
    assert b.run(F) is Phase.OPEN


def test_of_all_workers_one_probes_and_all_ramp_up_together(hire: Hire, clock: ManualClock) -> None:
    a, b = hire(), hire()
    a.run(F, F, F)
    assert b.circuit.admit() is None
    clock.advance(300.0)
    probe = a.admit()
    assert probe.probe
    assert b.circuit.admit() is None
    assert (b.circuit.phase(), b.circuit.until()) == (Phase.PROBING, 30.0)
    a.circuit.settle(probe, S)
    clock.advance(30.0)
    assert (a.circuit.phase(), a.circuit.cap()) == (Phase.RECOVERING, 50)
    assert (b.circuit.phase(), b.circuit.cap()) == (Phase.RECOVERING, 50)
    a.run(F)
    clock.advance(0.05)
    assert b.circuit.phase() is Phase.RECOVERING
    assert b.circuit.cap() == 26  # half, and 0.05 s on
    assert [moved.new for moved in b.heard] == [Phase.OPEN, Phase.PROBING, Phase.RECOVERING]


def test_an_outcome_of_an_old_epoch_changes_nothing_on_any_worker(hire: Hire) -> None:
    a, b = hire(), hire()
    early = [b.admit() for _ in range(3)]
    a.circuit.force("closed")
    a.circuit.force("auto")
    for permit in early:
        b.circuit.settle(permit, F)
    assert b.circuit.phase() is Phase.RECOVERING
    assert (b.circuit.late, b.circuit.in_flight) == (3, 0)


def test_an_operators_word_holds_for_all_within_50_ms(hire: Hire, clock: ManualClock) -> None:
    a, b = hire(), hire()
    assert b.circuit.phase() is Phase.CLOSED
    a.circuit.force("open")
    clock.advance(0.05)
    assert b.circuit.phase() is Phase.FORCED_OPEN
    b.circuit.force("auto")
    assert a.circuit.admit() is not None
    assert [moved.cause for moved in a.heard] == ["operator", "operator"]


def test_who_comes_late_starts_where_the_others_are(hire: Hire, clock: ManualClock) -> None:
    hire().run(F, F, F)
    clock.advance(100.0)
    late = hire()
    assert (late.circuit.phase(), late.circuit.until()) == (Phase.OPEN, 200.0)
    assert not late.heard


def test_silence_is_judged_over_all_workers(hire: Hire, clock: ManualClock) -> None:
    workers = [hire() for _ in range(3)]
    for worker in workers:
        worker.admit()
    clock.advance(10.0)
    assert [worker.circuit.sweep() for worker in workers] == [False, False, True]
    assert workers[0].circuit.admit() is None
    assert workers[0].heard[0].cause == "overdue"


def test_a_token_anywhere_breaks_the_silence(hire: Hire, clock: ManualClock) -> None:
    a, b = hire(), hire()
    for _ in range(3):
        a.admit()
    clock.advance(5.0)
    b.served()
    clock.advance(5.0)
    assert not a.circuit.sweep()  # three at once, and no news from b since its token


def test_a_token_after_the_report_breaks_the_silence_too(hire: Hire, clock: ManualClock) -> None:
    a, b, c = hire(), hire(), hire()
    a.admit(), b.admit()
    clock.advance(10.0)
    assert not a.circuit.sweep()
    assert not b.circuit.sweep()
    c.served()
    third = c.admit()
    clock.advance(10.0)
    assert third.overdue(clock())
    assert not c.circuit.sweep()


def test_who_hears_of_silence_and_had_a_token_says_so(hire: Hire, clock: ManualClock) -> None:
    a, b, c = hire(), hire(), hire()
    clock.advance(1.0)
    c.served()  # which it tells
    a.admit(), a.admit(), b.admit()
    clock.advance(0.5)
    c.served()  # which it does not, so soon
    clock.advance(10.0)
    assert not a.circuit.sweep()
    c.circuit.look()
    assert not b.circuit.sweep()


def test_an_overdue_attempt_that_ended_is_silent_no_more(hire: Hire, clock: ManualClock) -> None:
    a, b = hire(), hire()
    gone = [a.admit(), a.admit()]
    b.admit()
    clock.advance(10.0)
    assert not a.circuit.sweep()
    for permit in gone:
        a.circuit.settle(permit, N)
    assert not b.circuit.sweep()


def test_the_share_of_failures_is_taken_over_all_workers(hire: Hire, clock: ManualClock) -> None:
    a, b = hire(), hire()
    clock.advance(1.0)
    for _ in range(9):
        b.served()
    clock.advance(1.0)
    b.served()  # a second later: tells of those before
    for _ in range(5):
        a.run(F, S)
    assert a.run(F) is Phase.CLOSED  # 6 of its 11, but of 21 in all
    a.run(S)
    for _ in range(8):
        assert b.run(F, F) is Phase.CLOSED
        b.run(S)
    assert a.run(F) is Phase.CLOSED
    assert b.run(F) is Phase.OPEN  # 24 of 48, and never three in a row


def test_the_panic_rule_has_one_trial_for_all(hire: Hire, clock: ManualClock) -> None:
    a, b = hire(), hire()
    a.run(F, F, F)
    b.circuit.look()
    trial = a.circuit.admit_trial()
    assert trial is not None
    a.circuit.settle(trial, F)  # at once, before b has looked again
    assert b.circuit.admit_trial() is None
    assert b.circuit.tried == clock()
    assert b.circuit.admit_trial() is not None  # who saw it decides anew


def test_a_probe_that_overstays_failed_when_its_lease_ended(hire: Hire, clock: ManualClock) -> None:
    a, b = hire(), hire()
    a.run(F, F, F)
    clock.advance(300.0)
    probe = a.admit()
    clock.advance(40.0)
    assert b.circuit.admit() is None
    assert (b.circuit.opened, b.circuit.until()) == (1330.0, 290.0)
    a.circuit.settle(probe, S)
    assert (a.circuit.phase(), a.circuit.late) == (Phase.OPEN, 1)


def test_a_probe_that_comes_too_late_does_not_end_the_next_ones_lease(
    hire: Hire, clock: ManualClock
) -> None:
    a, b = hire(), hire()
    a.run(F, F, F)
    clock.advance(300.0)
    early = a.admit()
    clock.advance(330.0)
    assert b.admit().probe
    a.circuit.settle(early, N)
    assert a.circuit.admit() is None
    assert a.circuit.phase() is Phase.PROBING


def test_a_probe_whose_worker_died_leaves_the_place_to_the_next(
    hire: Hire, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = hire(), hire()
    a.run(F, F, F)
    clock.advance(300.0)
    a.admit()
    monkeypatch.setattr(b.store, "alive", lambda worker: worker != a.store.worker)
    clock.advance(29.9)
    assert b.circuit.admit() is None
    clock.advance(0.1)
    assert b.run(S) is Phase.RECOVERING


def test_driven_by_hand_it_moves_everywhere(hire: Hire) -> None:
    a, b = hire(), hire()
    a.run(F)  # which b has not heard of
    b.circuit.breaker.open()
    assert a.circuit.admit() is None
    assert a.circuit.epoch == b.circuit.epoch == 1
    assert a.circuit.breaker.current_state is b.circuit.breaker.current_state
    a.circuit.breaker.close()
    assert b.run(F) is Phase.RECOVERING


def test_a_hand_is_the_last_word_whatever_happened_meanwhile(hire: Hire) -> None:
    a, b = hire(), hire()
    a.circuit.force("closed")
    a.circuit.force("auto")
    early = a.admit()
    b.circuit.breaker.open()
    assert a.circuit.admit() is None
    assert a.circuit.epoch == b.circuit.epoch == 3
    a.circuit.settle(early, S)
    assert a.circuit.late == 1


def test_a_count_that_begins_after_a_closing_is_not_lost_on_the_way(
    hire: Hire, clock: ManualClock
) -> None:
    a, b = hire(), hire()
    a.run(F, F, F)
    b.circuit.look()
    clock.advance(300.0)
    a.run(S, F, F)  # b learns of the closing and of the failures at once
    assert b.run(F) is Phase.OPEN


def test_a_listener_hears_when_the_turn_is_over(hire: Hire) -> None:
    a, b = hire(), hire()
    seen: list[Permit | None] = []
    a.circuit._on_change = lambda _: seen.append(b.circuit.admit())
    a.run(F, F, F)
    assert seen == [None]  # by then everybody knows, and nobody is held up
    assert b.store.shared


# -- what it costs ------------------------------------------------------------------------------


def test_a_healthy_mode_takes_no_turns(
    hire: Hire, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = hire()
    clock.advance(0.1)
    worker.circuit.look()
    calls = {"turns": 0, "rows": 0}

    def counted(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def count(*args: object) -> object:
            calls[name] += 1
            return call(*args)

        return count

    monkeypatch.setattr(worker.store, "change", counted("turns", worker.store.change))
    monkeypatch.setattr(worker.store, "state", counted("rows", worker.store.state))
    for _ in range(800):
        worker.served()
        clock.advance(0.001)
    assert calls == {"turns": 0, "rows": 0}
    for _ in range(1000):
        worker.served()
        clock.advance(0.001)
    assert calls["turns"] <= 2  # once a second it tells that it is served
    assert calls["rows"] <= 4


# -- without the file ---------------------------------------------------------------------------


def test_without_a_file_each_decides_alone_and_then_they_meet(
    hire: Hire, clock: ManualClock, tmp_path: Path
) -> None:
    a, b = hire(), hire()
    folder = tmp_path / "shared.sqlite"
    a.run(F)
    for file in tmp_path.glob("shared.sqlite*"):
        file.unlink()
    folder.mkdir()  # which is not a file, and cannot be opened
    clock.advance(1.0)
    assert b.run(F) is Phase.CLOSED
    assert a.run(F, F) is Phase.OPEN
    assert (a.store.shared, b.store.shared) == (False, False)
    permit = b.admit()
    folder.rmdir()
    clock.advance(1.0)
    assert a.circuit.admit() is None  # writes how it stands for those who come after
    assert b.circuit.admit() is None
    assert (a.store.shared, b.store.shared) == (True, True)
    assert a.circuit.opened == b.circuit.opened == 1001.0
    b.circuit.settle(permit, S)
    assert b.circuit.late == 1  # two histories have met: what began before is late
    a.circuit.look()
    assert a.circuit.epoch == b.circuit.epoch


@pytest.mark.parametrize("first", [0, 1])
def test_where_histories_meet_the_longer_goes_on_whoever_comes_back_first(
    hire: Hire, clock: ManualClock, tmp_path: Path, first: int
) -> None:
    a, b = hire(), hire()
    for file in tmp_path.glob("shared.sqlite*"):
        file.unlink()
    (tmp_path / "shared.sqlite").mkdir()
    clock.advance(1.0)
    assert a.run(F, F, F) is Phase.OPEN
    assert b.run(S) is Phase.CLOSED
    early = b.admit()
    (tmp_path / "shared.sqlite").rmdir()
    clock.advance(1.0)
    for worker in ((a, b), (b, a))[first]:
        worker.circuit.look()
    assert b.circuit.admit() is None
    assert a.circuit.opened == b.circuit.opened == 1001.0
    b.circuit.settle(early, S)
    assert b.circuit.late == 1


def test_what_one_did_alone_counts_where_nobody_else_did_anything(
    hire: Hire, clock: ManualClock, tmp_path: Path
) -> None:
    a, b = hire(), hire()
    with closing(sqlite3.connect(tmp_path / "shared.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        assert a.run(F, F, F) is Phase.OPEN
        assert not a.store.shared
    clock.advance(1.0)
    a.circuit.look()
    assert a.store.shared
    assert b.circuit.admit() is None
    assert a.circuit.epoch == b.circuit.epoch == 1


def test_what_nobody_understands_is_replaced(hire: Hire, tmp_path: Path) -> None:
    a = hire()
    Cell(a.store, "creative").change(lambda found: b"\xc1 of another version")
    assert a.run(F) is Phase.CLOSED
    b = hire()
    assert b.run(F, F) is Phase.OPEN
