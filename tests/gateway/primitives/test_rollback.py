from __future__ import annotations

from typing import Any

import pytest

from gateway.primitives.rollback import Rollback, Snapshot, Snapshots


class Dial:
    """A target with one nested, mutable piece of state."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"weights": [0]}
        self.broken: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        if state["weights"] == self.broken:
            raise ValueError("damaged")
        self.state = state


def ids(snapshots: Snapshots[Any]) -> list[int]:
    return [snapshot.id for snapshot in snapshots]


def test_the_oldest_leaves() -> None:
    left: list[Snapshot[str]] = []
    snapshots = Snapshots[str](3, on_evict=left.append)
    for step in (500, 1000, 1500, 2000):
        snapshots.commit(f"checkpoint-{step}.pt", tag=step)
    assert ids(snapshots) == [2, 3, 4]
    assert [(s.state, s.tag) for s in left] == [("checkpoint-500.pt", 500)]
    with pytest.raises(KeyError, match=r"no snapshot 1; kept are \[2, 3, 4\]"):
        snapshots[1]


def test_the_last_healthy_and_the_pinned_stay() -> None:
    snapshots = Snapshots[int](3)
    good, pinned = snapshots.commit(0), snapshots.commit(1)
    snapshots.tag_healthy(good)
    snapshots.pin(pinned)
    for n in range(10):
        newest = snapshots.commit(n)
    assert ids(snapshots) == [good, pinned, newest]
    snapshots.tag_healthy(newest)  # now the old one may go
    assert ids(snapshots) == [good, pinned, newest]
    snapshots.commit(99)
    assert good not in ids(snapshots)
    assert newest in ids(snapshots)


def test_more_pins_than_room_grow_the_whole_until_unpinned() -> None:
    snapshots = Snapshots[int](2)
    for n in range(4):
        snapshots.pin(snapshots.commit(n))
    assert len(snapshots) == 4
    snapshots.unpin(1)
    snapshots.unpin(2)
    assert ids(snapshots) == [3, 4]


def test_latest_and_best_pass_suspects_by() -> None:
    snapshots = Snapshots[str]()
    assert snapshots.latest() is None
    assert snapshots.best() is None
    first = snapshots.commit("a", score=1.0)
    second = snapshots.commit("b", score=3.0)
    third = snapshots.commit("c")
    assert snapshots.latest() is None
    snapshots.tag_healthy(first)
    snapshots.tag_healthy(second)
    assert (snapshots.latest(), snapshots.best()) == (snapshots[second], snapshots[second])
    assert snapshots.latest(healthy=False) == snapshots[third]
    snapshots.suspect(second)
    snapshots.suspect(third)
    assert (snapshots.latest(), snapshots.best()) == (snapshots[first], snapshots[first])
    assert snapshots.latest(healthy=False) == snapshots[first]


def test_fewer_than_two_cannot_work() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        Snapshots[int](1)


def test_rollback_returns_to_the_last_good_state() -> None:
    dial = Dial()
    rollback = Rollback(dial)
    good = rollback.commit("start")
    rollback.healthy()
    dial.state["weights"].append(1)  # in place: what is kept must not follow
    rollback.commit("worse")
    dial.state["weights"].append(2)
    assert rollback.rollback() == good == rollback.current
    assert dial.state == {"weights": [0]}
    dial.state["weights"].append(3)  # nor may the restored target reach it
    assert rollback.rollback() == good
    assert dial.state == {"weights": [0]}


def test_a_suspect_is_gone_past() -> None:
    dial = Dial()
    rollback = Rollback(dial)
    older = rollback.commit()
    rollback.healthy()
    dial.state = {"weights": [1]}
    newer = rollback.commit()
    rollback.healthy()
    assert rollback.rollback() == newer
    rollback.suspect(newer)
    assert rollback.rollback() == older
    assert dial.state == {"weights": [0]}


def test_a_restore_that_fails_changes_nothing_and_can_go_further_back() -> None:
    dial = Dial()
    rollback = Rollback(dial)
    older = rollback.commit()
    rollback.healthy()
    dial.state = {"weights": [1]}
    newer = rollback.commit()
    rollback.healthy()
    dial.broken = [1]
    dial.state = {"weights": [2]}
    with pytest.raises(ValueError, match="damaged"):
        rollback.rollback()
    assert (rollback.current, dial.state) == (newer, {"weights": [2]})
    rollback.suspect(newer)
    assert rollback.rollback() == older


def test_nothing_to_return_to() -> None:
    rollback = Rollback(Dial())
    with pytest.raises(LookupError, match="nothing has been committed"):
        rollback.healthy()
    rollback.commit()
    with pytest.raises(LookupError, match="no healthy snapshot"):
        rollback.rollback()


def test_an_immutable_state_needs_no_copy() -> None:
    class Holder:
        config: object = object()

        def state_dict(self) -> object:
            return self.config

        def load_state_dict(self, state: object, /) -> None:
            self.config = state

    holder = Holder()
    first = holder.config
    rollback = Rollback(holder, Snapshots(2), duplicate=lambda state: state)
    rollback.commit()
    rollback.healthy()
    holder.config = object()
    rollback.rollback()
    assert holder.config is first
