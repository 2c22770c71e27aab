"""The last few checkpoints of a run: which are kept, which proved good, where to return to."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.primitives.rollback import Snapshot, Snapshots
from training.checkpoints import files
from training.checkpoints.files import Manifest
from training.checkpoints.state import not_finite, staged
from training.checkpoints.writer import Writer
from training.errors import CheckpointCorrupt, CheckpointError, FolderBusy, SaveFailed

_LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint that was read back.

    Attributes:
        path: where it lies.
        manifest: what is known of it.
        payload: what it holds.
        passed_by: newer ones that could not be used, and why.
    """

    path: str
    manifest: Manifest
    payload: dict[str, Any]
    passed_by: list[str]


class CheckpointStore:
    """One folder of checkpoints, written by one manager at a time.

    A new checkpoint is committed before an old one is deleted. `keep` counts all that lie there:
    the newest, the last healthy one, the best one and those pinned.

    Args:
        folder: made if it is missing.
        keep: how many, at least 2.
        background: write in a thread.

    Raises:
        FolderBusy: another manager writes here.
        SaveFailed: the folder cannot be made or written to.
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 5, background: bool = True):
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / _LOCK).open("a+b")
        except OSError as error:
            told = error.strerror or str(error)
            raise SaveFailed(f"cannot write here: {told}", path=str(self.folder)) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise FolderBusy(
                f"{self.folder}: another manager writes here; give each run its own folder"
            ) from None
        self.swept = files.sweep(self.folder)
        self.attempt = 0
        self.blocking_s = self.persist_s = 0.0
        self._guard = threading.RLock()
        self._snapshots: Snapshots[Manifest] = Snapshots(keep, on_evict=self._evicted)
        self._ids: dict[str, int] = {}
        self._best: int | None = None
        self._failures: list[SaveFailed] = []
        self._writer = Writer() if background else None
        for manifest in files.committed(self.folder):
            self._admit(manifest)
            self.attempt = max(self.attempt, manifest.attempt)

    def keep(self, count: int) -> None:
        """Change how many are kept; takes effect with the next save."""
        with self._guard:
            self._snapshots.keep = max(2, count)

    def save(
        self,
        step: int,
        payload: Mapping[str, Any],
        *,
        metrics: Mapping[str, float] | None = None,
        healthy: bool = True,
        score: float | None = None,
    ) -> str:
        """Stage a checkpoint and commit it, in the background unless told otherwise.

        Args:
            step: training steps behind it.
            payload: parts by name; copied before this returns.
            metrics: for the manifest.
            healthy: whether a rollback may return to it.
            score: higher is better; the best one is kept.

        Returns:
            The path it will have once it is committed.

        Raises:
            SaveFailed: the state is not finite or cannot be saved; with `background=False` also
                whatever the disk said. Background failures come with `failures()`.
        """
        began = time.perf_counter()
        whole = {"schema": files.SCHEMA, "step": step, **staged(payload)}
        bad = not_finite(whole)
        if bad is not None:
            raise SaveFailed(f"{bad} is not finite; what is broken is not saved")
        kept = {name: float(value) for name, value in (metrics or {}).items() if value == value}  # noqa: PLR0124
        name = f"step_{step:09d}_{self.attempt:03d}.pt"
        manifest = Manifest(
            name, step, self.attempt, metrics=kept, health="healthy" if healthy else "candidate"
        )

        def write() -> None:
            start = time.perf_counter()
            files.save(self.folder, manifest, whole)
            self._admit(manifest, score)
            self.persist_s = time.perf_counter() - start

        if self._writer is None:
            write()
        else:
            self._writer.put(write, self._failed)
        self.blocking_s = time.perf_counter() - began
        return str(self.folder / name)

    def failures(self) -> list[SaveFailed]:
        """Background saves that failed since the last call."""
        with self._guard:
            failed, self._failures = self._failures, []
        return failed

    def load(self, path: str | os.PathLike[str]) -> Loaded:
        """Read one checkpoint; errors as `files.load`."""
        self.flush()
        found = Path(path)
        payload = files.load(found)
        return Loaded(str(found), files.read_manifest(found), payload, [])

    def last_healthy(self) -> Loaded | None:
        """The newest healthy checkpoint that can be read; None if there is none.

        One that cannot be read is marked corrupt and passed by, and said so.
        """
        self.flush()
        passed_by: list[str] = []
        while (snapshot := self._latest()) is not None:
            path = self.folder / snapshot.state.name
            try:
                return Loaded(str(path), snapshot.state, files.load(path), passed_by)
            except CheckpointError as error:
                passed_by.append(str(error))
                corrupt = isinstance(error, CheckpointCorrupt)
                self._condemn(snapshot, "corrupt" if corrupt else "suspect")
        return None

    def suspect(self, path: str | os.PathLike[str]) -> None:
        """That checkpoint proved bad: rollbacks go past it."""
        with self._guard:
            snapshot_id = self._ids.get(Path(path).name)
            if snapshot_id is not None:
                self._condemn(self._snapshots[snapshot_id], "suspect")

    def pin(self, path: str | os.PathLike[str], *, pinned: bool = True) -> None:
        """Keep a checkpoint whatever comes, or no longer.

        Raises:
            CheckpointError: it is not there.
        """
        with self._guard:
            snapshot_id = self._ids.get(Path(path).name)
            if snapshot_id is None:
                raise CheckpointError("no such checkpoint", path=str(path))
            change = self._snapshots.pin if pinned else self._snapshots.unpin
            change(snapshot_id)

    def paths(self) -> list[str]:
        """Every committed checkpoint, oldest first."""
        with self._guard:
            return [str(self.folder / snapshot.state.name) for snapshot in self._snapshots]

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything staged is committed or has failed."""
        if self._writer is not None:
            self._writer.flush(timeout_s)

    def close(self) -> None:
        """Flush, and let go of the folder. Idempotent."""
        if self._writer is not None:
            self._writer.close()
        with contextlib.suppress(OSError, ValueError):
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock.close()

    # -- inside ---------------------------------------------------------------------------------

    def _latest(self) -> Snapshot[Manifest] | None:
        with self._guard:
            return self._snapshots.latest()

    def _admit(self, manifest: Manifest, score: float | None = None) -> None:
        """A committed checkpoint joins the others; the oldest that may go goes."""
        with self._guard:
            twin = self._ids.get(manifest.name)
            snapshot_id = self._snapshots.commit(manifest, manifest.step, score)
            if twin is not None:  # the same step again: the file is the new one's
                self._snapshots.suspect(twin)
            self._ids[manifest.name] = snapshot_id
            if manifest.health == "healthy":
                self._snapshots.tag_healthy(snapshot_id)
            elif manifest.health in ("suspect", "corrupt"):
                self._snapshots.suspect(snapshot_id)
            self._pin_best()

    def _pin_best(self) -> None:
        best = self._snapshots.best()
        if best is None or best.id == self._best:
            return
        self._snapshots.pin(best.id)
        if self._best is not None:
            with contextlib.suppress(KeyError):
                self._snapshots.unpin(self._best)
        self._best = best.id

    def _condemn(self, snapshot: Snapshot[Manifest], health: str) -> None:
        with self._guard:
            self._snapshots.suspect(snapshot.id)
        snapshot.state.health = health
        with contextlib.suppress(OSError):
            files.write_manifest(self.folder, snapshot.state)

    def _evicted(self, snapshot: Snapshot[Manifest]) -> None:
        name = snapshot.state.name
        if self._ids.get(name) == snapshot.id:
            del self._ids[name]
            files.delete(self.folder, name)

    def _failed(self, error: BaseException) -> None:
        failure = error if isinstance(error, SaveFailed) else SaveFailed(f"unexpected: {error!r}")
        with self._guard:
            self._failures.append(failure)
