"""The server under test: `gateway serve` as operators start it, and what is seen of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from gateway.policies.keys import key_hash

ROOT: Final = Path(__file__).resolve().parents[2]
MODES: Final = ("creative", "balanced", "fast")
EDITIONS: Final = ("a", "b")
KEYS: Final = {"alice": "sk-soak-alice", "bob": "sk-soak-bob", "slow": "sk-soak-slow"}
ADMIN_KEY: Final = "sk-soak-admin"
_PAGE_KB: Final = os.sysconf("SC_PAGE_SIZE") // 1024
_PATIENCE_S: Final = 60.0
_INSIDE: Final = Path(__file__).resolve().parent / "inside"

_MODE = """
[modes.{mode}]
deadline_s = 8
first_token_s = 2
stall_s = 2
temperature = {temperature}
[[modes.{mode}.targets]]
kind = "vllm"
base_url = "{url}"
model = "{mode}-{edition}"
api_key_env = ""
"""
_REST = """
[circuit]
break_duration_s = 15
early_probe_s = 5
ramp_s = 5
bottom_break_s = 2
bottom_break_max_s = 5
slow_s = 3
[cache]
ttl_s = 90
degraded_ttl_s = 20
stale_if_error_s = 60
max_bytes = 1000000
[aliases]
"gpt-4o" = "creative"
[server]
host = "127.0.0.1"
shutdown_s = 10
keep_alive_s = 20
header_s = 3
body_s = 3
admin_key_hash = "{admin}"
"""
_KEY = """
[keys.{name}]
hash = "{hash}"
requests_per_min = {per_min}
monthly_tokens = {monthly}
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """The service at one moment, all its processes together.

    Attributes:
        at_s: seconds since the traffic began.
        rss_mb: resident memory, MB.
        files: open file descriptors, sockets among them.
        sockets: open sockets.
        threads: threads.
        tasks: asyncio tasks.
        objects: objects the garbage collector knows of.
        disk_files: files in the folder the workers share; their number must not grow either.
    """

    at_s: float
    rss_mb: float
    files: int
    sockets: int
    threads: int
    tasks: int
    objects: int
    disk_files: int


class Service:
    """A real server in processes of its own; starts and stops with `async with`.

    Args:
        folder: where its configuration, log and data lie.
        primary: base URL of the upstream of creative.
        standby: that of the other modes.
        workers: how many.
    """

    def __init__(self, folder: Path, primary: str, standby: str, workers: int = 1) -> None:
        self.file = folder / "config.toml"
        self.log = folder / "server.log"
        self.port = 0
        self._urls = {"creative": primary, "balanced": standby, "fast": standby}
        self._workers = workers
        self._inside = folder / "inside"
        self._shared = folder / "tmp"
        self.edition = EDITIONS[0]

    async def __aenter__(self) -> Self:
        self._inside.mkdir()
        self._shared.mkdir()
        self.write(self.edition)
        python_path = os.pathsep.join((str(_INSIDE), str(ROOT)))
        with self.log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway", "serve", "-c", str(self.file), "--port", "0",
                *("--workers", str(self._workers)),
                stderr=log,
                stdout=log,
                cwd=self.file.parent,
                env={
                    **os.environ,
                    "PYTHONPATH": python_path,
                    "SOAK_INSIDE": str(self._inside),
                    "TMPDIR": str(self._shared),
                },
            )  # fmt: skip
        async with asyncio.timeout(_PATIENCE_S):
            while not (found := re.search(r"at http://\S+:(\d+)", self.logged())):
                assert self.process.returncode is None, self.logged()
                await asyncio.sleep(0.05)
        self.port = int(found[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """Stop it as an operator does; the exit code."""
        self.process.terminate()
        async with asyncio.timeout(_PATIENCE_S):
            return await self.process.wait()

    def logged(self) -> str:
        """Its log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def write(self, edition: str, broken: str = "") -> None:
        """Write the configuration: an edition has models and a temperature of its own."""
        text = "".join(
            _MODE.format(
                mode=mode,
                url=self._urls[mode],
                edition=edition,
                temperature=0.5 if edition == EDITIONS[0] else 0.75,
            )
            for mode in MODES
        )
        text += _REST.format(admin=key_hash(ADMIN_KEY))
        for name, key in KEYS.items():
            # One key runs into its limit all the time, one is counted by the month.
            limits = {"per_min": 30 if name == "slow" else 0, "monthly": 10**9 * (name == "alice")}
            text += _KEY.format(name=name, hash=key_hash(key), **limits)
        self.file.write_text(text + broken, encoding="utf-8")

    def reload(self, *, broken: bool = False) -> None:
        """Put the other edition in force, or offer a broken one, by SIGHUP."""
        if broken:
            self.write(self.edition, broken="[nonsense]\n")
        else:
            self.edition = EDITIONS[1 - EDITIONS.index(self.edition)]
            self.write(self.edition)
        self.process.send_signal(signal.SIGHUP)

    async def sample(self, at_s: float) -> Sample:
        """How it stands; processes that come or go meanwhile are left out."""
        total: Counter[str] = Counter()
        for pid in list(self._pids()):
            with suppress(OSError):
                total.update(_process(pid))
                total.update(await self._look_inside(pid))
        disk = sum(path.is_file() for path in self._shared.rglob("*"))
        return Sample(
            at_s=at_s,
            rss_mb=total["rss_kb"] / 1024,
            files=total["files"],
            sockets=total["sockets"],
            threads=total["threads"],
            tasks=total["tasks"],
            objects=total["objects"],
            disk_files=disk,
        )

    def waited_s(self) -> float:
        """How long its processes' main threads have been ready to run, and had no processor."""
        files = [Path(f"/proc/{pid}/schedstat") for pid in self._pids()]
        return sum(int(file.read_text(encoding="utf-8").split()[1]) for file in files) / 1e9

    def _pids(self) -> Iterator[int]:
        """The server's processes: itself and, with several workers, those that serve."""
        pid = self.process.pid
        yield pid
        if self._workers > 1:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
            for child in map(int, children.split()):
                with suppress(OSError):
                    if b"gateway.server.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                        yield child

    async def _look_inside(self, pid: int) -> dict[str, Any]:
        """What the process says of itself; see inside/sitecustomize.py."""
        answer = self._inside / str(pid)
        answer.unlink(missing_ok=True)
        os.kill(pid, signal.SIGUSR1)
        for _ in range(100):
            if answer.exists():
                found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
                return found
            await asyncio.sleep(0.02)
        raise OSError(f"process {pid} says nothing")


def _process(pid: int) -> dict[str, int]:
    """What the kernel knows of a process."""
    folder = Path(f"/proc/{pid}")
    files = sockets = 0
    for file in (folder / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            sockets += str(file.readlink()).startswith("socket:")
            files += 1
    pages = int((folder / "statm").read_text(encoding="utf-8").split()[1])
    threads = len(list((folder / "task").iterdir()))
    return {"rss_kb": pages * _PAGE_KB, "files": files, "sockets": sockets, "threads": threads}
