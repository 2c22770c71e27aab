"""A sharded checkpoint on disk, read without the ranks that wrote it: a folder instead of a file.

torch.distributed.checkpoint keeps its index as a pickle, and loads what is no tensor with one, too.
Here neither may name anything but what such an index is made of: a foreign folder is refused, not
run.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import pickle
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as parts
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed

from training.checkpoints.manifest import Manifest
from training.errors import CheckpointCorrupt, CheckpointForeign, TrainingError

HASHES = "hashes.json"
INDEX = ".metadata"
_BLOCK = 1 << 20
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")


def hashed(path: Path) -> list[Any]:
    """Size and SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return [size, digest.hexdigest()]


def sizes(path: Path) -> dict[str, int]:
    """Size of each file of a sharded checkpoint as it was committed; empty if that is unreadable.

    Files are those of the ranks (`__RANK_N.distcp`) and the index.
    """
    try:
        listed = json.loads((path / HASHES).read_text(encoding="utf-8"))
        return {str(name): int(told[0]) for name, told in listed.items()}
    except (OSError, ValueError, AttributeError, TypeError, IndexError):
        return {}


def verify(
    path: Path,
    manifest: Manifest,
    share: Callable[[list[str]], Iterable[str]] = lambda names: names,
) -> None:
    """See that the files are what was committed.

    Args:
        share: picks the files to look at: of several ranks each takes some.

    Raises:
        CheckpointCorrupt: one is not, or is missing.
    """
    try:
        if hashed(path / HASHES) != [manifest.size, manifest.sha256]:
            raise CheckpointCorrupt("its list of hashes is not what was committed", path=str(path))
        hashes = json.loads((path / HASHES).read_text(encoding="utf-8"))
        for name in share(sorted(hashes)):
            if hashed(path / name) != hashes[name]:
                raise CheckpointCorrupt(f"{name} is not what was committed", path=str(path))
    except OSError as error:
        told = f"{Path(error.filename or path).name}: {error.strerror or error}"
        raise CheckpointCorrupt(f"cannot be read: {told}", path=str(path)) from None


def outline(path: Path, manifest: Manifest) -> dict[str, Any]:
    """What is inside, verified: tensors without their numbers, and in words what is none.

    Raises:
        CheckpointCorrupt, CheckpointForeign: as `load`.
    """
    verify(path, manifest)
    index = Reader(path).read_metadata()
    flat = _blank(index, "meta")
    known = {name: "no tensor" if value is None else value for name, value in flat.items()}
    return _nested(index, known)


def load(path: Path, manifest: Manifest) -> dict[str, Any]:
    """The whole state in one process, verified: `model`, `optimizer`, and what each rank kept.

    Tensors that were spread over ranks are put together, on the CPU.

    Raises:
        CheckpointCorrupt: it is not what was committed.
        CheckpointForeign: it is no checkpoint of ours.
    """
    verify(path, manifest)
    reader = Reader(path)
    index = reader.read_metadata()
    try:
        flat = _blank(index, "cpu")
        planner = Planner(flatten_state_dict=False, flatten_sharded_tensors=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it is, rightly
            load_distributed(flat, storage_reader=reader, planner=planner, no_dist=True)
    # What a foreign index leads to is open; torch's own error is no Exception.
    except (Exception, CheckpointException) as error:  # noqa: BLE001
        raise CheckpointForeign(
            f"torch will not load it: {reason(error)}", path=str(path)
        ) from None
    return _nested(index, flat)


def reason(error: BaseException) -> str:
    """What went wrong in torch.distributed.checkpoint, which tells it with every rank's stack."""
    while isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    told = (str(error).strip().splitlines() or [""])[0][:200]
    return told if isinstance(error, TrainingError) else f"{type(error).__name__}: {told}"


class Reader(FileSystemReader):
    """Reads a sharded checkpoint whose index holds nothing but an index."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index.

        Raises:
            CheckpointForeign: its pickle names something else.
        """
        file = Path(self.path) / INDEX
        try:
            with file.open("rb") as pickled:
                index = _Index(pickled).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError) as error:
            raise CheckpointForeign(f"its index is none: {error}", path=str(file)) from None
        if not isinstance(index, Metadata):
            raise CheckpointForeign("its index is none", path=str(file))
        index.storage_meta = index.storage_meta or StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index


class Planner(DefaultLoadPlanner):
    """Loads what is no tensor as `torch.load(weights_only=True)` does."""

    def load_bytes(self, read_item: Any, value: Any) -> None:
        """Check one value, then take it as torch does.

        Raises:
            CheckpointForeign: it is more than data.
        """
        try:
            torch.load(value, weights_only=True)
        except pickle.UnpicklingError:
            name = read_item.storage_index.fqn
            raise CheckpointForeign(f"{name} is no data, but names code to run") from None
        value.seek(0)
        super().load_bytes(read_item, value)


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found: Any = None
        if module == parts.__name__:
            found = vars(parts).get(name)
            found = found if getattr(found, "__module__", "") == module else None
        elif (module, name) == (_StorageInfo.__module__, _StorageInfo.__name__):
            found = _StorageInfo
        elif (module, name) == ("torch.serialization", "_get_layout"):
            found = torch.serialization._get_layout
        elif module == "torch":
            found = getattr(torch, name, None)
            found = found if found is torch.Size or isinstance(found, torch.dtype) else None
        elif module.startswith("pathlib") and name in _PATHS:
            found = getattr(pathlib, name)
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return found


def _blank(index: Metadata, device: str) -> dict[str, Any]:
    return {
        name: torch.empty(what.size, dtype=what.properties.dtype, device=device)
        if isinstance(what, TensorStorageMetadata)
        else None
        for name, what in index.state_dict_metadata.items()
    }


def _nested(index: Metadata, flat: dict[str, Any]) -> dict[str, Any]:
    """Values at their places: a string is a key there, a number a place in a list."""
    whole: dict[Any, Any] = {}
    places: dict[str, tuple[Any, ...]] = index.planner_data or {}
    for name, value in flat.items():
        inner, place = whole, places.get(name, (name,))
        for key in place[:-1]:
            inner = inner.setdefault(key, {})
        inner[place[-1]] = value
    return {str(key): _listed(value) for key, value in whole.items()}


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    inside = {key: _listed(item) for key, item in value.items()}
    if inside and all(type(key) is int for key in inside):
        return [inside[key] for key in sorted(inside)]
    return inside
