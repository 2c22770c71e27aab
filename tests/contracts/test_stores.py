"""What every `Store` keeps to, whatever it stands on."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.clock import ManualClock
from gateway.generation import Generation, Served, Usage
from gateway.stores.base import Entry, Store
from gateway.stores.memory import MemoryStore
from gateway.stores.valkey import ValkeyStore


@pytest.fixture(scope="module")
def valkey_url() -> Iterator[str]:
    if not shutil.which("redis-server"):
        pytest.skip("needs redis-server")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a socket's path must be short
        command = ["redis-server", "--port", "0", "--unixsocket", f"{folder}/s", "--save", ""]
        process = subprocess.Popen([*command, "--dir", folder], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for line in process.stdout:
            if b"ready to accept connections" in line.lower():
                break
        yield f"unix://{folder}/s"
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


@pytest.fixture(params=["memory", "valkey"])
async def store(request: pytest.FixtureRequest, clock: ManualClock) -> AsyncIterator[Store]:
    store: Store
    if request.param == "memory":
        store = MemoryStore(clock=clock)
    else:
        store = ValkeyStore(request.getfixturevalue("valkey_url"), clock=clock, timeout_s=10)
        await store.clear()
    assert isinstance(store, Store)
    yield store
    await store.aclose()
    await store.aclose()


def entry(text: str = "hello", stored_at: float = 1000.0) -> Entry:
    generation = Generation(
        id="g",
        choices=[
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": text,
                    "reasoning_content": "because",
                    "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}],
                },
                "finish_reason": "stop",
                "logprobs": {"content": [{"token": "h", "logprob": -0.25, "bytes": [104]}]},
            }
        ],
        served=Served(requested_mode="creative", mode="balanced", degraded=True, attempts=2),
        usage=Usage(1, 2, 3, {"prompt_tokens": 1}),
        created=1_700_000_000,
        extra={"system_fingerprint": "fp"},
        duration_s=1.5,
    )
    return Entry(generation, stored_at, "balanced", "vllm/qwen")


async def test_an_unknown_key_is_none(store: Store) -> None:
    assert await store.get(b"nothing") is None


async def test_the_whole_answer_comes_back(store: Store) -> None:
    kept = entry("naïve 日本語 \x00 \U0001f600")
    await store.put(b"\x00\xff any bytes *", kept, 3600)
    found = await store.get(b"\x00\xff any bytes *")
    assert found is not None
    assert found.generation == kept.generation
    assert (found.mode, found.identity) == (kept.mode, kept.identity)


async def test_an_old_entry_keeps_its_age(store: Store, clock: ManualClock) -> None:
    await store.put(b"k", entry(stored_at=700.0), 3600)
    found = await store.get(b"k")
    assert found is not None
    assert clock() - found.stored_at == pytest.approx(300.0, abs=1.0)


async def test_the_newest_wins(store: Store) -> None:
    await store.put(b"k", entry("old"), 3600)
    await store.put(b"k", entry("new"), 3600)
    found = await store.get(b"k")
    assert found is not None
    assert found.generation.text == "new"


@pytest.mark.parametrize("lifetime_s", [0.0, -1.0, float("nan")])
async def test_what_has_no_lifetime_replaces_by_nothing(store: Store, lifetime_s: float) -> None:
    await store.put(b"k", entry(), 3600)
    await store.put(b"k", entry(), lifetime_s)
    assert await store.get(b"k") is None
    assert store.stats()["dropped"] == 1


async def test_delete_and_clear_forget(store: Store) -> None:
    for key in (b"a", b"b", b"c"):
        await store.put(key, entry(), 3600)
    await store.delete(b"a")
    await store.delete(b"never there")
    assert [await store.get(key) is not None for key in (b"a", b"b")] == [False, True]
    await store.clear()
    assert [await store.get(key) for key in (b"b", b"c")] == [None, None]


async def test_many_at_once_do_not_mix(store: Store) -> None:
    keys = [b"key %d" % n for n in range(100)]
    await asyncio.gather(*(store.put(key, entry(key.decode()), 3600) for key in keys))
    found = await asyncio.gather(*(store.get(key) for key in keys))
    assert [one.generation.text for one in found if one] == [key.decode() for key in keys]


async def test_it_counts(store: Store) -> None:
    await store.put(b"k", entry(), 3600)
    await store.get(b"k")
    await store.get(b"k")
    await store.get(b"x")
    stats = store.stats()
    assert [stats[name] for name in ("hits", "misses", "puts", "dropped")] == [2, 1, 1, 0]
