"""What we write is for its owner alone; what an upstream says costs little to read."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gateway.providers.address import shown
from gateway.providers.error_words import presentable, read
from gateway.stores.shared import SharedStore
from gateway.stores.sqlite import FeedbackStore


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


async def test_files_are_for_their_owner(tmp_path: Path) -> None:
    before = os.umask(0o000)
    try:
        store = FeedbackStore(tmp_path / "feedback.sqlite")
        await store.open()
        shared = SharedStore(tmp_path / "shared.sqlite")
        shared.bump("x")
        found = modes(tmp_path)
        await store.aclose()
    finally:
        os.umask(before)
    assert {"feedback.sqlite", "shared.sqlite", "shared.sqlite-news"} <= found.keys()
    assert set(found.values()) == {0o600}, found


async def test_a_file_its_owner_opened_to_others_stays_so(tmp_path: Path) -> None:
    file = tmp_path / "feedback.sqlite"
    file.touch()
    file.chmod(0o640)
    store = FeedbackStore(file)
    await store.open()
    assert set(modes(tmp_path).values()) == {0o640}
    await store.aclose()


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("https://x/v1?key=secret", "https://x/v1"),
        ("https://user:secret@x:8/v1?secret", "https://x:8/v1"),
        ("secret?secret@", "secret"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_what_may_be_a_key(url: str, seen: str) -> None:
    assert shown(url) == seen


@pytest.mark.parametrize(
    "page",
    [
        "<" * 10_000, "<script" * 5_000, "<style>" * 5_000, "<script><style>" * 3_000,
        "<!--" * 5_000, "://" * 3_000, "sk-" * 3_000, "bearer " * 2_000, "eyJ" * 3_000 + ".",
        "token" + " " * 9_000, "key" + "'" * 9_000,
        "://" + "a" * 9_000, '{"error":' * 900, "[" * 9_000,
    ],
    ids=lambda page: page[:12],
)  # fmt: skip
def test_an_error_page_is_read_in_no_time(page: str) -> None:
    """It is read between the answers of others."""

    def once() -> float:
        began = time.thread_time()
        presentable(read(page.encode()).message, ())
        presentable(page, ())
        return time.thread_time() - began

    assert min(once() for _ in range(3)) < 0.05
