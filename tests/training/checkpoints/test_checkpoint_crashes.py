"""Real processes, really killed: whatever happens to a save, what was committed comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[3]
DRIVER = Path(__file__).with_name("crash_driver.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def finished(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env=ENVIRONMENT, timeout=400
    )


def drive(*arguments: str) -> Any:
    command = [sys.executable, str(DRIVER), *arguments]
    done = finished(command)
    if "ptrace" in done.stderr:
        pytest.skip("this kernel lets nobody trace a child")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return finished([sys.executable, "-c", code, *arguments])


@pytest.mark.slow
def test_a_kill_at_any_system_call_of_a_save_loses_nothing_that_was_committed(
    tmp_path: Path,
) -> None:
    found = drive("syscalls", str(tmp_path))
    assert len(found) > 20
    assert found[-1]["done"]
    for each in found:
        assert each["newest"] in (2, 3), each
        assert each["passed_by"] == [], each
        assert each["stray"] == [], each
        assert 2 in each["steps"], each
    newest = [each["newest"] for each in found]
    assert newest == sorted(newest)  # once committed, it stays so
    swept = [each for each in found if each["swept"]]
    assert any(name.startswith(".tmp-") for each in swept for name in each["swept"])
    assert any(name.startswith("step_") for each in swept for name in each["swept"])


@pytest.mark.slow
def test_two_hundred_kills_at_random_lose_nothing_that_was_committed(tmp_path: Path) -> None:
    found = drive("random", str(tmp_path), "200")
    assert len(found) == 200
    for each in found:
        assert each["newest"] >= each["known"] >= 1, each
        assert each["passed_by"] == [], each
        assert each["stray"] == [], each


SAVING = """
import signal, sys, torch
from training.checkpoints.signals import sigterm_exits
from training.checkpoints.store import CheckpointStore
store = CheckpointStore(sys.argv[1])
"""


@pytest.mark.slow
def test_what_is_staged_is_written_at_a_normal_exit(tmp_path: Path) -> None:
    done = run(SAVING + "store.save(7, {'model': {'w': torch.ones(1000)}})", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "step_000000007_000.json").exists()


def test_sigterm_ends_a_run_in_order(tmp_path: Path) -> None:
    code = """
with sigterm_exits():
    store.save(7, {'model': {'w': torch.ones(1000)}})
    signal.raise_signal(signal.SIGTERM)
print("not reached")
"""
    done = run(SAVING + code, str(tmp_path))
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, ""), done.stderr
    assert (tmp_path / "step_000000007_000.json").exists()


FULL = """
import resource, sys, torch
from training import CheckpointConfig, OperationsManager
ops = OperationsManager(sys.argv[1], checkpoint_config=CheckpointConfig(save_interval_steps=1))
step = ops.on_training_step
print(step(1, {"loss": 1.0}, {"w": torch.ones(100)})["events"])
ops.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
print(step(2, {"loss": 1.0}, {"w": torch.ones(100_000)})["events"])
ops.flush()
print(step(3, {"loss": 1.0}, {"w": torch.ones(100)})["events"])
ops.flush()
print(*ops.store.paths())
print(ops.store.load(ops.store.paths()[-1]).manifest.step)
"""


def test_a_full_disk_is_an_event_and_the_older_ones_stay(tmp_path: Path) -> None:
    done = run(FULL, str(tmp_path))
    assert done.returncode == 0, done.stderr
    first, second, third, paths, newest = done.stdout.splitlines()
    assert (first, second) == ("[]", "[]")
    assert "checkpoint failed" in third
    assert "step_000000002_000.pt: File too large; free space" in third
    assert len(paths.split()) == 2
    assert newest == "3"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert not [name for name in names if "2_000" in name]


READ_ONLY = """
import os, stat, sys, torch
from training import CheckpointConfig, OperationsManager
from training.checkpoints import restore
folder = sys.argv[1]
config = CheckpointConfig(save_interval_steps=1)
model = torch.nn.Linear(2, 2)
with OperationsManager(folder, checkpoint_config=config).attach(model=model) as ops:
    path = ops.on_training_step(1, {"loss": 1.0})["checkpoint_path"]
os.chmod(folder, 0o555)
for at, _, names in os.walk(folder):
    for name in names:
        os.chmod(os.path.join(at, name), 0o444)
if os.getuid() == 0:
    os.setuid(65534)
ops = OperationsManager(folder, checkpoint_config=config).attach(model=model)
print(*ops.on_training_step(2, {"loss": 1.0})["events"])
print(restore.load(path, model=model))
"""


@pytest.mark.slow
def test_a_read_only_folder_is_an_event_and_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for parent in (tmp_path, *list(tmp_path.parents)[:2]):
        parent.chmod(0o755)
    done = run(READ_ONLY, str(folder))
    assert done.returncode == 0, done.stderr
    event, restored = done.stdout.splitlines()
    assert event.startswith("checkpoint failed")
    assert "cannot write here: Permission denied; mend its rights" in event
    assert restored == "['model']"


HOLDING = """
import os, signal, sys, torch
from training.checkpoints.store import CheckpointStore
store = CheckpointStore(sys.argv[1])
child = os.fork()
if child == 0:
    sys.stdin.read()  # outlives its parent, as a data loader's worker may
    os._exit(0)
print("held", flush=True)
signal.pause()
"""


@pytest.mark.slow
def test_a_killed_run_leaves_no_lock_behind_even_with_a_worker_alive(tmp_path: Path) -> None:
    from training.checkpoints.store import CheckpointStore
    from training.errors import FolderBusy

    command = [sys.executable, "-W", "ignore", "-c", HOLDING, str(tmp_path)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=ENVIRONMENT, **pipes) as run_:
        assert run_.stdin is not None
        assert run_.stdout is not None
        assert run_.stdout.readline() == b"held\n"
        with pytest.raises(FolderBusy, match="give each run its own folder"):
            CheckpointStore(tmp_path)
        run_.kill()
        assert run_.wait(30) == -signal.SIGKILL
        CheckpointStore(tmp_path, writer="none").close()
