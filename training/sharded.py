"""Checkpoints of a run that is spread over several processes: a folder each, a shard a rank.

    every rank writes its shards            (torch.distributed.checkpoint, in the background)
    every rank hashes what it wrote      -> rank 0 writes the list of hashes into the folder
    rank 0 writes the manifest beside it -> committed; everybody is told

The manifest is the one of `training.checkpoints`, and means the same: without it there is nothing.
The folder must be one that every rank can read.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from training.checkpoints import shards
from training.checkpoints.atomic import replacing, sync_folder
from training.checkpoints.folder import FolderLock
from training.checkpoints.manifest import (
    Manifest,
    beside,
    is_ours,
    payload_name,
    survey,
    write_manifest,
)
from training.errors import (
    CheckpointError,
    CheckpointForeign,
    SaveFailed,
    TrainingError,
)

T = TypeVar("T")


class Peers:
    """The ranks of this run, on a gloo group of their own: small CPU messages, whatever the
    gradients travel on. Every method is called by all ranks, in the same order.

    Args:
        group: which ranks; None means all there are.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        among = dist.get_process_group_ranks(group)
        # Only its members make it: the world's other ranks may be at something else.
        self.group = dist.new_group(among, backend="gloo", use_local_synchronization=True)
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def anew(self) -> Peers:
        """The same ranks on another group."""
        return Peers(self.group)

    def most(self, *numbers: int) -> list[int]:
        """The largest of each over all ranks."""
        flags = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group)
        return [int(flag) for flag in flags]

    def all(self, value: T) -> list[T]:
        """Every rank's value."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def together(self, work: Callable[[], T]) -> T:
        """This rank's part of some work.

        Raises:
            TrainingError: it failed on some rank; the same error on all of them.
        """
        result: Any = None
        error: TrainingError | None = None
        try:
            result = work()
        except TrainingError as raised:
            error = raised
        # The other ranks must not wait for ever; torch's own error is no Exception.
        except (Exception, CheckpointException) as raised:  # noqa: BLE001
            error = CheckpointError(f"rank {self.rank}: {shards.reason(raised)}")
        for failed in self.all(error):
            if failed is not None:
                raise failed
        return result  # type: ignore[no-any-return]

    def first(self, work: Callable[[], T]) -> T:
        """What rank 0 finds, for all of them; errors as `together`."""
        found = self.together(lambda: work() if self.rank == 0 else None)
        return self.all(found)[0]  # type: ignore[return-value]


class ShardedStore:
    """One folder of sharded checkpoints, used by all ranks together.

    Args:
        folder: made if it is missing; rank 0 holds its lock.
        peers: of the calling thread.
        keep: how many committed checkpoints stay.

    Raises:
        FolderBusy, SaveFailed: on all ranks.
    """

    def __init__(self, folder: str | os.PathLike[str], peers: Peers, *, keep: int = 5) -> None:
        self.folder, self.keep, self.attempt = Path(folder), keep, 0
        self._peers = peers
        self._writers = (
            peers.anew()
        )  # the background's own group: its messages never cross the steps'
        self._lock: FolderLock | None = None
        self._thread: threading.Thread | None = None
        self._failure: CheckpointError | None = None
        self._restored = ""
        peers.first(self._open)
        self.attempt = peers.first(self._attempts)

    def save(self, step: int, state: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
        """Stage a checkpoint; it is written and committed in the background, one at a time.

        Args:
            state: this rank's part, for torch.distributed.checkpoint; copied before this returns.

        Returns:
            The path it will have once it is committed.

        Raises:
            SaveFailed: the state is not finite on some rank.
        """
        self.flush()
        self._peers.together(lambda: _check_finite(state))
        name = self._peers.first(lambda: self._free_name(step))
        manifest = Manifest(
            name, step, attempt=self.attempt, metrics=dict(metrics), health="healthy"
        )
        path = self.folder / name
        writer = FileSystemWriter(path, sync_files=True)
        group = self._writers.group
        written = self._peers.together(
            lambda: async_save(dict(state), storage_writer=writer, process_group=group)
        )
        self._thread = threading.Thread(
            target=self._finish, args=(written, manifest), name="sharded-checkpoint", daemon=True
        )
        self._thread.start()
        return str(path)

    def flush(self) -> None:
        """Wait until the checkpoint under way is committed or has failed, on all ranks."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def failures(self) -> list[CheckpointError]:
        """Saves that failed since the last call."""
        failure, self._failure = self._failure, None
        return [failure] if failure is not None else []

    def load(self, state: dict[str, Any]) -> tuple[Manifest, list[str]] | None:
        """Fill `state` in place from the newest healthy checkpoint that is whole on all ranks.

        Returns:
            Its manifest, and why newer ones were passed by; None if there is none, with `state`
            as it was or partly filled.

        Raises:
            CheckpointForeign: it is whole, and of another run.
        """
        self.flush()
        passed_by: list[str] = []
        for manifest in self._peers.first(self._candidates):
            path = self.folder / manifest.name
            try:
                self._peers.together(partial(self._verify, path, manifest))
            except CheckpointError as error:
                passed_by.append(str(error))
                self._peers.first(partial(self._condemn, manifest, "corrupt"))
                continue
            try:
                self._peers.together(partial(self._read, state, path))
            except CheckpointError as error:
                raise CheckpointForeign(
                    f"it does not fit this run: {error}", path=str(path)
                ) from None
            self._restored = manifest.name
            return manifest, passed_by
        return None

    def suspect_last(self) -> None:
        """What was loaded last led straight back into trouble: go past it."""
        known = self._peers.first(self._candidates)
        for manifest in known if len(known) > 1 else []:  # better that one than none
            if manifest.name == self._restored:
                self._peers.first(partial(self._condemn, manifest, "suspect"))

    def close(self) -> None:
        """Finish what is under way and let go of the folder. Idempotent."""
        self.flush()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # -- in the background, on all ranks ----------------------------------------------------------

    def _finish(self, written: Any, manifest: Manifest) -> None:
        path = self.folder / manifest.name
        try:
            self._writers.together(written.result)
            mine = self._writers.together(lambda: self._hash_mine(path))
            hashes = {name: told for each in self._writers.all(mine) for name, told in each.items()}
            self._writers.first(lambda: self._commit(path, manifest, hashes))
        except Exception as error:  # noqa: BLE001 - a failed save must not end training
            self._failure = SaveFailed(f"nothing was committed: {error}", path=str(path))

    def _hash_mine(self, path: Path) -> dict[str, list[Any]]:
        """Size and SHA-256 of every file this rank wrote; the index is rank 0's."""
        own = f"__{self._peers.rank}_"
        names = [each.name for each in path.iterdir() if each.name.startswith(own)]
        if self._peers.rank == 0:
            names.append(shards.INDEX)
        return {name: shards.hashed(path / name) for name in names}

    def _commit(self, path: Path, manifest: Manifest, hashes: dict[str, list[Any]]) -> None:
        with replacing(path / shards.HASHES) as file:
            file.write(json.dumps(hashes, indent=1, sort_keys=True).encode())
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path)
        known, _ = survey(self.folder)
        manifest.number = 1 + max((each.number for each in known), default=0)
        manifest.size, manifest.sha256 = shards.hashed(path / shards.HASHES)
        manifest.wall_time, manifest.torch = time.time(), str(torch.__version__)
        manifest.holds = ["sharded"]
        write_manifest(self.folder, manifest)
        self._prune([*known, manifest])

    def _prune(self, known: list[Manifest]) -> None:
        good = [each.name for each in known if each.health == "healthy"]
        spared = {known[-1].name, self._restored, *good[-1:]}
        spare = [each for each in known if each.name not in spared and not each.pinned]
        for manifest in spare[: max(0, len(known) - self.keep)]:
            self._remove(manifest.name)

    # -- on rank 0 --------------------------------------------------------------------------------

    def _open(self) -> None:
        self._lock = FolderLock(self.folder)
        for path in self.folder.iterdir():
            if is_ours(path.name) and path.is_dir() and not beside(path).exists():
                shutil.rmtree(path, ignore_errors=True)

    def _attempts(self) -> int:
        return max((each.attempt for each in survey(self.folder)[0]), default=0)

    def _free_name(self, step: int) -> str:
        again = 0
        while (self.folder / payload_name(step, self.attempt, again)).exists():
            again += 1
        return payload_name(step, self.attempt, again)

    def _candidates(self) -> list[Manifest]:
        found, _ = survey(self.folder)
        return [each for each in reversed(found) if each.health == "healthy"]

    def _condemn(self, manifest: Manifest, health: str) -> None:
        manifest.health = health
        with contextlib.suppress(OSError):
            write_manifest(self.folder, manifest)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            beside(self.folder / name).unlink(missing_ok=True)
            shutil.rmtree(self.folder / name, ignore_errors=True)

    # -- on every rank ----------------------------------------------------------------------------

    def _verify(self, path: Path, manifest: Manifest) -> None:
        """See that this rank's share of the files is what was committed."""
        share = slice(self._peers.rank, None, self._peers.size)
        shards.verify(path, manifest, lambda names: names[share])

    def _read(self, state: dict[str, Any], path: Path) -> None:
        reader = shards.Reader(path)
        known = reader.read_metadata().state_dict_metadata
        state["ranks"] = {r: t for r, t in state["ranks"].items() if f"ranks.{r}" in known}
        group, planner = self._peers.group, shards.Planner()
        load(state, storage_reader=reader, planner=planner, process_group=group)


def _check_finite(state: Mapping[str, Any]) -> None:
    from training.checkpoints.state import not_finite  # noqa: PLC0415

    bad = not_finite(state)
    if bad is not None:
        raise SaveFailed(f"{bad} is not finite; what is broken is not saved")
