"""`python -m training checkpoints`: what a stranger sees, and what the exit status says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("typer")

from typer.testing import CliRunner  # noqa: E402

from training.checkpoints.store import CheckpointStore  # noqa: E402
from training.cli import main  # noqa: E402


def ask(*arguments: object, status: int = 0) -> str:
    done = CliRunner().invoke(main, ["checkpoints", *map(str, arguments)])
    assert done.exit_code == status, done.output
    return done.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = CheckpointStore(tmp_path / "run", writer="none")
    for step in (500, 1000, 1500):
        metrics = {"loss": 1 / step, "reward": float(step)}
        state = {"model": {"w": torch.full((40, 60), float(step))}, "ops": {"seen": [1, 2]}}
        last = store.save(step, state, metrics=metrics, score=-float(step))
    store.suspect(last)
    store.close()
    return store.folder


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_ls(folder: Path) -> None:
    head, *rows = ask("ls", folder).splitlines()
    assert head.split() == ["step", "health", "pinned", "size", "age", "loss", "reward", "file"]
    assert [row.split()[:2] for row in rows] == [
        ["500", "healthy"],
        ["1000", "healthy"],
        ["1500", "suspect"],
    ]
    assert rows[1].endswith("<- a rollback returns here")
    assert "returns here" not in rows[0] + rows[2]
    listed = json.loads(ask("ls", folder, "--json"))
    assert [each["step"] for each in listed["checkpoints"]] == [500, 1000, 1500]
    assert listed["broken"] == listed["leftovers"] == []


def test_reading_needs_no_lock_and_writing_says_who_has_it(folder: Path) -> None:
    store = CheckpointStore(folder, writer="none")
    before = sorted(path.name for path in folder.iterdir())
    ask("ls", folder)
    ask("verify", folder)
    ask("show", folder)
    assert "a run is writing into" in ask("pin", folder, status=2)
    assert "a run is writing into" in ask("prune", folder, status=2)
    store.close()
    assert sorted(path.name for path in folder.iterdir()) == before


def test_verify_tells_which_are_whole(folder: Path) -> None:
    assert "3 of 3 are what was committed" in ask("verify", folder)
    damage(folder / "step_000000500_000.pt")
    (folder / "step_000001500_000.json").write_text("{}")
    told = ask("verify", folder, status=1)
    assert "ok   step_000001000_000.pt" in told
    assert "step_000000500_000.pt: its SHA-256 is not what was committed" in told
    assert "step_000001500_000.pt: its manifest is unreadable" in told
    assert "1 of 3" in told
    verdicts = json.loads(ask("verify", folder, "--json", status=1))
    assert not verdicts["ok"]
    assert verdicts["files"]["step_000001000_000.pt"] == "ok"
    ask("ls", folder, status=1)


def test_show(folder: Path) -> None:
    told = ask("show", folder)
    assert "step       1000" in told
    assert "model.w  float32 [40, 60]" in told
    assert "loss = 0.001" in told
    shown: Any = json.loads(ask("show", folder, 500, "--json"))
    assert shown["step"] == 500
    assert shown["inside"]["model.w"] == "float32 [40, 60]"
    assert "its steps are: 500, 1000, 1500" in ask("show", folder, 7, status=1)
    damage(folder / "step_000001000_000.pt")
    assert "choose another" in ask("show", folder, status=1)


def test_pin_and_prune(folder: Path) -> None:
    ask("pin", folder, 1500)
    ask("pin", folder, 500, "--off")
    told = ask("prune", folder, "--keep", 2)
    # 500 is the best, 1000 the last healthy, 1500 pinned: nothing may go.
    assert "0 files deleted, 3 checkpoints kept" in told
    store = CheckpointStore(folder, writer="none")
    for step in (2000, 2500):
        store.save(step, {"model": {}})
    store.close()
    told = ask("prune", folder, "--keep", 2)
    assert "deleted step_000001000_000.pt" in told
    assert json.loads(ask("ls", folder, "--json"))["checkpoints"][-1]["step"] == 2500


def test_restore_writes_a_plain_state_dict(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.pt"
    ask("restore", folder, "--to", target)
    assert torch.load(target, weights_only=True)["w"].eq(1000).all()
    assert "overwrite with --force" in ask("restore", folder, "--to", target, status=2)
    ask("restore", folder, "step_000000500_000.pt", "--to", target, "--force")
    assert torch.load(target, weights_only=True)["w"].eq(500).all()
    assert "it holds model, ops" in ask("restore", folder, "--part", "optimizer", status=1)
    gone = tmp_path / "gone" / "model.pt"
    assert f"{gone}: No such file" in ask("restore", folder, "--to", gone, status=2)


def test_folders_that_are_none(tmp_path: Path) -> None:
    assert "no checkpoints in" in ask("ls", tmp_path)
    assert "does not exist" in ask("ls", tmp_path / "nowhere", status=2)
    (tmp_path / "file").write_text("")
    assert "is a file" in ask("verify", tmp_path / "file", status=2)
    assert "its steps are: none" in ask("restore", tmp_path, status=1)
    assert "does not exist" in ask("prune", tmp_path / "nowhere", status=2)
    assert not (tmp_path / "nowhere").exists()
    ask("ls", status=2)
