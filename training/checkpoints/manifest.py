"""What is known of a checkpoint without opening it: the JSON file beside its payload."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from training.checkpoints.atomic import replacing, sync_folder
from training.errors import CheckpointCorrupt, CheckpointError

SCHEMA = 1
HEALTH = ("candidate", "healthy", "suspect", "corrupt")
# Only files with names of this form are ever counted, rewritten or deleted.
_OURS = re.compile(r"step_-?\d{8,}_\d{3,}(_\d+)?\.pt")


@dataclass(slots=True)
class Manifest:
    """One committed checkpoint.

    Attributes:
        name: the payload's file name.
        step: training steps behind it.
        number: which commit of this folder it was, from 1; steps may go back, this never does.
        attempt: how often the run had been rolled back by then.
        size, sha256: of the payload.
        wall_time: Unix seconds of the commit.
        metrics: what the step reported.
        score: how good it was, higher is better; None if unknown.
        health: `candidate`, `healthy`, `suspect` (led straight back into trouble) or `corrupt`.
        pinned: kept whatever comes.
        holds: the parts inside, such as `model`, `optimizer`, `rng`.
        torch: the version that wrote it.
        schema: of payload and manifest.
    """

    name: str
    step: int
    number: int = 0
    attempt: int = 0
    size: int = 0
    sha256: str = ""
    wall_time: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    score: float | None = None
    health: str = "candidate"
    pinned: bool = False
    holds: list[str] = field(default_factory=list)
    torch: str = ""
    schema: int = SCHEMA


_FIELDS = frozenset(each.name for each in fields(Manifest))


def payload_name(step: int, attempt: int, again: int = 0) -> str:
    """A payload's file name; `again` tells a step from the same step saved before."""
    return f"step_{step:09d}_{attempt:03d}{f'_{again}' if again else ''}.pt"


def is_ours(name: str) -> bool:
    """Whether a payload's file name is one this module gives."""
    return _OURS.fullmatch(name) is not None


def beside(path: Path) -> Path:
    """Where the manifest of a payload lies."""
    return path.with_suffix(".json")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit a manifest, the first time or again."""
    with replacing(beside(folder / manifest.name)) as file:
        file.write(json.dumps(asdict(manifest), indent=1, allow_nan=False).encode())
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def read_manifest(path: Path) -> Manifest:
    """The manifest beside a payload.

    Raises:
        CheckpointError: there is none: it was never committed; or it cannot be read just now.
        CheckpointCorrupt: it is not one of ours.
    """
    try:
        text = beside(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(
            f"no {beside(path).name} beside it: never committed, or no checkpoint of ours",
            path=str(path),
        ) from None
    except OSError as error:  # not to be read just now, which says nothing of what is in it
        raise CheckpointError(f"its manifest cannot be read: {error}", path=str(path)) from None
    except ValueError as error:
        raise CheckpointCorrupt(f"its manifest is unreadable: {error}", path=str(path)) from None
    try:
        manifest = _parsed(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointCorrupt(f"its manifest is unreadable: {error}", path=str(path)) from None
    # A manifest names a file beside itself and nothing else: it may have come from anywhere.
    if manifest.name != path.name:
        raise CheckpointCorrupt("its manifest belongs to another file", path=str(path))
    return manifest


def survey(folder: Path) -> tuple[list[Manifest], list[CheckpointError]]:
    """Every committed checkpoint of a folder, in the order of their commits, and what is broken.

    Files that are not ours, and links, are not looked at.

    Raises:
        OSError: the folder cannot be listed.
    """
    found: list[Manifest] = []
    broken: list[CheckpointError] = []
    for path in sorted(folder.iterdir()):
        if not is_ours(path.name) or path.is_symlink():
            continue
        try:
            found.append(read_manifest(path))
        except CheckpointCorrupt as error:
            broken.append(error)
        except CheckpointError as error:
            if beside(path).exists():  # else it was never committed
                broken.append(error)
    return sorted(found, key=lambda one: (one.number, one.attempt, one.step)), broken


def _parsed(given: Any) -> Manifest:
    if not isinstance(given, Mapping):
        raise TypeError("it is no JSON object")
    # What a later version adds is left alone; what this one needs is checked.
    manifest = Manifest(**{name: value for name, value in given.items() if name in _FIELDS})
    whole = (manifest.step, manifest.number, manifest.attempt, manifest.size, manifest.schema)
    for value in whole:
        if type(value) is not int:
            raise TypeError(f"{value!r} is no whole number")
    score = manifest.score
    if score is not None and not (isinstance(score, (int, float)) and math.isfinite(score)):
        raise TypeError(f"{score!r} is no score")
    texts = (manifest.name, manifest.sha256, manifest.torch)
    if not all(isinstance(value, str) for value in texts) or manifest.health not in HEALTH:
        raise TypeError("a field has the wrong type")
    if not isinstance(manifest.metrics, dict) or not isinstance(manifest.holds, list):
        raise TypeError("a field has the wrong type")
    if type(manifest.pinned) is not bool or not isinstance(manifest.wall_time, (int, float)):
        raise TypeError("a field has the wrong type")
    return manifest
