"""Against a real server process: answering, paused, killed, restarted, full."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.clock import ManualClock
from gateway.errors import ConfigError
from gateway.generation import Generation, Served
from gateway.stores.base import Entry
from gateway.stores.valkey import ValkeyStore

pytestmark = pytest.mark.skipif(not shutil.which("redis-server"), reason="needs redis-server")


class Server:
    """A redis-server of our own on a Unix socket."""

    def __init__(self, folder: str) -> None:
        self.path = f"{folder}/s"
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def start(self) -> None:
        command = ["redis-server", "--port", "0", "--unixsocket", self.path, "--save", ""]
        self.process = subprocess.Popen(
            [*command, "--dir", str(Path(self.path).parent)], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if b"ready to accept connections" in line.lower():
                return
        raise AssertionError("redis-server did not start")

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a socket's path must be short
        server = Server(folder)
        yield server
        server.kill()


def connect(server: Server, **options: Any) -> ValkeyStore:
    """A store with time enough, where time is not the matter of the test."""
    return ValkeyStore(server.url, **{"timeout_s": 10.0, **options})


def entry(text: str = "hello", stored_at: float = 0.0, **extra: object) -> Entry:
    generation = Generation(
        id="g",
        choices=[{"index": 0, "message": {"role": "assistant", "content": text}}],
        served=Served(requested_mode="creative", mode="creative"),
        extra=extra,
    )
    return Entry(generation, stored_at, "creative", "id")


def text_of(found: Entry | None) -> str | None:
    return found.generation.text if found else None


async def test_age_travels_between_clocks_without_a_common_origin(server: Server) -> None:
    here, there = ManualClock(1000.0), ManualClock(5.0)
    first, second = connect(server, clock=here), connect(server, clock=there)
    await first.put(b"k", entry(stored_at=940.0), 7200)  # a minute old already
    found = await second.get(b"k")
    assert found is not None
    assert there() - found.stored_at == pytest.approx(60.0, abs=1.0)
    await first.aclose()
    await second.aclose()


async def test_age_grows_by_what_the_server_counts_down(server: Server) -> None:
    clock = ManualClock()
    store, raw = connect(server, clock=clock), Redis.from_url(server.url)
    await store.put(b"k", entry(), 3600)
    await raw.pexpire(b"downshift:1:k", 600_000)  # as if 3000 s had gone by
    found = await store.get(b"k")
    assert found is not None
    assert clock() - found.stored_at == pytest.approx(3000.0, abs=1.0)
    await raw.persist(b"downshift:1:k")
    assert await store.get(b"k") is None  # of unknown age
    await store.aclose()
    await raw.aclose()


async def test_the_server_forgets_at_the_end_of_the_lifetime(server: Server) -> None:
    store, raw = connect(server), Redis.from_url(server.url)
    await raw.config_set("notify-keyspace-events", "Ex")
    async with raw.pubsub() as events, asyncio.timeout(10):
        await events.subscribe("__keyevent@0__:expired")
        await store.put(b"k", entry(), 0.02)
        while True:
            event = await events.get_message(ignore_subscribe_messages=True, timeout=10)
            if event is not None:
                break
    assert event["data"] == b"downshift:1:k"
    assert await store.get(b"k") is None
    await store.aclose()
    await raw.aclose()


async def test_a_paused_server_costs_its_timeout_then_nothing_until_five_seconds_later(
    server: Server,
) -> None:
    clock = ManualClock()
    store = connect(server, clock=clock, timeout_s=0.05)
    server.pause()
    began = asyncio.get_running_loop().time()
    assert await store.get(b"k") is None
    assert 0.04 < asyncio.get_running_loop().time() - began < 0.5
    await store.put(b"k", entry("lost"), 60)
    await store.delete(b"k")
    assert store.stats() == {
        "hits": 0, "misses": 1, "puts": 1, "dropped": 1, "errors": 3, "skipped": 0,
    }  # fmt: skip
    for _ in range(100):
        assert await store.get(b"k") is None
    assert (store.stats()["skipped"], store.stats()["errors"]) == (100, 3)
    clock.advance(5)
    trials = await asyncio.gather(*(store.get(b"k") for _ in range(20)))
    assert trials == [None] * 20
    assert (store.stats()["skipped"], store.stats()["errors"]) == (119, 4)  # only one has tried
    server.resume()
    async with asyncio.timeout(10):  # a busy machine may need more than one trial of 50 ms
        while text_of(await store.get(b"k")) != "again":
            clock.advance(5)
            await store.put(b"k", entry("again"), 60)
    await store.aclose()


async def test_an_answer_that_comes_too_late_is_nobody_elses(server: Server) -> None:
    store = connect(server, max_connections=1, timeout_s=0.3)
    for n in range(5):
        await store.put(b"%d" % n, entry(str(n)), 60)
    server.pause()
    assert await store.get(b"0") is None
    assert await store.get(b"1") is None
    server.resume()
    async with asyncio.timeout(10):
        for n in range(2, 5):
            assert text_of(await store.get(b"%d" % n)) == str(n)
    await store.aclose()


async def test_a_cancelled_read_is_cancelled_and_harms_no_other(server: Server) -> None:
    store = connect(server, max_connections=1)
    await store.put(b"a", entry("a"), 60)
    await store.put(b"b", entry("b"), 60)
    server.pause()
    read = asyncio.create_task(store.get(b"a"))
    for _ in range(20):
        await asyncio.sleep(0)
    read.cancel()
    with pytest.raises(asyncio.CancelledError):
        await read
    server.resume()
    assert text_of(await store.get(b"b")) == "b"
    assert store.stats()["errors"] == 0
    await store.aclose()


async def test_killed_and_restarted(server: Server) -> None:
    clock = ManualClock()
    store = connect(server, clock=clock)
    await asyncio.gather(*(store.put(b"%d" % n, entry(), 60) for n in range(10)))
    server.kill()
    for _ in range(5):
        assert await store.get(b"1") is None
    assert (store.stats()["errors"], store.stats()["skipped"]) == (3, 2)
    server.start()
    clock.advance(5)
    await store.put(b"k", entry("back"), 60)  # through connections that are all stale by now
    assert text_of(await store.get(b"k")) == "back"
    await store.aclose()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts sockets in /proc")
async def test_closing_lets_go_of_every_connection_even_of_a_paused_server(server: Server) -> None:
    def sockets() -> int:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum(str(link.readlink()).startswith("socket:") for link in links)

    before = sockets()
    store = connect(server, timeout_s=0.2)
    await asyncio.gather(*(store.put(b"%d" % n, entry(), 60) for n in range(10)))
    assert sockets() > before
    server.pause()
    for _ in range(4):
        await store.get(b"1")
    assert store.stats()["skipped"] == 1
    await store.aclose()
    await asyncio.sleep(0)
    assert sockets() == before


async def test_a_server_that_was_never_there() -> None:
    store = ValkeyStore("redis://127.0.0.1:1/0")
    await store.put(b"k", entry(), 60)
    assert await store.get(b"k") is None
    await store.clear()
    assert (store.stats()["errors"], store.stats()["dropped"]) == (3, 1)
    await store.aclose()
    await store.aclose()


async def test_a_full_server_drops_writes_and_still_reads(server: Server) -> None:
    store, raw = connect(server), Redis.from_url(server.url)
    await store.put(b"k", entry(), 60)
    await raw.config_set("maxmemory", 1)
    await store.put(b"l", entry(), 60)
    assert store.stats()["dropped"] == 1
    assert text_of(await store.get(b"k")) == "hello"
    await store.aclose()
    await raw.aclose()


async def test_only_our_own_keys_are_cleared(server: Server) -> None:
    ours, other = connect(server), connect(server, prefix="other")
    raw = Redis.from_url(server.url)
    await raw.set("theirs", "1")
    await other.put(b"k", entry("other"), 60)
    for n in range(1200):
        await raw.set(b"downshift:1:%d" % n, b"x", px=60_000)
    await ours.clear()
    assert [key async for key in raw.scan_iter("downshift*")] == []
    assert await raw.get("theirs") == b"1"
    assert text_of(await other.get(b"k")) == "other"
    for client in (ours, other, raw):
        await client.aclose()


async def test_what_cannot_be_read_or_written_is_a_miss(server: Server) -> None:
    store, raw = connect(server), Redis.from_url(server.url)
    await raw.set(b"downshift:1:k", b"not ours", px=60_000)
    assert await store.get(b"k") is None
    await store.put(b"k", entry("old"), 60)
    await store.put(b"k", entry("new", oddity=object()), 60)
    assert await store.get(b"k") is None  # not the old one either
    assert store.stats()["dropped"] == 1
    await store.aclose()
    await raw.aclose()


@pytest.mark.parametrize("url", ["http://me:hunter2@host", "hunter2", "redis://me:hunter2@h:port"])
def test_a_malformed_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError, match="expected redis://") as caught:
        ValkeyStore(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_prefix_that_could_match_more_than_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="prefix"):
        ValkeyStore("redis://localhost", prefix="a*")


def test_without_redis_py_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError, match=r"pip install 'downshift-gateway\[valkey\]'"):
        ValkeyStore("redis://localhost")
