from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.clock import ManualClock
from gateway.stores import shared_file
from gateway.stores.cell import Cell
from gateway.stores.shared import Posted, SharedStore


class Worker(SharedStore):
    """One process's store, with the process left out; `told` is what it said about its file."""

    def __init__(self, path: Path, clock: ManualClock, *, lasting: bool = False) -> None:
        self.told: list[tuple[bool, str]] = []
        super().__init__(
            path,
            lasting=lasting,
            clock=clock,
            on_change=lambda shared, why: self.told.append((shared, why)),
        )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shared.sqlite"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


@pytest.fixture
def pair(path: Path, clock: ManualClock) -> Iterator[tuple[Worker, Worker]]:
    pair = Worker(path, clock), Worker(path, clock)
    yield pair
    for worker in pair:
        worker.close()


def test_workers_count_together_up_to_a_limit(pair: tuple[Worker, Worker]) -> None:
    a, b = pair
    assert a.add("tokens", 60, limit=100) == 60
    assert b.add("tokens", 41, limit=100) is None
    assert b.add("tokens", 40, limit=100) == 100
    assert a.add("tokens", -10, limit=50) == 90  # giving back is never refused
    assert (a.total("tokens"), b.total("tokens"), b.total("other")) == (90, 90, 0)


def test_totals_outlive_the_workers(path: Path, clock: ManualClock) -> None:
    for expected in (5, 10):
        worker = Worker(path, clock, lasting=True)
        assert worker.add("tokens", 5) == expected
        worker.close()


def test_a_version_is_seen_by_all(pair: tuple[Worker, Worker]) -> None:
    a, b = pair
    assert b.version("reload") == 0
    assert a.bump("reload") == 1
    assert b.bump("reload") == 2
    assert a.version("reload") == 2
    assert a.version("other") == 0


def test_a_blackboard_shows_what_each_put_up_and_how_old_it_is(
    pair: tuple[Worker, Worker], clock: ManualClock
) -> None:
    a, b = pair
    a.put("a", "status", b"old")
    a.put("a", "status", b"new")
    clock.advance(2.0)
    b.put("b", "status", b"\x00")
    b.put("b", "other", b"x")
    assert a.all("status") == {"a": Posted(b"new", 2.0), "b": Posted(b"\x00", 0.0)}
    clock.advance(3600.0)
    b.put("b", "status", b"y")
    assert a.all("status") == {"b": Posted(b"y", 0.0)}  # dead for an hour: taken down


def test_a_state_is_changed_by_one_at_a_time(pair: tuple[Worker, Worker]) -> None:
    mine, theirs = Cell(pair[0], "creative"), Cell(pair[1], "creative")
    assert mine.look() is None
    mine.change(lambda found: b"1" if found is None else b"?")
    assert mine.look() is None  # my own
    assert theirs.look() == b"1"
    assert theirs.look() is None  # known by now
    theirs.change(lambda found: b"2" if found is None else b"?")
    seen: list[bytes | None] = []
    mine.change(seen.append)
    assert seen == [b"2"]
    assert Cell(pair[1], "fast").look() is None


def test_a_look_without_news_reads_no_row(
    pair: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(pair[0], "creative")
    cell.change(lambda found: b"1")
    cell.look()
    monkeypatch.setattr(pair[0], "state", lambda name: pytest.fail("a row was read"))
    for _ in range(100):
        assert cell.look() is None


def test_who_is_killed_between_commit_and_telling_is_heard_all_the_same(
    pair: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = Cell(pair[0], "creative"), Cell(pair[1], "creative")
    mine.change(lambda found: b"1")
    assert theirs.look() == b"1"
    assert theirs.look() is None
    place = pair[0]._place
    assert place is not None
    tell = place.tell
    monkeypatch.setattr(place, "tell", lambda mark=None: None if mark is None else tell(mark))
    mine.change(lambda found: b"2")
    assert theirs.look() == b"2"


def test_news_written_into_nowhere_arrive_within_a_second(
    pair: tuple[Worker, Worker], path: Path, clock: ManualClock
) -> None:
    mine, theirs = Cell(pair[0], "creative"), Cell(pair[1], "creative")
    mine.change(lambda found: b"1")
    assert theirs.look() == b"1"
    Path(f"{path}-news").unlink()
    clock.advance(1.0)
    pair[0].total("x")  # one of them has noticed, the other not yet
    mine.change(lambda found: b"2")
    assert theirs.look() == b"2"


def test_a_step_that_raises_changes_nothing(pair: tuple[Worker, Worker]) -> None:
    cell = Cell(pair[0], "creative")

    def fail(found: bytes | None) -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cell.change(fail)
    assert Cell(pair[1], "creative").look() is None
    cell.change(lambda found: b"1")
    assert Cell(pair[1], "creative").look() == b"1"


def test_a_change_within_a_change_is_no_deadlock(pair: tuple[Worker, Worker]) -> None:
    outer, inner = Cell(pair[0], "creative"), Cell(pair[0], "fast")

    def step(found: bytes | None) -> bytes:
        inner.change(lambda found: b"inner")
        pair[0].put("a", "status", b"told from inside")
        return b"outer"

    outer.change(step)
    assert Cell(pair[1], "creative").look() == b"outer"
    assert list(pair[1].all("status")) == ["a"]
    assert pair[0].shared


# -- files that fail ----------------------------------------------------------------------------


def test_without_a_folder_each_goes_on_alone_and_comes_back(
    tmp_path: Path, clock: ManualClock
) -> None:
    path = tmp_path / "missing" / "shared.sqlite"
    a, b = Worker(path, clock), Worker(path, clock)
    ran: list[bytes | None] = []
    Cell(a, "creative").change(ran.append)
    assert ran == [None]
    assert (a.add("tokens", 3, limit=10), b.add("tokens", 4, limit=10)) == (3, 4)
    assert Cell(a, "creative").look() is None
    assert [shared for shared, _ in a.told] == [False]
    assert str(path) in a.told[0][1]
    path.parent.mkdir()
    assert a.add("tokens", 0) == 3  # not each call tries again
    clock.advance(1.0)
    lives = a.life
    assert a.add("tokens", 1) == 4
    assert b.add("tokens", 0) == 8
    assert a.total("tokens") == 8
    assert a.life == lives + 1
    assert [shared for shared, _ in a.told] == [False, True]
    a.close()
    b.close()


def test_alone_a_worker_counts_on_from_what_it_saw(
    pair: tuple[Worker, Worker], path: Path, clock: ManualClock
) -> None:
    a, b = pair
    b.add("tokens", 90)
    assert a.add("tokens", 0) == 90
    with Locked(path):
        clock.advance(1.0)
        assert a.add("tokens", 20, limit=100) is None
        assert a.add("tokens", 5, limit=100) == 95
        assert not a.shared
    b.add("tokens", 1)
    clock.advance(1.0)
    assert a.add("tokens", 0) == 96
    assert [shared for shared, _ in a.told] == [False, True]


class Locked:
    """Another process that holds the file and does not let go."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)

    def __enter__(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")

    def __exit__(self, *_: object) -> None:
        self.db.close()


def test_a_locked_file_holds_nobody_up(
    pair: tuple[Worker, Worker], path: Path, clock: ManualClock
) -> None:
    cell, ran = Cell(pair[0], "creative"), list[bytes | None]()
    cell.change(lambda found: b"1")
    with Locked(path):
        cell.change(ran.append)
        assert ran == [None]
        assert not pair[0].shared
        cell.change(ran.append)
        clock.advance(1.0)
        cell.change(ran.append)
    clock.advance(1.0)
    cell.change(ran.append)
    assert ran == [None] * 4  # the last one in the file, where nobody has changed it since
    assert pair[0].shared
    assert [shared for shared, _ in pair[0].told] == [False, True]


def test_who_finds_the_file_locked_on_the_way_back_keeps_nothing_open(
    pair: tuple[Worker, Worker], path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = pair[0]
    with Locked(path):
        worker.add("tokens", 1)
    assert not worker.shared
    locked, opened = Locked(path), list[shared_file.Place]()

    def in_file(name: str, *, lasting: bool) -> shared_file.Place:
        opened.append(shared_file.in_file(name, lasting=lasting))
        locked.__enter__()
        return opened[-1]

    monkeypatch.setattr("gateway.stores.shared.in_file", in_file)
    clock.advance(1.0)
    worker.add("tokens", 1)
    locked.__exit__()
    assert not worker.shared
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].db.execute("SELECT 1")


def test_a_full_disk_lets_the_step_stand(pair: tuple[Worker, Worker], clock: ManualClock) -> None:
    cell, ran = Cell(pair[0], "creative"), list[bytes | None]()
    cell.change(lambda found: b"1")
    place = pair[0]._place
    assert place is not None
    pages = place.db.execute("PRAGMA page_count").fetchone()[0]
    place.db.execute(f"PRAGMA max_page_count = {pages}")

    def step(found: bytes | None) -> bytes:
        ran.append(found)
        return bytes(100_000)

    cell.change(step)
    assert ran == [None]
    assert not pair[0].shared
    assert "full" in pair[0].told[0][1]
    assert Cell(pair[1], "creative").look() == b"1"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_no_reason_to_stop(tmp_path: Path, clock: ManualClock) -> None:
    tmp_path.chmod(stat.S_IREAD | stat.S_IEXEC)
    try:
        worker = Worker(tmp_path / "shared.sqlite", clock)
        assert worker.add("tokens", 1) == 1
        assert not worker.shared
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_a_folder_that_takes_no_files_is_no_reason_to_stop(clock: ManualClock) -> None:
    worker = Worker(Path("/proc/shared.sqlite"), clock)
    assert worker.add("tokens", 1) == 1
    assert [shared for shared, _ in worker.told] == [False]
    worker.close()


def overwrite(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * (path.stat().st_size - at))


def test_a_damaged_file_of_ours_is_replaced(path: Path, clock: ManualClock) -> None:
    before = Worker(path, clock)
    before.add("tokens", 7)
    before.close()  # the last one: what was in the -wal is in the file now
    overwrite(path, 100)
    worker = Worker(path, clock)
    assert worker.add("tokens", 1) == 1
    assert not worker.shared
    clock.advance(1.0)
    assert worker.add("tokens", 1) == 2
    assert worker.shared
    worker.close()


@pytest.mark.parametrize("lasting", [True, False])
def test_a_file_that_is_not_ours_or_precious_is_left_alone(
    path: Path, clock: ManualClock, lasting: bool
) -> None:
    if lasting:
        before = Worker(path, clock)
        before.add("tokens", 7)
        before.close()
        overwrite(path, 100)
    else:
        path.write_text("somebody's notes, " * 100)
    content = path.read_bytes()
    worker = Worker(path, clock, lasting=lasting)
    assert worker.add("tokens", 1) == 1
    clock.advance(1.0)
    assert worker.add("tokens", 1) == 2
    assert path.read_bytes() == content
    path.unlink()
    clock.advance(1.0)
    assert worker.add("tokens", 1) == 3
    assert worker.shared
    worker.close()


def test_another_database_is_left_alone(path: Path, clock: ManualClock) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE mine (x)")
    db.commit()
    db.close()
    worker = Worker(path, clock)
    assert worker.add("tokens", 1) == 1
    assert "something else" in worker.told[0][1]
    worker.close()


def test_a_deleted_file_is_made_again_and_all_meet_there(
    pair: tuple[Worker, Worker], path: Path, clock: ManualClock
) -> None:
    a, b = pair
    a.add("tokens", 1), b.add("tokens", 1)
    for file in path.parent.iterdir():
        file.unlink()
    clock.advance(1.0)
    assert a.add("new", 1) == 1
    assert b.add("new", 1) == 2
    assert not a.told  # nobody was ever alone


def test_what_an_earlier_boot_left_is_thrown_away_but_not_the_totals(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Worker(path, clock)
    before.add("tokens", 7)
    before.put("a", "status", b"x")
    Cell(before, "creative").change(lambda found: b"open since the day before")
    before.close()
    monkeypatch.setattr(shared_file, "_boot_id", lambda: "another")
    worker = Worker(path, clock)
    assert Cell(worker, "creative").look() is None
    assert worker.all("status") == {}
    assert worker.total("tokens") == 7
    worker.close()


# -- other processes ----------------------------------------------------------------------------

HAMMER = """
import sys
from gateway.stores.cell import Cell
from gateway.stores.shared import SharedStore
store = SharedStore(sys.argv[1])
cell = Cell(store, "creative")
state = [0]
def step(found):
    if found is not None:
        state[0] = int(found)
    state[0] += 1
    return str(state[0]).encode()
for _ in range(300):
    store.add("tokens", 1)
    cell.change(step)
    state[0] = int(cell.look() or state[0])
print(store.shared, store.life)
"""


def test_processes_hammering_one_file_lose_nothing(path: Path, clock: ManualClock) -> None:
    workers = [
        subprocess.Popen([sys.executable, "-c", HAMMER, str(path)], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    said = [worker.communicate(timeout=60)[0] for worker in workers]
    assert said == [b"True 1\n"] * 3
    store = Worker(path, clock)
    assert store.total("tokens") == 900
    assert Cell(store, "creative").look() == b"900"
    store.close()


DIES = """
import os, signal, sys
from gateway.stores.cell import Cell
from gateway.stores.shared import SharedStore
store = SharedStore(sys.argv[1])
Cell(store, "creative").change(lambda found: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_process_killed_in_the_middle_of_a_change_leaves_none(
    path: Path, clock: ManualClock
) -> None:
    store = Worker(path, clock)
    cell = Cell(store, "creative")
    cell.change(lambda found: b"1")
    killed = subprocess.run([sys.executable, "-c", DIES, str(path)], check=False)
    assert killed.returncode == -9
    cell.change(lambda found: b"2" if found is None else b"?")
    assert cell.look() is None
    assert store.shared
    store.close()


def test_after_a_fork_each_has_its_own(pair: tuple[Worker, Worker]) -> None:
    a, b = pair
    a.add("tokens", 1)
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            a.add("tokens", 1)
            os._exit(0 if a.shared else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert a.add("tokens", 1) == 3
    assert b.total("tokens") == 3
