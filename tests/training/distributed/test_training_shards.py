"""A sharded checkpoint seen from outside: by the command, and by who expects a single file."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("typer")

import torch.distributed as dist  # noqa: E402
from torch.distributed.checkpoint.filesystem import FileSystemWriter  # noqa: E402
from torch.distributed.checkpoint.state_dict_saver import save  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from training.checkpoints import shards  # noqa: E402
from training.checkpoints.manifest import read_manifest, write_manifest  # noqa: E402
from training.checkpoints.store import CheckpointStore  # noqa: E402
from training.cli import main  # noqa: E402
from training.config import AnomalyConfig, CheckpointConfig  # noqa: E402
from training.distributed import DistributedOperations  # noqa: E402


def alone() -> None:
    """A group of this process only."""
    store: Any = torch._C._distributed_c10d.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Three checkpoints of a run of one rank, at steps 5, 10 and 15."""
    dist.init_process_group(
        "gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1
    )
    try:
        torch.manual_seed(1)
        model = torch.nn.Linear(4, 2)
        optimizer = torch.optim.Adam(model.parameters())
        config = CheckpointConfig(save_interval_steps=5)
        where = tmp_path / "run"
        ops = DistributedOperations(
            where, model=model, optimizer=optimizer, checkpoint_config=config
        )
        for step in range(1, 16):
            optimizer.zero_grad()
            model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
            ops.on_training_step(step, {"loss": 1.0, "reward": 2.0})
        ops.close()
        torch.save(model.state_dict(), tmp_path / "last.pt")
        yield where
    finally:
        dist.destroy_process_group()


def ask(*arguments: object, status: int = 0) -> str:
    done = CliRunner().invoke(main, ["checkpoints", *map(str, arguments)])
    assert done.exit_code == status, done.output
    return done.output


def newest(folder: Path) -> Path:
    return folder / "step_000000015_000.pt"


def committed_again(path: Path) -> None:
    """As if what lies there now had been committed."""
    hashes = {name: shards.hashed(path / name) for name in shards.sizes(path)}
    (path / shards.HASHES).write_text(json.dumps(hashes))
    manifest = read_manifest(path)
    manifest.size, manifest.sha256 = shards.hashed(path / shards.HASHES)
    write_manifest(path.parent, manifest)


def test_listed_verified_shown_and_restored(folder: Path) -> None:
    _, *rows = ask("ls", folder).splitlines()
    assert [row.split()[:2] for row in rows] == [[n, "healthy"] for n in ("5", "10", "15")]
    assert rows[2].endswith("step_000000015_000.pt/  <- a rollback returns here")
    written = sum(path.stat().st_size for path in newest(folder).iterdir())
    kilobytes = float(rows[2].split()[2])
    assert kilobytes == pytest.approx(written / 1000, rel=0.05)
    assert "3 of 3 are what was committed" in ask("verify", folder)
    shown = json.loads(ask("show", folder, "--json"))["inside"]
    assert shown["model.weight"] == "float32 [2, 4]"
    assert shown["shared"] == '"no tensor"'

    target = folder / "model.pt"
    ask("restore", folder, "newest", "--to", target)
    kept = torch.load(folder.parent / "last.pt", weights_only=True)
    found = torch.load(target, weights_only=True)
    assert found.keys() == kept.keys()
    assert all(found[name].equal(kept[name]) for name in kept)
    ask("restore", folder, "--part", "optimizer", "--to", target, "--force")
    groups = torch.load(target, weights_only=True)["param_groups"]
    assert groups[0]["lr"] == 0.001
    told = ask("restore", folder, "--part", "rng", status=1)
    assert "holds no 'rng'; it holds model, optimizer, ranks, shared" in told


def test_pinned_and_pruned(folder: Path) -> None:
    ask("pin", folder, "5")
    assert "deleted step_000000010_000.pt" in ask("prune", folder, "--keep", "2")
    assert sorted(path.name for path in folder.glob("step_*.pt")) == [
        "step_000000005_000.pt",
        "step_000000015_000.pt",
    ]
    assert "2 of 2" in ask("verify", folder)


def test_a_flipped_bit_or_a_missing_shard_is_told(folder: Path) -> None:
    shard = next(newest(folder).glob("__0_*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    next((folder / "step_000000010_000.pt").glob("__0_*.distcp")).unlink()
    told = ask("verify", folder, status=1)
    assert f"{shard.name} is not what was committed" in told
    assert f"cannot be read: {shard.name}: No such file" in told
    assert "1 of 3" in told
    assert "choose another" in ask("restore", folder, "--to", folder / "x.pt", status=1)
    assert not (folder / "x.pt").exists()


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_an_index_that_is_a_program_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    (newest(folder) / shards.INDEX).write_bytes(pickle.dumps(_Evil(tmp_path / "ran")))
    committed_again(newest(folder))
    assert "ok   step_000000015_000.pt" in ask("verify", folder)  # the hashes are right
    for command in ("show", "restore"):
        assert f"it names {os.mkdir.__module__}.mkdir" in ask(command, folder, status=1)
    (newest(folder) / shards.INDEX).write_bytes(pickle.dumps([1, 2]))
    committed_again(newest(folder))
    assert "its index is none" in ask("show", folder, status=1)
    assert not (tmp_path / "ran").exists()


def test_a_value_that_is_a_program_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    state = {"model": {"w": torch.ones(2)}, "shared": _Evil(tmp_path / "ran")}
    for path in newest(folder).iterdir():
        path.unlink()
    save(state, storage_writer=FileSystemWriter(newest(folder)))
    names = [path.name for path in newest(folder).iterdir()]
    (newest(folder) / shards.HASHES).write_text(json.dumps({name: [0, ""] for name in names}))
    committed_again(newest(folder))
    told = ask("restore", folder, status=1)
    assert "torch will not load it: shared is no data, but names code to run" in told
    assert not (tmp_path / "ran").exists()


def test_who_expects_single_files_is_told_and_nothing_is_lost(folder: Path) -> None:
    store = CheckpointStore(folder, writer="none")
    assert store.last_healthy() is None
    store.close()
    with pytest.raises(Exception, match="it is sharded: `DistributedOperations` resumes it"):
        store.load(newest(folder))
    assert "3 of 3" in ask("verify", folder)


def test_a_disk_that_fails_is_told_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone()
    try:
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.Adam(model.parameters())
        config = CheckpointConfig(save_interval_steps=5)
        ops = DistributedOperations(
            tmp_path / "run", model=model, optimizer=optimizer, checkpoint_config=config
        )

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as broken:
            broken.setattr(FileSystemWriter, "write_data", full)
            ops.on_training_step(5, {"loss": 1.0})
            ops.flush()
        result = ops.on_training_step(6, {"loss": 1.0})
        assert "nothing was committed" in result["events"][0]
        assert "No space left on device" in result["events"][0]
        assert ops.on_training_step(10, {"loss": 1.0})["checkpoint_path"]
        ops.close()
        assert [path.name for path in (tmp_path / "run").glob("*.json")] == [
            "step_000000010_000.json"
        ]
    finally:
        dist.destroy_process_group()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[DistributedOperations]:
    """A run of one rank that saves every second step and has nothing behind it."""
    alone()
    try:
        model = torch.nn.Linear(2, 1)
        ops = DistributedOperations(
            tmp_path / "run",
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            checkpoint_config=CheckpointConfig(save_interval_steps=2),
            anomaly_config=AnomalyConfig(profile="spec", cooldown_steps=3),
        )
        yield ops
        ops.close()
    finally:
        dist.destroy_process_group()


def saved(ops: DistributedOperations, first: int, last: int) -> list[int]:
    """Steps that are well; which of them saved."""
    told = {s: ops.on_training_step(s, {"loss": 1.0}) for s in range(first, last + 1)}
    return [step for step, result in told.items() if result["checkpoint_path"]]


def test_another_interval_and_an_earlier_step_are_counted_from_there(
    running: DistributedOperations,
) -> None:
    assert saved(running, 1, 6) == [2, 4, 6]
    running.checkpoint_config = CheckpointConfig(save_interval_steps=5)
    assert saved(running, 7, 10) == [10]
    assert running.on_training_step(40, {"loss": 5.0})["restored_step"] == 10
    assert saved(running, 11, 15) == [15]  # the caller counts on from the checkpoint
    assert running.on_training_step(16, {"loss": 5.0})["restored_step"] == 15


def test_a_run_that_is_never_finite_and_has_nothing_to_return_to_halts(
    running: DistributedOperations,
) -> None:
    told = [running.on_training_step(s, {"loss": float("nan")})["halt"] for s in range(1, 21)]
    assert told == [False] * 19 + [True]
