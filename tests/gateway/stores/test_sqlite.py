from __future__ import annotations

import asyncio
import math
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConfigError, GatewayError, InvalidRequest
from gateway.stores.sqlite import Feedback, FeedbackStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feedback.sqlite"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[FeedbackStore]:
    store = FeedbackStore(path)
    yield store
    await store.aclose()


def feedback(generation_id: str = "g1", rating: float = 4.0, **more: Any) -> Feedback:
    return Feedback(generation_id=generation_id, rating=rating, **more)


async def test_what_went_in_comes_out(store: FeedbackStore) -> None:
    given = feedback(
        mode="creative", model="qwen", tenant="t", fields={"user": "ü", "tags": [1, None]}, at=5.5
    )
    await store.add(given)
    assert await store.recent() == [given]
    assert await store.count() == 1


async def test_a_later_rating_replaces_the_earlier(store: FeedbackStore) -> None:
    await store.add(feedback(rating=1, mode="fast", at=1.0, fields={"why": "hasty"}))
    await store.add(feedback(rating=5, mode="creative", at=2.0))
    assert await store.recent() == [feedback(rating=5, mode="creative", at=2.0)]
    assert await store.stats() == {"creative": {"count": 1, "mean": 5.0, "std": 0.0}}


async def test_the_latest_come_first(store: FeedbackStore) -> None:
    for n in (3, 1, 2):
        await store.add(feedback(f"g{n}", at=float(n)))
    assert [found.generation_id for found in await store.recent(2)] == ["g3", "g2"]
    assert await store.recent(0) == await store.recent(-1) == []


async def test_statistics_for_each_mode(store: FeedbackStore) -> None:
    for n, rating in enumerate((1.0, 2.0, 4.0, 5.0)):
        await store.add(feedback(f"c{n}", rating, mode="creative"))
    await store.add(feedback("f", 3.0, mode="fast"))
    stats = await store.stats()
    assert stats["creative"] == {"count": 4, "mean": 3.0, "std": pytest.approx(math.sqrt(2.5))}
    assert stats["fast"] == {"count": 1, "mean": 3.0, "std": 0.0}


async def test_many_at_once_through_one_thread(store: FeedbackStore) -> None:
    before = set(threading.enumerate())
    await asyncio.gather(*(store.add(feedback(f"g{n}")) for n in range(50)))
    assert await store.count() == 50
    begun = set(threading.enumerate()) - before  # others may end meanwhile
    assert [thread.name.partition("_")[0] for thread in begun] == ["feedback"]


async def test_the_event_loop_goes_on_while_the_disk_is_busy(store: FeedbackStore) -> None:
    gate = threading.Event()
    blocked = asyncio.create_task(store._run(lambda _: gate.wait(10)))
    adding = asyncio.create_task(store.add(feedback()))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not adding.done()
    gate.set()
    assert await blocked
    await adding
    assert await store.count() == 1


async def test_closing_finishes_what_was_handed_in_and_ends_the_thread(path: Path) -> None:
    threads = threading.active_count()
    store = FeedbackStore(path)
    adding = [asyncio.create_task(store.add(feedback(f"g{n}"))) for n in range(20)]
    await asyncio.sleep(0)
    await store.aclose()
    await asyncio.gather(*adding)
    await store.aclose()
    for thread in threading.enumerate():
        if thread.name.startswith("feedback"):
            await asyncio.to_thread(thread.join, 10)
    assert threading.active_count() <= threads + 1  # asyncio's own helper
    with pytest.raises(GatewayError, match="closed"):
        await store.add(feedback())
    again = FeedbackStore(path)
    assert await again.count() == 20
    await again.aclose()


async def test_closing_goes_on_when_its_caller_is_cancelled(path: Path) -> None:
    store = FeedbackStore(path)
    gate = threading.Event()
    busy = asyncio.create_task(store._run(lambda _: gate.wait(10)))
    await asyncio.sleep(0)
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    gate.set()
    await busy
    for thread in threading.enumerate():
        if thread.name.startswith("feedback"):
            await asyncio.to_thread(thread.join, 10)
    assert store._connection is None


async def test_memory_keeps_nothing_but_works() -> None:
    store = FeedbackStore(":memory:")
    await store.add(feedback())
    assert await store.count() == 1
    await store.aclose()


async def test_an_acknowledged_rating_survives_kill_9(path: Path) -> None:
    script = f"""
import asyncio
from gateway.stores.sqlite import Feedback, FeedbackStore
async def main():
    store = FeedbackStore({str(path)!r})
    for n in range(10**9):
        await store.add(Feedback(generation_id=f"g{{n}}", rating=3))
        print(n, flush=True)
asyncio.run(main())
"""
    root = Path(__file__).parents[3]
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    acknowledged = -1
    try:
        for line in child.stdout:
            acknowledged = int(line)
            if acknowledged == 25:
                child.send_signal(signal.SIGKILL)  # the pipe may still hold more lines
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert acknowledged >= 25
    store = FeedbackStore(path)
    kept = {found.generation_id for found in await store.recent(10**6)}
    await store.aclose()
    assert {f"g{n}" for n in range(acknowledged + 1)} <= kept


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        ({"rating": 0.99}, "rating"),
        ({"rating": 5.01}, "rating"),
        ({"rating": math.nan}, "rating"),
        ({"rating": True}, "rating"),
        ({"rating": "5"}, "rating"),
        ({"generation_id": ""}, "generation_id"),
        ({"generation_id": 7}, "generation_id"),
        ({"at": math.inf}, "at"),
    ],
)
def test_nonsense_is_refused(bad: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        feedback(**bad)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "bad",
    [
        {"fields": {"x": object()}},
        {"fields": {"x": "y" * 65_536}},
        {"fields": {"x": "\ud800"}},
        {"mode": "\ud800"},
        {"model": 7},
    ],
)
async def test_what_json_cannot_hold_is_refused(store: FeedbackStore, bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="feedback"):
        await store.add(feedback(**bad))
    await store.add(feedback())
    assert await store.count() == 1


async def test_a_missing_folder_is_named_and_can_be_mended(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "feedback.sqlite"
    store = FeedbackStore(path)
    with pytest.raises(ConfigError, match="create its folder") as caught:
        await store.open()
    assert str(path) in str(caught.value)
    path.parent.mkdir()
    await store.add(feedback())
    assert await store.count() == 1
    await store.aclose()


async def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path)
    with pytest.raises(ConfigError, match="cannot be opened"):
        await store.open()
    await store.aclose()


async def test_a_file_that_is_no_database_is_left_alone(path: Path) -> None:
    path.write_text("Dear diary, " * 100)
    store = FeedbackStore(path)
    with pytest.raises(ConfigError, match="not an SQLite database"):
        await store.add(feedback())
    await store.aclose()
    assert path.read_text() == "Dear diary, " * 100


@pytest.mark.parametrize("version", [0, 1, 2])
async def test_somebody_elses_database_is_left_alone(path: Path, version: int) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(f"CREATE TABLE mine (x); PRAGMA user_version = {version};")
    connection.close()
    before = path.read_bytes()
    store = FeedbackStore(path)
    with pytest.raises(ConfigError, match="something other"):
        await store.add(feedback())
    await store.aclose()
    assert path.read_bytes() == before


async def test_a_damaged_file_says_so(path: Path) -> None:
    store = FeedbackStore(path)
    for n in range(50):
        await store.add(feedback(f"g{n}", fields={"x": "y" * 200}))
    await store.aclose()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="is damaged") as caught:
        await store_of(path)
    assert str(path) in str(caught.value)


async def store_of(path: Path) -> None:
    store = FeedbackStore(path)
    try:
        await store.recent()
    finally:
        await store.aclose()


@pytest.mark.parametrize(
    ("trouble", "kind", "remedy"),
    [
        ("PRAGMA max_page_count = 1", GatewayError, "disk is full"),
        ("PRAGMA query_only = 1", ConfigError, "is read-only"),
    ],
)
async def test_a_disk_that_refuses_is_reported_and_tried_again(
    store: FeedbackStore, path: Path, trouble: str, kind: type[GatewayError], remedy: str
) -> None:
    await store.add(feedback("before"))
    await store._run(lambda connection: connection.execute(trouble))
    with pytest.raises(kind, match=remedy) as caught:
        for n in range(100):  # a full disk still has room on its last page
            await store.add(feedback(f"g{n}", fields={"x": "y" * 1000}))
    assert str(path) in str(caught.value)
    await store.add(feedback("after"))  # opened anew: the trouble was the connection's
    assert {"before", "after"} <= {found.generation_id for found in await store.recent()}


async def test_a_failing_disk_is_reported(path: Path) -> None:
    script = f"""
import asyncio, resource
from gateway.errors import GatewayError
from gateway.stores.sqlite import Feedback, FeedbackStore
async def main():
    store = FeedbackStore({str(path)!r})
    await store.open()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        for n in range(1000):
            await store.add(Feedback(generation_id=f"g{{n}}", rating=3, fields={{"x": "y" * 2000}}))
    except GatewayError as error:
        print(error)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        cwd=Path(__file__).parents[3],
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert b"check disk and quota" in out


async def test_a_cancelled_add_leaves_the_store_working(store: FeedbackStore) -> None:
    gate = threading.Event()
    busy = asyncio.create_task(store._run(lambda _: gate.wait(10)))
    await asyncio.sleep(0)
    adding = asyncio.create_task(store.add(feedback("cancelled")))
    await asyncio.sleep(0)
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    gate.set()
    await busy
    await store.add(feedback("kept"))
    assert [found.generation_id for found in await store.recent()] == ["kept"]
