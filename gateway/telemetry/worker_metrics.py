"""The folder through which several workers on one machine share their metrics.

prometheus_client keeps a worker's counters in files of its own there (`counter_PID.db`), and any
worker's page adds them up. What a worker that died had counted must stay on the page, or the sums
would fall; but its files would pile up with every restart, each read by every scrape. So they are
added to one that stands for all the dead, while no page is being read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.errors import GatewayError

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_THE_DEAD = "gone"


def prepare_workers(folder: Path) -> None:
    """Let the workers started from now on share a page through `folder`, emptied of an earlier
    run's files. Puts its name into the environment as `PROMETHEUS_MULTIPROC_DIR`; a process that
    has imported prometheus_client before that cannot take part. For the supervisor.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.db"), *folder.glob("state_*")):
        old.unlink()
    os.environ[FOLDER] = str(folder)


def forget_worker(pid: int) -> None:
    """Take a worker that has died off the page; what it counted stays. For the supervisor.

    Does nothing unless `prepare_workers` was called, or the environment names the folder.
    """
    folder = shared_folder()
    if folder is None:
        return
    try:
        from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415
    except ImportError as error:
        raise missing() from error
    with _held(folder, alone=True):
        mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
        for path in folder.glob(f"*_{pid}.db"):
            _add(path, path.with_name(path.name.replace(f"_{pid}.", f"_{_THE_DEAD}.")))
            path.unlink()
        state_file(folder, pid).unlink(missing_ok=True)


@contextmanager
def reading(folder: Path | None) -> Iterator[None]:
    """While the files of a folder are read, none is added to another."""
    if folder is None:
        yield
        return
    with _held(folder, alone=False):
        yield


def shared_folder() -> Path | None:
    """Where this process's metrics are shared; None if it is alone."""
    name = os.environ.get(FOLDER)
    return Path(name) if name else None


def state_file(folder: Path, pid: int) -> Path:
    """Where a worker says how it stands."""
    return folder / f"state_{pid}.json"


def missing() -> GatewayError:
    """What is raised where prometheus_client is not installed."""
    return GatewayError("metrics need prometheus-client: pip install 'downshift-gateway[server]'")


def _add(path: Path, to: Path) -> None:
    """Add one file's values to another's; of gauges, which are `mostrecent`, the later stays."""
    from prometheus_client.mmap_dict import MmapedDict  # noqa: PLC0415

    try:
        values = list(MmapedDict.read_all_values_from_file(path))  # type: ignore[no-untyped-call]
    except (RuntimeError, struct.error, ValueError):
        return  # killed while it made the file: nothing in it can be told, nor by any page
    total = MmapedDict(str(to))  # type: ignore[no-untyped-call]
    try:
        for key, value, at, _ in values:
            had, since = total.read_value(key)  # type: ignore[no-untyped-call]
            if not path.name.startswith("gauge_"):
                total.write_value(key, had + value, at)  # type: ignore[no-untyped-call]
            elif at >= since:
                total.write_value(key, value, at)  # type: ignore[no-untyped-call]
    finally:
        total.close()  # type: ignore[no-untyped-call]


@contextmanager
def _held(folder: Path, *, alone: bool) -> Iterator[None]:
    import fcntl  # noqa: PLC0415 - several workers are for systems that have it

    with (folder / "lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
