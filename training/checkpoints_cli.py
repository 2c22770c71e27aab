"""`python -m training checkpoints`: a folder of checkpoints, seen and tended from outside."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from training.errors import CheckpointCorrupt, CheckpointError, FolderBusy

if TYPE_CHECKING:
    from training.checkpoints.manifest import Manifest

checkpoints = typer.Typer(
    no_args_is_help=True,
    help="A folder of checkpoints: ls, verify, show, pin, prune, restore. Exit status: 0 all is "
    "well, 1 something is broken or not there, 2 it could not be done.",
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The run's checkpoint_dir.")]
Which = Annotated[
    str, typer.Argument(metavar="[WHICH]", help="A file name, a step, `healthy` or `newest`.")
]
_HEAD = ("step", "health", "pinned", "size", "age", "loss", "reward", "file", "")
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@checkpoints.command("ls", short_help="List them, oldest first.")
def list_(folder: Folder, as_json: AsJson = False) -> None:
    """List a folder's checkpoints, oldest first. Reads manifests only; a run may be writing."""
    found, broken, left = _survey(folder)
    if as_json:
        _tell_json(
            {
                "checkpoints": [asdict(manifest) for manifest in found],
                "broken": [str(error) for error in broken],
                "leftovers": [path.name for path in left],
            }
        )
    elif found:
        good = _last_healthy(found)
        rows: list[tuple[str, ...]] = [_HEAD]
        rows += [_row(folder, manifest, manifest is good) for manifest in found]
        _tell_table(rows)
    else:
        typer.echo(f"no checkpoints in {folder}")
    if not as_json:
        for error in broken:
            typer.echo(f"broken: {error}", err=True)
        if left:
            typer.echo(
                f"{len(left)} files of saves under way or interrupted; the next run sweeps them",
                err=True,
            )
    raise typer.Exit(1 if broken else 0)


@checkpoints.command(short_help="Hold each against its SHA-256.")
def verify(folder: Folder, as_json: AsJson = False) -> None:
    """Read every checkpoint and hold it against size and SHA-256 of its manifest."""
    from training.checkpoints import files  # noqa: PLC0415

    found, broken, _ = _survey(folder)
    verdicts = [(Path(error.path).name, str(error)) for error in broken]
    for manifest in found:
        try:
            files.verify(folder / manifest.name)
            verdicts.append((manifest.name, "ok"))
        except CheckpointError as error:
            verdicts.append((manifest.name, str(error)))
    bad = sum(verdict != "ok" for _, verdict in verdicts)
    if as_json:
        _tell_json({"ok": bad == 0, "files": dict(verdicts)})
    else:
        for name, verdict in verdicts:
            typer.echo(f"ok   {name}" if verdict == "ok" else f"BAD  {verdict}")
        typer.echo(f"{len(verdicts) - bad} of {len(verdicts)} are what was committed")
        if bad:
            typer.echo("a run passes by the bad ones; restore one from a backup or delete it")
    raise typer.Exit(1 if bad else 0)


@checkpoints.command(short_help="Show what is inside one.")
def show(folder: Folder, which: Which = "healthy", as_json: AsJson = False) -> None:
    """Show one checkpoint: its manifest, and the shape of what is inside."""
    manifest = _find(folder, which)
    inside = list(_inside(_load(folder, manifest, outline=True)))
    if as_json:
        _tell_json({**asdict(manifest), "inside": dict(inside)})
        return
    told = asdict(manifest)
    told["size"] = _size(_bytes(folder / manifest.name, manifest))
    told["wall_time"] = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.wall_time))
    metrics = told.pop("metrics")
    for name, value in told.items():
        typer.echo(f"{name:10} {', '.join(value) if isinstance(value, list) else value}")
    for name, value in metrics.items():
        typer.echo(f"  {name} = {value:g}")
    typer.echo("inside")
    for place, shape in inside:
        typer.echo(f"  {place}  {shape}")


@checkpoints.command(short_help="Keep one whatever comes.")
def pin(
    folder: Folder,
    which: Which = "healthy",
    off: Annotated[bool, typer.Option("--off", help="No longer.")] = False,
) -> None:
    """Keep one checkpoint whatever comes. Pins count among those kept."""
    manifest = _find(folder, which)
    with _store(folder, 2) as store:
        store.pin(manifest.name, pinned=not off)
    typer.echo(f"{manifest.name} is {'no longer pinned' if off else 'pinned'}")


@checkpoints.command(short_help="Delete old ones, never the good ones.")
def prune(
    folder: Folder,
    keep: Annotated[int, typer.Option(min=2, help="How many to keep, pinned ones included.")] = 5,
) -> None:
    """Delete old checkpoints: never the newest, the last healthy, the best, or a pinned one."""
    _survey(folder)
    with _store(folder, keep) as store:
        deleted = [*store.swept, *store.prune()]
        left = len(store.paths())
    for name in deleted:
        typer.echo(f"deleted {name}")
    typer.echo(f"{len(deleted)} files deleted, {left} checkpoints kept")


@checkpoints.command(short_help="Write one's model as a plain file.")
def restore(
    folder: Folder,
    which: Which = "healthy",
    to: Annotated[Path | None, typer.Option(help="The file to write.")] = None,
    part: Annotated[str, typer.Option(help="Which part; `all` for everything.")] = "model",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a checkpoint's model as a plain state_dict, for `load_state_dict(torch.load(...))`."""
    import torch  # noqa: PLC0415

    from training.checkpoints.atomic import replacing  # noqa: PLC0415

    manifest = _find(folder, which)
    payload = _load(folder, manifest)
    if part != "all" and part not in payload:
        known = ", ".join(sorted(payload.keys() - {"schema", "step"}))
        _fail(f"{manifest.name} holds no {part!r}; it holds {known}", 1)
    target = to or Path(f"{part}_step_{manifest.step}.pt")
    if target.exists() and not force:
        _fail(f"{target} is there already; name another with --to, or overwrite with --force")
    try:
        with replacing(target) as file:
            torch.save(payload if part == "all" else payload[part], file)
    except (OSError, RuntimeError) as error:
        _fail(f"{target}: {getattr(error, 'strerror', None) or error}; free space or mend rights")
    typer.echo(f"wrote {part} of {manifest.name} to {target}")


# -- inside -------------------------------------------------------------------------------------


def _survey(folder: Path) -> tuple[list[Manifest], list[CheckpointError], list[Path]]:
    try:
        from training.checkpoints import files  # noqa: PLC0415
        from training.checkpoints.manifest import survey  # noqa: PLC0415
    except ModuleNotFoundError as error:
        _fail(f"checkpoints need {error.name}: pip install 'downshift-gateway[training]'")
    try:
        return *survey(folder), files.leftovers(folder)
    except NotADirectoryError:
        _fail(f"{folder} is a file; name the folder it lies in")
    except FileNotFoundError:
        _fail(f"{folder} does not exist; name a run's checkpoint_dir")
    except OSError as error:
        _fail(f"{folder}: {error.strerror}")


def _find(folder: Path, which: str) -> Manifest:
    found, broken, _ = _survey(folder)
    chosen: Manifest | None = None
    if which == "healthy":
        chosen = _last_healthy(found)
    elif which == "newest":
        chosen = found[-1] if found else None
    else:
        for manifest in found:  # of a step saved twice, the newer
            if which in (manifest.name, str(manifest.step), Path(manifest.name).stem):
                chosen = manifest
    if chosen is None:
        for error in broken:
            if Path(which).name == Path(error.path).name:
                _fail(str(error), 1)
        known = ", ".join(str(manifest.step) for manifest in found) or "none"
        _fail(f"{folder} has no checkpoint {which!r}; its steps are: {known}", 1)
    return chosen


def _last_healthy(found: list[Manifest]) -> Manifest | None:
    return next((one for one in reversed(found) if one.health == "healthy"), None)


def _load(folder: Path, manifest: Manifest, *, outline: bool = False) -> dict[str, Any]:
    from training.checkpoints import files  # noqa: PLC0415

    path = folder / manifest.name
    try:
        if not path.is_dir():
            return files.load(path)
        from training.checkpoints import shards  # noqa: PLC0415 - needs torch.distributed

        return (shards.outline if outline else shards.load)(path, manifest)
    except CheckpointCorrupt as error:
        _fail(f"{error}; choose another: `checkpoints verify {folder}` tells which are whole", 1)
    except CheckpointError as error:
        _fail(str(error), 1)


@contextmanager
def _store(folder: Path, keep: int) -> Iterator[Any]:
    from training.checkpoints.store import CheckpointStore  # noqa: PLC0415

    try:
        store = CheckpointStore(folder, keep=keep, writer="none")
    except FolderBusy:
        _fail(f"a run is writing into {folder}; call `ops.store` there, or wait until it ends")
    except CheckpointError as error:
        _fail(str(error))
    try:
        yield store
    except CheckpointError as error:
        _fail(str(error), 1)
    finally:
        store.close()


def _bytes(path: Path, manifest: Manifest) -> int:
    """What a checkpoint takes; the manifest of a sharded one knows only its list of hashes."""
    if not path.is_dir():
        return manifest.size
    from training.checkpoints import shards  # noqa: PLC0415 - needs torch.distributed

    return sum(shards.sizes(path).values())


def _row(folder: Path, manifest: Manifest, good: bool) -> tuple[str, ...]:
    metrics, path = manifest.metrics, folder / manifest.name
    return (
        str(manifest.step),
        manifest.health,
        "yes" if manifest.pinned else "",
        _size(_bytes(path, manifest)),
        _age(time.time() - manifest.wall_time),
        f"{metrics['loss']:.4g}" if "loss" in metrics else "",
        f"{metrics['reward']:.4g}" if "reward" in metrics else "",
        f"{manifest.name}{'/' if path.is_dir() else ''}",
        "<- a rollback returns here" if good else "",
    )


def _inside(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Each tensor by its place; long lists and plain values by their kind."""
    if hasattr(value, "dtype"):
        yield place, f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _inside(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list) and len(value) > 8:
        yield place, f"{len(value)} values"
    else:
        told = json.dumps(value, default=str)
        yield place, told if len(told) <= 60 else f"{told[:59]}…"


def _tell_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # Numbers stand to the right, words to the left.
    sides: list[Callable[[str, int], str]] = [
        str.rjust if name in ("step", "size", "age", "loss", "reward") else str.ljust
        for name in rows[0]
    ]
    for row in rows:
        cells = zip(sides, row, widths, strict=True)
        typer.echo("  ".join(side(cell, width) for side, cell, width in cells).rstrip())


def _tell_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=1))


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _fail(told: str, status: int = 2) -> NoReturn:
    typer.echo(f"error: {told}", err=True)
    sys.exit(status)
