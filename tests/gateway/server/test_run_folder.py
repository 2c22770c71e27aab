"""Nothing is left of a run that was killed, and nothing is taken that is not ours."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.server.run_folder import remove_left, run_folder

HOLD = """
import subprocess, sys
from gateway.server.run_folder import run_folder
with run_folder() as folder:
    child = ["sleep", "60"]
    worker = subprocess.Popen(child, pass_fds=(folder.lock,), stdout=subprocess.DEVNULL)
    (folder.path / "data").write_text("x")
    print(folder.path, worker.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def run(folders: Path) -> Iterator[tuple[subprocess.Popen[str], Path, int]]:
    """Another run: a supervisor and one worker, in processes of their own."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folders), "PYTHONPATH": str(Path.cwd())},
    )
    assert process.stdout is not None
    path, worker = process.stdout.readline().split()
    try:
        yield process, Path(path), int(worker)
    finally:
        process.kill()
        process.communicate()


def test_a_run_removes_its_own_folder(folders: Path) -> None:
    with run_folder() as folder:
        assert folder.path.parent == folders
        assert folder.path.stat().st_mode & 0o777 == 0o700
        remove_left()
        assert folder.path.exists()
    assert list(folders.iterdir()) == []


def test_a_killed_run_is_cleaned_up_once_its_last_worker_is_gone(
    run: tuple[subprocess.Popen[str], Path, int],
) -> None:
    process, path, worker = run
    remove_left()
    assert (path / "data").exists(), "its supervisor lives"
    process.kill()
    process.communicate()
    remove_left()
    assert (path / "data").exists(), "its worker lives, and is about to finish its answers"
    end = os.pidfd_open(worker)
    os.kill(worker, 9)
    assert select.select([end], [], [], 10)[0]
    os.close(end)
    with run_folder() as folder:
        assert not path.exists()
        assert folder.path.exists()


def test_what_is_not_ours_stays(folders: Path) -> None:
    (folders / "gateway-notes").mkdir()
    (folders / "gateway-notes" / "owner").write_text("me")
    (folders / "gateway-file").write_text("x")
    elsewhere = folders / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "downshift-gateway.lock").write_text("")
    (folders / "gateway-link").symlink_to(elsewhere)
    linked = folders / "gateway-linked"
    linked.mkdir()
    (linked / "downshift-gateway.lock").symlink_to(elsewhere / "downshift-gateway.lock")
    before = sorted(folders.rglob("*"))
    remove_left()
    assert sorted(folders.rglob("*")) == before
