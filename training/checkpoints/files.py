"""One checkpoint on disk: a payload and its manifest. No manifest means it was never committed.

    write payload to a temporary file beside it -> fsync -> hash -> rename
    write manifest to a temporary file          -> fsync         -> rename -> fsync the folder

Killed anywhere in between, the folder holds the older checkpoints and a temporary file or a payload
without a manifest, which the next start sweeps away. `torch.load` does not verify checksums, so
size and SHA-256 are checked first; and it is only ever called with `weights_only=True`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from training.errors import CheckpointCorrupt, CheckpointError, CheckpointForeign, SaveFailed

SCHEMA = 1
_TEMPORARY = ".tmp-"
_BLOCK = 1 << 20


@dataclass(slots=True)
class Manifest:
    """What is known of a checkpoint without opening it.

    Attributes:
        name: the payload's file name.
        step: training steps behind it.
        attempt: how often the run had been rolled back by then.
        size, sha256: of the payload.
        wall_time: Unix seconds of the commit.
        metrics: what the step reported.
        health: `candidate`, `healthy`, `suspect` or `corrupt`.
        holds: the parts inside, such as `model`, `optimizer`, `rng`.
        torch: the version that wrote it.
        schema: of payload and manifest.
    """

    name: str
    step: int
    attempt: int = 0
    size: int = 0
    sha256: str = ""
    wall_time: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    health: str = "candidate"
    holds: list[str] = field(default_factory=list)
    torch: str = ""
    schema: int = SCHEMA


def save(folder: Path, manifest: Manifest, payload: Mapping[str, Any]) -> Path:
    """Commit one checkpoint; complete `manifest` and return the payload's path.

    Raises:
        SaveFailed: nothing was committed, and nothing of it is left.
    """
    path = folder / manifest.name
    try:
        with _replacing(path) as file:
            torch.save(dict(payload), file)
            file.flush()
            os.fsync(file.fileno())
            manifest.size, manifest.sha256 = _digest(Path(file.name))
        manifest.wall_time = time.time()
        manifest.holds = sorted(payload)
        manifest.torch = str(torch.__version__)
        write_manifest(folder, manifest)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise SaveFailed(
            f"{error.strerror or error}; free space or mend rights", path=str(path)
        ) from error
    except RuntimeError as error:  # torch's own writer reports a full disk so
        path.unlink(missing_ok=True)
        raise SaveFailed(f"torch could not write it: {error}", path=str(path)) from error
    return path


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit a manifest, the first time or again."""
    with _replacing(folder / _manifest_name(manifest.name)) as file:
        file.write(json.dumps(asdict(manifest), indent=1, allow_nan=False).encode())
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(folder)


def read_manifest(path: Path) -> Manifest:
    """The manifest beside a payload.

    Raises:
        CheckpointError: there is none: it was never committed.
        CheckpointCorrupt: it is not one of ours.
    """
    beside = path.with_name(_manifest_name(path.name))
    try:
        fields = json.loads(beside.read_text(encoding="utf-8"))
        manifest = Manifest(**fields)
    except FileNotFoundError:
        raise CheckpointError("no manifest: it was never committed", path=str(path)) from None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointCorrupt(f"its manifest is unreadable: {error}", path=str(path)) from None
    # A manifest names a file beside itself and nothing else: it may have come from anywhere.
    if manifest.name != path.name or not isinstance(manifest.step, int):
        raise CheckpointCorrupt("its manifest belongs to another file", path=str(path))
    return manifest


def load(path: Path, *, verify: bool = True) -> dict[str, Any]:
    """Read a payload.

    Args:
        verify: check size and hash first; only a caller who has just done so may leave it out.

    Raises:
        CheckpointCorrupt: it is not what was committed.
        CheckpointForeign: it is whole and not a checkpoint of ours.
        CheckpointError: it is not there.
    """
    if not path.is_file():
        raise CheckpointError("no such checkpoint", path=str(path))
    if verify:
        manifest = read_manifest(path)
        size, digest = _digest(path)
        if (size, digest) != (manifest.size, manifest.sha256):
            what = "size" if size != manifest.size else "SHA-256"
            raise CheckpointCorrupt(f"its {what} is not what was committed", path=str(path))
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - what a foreign file makes torch raise is open
        told = str(error).splitlines()[0][:200]
        raise CheckpointForeign(f"torch will not load it: {told}", path=str(path)) from None
    if not isinstance(payload, dict) or payload.get("schema") != SCHEMA:
        raise CheckpointForeign("not a checkpoint of this module", path=str(path))
    return payload


def committed(folder: Path) -> list[Manifest]:
    """Every committed checkpoint, oldest first; unreadable ones are left out."""
    found = []
    for beside in folder.glob("*.json"):
        try:
            found.append(read_manifest(beside.with_suffix(".pt")))
        except CheckpointError:
            continue
    return sorted(found, key=lambda one: (one.attempt, one.step, one.wall_time))


def delete(folder: Path, name: str) -> None:
    """Uncommit, then remove: the manifest goes first."""
    for path in (folder / _manifest_name(name), folder / name):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def sweep(folder: Path) -> list[str]:
    """Remove what an interrupted save left; return the names."""
    swept = [path for path in folder.iterdir() if path.name.startswith(_TEMPORARY)]
    swept += [path for path in folder.glob("*.pt") if not path.with_suffix(".json").exists()]
    for path in swept:
        with contextlib.suppress(OSError):
            path.unlink()
    return sorted(path.name for path in swept)


def _manifest_name(name: str) -> str:
    return Path(name).with_suffix(".json").name


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes its name only once the block has ended well."""
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with io.open(temporary, "wb") as file:  # noqa: UP020
            yield file
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _digest(path: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make the renames themselves durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
