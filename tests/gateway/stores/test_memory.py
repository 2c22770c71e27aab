from __future__ import annotations

import gc
import tracemalloc

import msgspec
import pytest

from gateway.clock import ManualClock
from gateway.generation import Generation, Served, Usage
from gateway.stores.base import Entry
from gateway.stores.memory import OVERHEAD, MemoryStore

ROOM = 1000 + OVERHEAD
"""What an `entry()` of the default size counts for."""


def generation(text: str = "hello", **extra: object) -> Generation:
    return Generation(
        id="g",
        choices=[{"index": 0, "message": {"role": "assistant", "content": text}}],
        served=Served(requested_mode="creative", mode="creative"),
        extra=extra,
    )


def entry(text: str = "hello", size: int = 1000) -> Entry:
    """An entry that takes `size` bytes written down."""
    made = Entry(generation(text), 0.0, "creative", "")
    missing = size - len(msgspec.msgpack.encode(made))
    return msgspec.structs.replace(made, identity="." * max(0, missing - 2))


async def test_what_becomes_of_an_answer_later_does_not_reach_the_store() -> None:
    store, kept = MemoryStore(), entry()
    await store.put(b"k", kept, 10)
    kept.generation.choices[0]["message"]["content"] = "changed"
    mine, yours = await store.get(b"k"), await store.get(b"k")
    assert mine is not None
    assert yours is not None
    assert mine.generation.text == "hello"
    mine.generation.choices.clear()
    assert yours.generation.text == "hello"


class NotJSON:
    """What a wrapped client may have put into its answer."""


@pytest.mark.parametrize("odd", [NotJSON(), 2**70, "\ud800", {1j: 1}])
async def test_what_cannot_be_written_down_is_dropped_with_what_it_replaces(odd: object) -> None:
    store = MemoryStore()
    await store.put(b"k", entry("old"), 10)
    await store.put(b"k", Entry(generation("new", odd=odd), 0.0, "creative", "id"), 10)
    assert await store.get(b"k") is None
    assert store.stats()["dropped"] == 1


async def test_a_lifetime_ends_exactly() -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    await store.put(b"short", entry(), 300)
    await store.put(b"long", entry(), 7200)
    clock.advance(299.999)
    assert await store.get(b"short") is not None
    clock.advance(0.001)
    assert await store.get(b"short") is None
    assert await store.get(b"long") is not None
    assert store.stats()["entries"] == 1
    assert store.stats()["bytes"] == ROOM


async def test_the_least_recently_used_leaves_first() -> None:
    store = MemoryStore(3 * ROOM)
    for key in (b"a", b"b", b"c"):
        await store.put(key, entry(), 10)
    await store.get(b"a")
    await store.put(b"d", entry(), 10)
    assert [await store.get(key) is not None for key in (b"a", b"b", b"c", b"d")] == [
        True, False, True, True,
    ]  # fmt: skip
    stats = store.stats()
    assert (stats["evicted"], stats["entries"], stats["bytes"]) == (1, 3, 3 * ROOM)


async def test_bytes_never_pass_the_bound() -> None:
    store = MemoryStore(10 * ROOM)
    for n in range(200):
        await store.put(b"%d" % (n % 37), entry(size=500 + n * 53 % 5000), 10)
        assert store.stats()["bytes"] <= 10 * ROOM


async def test_what_is_too_large_is_dropped_with_what_it_replaces() -> None:
    store = MemoryStore(2 * ROOM)
    await store.put(b"k", entry("old"), 10)
    await store.put(b"k", entry("new", size=3 * ROOM), 10)
    assert await store.get(b"k") is None
    assert (store.stats()["dropped"], store.stats()["bytes"]) == (1, 0)


@pytest.mark.parametrize(
    ("text", "count"), [("word " * 8, 2000), ("word " * 400, 1000), ("日本語 " * 100, 1000)]
)
async def test_the_bound_counts_memory_honestly(text: str, count: int) -> None:
    def answer(n: int) -> Generation:
        return Generation(
            id=f"generation-{n}",
            choices=[
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": f"{n} {text}"},
                    "finish_reason": "stop",
                }
            ],
            served=Served(requested_mode="creative", mode="creative"),
            usage=Usage(1000 + n, 2000 + n, 3000 + n, {"prompt_tokens": 1000 + n}),
            created=1_700_000_000 + n,
        )

    store = MemoryStore(1 << 30)
    gc.collect()
    tracemalloc.start()
    try:
        for n in range(count):
            made = answer(n)
            await store.put(b"%032d" % n, Entry(made, float(n), "creative", "id"), 60)
        del made
        gc.collect()
        real = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.8 * store.stats()["bytes"] < real < 1.1 * store.stats()["bytes"]
