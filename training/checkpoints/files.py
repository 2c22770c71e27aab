"""One checkpoint on disk: a payload and its manifest. No manifest means it was never committed.

    write payload to a temporary file beside it, hashing -> fsync -> rename
    write manifest to a temporary file                   -> fsync -> rename -> fsync the folder

Killed anywhere in between, the folder holds the older checkpoints and a temporary file or a payload
without a manifest, which the next start sweeps away. `torch.load` does not verify checksums, so
size and SHA-256 are checked first; and it is only ever called with `weights_only=True`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from training.checkpoints.atomic import TEMPORARY, replacing
from training.checkpoints.manifest import (
    SCHEMA,
    Manifest,
    beside,
    is_ours,
    read_manifest,
    write_manifest,
)
from training.errors import CheckpointCorrupt, CheckpointError, CheckpointForeign, SaveFailed

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint that was read back.

    Attributes:
        path: where it lies.
        manifest: what is known of it.
        payload: what it holds.
        passed_by: others that could not be used, and why.
    """

    path: str
    manifest: Manifest
    payload: dict[str, Any]
    passed_by: list[str]


def save(folder: Path, manifest: Manifest, payload: Mapping[str, Any]) -> Path:
    """Commit one checkpoint; complete `manifest` and return the payload's path.

    Raises:
        SaveFailed: nothing was committed, and nothing of it is left.
    """
    path = folder / manifest.name
    try:
        with replacing(path) as file:
            hashed: Any = _Hashed(file)
            try:
                torch.save(dict(payload), hashed)
            finally:
                # A disk error reaches us through torch's own writer, which forgets what it was.
                if hashed.error is not None:
                    raise hashed.error
            file.flush()
            os.fsync(file.fileno())
        manifest.size, manifest.sha256 = hashed.size, hashed.hexdigest()
        manifest.wall_time = time.time()
        manifest.holds = sorted(payload.keys() - {"schema", "step"})
        manifest.torch = str(torch.__version__)
        write_manifest(folder, manifest)
    except Exception as error:
        delete(folder, manifest.name)
        if isinstance(error, OSError):
            told = f"{error.strerror or error}; free space or mend the folder's rights"
        else:
            told = f"torch could not write it: {error}"
        raise SaveFailed(told, path=str(path)) from error
    return path


def load(path: Path) -> dict[str, Any]:
    """Read a payload, verified.

    Raises:
        CheckpointCorrupt: it is not what was committed.
        CheckpointForeign: it is whole and not a checkpoint of ours.
        CheckpointError: it is not there, or cannot be read just now.
    """
    if path.is_dir() and not is_ours(path.name):
        raise CheckpointError("it is a folder; name one of the files in it", path=str(path))
    if path.is_dir():
        raise CheckpointForeign(
            "it is sharded: `DistributedOperations` resumes it, and `python -m training "
            "checkpoints restore` makes one file of it",
            path=str(path),
        )
    if not path.is_file():
        raise CheckpointError("no such checkpoint", path=str(path))
    path = path.resolve()  # `latest.pt` may be a link to one of ours
    manifest = read_manifest(path)
    try:
        # One handle for both: what is loaded is what was verified, even if the file is replaced.
        with path.open("rb") as file:
            _verify(file, manifest, path)
            file.seek(0)
            payload = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"cannot be read: {error}", path=str(path)) from error
    except Exception as error:  # noqa: BLE001 - what a foreign file makes torch raise is open
        told = (str(error).splitlines() or [""])[0][:200]
        raise CheckpointForeign(f"torch will not load it: {told}", path=str(path)) from None
    if not isinstance(payload, dict) or payload.get("schema") != SCHEMA:
        raise CheckpointForeign("not a checkpoint of this module", path=str(path))
    if payload.get("step") != manifest.step:
        raise CheckpointCorrupt("its manifest names another step", path=str(path))
    return payload


def verify(path: Path) -> Manifest:
    """See that a payload, whole or sharded, is what was committed, without loading it; errors as
    `load`."""
    manifest = read_manifest(path)
    if path.is_dir():
        from training.checkpoints import shards  # noqa: PLC0415 - needs torch.distributed

        shards.verify(path, manifest)
        return manifest
    try:
        with path.open("rb") as file:
            _verify(file, manifest, path)
    except FileNotFoundError:
        raise CheckpointError("no such checkpoint", path=str(path)) from None
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error}", path=str(path)) from error
    return manifest


def delete(folder: Path, name: str) -> None:
    """Uncommit, then remove: the manifest goes first."""
    for path in (beside(folder / name), folder / name):
        _remove(path)


def leftovers(folder: Path) -> list[Path]:
    """What interrupted saves left: temporary files and payloads without a manifest, ours only."""
    found = []
    for path in folder.iterdir():
        name = path.name
        if name.startswith(TEMPORARY):
            target = name[len(TEMPORARY) :].partition("-")[2]
            if is_ours(f"{target.removesuffix('.json').removesuffix('.pt')}.pt"):
                found.append(path)
        elif is_ours(name) and not path.is_symlink() and not beside(path).exists():
            found.append(path)
    return sorted(found)


def sweep(folder: Path) -> list[str]:
    """Remove what interrupted saves left; return the names."""
    swept = leftovers(folder)
    for path in swept:
        _remove(path)
    return [path.name for path in swept]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():  # a sharded one
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _verify(file: BinaryIO, manifest: Manifest, path: Path) -> None:
    size = os.fstat(file.fileno()).st_size
    if size != manifest.size:
        raise CheckpointCorrupt(
            f"its size is {size}, not the {manifest.size} that were committed", path=str(path)
        )
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    if digest.hexdigest() != manifest.sha256:
        raise CheckpointCorrupt("its SHA-256 is not what was committed", path=str(path))


class _Hashed:
    """A file that hashes what is written to it: nothing need be read again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._digest.update(data)
        self.size += written
        return written

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
