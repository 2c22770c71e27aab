"""A process that writes: for states so big that a thread's writing would slow training down.

A fresh interpreter, not a fork (a fork of a process with threads or CUDA in it may hang) and not
`multiprocessing`'s spawn (it would run the caller's script again). The staged tensors lie in memory
that both map, so only their places go through the pipe.
"""

from __future__ import annotations

import contextlib
import mmap
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from training.checkpoints import files
from training.checkpoints.manifest import Manifest
from training.checkpoints.staging import Place, Slot, filled, tensors_in
from training.errors import SaveFailed

_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from training.checkpoints.process import serve; "
    "serve({connection}, {memories})"
)
_END_S = 60.0


@dataclass(frozen=True, slots=True)
class _Job:
    folder: Path
    manifest: Manifest
    memory: int
    size: int
    places: Sequence[Place]
    tree: Any


class WriterProcess:
    """The other process, started with the first save and again should it die.

    Args:
        slots: whose shared memory it maps.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = list(slots)
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection[Any, Any] | None = None

    @property
    def pid(self) -> int | None:
        """The process's id; None before the first save."""
        return self._process.pid if self._process else None

    def save(self, folder: Path, manifest: Manifest, slot: Slot) -> Manifest:
        """Commit what is in `slot`; return the manifest, completed.

        Raises:
            SaveFailed: as `files.save`, or the process died.
        """
        slot.ready()
        job = _Job(
            folder, manifest, self._slots.index(slot), max(slot.size, 1), slot.places, slot.tree
        )
        try:
            pipe = self._connected()
            pipe.send(job)
            answer = pipe.recv()
        except (OSError, EOFError) as error:
            told = self._gone()
            raise SaveFailed(
                f"the process that writes ended {told}; the next save starts another",
                path=str(folder / manifest.name),
            ) from error
        if isinstance(answer, Manifest):
            return answer
        raise SaveFailed(answer)

    def close(self) -> None:
        """End the process. Idempotent."""
        self._gone()

    def _connected(self) -> Connection[Any, Any]:
        if self._pipe is None:
            ours, theirs = Pipe()
            memories = [slot.descriptor for slot in self._slots if slot.descriptor is not None]
            program = _PROGRAM.format(
                path=sys.path, connection=theirs.fileno(), memories=tuple(memories)
            )
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - this very interpreter
                    [sys.executable, "-c", program],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), *memories],
                )
            self._pipe = ours
        return self._pipe

    def _gone(self) -> str:
        """Let go of the process; return how it ended."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is None:
            return ""
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._process = None
        return f"with {signal.Signals(-code).name}" if code < 0 else f"with status {code}"


def serve(connection: int, memories: Sequence[int]) -> None:
    """Write what comes, one by one, until the other side is gone."""
    # Ctrl-C in the terminal, or a supervisor that ends the whole group, reaches us, too; whether to
    # stop is training's decision: it has something to be written yet. The pipe's end is ours.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with Connection(connection) as pipe, contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(_done(pipe.recv(), memories))


def _done(job: _Job, memories: Sequence[int]) -> Manifest | str:
    # Mapped anew each time: the memory grows when the state does.
    memory = mmap.mmap(memories[job.memory], job.size)
    try:
        payload = filled(job.tree, tensors_in(memory, job.places))
        files.save(job.folder, job.manifest, payload)
    except SaveFailed as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - told to the other side
        return f"unexpected: {error!r}"
    return job.manifest
