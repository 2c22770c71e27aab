"""The last few checkpoints of a run: which are kept, which proved good, where to return to."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.primitives.rollback import Snapshot, Snapshots
from training.checkpoints import files
from training.checkpoints.costs import SaveCosts
from training.checkpoints.files import Loaded
from training.checkpoints.folder import FolderLock, same_folder
from training.checkpoints.manifest import (
    SCHEMA,
    Manifest,
    beside,
    is_ours,
    payload_name,
    read_manifest,
    survey,
    write_manifest,
)
from training.checkpoints.process import WriterProcess
from training.checkpoints.staging import Slot, Staging
from training.checkpoints.state import see_that_it_is_finite
from training.checkpoints.writer import Writer
from training.errors import CheckpointCorrupt, CheckpointError, SaveFailed, SaveSkipped

# States up to this many bytes are looked through for NaN before `save` returns, which takes a
# millisecond or two; bigger ones by the writer, before a byte is written.
LOOKED_THROUGH_AT_ONCE = 16 << 20


class CheckpointStore:
    """One folder of checkpoints, written by one manager at a time.

    A new checkpoint is committed before an old one is deleted. `keep` counts all that lie there:
    the newest, the last healthy one, the best one and those pinned. Opening a folder deletes
    nothing but what interrupted saves left; files that are not ours are never touched.

    Args:
        folder: made if it is missing.
        keep: how many, at least 2.
        writer: `thread` or `process` writes in the background, `none` before `save` returns.
        when_busy: with two saves under way, `block` waits for one, `skip` leaves the third out.

    Attributes:
        attempt: how often the run has been rolled back; part of file names.
        costs: what saving takes.
        swept: names of what interrupted saves had left.

    Raises:
        FolderBusy: another manager writes here.
        SaveFailed: the folder cannot be made or written to.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int = 5,
        writer: str = "thread",
        when_busy: str = "block",
    ) -> None:
        self.folder = Path(folder)
        self._at = f"{self.folder}{os.sep}"  # a Path costs more than the save of a small state
        self.attempt = 0
        self.costs = SaveCosts()
        self.when_busy = when_busy
        self._lock = FolderLock(self.folder)
        self.swept = files.sweep(self.folder)
        self._guard = threading.RLock()
        self._failures: list[SaveFailed] = []
        # Whatever has a name like ours, a link or somebody's folder, too: it is not written onto.
        self._names = {path.name: 0 for path in self.folder.iterdir() if is_ours(path.name)}
        # All that lie here are taken in first: which may go is known only then.
        found, broken = survey(self.folder)
        self._unreadable = [str(error) for error in broken]
        self._snapshots: Snapshots[Manifest] = Snapshots(
            max(2, keep, len(found)), on_evict=self._evicted
        )
        self._number = 0
        for manifest in found:
            self._admit(manifest)
            self.attempt = max(self.attempt, manifest.attempt)
            self._number = max(self._number, manifest.number)
        self.keep(keep)
        self._staging = Staging(shared=writer == "process")
        self._writer = Writer() if writer != "none" else None
        self._process = WriterProcess(self._staging.slots) if writer == "process" else None

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
        infinite: Collection[str] = frozenset(),
    ) -> str:
        """Stage a checkpoint and commit it, in the background unless told otherwise.

        Args:
            step: training steps behind it.
            payload: parts by name; copied before this returns.
            metrics: for the manifest; what is not finite is left out.
            healthy: whether a rollback may return to it.
            score: higher is better; the best one is kept.
            infinite: places such as `state.model.mask` that need not be finite.

        Returns:
            The path it will have once it is committed.

        Raises:
            SaveFailed: the state is not finite or cannot be saved, or the store is closed; with
                `writer="none"` also whatever the disk said. Background failures come with
                `failures()`.
            SaveSkipped: two are under way, and `when_busy` is `skip`.
        """
        self._open()
        began = time.perf_counter()
        slot = self._staging.take(wait=self.when_busy != "skip")
        if slot is None:
            self.costs.skipped += 1
            raise SaveSkipped(f"step {step}: the two before it are still being written")
        try:
            slot.fill({**payload, "schema": SCHEMA, "step": int(step)})
            if looked_through := slot.size <= LOOKED_THROUGH_AT_ONCE:
                see_that_it_is_finite(slot, infinite)
            manifest = self._new_manifest(int(step), metrics or {}, score, healthy=healthy)
        except BaseException:
            self._staging.give_back(slot)
            raise

        def write() -> None:
            start = time.perf_counter()
            try:
                if not looked_through:
                    see_that_it_is_finite(slot, infinite)
                self._commit(manifest, slot)
            except BaseException:
                with self._guard:
                    self._names.pop(manifest.name, None)
                raise
            finally:
                self._staging.give_back(slot)
                self.costs.persist_s = time.perf_counter() - start

        self._soon(write)
        self.costs.blocking_s = time.perf_counter() - began
        return f"{self._at}{manifest.name}"

    def failures(self) -> list[SaveFailed]:
        """Background saves that failed since the last call."""
        if not self._failures:
            return []
        with self._guard:
            failed, self._failures = self._failures, []
        return failed

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._writer is not None and self._writer.busy

    def load(self, path: str | os.PathLike[str]) -> Loaded:
        """Read one checkpoint; errors as `files.load`."""
        self.flush()
        found = Path(path)
        payload = files.load(found)
        return Loaded(str(found), read_manifest(found.resolve()), payload, [])

    def last(self, *healths: str) -> Loaded | None:
        """The newest checkpoint of these healths that can be read; None if there is none.

        One that cannot be read is passed by, and said so; if it is corrupt it is marked as such.
        """
        self.flush()
        while (snapshot := self._latest(healths)) is not None:
            path = self.folder / snapshot.state.name
            try:
                payload = files.load(path)
            except CheckpointCorrupt as error:
                self._unreadable.append(str(error))
                self._condemn(snapshot, "corrupt")
            except CheckpointError as error:
                # Gone, or not to be read just now: no lasting verdict on the file.
                self._unreadable.append(str(error))
                with self._guard:
                    self._snapshots.suspect(snapshot.id)
            else:
                told, self._unreadable = self._unreadable, []
                return Loaded(str(path), snapshot.state, payload, told)
        return None

    def last_healthy(self) -> Loaded | None:
        """The newest healthy checkpoint that can be read; see `last`."""
        return self.last("healthy")

    def healthy(self, path: str | os.PathLike[str]) -> None:
        """That checkpoint proved good: rollbacks may return to it. Raises as `pin`."""
        with self._guard:
            snapshot = self._of(path)
            if not snapshot.suspect:
                snapshot.state.health = "healthy"
                self._snapshots.tag_healthy(snapshot.id)
                self._rewrite(snapshot.state)

    def suspect(self, path: str | os.PathLike[str]) -> None:
        """That checkpoint proved bad: rollbacks go past it. One that is gone is no matter."""
        with self._guard, contextlib.suppress(CheckpointError):
            self._condemn(self._of(path), "suspect")

    def pin(self, path: str | os.PathLike[str], *, pinned: bool = True) -> None:
        """Keep a checkpoint whatever comes, restarts too, or no longer.

        Raises:
            CheckpointError: it is not there.
        """
        self.flush()
        with self._guard:
            snapshot = self._of(path)
            snapshot.state.pinned = pinned
            self._rewrite(snapshot.state)
            self._spare()

    def prune(self) -> list[str]:
        """Delete what is beyond `keep` now, not with the next save; return the names."""
        self.flush()
        with self._guard:
            before = set(self._names)
            self._settle()
            return sorted(before - set(self._names))

    def paths(self) -> list[str]:
        """Every committed checkpoint, in the order of their commits."""
        with self._guard:
            return [str(self.folder / snapshot.state.name) for snapshot in self._snapshots]

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything staged is committed or has failed; False if it took too long."""
        return self._writer is None or self._writer.flush(timeout_s)

    def close(self) -> None:
        """Flush, and let go of the folder. Idempotent; in a fork's copy, nothing."""
        if not self._lock.mine:
            return
        if self._writer is not None:
            self._writer.close()
        if self._process is not None:
            self._process.close()
        self._staging.close()
        self._lock.close()

    # -- inside ---------------------------------------------------------------------------------

    def _open(self) -> None:
        if not self._lock.mine:
            raise SaveFailed(
                "this store is closed, or a fork's copy; open one in the process that saves",
                path=str(self.folder),
            )

    def _new_manifest(
        self, step: int, metrics: Mapping[str, float], score: float | None, *, healthy: bool
    ) -> Manifest:
        kept = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        good = score is not None and math.isfinite(score)
        with self._guard:
            self._number += 1
            again = 0
            while (name := payload_name(step, self.attempt, again)) in self._names:
                again += 1
            self._names[name] = 0  # taken, not committed yet
        return Manifest(
            name,
            step,
            self._number,
            self.attempt,
            metrics=kept,
            score=float(score) if good and score is not None else None,
            health="healthy" if healthy else "candidate",
        )

    def _soon(self, write: Callable[[], None]) -> None:
        if self._writer is None:
            write()
            return
        try:
            self._writer.put(write, self._failed)
        except RuntimeError as error:
            raise SaveFailed(str(error), path=str(self.folder)) from None

    def _commit(self, manifest: Manifest, slot: Slot) -> None:
        # Never onto a file that is there: killed in between, neither would be whole.
        if os.path.lexists(f"{self._at}{manifest.name}"):
            raise SaveFailed(
                "somebody put a file of this name here meanwhile; it is left alone",
                path=str(self.folder / manifest.name),
            )
        if self._process is not None:
            manifest = self._process.save(self.folder, manifest, slot)
        else:
            files.save(self.folder, manifest, slot.value())
        self._admit(manifest)

    def _admit(self, manifest: Manifest) -> None:
        """A committed checkpoint joins the others; the oldest that may go goes."""
        with self._guard:
            snapshot_id = self._snapshots.commit(manifest, manifest.step, manifest.score)
            self._names[manifest.name] = snapshot_id
            if manifest.health == "healthy":
                self._snapshots.tag_healthy(snapshot_id)
            elif manifest.health in ("suspect", "corrupt"):
                self._snapshots.suspect(snapshot_id)
            self._settle()

    def _settle(self) -> None:
        """Evict what only the newest one's arrival made superfluous: until it was tagged healthy,
        the one before it was the last healthy one."""
        self._spare()
        for snapshot in self._snapshots:
            if not snapshot.pinned:
                self._snapshots.unpin(snapshot.id)  # it is not: this only evicts
                return

    def _spare(self) -> None:
        """The best one and what the owner pinned are never evicted."""
        best = self._snapshots.best()
        for snapshot in self._snapshots:
            snapshot.pinned = snapshot.state.pinned or snapshot is best

    def _latest(self, healths: Sequence[str]) -> Snapshot[Manifest] | None:
        with self._guard:
            known = (s for s in self._snapshots if s.state.health in healths and not s.suspect)
            return max(known, key=lambda snapshot: snapshot.id, default=None)

    def _of(self, path: str | os.PathLike[str]) -> Snapshot[Manifest]:
        found = Path(path)
        snapshot_id = self._names.get(found.name)
        elsewhere = found.parent != Path() and not same_folder(found.parent, self.folder)
        if not snapshot_id or elsewhere:
            raise CheckpointError(f"no such checkpoint in {self.folder}", path=str(path))
        return self._snapshots[snapshot_id]

    def _condemn(self, snapshot: Snapshot[Manifest], health: str) -> None:
        with self._guard:
            self._snapshots.suspect(snapshot.id)
            snapshot.state.health = health
            self._spare()
            self._rewrite(snapshot.state)

    def _rewrite(self, manifest: Manifest) -> None:
        """Keep a verdict beyond this process; a folder that takes none now still has it here."""
        if beside(self.folder / manifest.name).exists():
            with contextlib.suppress(OSError):
                write_manifest(self.folder, manifest)

    def _evicted(self, snapshot: Snapshot[Manifest]) -> None:
        name = snapshot.state.name
        if self._names.get(name) == snapshot.id:
            del self._names[name]
            files.delete(self.folder, name)

    def _failed(self, error: BaseException) -> None:
        failure = error if isinstance(error, SaveFailed) else SaveFailed(f"unexpected: {error!r}")
        with self._guard:
            self._failures.append(failure)
