"""The store: what is kept, what is refused, what is copied, what is reported."""

from __future__ import annotations

import json
import os
import pickle
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from training.checkpoints import files  # noqa: E402
from training.checkpoints.manifest import read_manifest  # noqa: E402
from training.checkpoints.store import CheckpointStore  # noqa: E402
from training.errors import (  # noqa: E402
    CheckpointCorrupt,
    CheckpointError,
    CheckpointForeign,
    FolderBusy,
    SaveFailed,
    SaveSkipped,
)


def state(value: float, size: int = 50) -> dict[str, Any]:
    return {"model": {"weight": torch.full((size,), float(value))}}


_opened: list[CheckpointStore] = []


def opened(folder: Path, **options: Any) -> CheckpointStore:
    store = CheckpointStore(folder, **{"writer": "none", **options})
    _opened.append(store)
    return store


@pytest.fixture(autouse=True)
def _close() -> Any:
    yield
    while _opened:
        _opened.pop().close()


def steps(store: CheckpointStore) -> list[int]:
    return [store.load(path).manifest.step for path in store.paths()]


def flip(path: str, value: float) -> None:
    """Change one byte of a tensor's own bytes, and nothing else of the file."""
    raw = bytearray(Path(path).read_bytes())
    payload = torch.full((50,), value).numpy().tobytes()
    at = raw.index(payload)
    raw[at + 2] ^= 0x40
    Path(path).write_bytes(raw)


# -- what is kept ---------------------------------------------------------------------------------


def test_pins_score_health_and_order_outlast_a_restart(tmp_path: Path) -> None:
    store = opened(tmp_path, keep=3)
    first = store.save(5, state(5), score=1.0)
    best = store.save(1, state(1), score=9.0)  # the step went back: order is of the commits
    for step in (2, 3, 4):
        last = store.save(step, state(step), score=2.0)
        if step == 2:
            store.pin(first := last)
    store.suspect(last)
    store.close()

    again = opened(tmp_path, keep=3)
    assert steps(again) == [1, 2, 4]
    found = again.last_healthy()
    assert found is not None
    assert found.manifest.step == 2
    again.save(6, state(6), score=3.0)
    assert steps(again) == [1, 2, 6]
    again.pin(first, pinned=False)
    again.save(7, state(7), score=3.0)
    assert steps(again) == [1, 6, 7]
    assert Path(best).exists()
    again.close()


def test_the_owners_pin_of_the_best_stays_when_another_becomes_best(tmp_path: Path) -> None:
    store = opened(tmp_path, keep=2)
    pinned = store.save(1, state(1), score=5.0)
    store.pin(pinned)
    for step in range(2, 6):
        store.save(step, state(step), score=5.0 + step)
    assert steps(store) == [1, 5]
    store.close()


def test_opening_with_more_than_keep_deletes_nothing_until_the_next_commit(tmp_path: Path) -> None:
    store = opened(tmp_path, keep=6)
    for step in range(6):
        store.save(step, state(step))
    store.close()
    again = opened(tmp_path, keep=2)
    assert steps(again) == [0, 1, 2, 3, 4, 5]
    again.save(6, state(6))
    assert steps(again) == [5, 6]
    again.close()


def test_a_step_saved_twice_is_two_files_and_the_newer_counts(tmp_path: Path) -> None:
    store = opened(tmp_path)
    one, two = store.save(5, state(1)), store.save(5, state(2))
    assert one != two
    found = store.last_healthy()
    assert found is not None
    assert found.path == two
    assert found.payload["model"]["weight"][0] == 2
    store.close()


def test_a_run_begun_anew_in_an_old_folder_returns_to_its_own(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.save(9000, state(1))
    store.attempt = 3
    store.save(9500, state(2))
    store.close()
    again = opened(tmp_path)
    assert again.attempt == 3
    again.save(500, state(3))
    found = again.last_healthy()
    assert found is not None
    assert found.manifest.step == 500
    again.close()


def test_files_that_are_not_ours_are_never_touched(tmp_path: Path) -> None:
    outside = tmp_path / "outside.pt"
    outside.write_bytes(b"mine")
    folder = tmp_path / "run"
    folder.mkdir()
    mine = {
        "model.pt": b"weights",
        "config.json": b"{}",
        "model.json": b'{"name": "model.pt", "step": 1}',
        "step_5.pt": b"mine",
        "step_000000500_000.pt.bak": b"mine",
        ".tmp-notes": b"mine",
        ".tmp-12-model.pt": b"mine",
    }
    for name, content in mine.items():
        (folder / name).write_bytes(content)
    (folder / "step_000000001_000.pt").symlink_to(outside)
    store = opened(folder, keep=2)
    assert store.swept == []
    for step in range(5):
        store.save(step, state(step))
    assert len(store.paths()) == 2
    store.close()
    for name, content in mine.items():
        assert (folder / name).read_bytes() == content
    assert outside.read_bytes() == b"mine"
    assert (folder / "step_000000001_000.pt").is_symlink()


def test_a_file_put_here_meanwhile_is_not_written_onto(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.save(1, state(1))
    (tmp_path / "step_000000002_000.pt").write_bytes(b"somebody's backup")
    with pytest.raises(SaveFailed, match="somebody put a file of this name here"):
        store.save(2, state(2))
    assert (tmp_path / "step_000000002_000.pt").read_bytes() == b"somebody's backup"
    store.save(3, state(3))
    assert steps(store) == [1, 3]


def test_leftovers_of_ours_are_swept(tmp_path: Path) -> None:
    for name in (".tmp-7-step_000000001_000.pt", ".tmp-7-step_000000001_000.json"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "step_000000002_000.pt").write_bytes(b"whole, and never committed")
    store = opened(tmp_path)
    assert len(store.swept) == 3
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    store.close()


# -- what is refused ------------------------------------------------------------------------------


def test_a_flipped_byte_that_torch_accepts_is_passed_by(tmp_path: Path) -> None:
    store = opened(tmp_path)
    older = store.save(1, state(1.0))
    newer = store.save(2, state(2.0))
    flip(newer, 2.0)
    assert torch.load(newer, weights_only=True)["model"]["weight"].ne(2.0).any()  # plain torch
    with pytest.raises(CheckpointCorrupt, match="SHA-256"):
        store.load(newer)
    found = store.last_healthy()
    assert found is not None
    assert found.path == older
    assert "SHA-256 is not what was committed" in found.passed_by[0]
    store.close()
    assert read_manifest(Path(newer)).health == "corrupt"


def test_a_truncated_file_is_passed_by(tmp_path: Path) -> None:
    store = opened(tmp_path)
    older, newer = store.save(1, state(1)), store.save(2, state(2))
    os.truncate(newer, 100)
    found = store.last_healthy()
    assert found is not None
    assert found.path == older
    assert "its size is 100" in found.passed_by[0]
    store.close()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"size": 3}, "size"),
        ({"step": 99}, "another step"),
        ({"step": "2"}, "unreadable"),
        ({"name": "../../etc/passwd"}, "another file"),
        ({"health": "splendid"}, "unreadable"),
        (None, "unreadable"),
    ],
)
def test_an_edited_manifest_is_passed_by(tmp_path: Path, change: Any, told: str) -> None:
    store = opened(tmp_path)
    older, newer = store.save(1, state(1)), store.save(2, state(2))
    store.close()
    beside = Path(newer).with_suffix(".json")
    edited = {**json.loads(beside.read_text()), **change} if change else "[" * 100_000
    beside.write_text(json.dumps(edited) if change else str(edited))
    again = opened(tmp_path)
    found = again.last_healthy()
    assert found is not None
    assert found.path == older
    assert told in found.passed_by[0]
    assert Path(newer).exists()
    again.close()


def test_a_checkpoint_deleted_by_hand_is_passed_by(tmp_path: Path) -> None:
    store = opened(tmp_path)
    older, newer = store.save(1, state(1)), store.save(2, state(2))
    Path(newer).unlink()
    found = store.last_healthy()
    assert found is not None
    assert found.path == older
    assert "no such checkpoint" in found.passed_by[0]
    store.close()


class Malice:
    def __reduce__(self) -> Any:
        return (os.system, ("touch owned",))


def test_a_malicious_pickle_is_refused_even_with_the_right_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    monkeypatch.chdir(tmp_path)
    store = opened(tmp_path)
    path = Path(store.save(1, state(1)))
    for raw in (pickle.dumps(Malice()), pickle.dumps({"schema": 1, "step": 1, "x": Malice()})):
        path.write_bytes(raw)
        beside = path.with_suffix(".json")
        fields = {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        beside.write_text(json.dumps({**json.loads(beside.read_text()), **fields}))
        with pytest.raises(CheckpointForeign, match="torch will not load it"):
            store.load(path)
    torch.save({"a": Malice()}, path)
    raw = path.read_bytes()
    fields = {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    beside.write_text(json.dumps({**json.loads(beside.read_text()), **fields}))
    with pytest.raises(CheckpointForeign, match="torch will not load it"):
        store.load(path)
    assert not (tmp_path / "owned").exists()
    store.close()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("size", [50, 5_000_000])
def test_what_is_not_finite_is_never_saved(tmp_path: Path, bad: float, size: int) -> None:
    store = opened(tmp_path)
    broken = state(1, size)
    broken["model"]["weight"][size // 2] = bad
    with pytest.raises(SaveFailed, match=r"state\.model\.weight is not finite"):
        store.save(1, broken)
    assert store.paths() == []
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    big = {"w": torch.tensor([3e38, 3e38])}  # its sum overflows; it is finite all the same
    store.save(1, big)
    store.close()


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        ({"x": object()}, "state.x is a object"),
        ({"x": {(1, 2): 3}}, "state.x has the key"),
        ({"x": [1, {"y": {1, 2}}]}, r"state\.x\[1\]\.y is a set"),
        ({"x": torch.eye(2).to_sparse()}, "sparse"),
    ],
)
def test_what_needs_a_pickle_is_refused_by_name(tmp_path: Path, payload: Any, told: str) -> None:
    store = opened(tmp_path)
    for _ in range(3):  # and no slot is lost over it
        with pytest.raises(SaveFailed, match=told):
            store.save(1, payload)
    store.save(2, state(2))
    store.close()


def test_every_kind_of_tensor_comes_back(tmp_path: Path) -> None:
    import numpy as np

    tensors = {
        "half": torch.randn(3).half(),
        "bfloat": torch.randn(2, 3).bfloat16(),
        "whole": torch.arange(5),
        "flags": torch.tensor([True, False]),
        "complex": torch.randn(3, dtype=torch.complex64),
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 4),
        "turned": torch.randn(4, 3).t(),
        "spread": torch.randn(1).expand(5),
        "float8": torch.randn(4).to(torch.float8_e4m3fn),
    }
    rest = {"numpy": np.arange(3.0), "number": np.float32(1.5), "tuple": (1, "a", None), 7: True}
    store = opened(tmp_path)
    back = store.load(store.save(1, {"t": tensors, "rest": rest})).payload
    for name, tensor in tensors.items():
        assert back["t"][name].dtype == tensor.dtype
        assert back["t"][name].shape == tensor.shape
        assert back["t"][name].to(torch.complex64).equal(tensor.to(torch.complex64)), name
    assert back["rest"]["numpy"].tolist() == [0, 1, 2]
    assert (back["rest"]["number"], back["rest"]["tuple"], back["rest"][7]) == (
        1.5,
        [1, "a", None],
        True,
    )
    store.close()


# -- two at once ----------------------------------------------------------------------------------


def test_two_managers_in_one_folder_and_the_lock_freed_on_close(tmp_path: Path) -> None:
    store = opened(tmp_path, writer="thread")
    with pytest.raises(FolderBusy):
        CheckpointStore(tmp_path)
    store.close()
    store.close()
    with pytest.raises(SaveFailed, match="closed"):
        store.save(1, state(1))
    CheckpointStore(tmp_path).close()


class HeldDisk:
    """A disk that takes its time: commits wait until they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.go = threading.Semaphore(0), threading.Semaphore(0)
        real = files.save

        def save(*arguments: Any) -> Any:
            self.began.release()
            assert self.go.acquire(timeout=60)
            return real(*arguments)

        monkeypatch.setattr(files, "save", save)


def test_what_changes_after_the_call_or_during_the_write_is_not_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = HeldDisk(monkeypatch)
    store = opened(tmp_path, writer="thread")
    model, listed = torch.nn.Linear(3, 3), [1, 2, 3]
    was = model.weight.detach().clone()
    path = store.save(1, {"model": model.state_dict(), "listed": listed})
    model.weight.data.add_(1.0)
    listed.append(4)
    assert disk.began.acquire(timeout=60)
    second = store.save(2, {"model": model.state_dict(), "listed": listed})  # the other slot
    model.weight.data.fill_(7.0)
    disk.go.release(2)
    first = store.load(path).payload
    assert first["model"]["weight"].equal(was)
    assert first["listed"] == [1, 2, 3]
    assert store.load(second).payload["model"]["weight"].equal(was + 1.0)
    store.close()


def test_with_two_under_way_a_third_is_skipped_or_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = HeldDisk(monkeypatch)
    store = opened(tmp_path, writer="thread", when_busy="skip")
    store.save(1, state(1))
    store.save(2, state(2))
    with pytest.raises(SaveSkipped, match="step 3: the two before it"):
        store.save(3, state(3))
    assert store.costs.skipped == 1
    store.when_busy = "block"
    waiting = threading.Thread(target=store.save, args=(4, state(4)))
    waiting.start()
    disk.go.release(3)
    waiting.join(60)
    store.flush()
    assert steps(store) == [1, 2, 4]
    store.close()


def test_staging_allocates_once(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.save(1, state(1))
    slot = store._staging.slots[-1]
    memory = [tensor.data_ptr() for tensor in slot.tensors]
    for step in range(2, 6):
        store.save(step, state(step))
    assert [tensor.data_ptr() for tensor in slot.tensors] == memory
    assert store._staging.slots[0].tensors == []  # the second slot only if it is needed
    store.save(9, state(9, size=80))
    assert store.load(store.paths()[-1]).payload["model"]["weight"].shape == (80,)
    store.close()


def test_a_writer_that_fails_in_any_way_lives_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path, writer="thread")
    real = files.save

    def broken(*arguments: Any) -> Any:
        raise SystemExit("a bug")

    monkeypatch.setattr(files, "save", broken)
    for step in range(4):
        store.save(step, state(step))
    store.flush()
    assert len(store.failures()) == 4
    assert store.failures() == []
    monkeypatch.setattr(files, "save", real)
    store.save(5, state(5))
    store.flush()
    assert steps(store) == [5]
    store.close()


@pytest.mark.slow
def test_a_signal_to_the_whole_group_ends_no_process_that_writes(tmp_path: Path) -> None:
    """A supervisor sends SIGTERM to all processes of a run; what is staged is written all the
    same."""
    store = opened(tmp_path, writer="process")
    store.save(1, state(1))
    store.flush()
    assert store._process is not None
    pid = store._process.pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    path = store.save(2, state(2))
    store.close()
    assert store.failures() == []
    assert Path(path).exists()
    assert Path(path).with_suffix(".json").exists()


@pytest.mark.slow
def test_a_process_writes_the_same_and_is_replaced_when_it_dies(tmp_path: Path) -> None:
    store = opened(tmp_path, writer="process")
    path = store.save(1, state(1))
    store.flush()
    assert store.failures() == []
    assert store.load(path).payload["model"]["weight"].eq(1).all()
    assert store._process is not None
    pid = store._process.pid
    assert pid is not None
    assert pid != os.getpid()
    os.kill(pid, signal.SIGKILL)
    store.save(2, state(2))
    store.flush()
    (failure,) = store.failures()
    assert "ended with SIGKILL; the next save starts another" in str(failure)
    store.save(3, state(3, size=100_000))  # more memory than before
    store.flush()
    assert store.failures() == []
    assert steps(store) == [1, 3]
    store.close()


def test_a_path_of_another_folder_is_no_checkpoint_of_this_one(tmp_path: Path) -> None:
    store, other = opened(tmp_path / "a"), opened(tmp_path / "b")
    path = store.save(1, state(1))
    other.save(1, state(1))
    with pytest.raises(CheckpointError, match="no such checkpoint in"):
        other.pin(path)
    store.pin(Path(path).name)
    store.close()
    other.close()


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(SaveFailed, match=r"taken: cannot write here: .*another folder"):
        opened(tmp_path / "taken")


def test_interference_is_the_slower_step_over_the_quiet_one() -> None:
    from training.checkpoints.costs import SaveCosts

    now = [1.0]
    costs = SaveCosts(lambda: now[0])
    costs.step(writing=False)
    assert costs.interference is None
    for took, writing in ((0.1, False), (0.1, False), (0.15, True)):
        now[0] += took
        costs.step(writing=writing)
    assert costs.interference == pytest.approx(0.5)
    costs.pause()  # what a save itself takes is not interference
    now[0] += 100.0
    costs.step(writing=True)
    assert costs.interference == pytest.approx(0.5)
