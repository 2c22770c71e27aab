"""Saves in children that are killed: at a chosen system call, or whenever. Prints JSON.

Run as a program, so that the tests' own process (with its threads) is never forked:

    python crash_driver.py syscalls FOLDER     one child for each system call of a save
    python crash_driver.py random FOLDER N     N children, each killed in the middle of a save loop
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from training.checkpoints.store import CheckpointStore

TRACEME, SYSCALL, SETOPTIONS = 0, 24, 0x4200
SYSGOOD, KILL_WITH_TRACER = 1, 1 << 20
SIZE = 2000

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, pid: int, data: int = 0) -> None:
    if libc.ptrace(request, pid, None, data) == -1:
        raise OSError(ctypes.get_errno(), "ptrace")


def state(step: int) -> dict[str, Any]:
    return {"model": {"weight": torch.full((SIZE,), float(step))}}


def a_folder_with_two(at: Path) -> None:
    store = CheckpointStore(at, keep=2, writer="none")
    store.save(1, state(1))
    store.save(2, state(2))
    store.close()


def after(folder: Path) -> dict[str, Any]:
    """What the next start finds."""
    store = CheckpointStore(folder, keep=2, writer="none")
    found = store.last_healthy()
    steps = []
    for path in store.paths():
        loaded = store.load(path)
        steps.append(loaded.manifest.step)
        assert loaded.payload["model"]["weight"].eq(float(loaded.manifest.step)).all()
    store.save(99, state(99))  # and goes on
    left = sorted(path.name for path in folder.iterdir())
    kept = [Path(path).name for path in store.paths()]
    store.close()
    return {
        "newest": found.manifest.step if found else None,
        "passed_by": found.passed_by if found else [],
        "steps": steps,
        "swept": store.swept,
        "stray": sorted(set(left) - {".lock"} - set(kept) - {name[:-3] + ".json" for name in kept}),
    }


def killed_at(folder: Path, call: int) -> bool:
    """Save step 3 in a child and kill it as it enters its `call`-th system call; False if it has
    not that many."""
    pid = os.fork()
    if pid == 0:
        ptrace(TRACEME, 0)
        store = CheckpointStore(folder, keep=2, writer="none")
        os.kill(os.getpid(), signal.SIGSTOP)
        store.save(3, state(3))
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSTOPPED(status), status
    ptrace(SETOPTIONS, pid, SYSGOOD | KILL_WITH_TRACER)
    entered, entering, reached = 0, True, False
    while True:
        ptrace(SYSCALL, pid)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            raise AssertionError(f"the child ended with {status}")
        if os.WSTOPSIG(status) == signal.SIGSTOP:  # the save is done
            break
        if os.WSTOPSIG(status) != signal.SIGTRAP | 0x80:
            continue
        if entering:
            entered += 1
            if entered == call:
                reached = True
                break
        entering = not entering
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return reached


def syscalls(at: Path) -> list[dict[str, Any]]:
    template = at / "template"
    a_folder_with_two(template)
    found, call, reached = [], 0, True
    while reached:
        call += 1
        folder = at / f"call{call}"
        shutil.copytree(template, folder)
        reached = killed_at(folder, call)
        found.append({"call": call, "done": not reached, **after(folder)})
        shutil.rmtree(folder)
    return found


def at_random(at: Path, count: int) -> list[dict[str, Any]]:
    rng = random.Random(7)
    folder, found = at / "random", []
    for _ in range(count):
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(told)
            store = CheckpointStore(folder, keep=3)
            step = 0
            while True:
                step += 1
                store.save(step, state(step))
                if rng.random() < 0.5:
                    store.flush()
                    os.write(tell, step.to_bytes(4, "big"))  # committed, and the parent knows
        os.close(tell)
        with os.fdopen(told, "rb") as pipe:
            committed = int.from_bytes(pipe.read(4), "big")
            time.sleep(rng.random() * 0.03)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            while more := pipe.read(4):
                committed = int.from_bytes(more, "big")
        found.append({"known": committed, **after(folder)})
        shutil.rmtree(folder)
    return found


def main() -> None:
    torch.set_num_threads(1)
    kind, at = sys.argv[1], Path(sys.argv[2])
    print(json.dumps(syscalls(at) if kind == "syscalls" else at_random(at, int(sys.argv[3]))))


if __name__ == "__main__":
    main()
