"""The gateways under test: one that somebody has started, or ours, a process for each run."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gateway.errors import GatewayError
from gateway.faultlab import recipes
from gateway.faultlab.scenario import Run
from gateway.faultlab.trial import Address

_LISTENS = re.compile(r"at (http://\S+:\d+)")
_PATIENCE_S = 60.0
_STOPPING_S = 1.0
_LOOK_S = 0.05


class NotStarted(GatewayError):
    """The gateway under test did not come up."""

    code = "not_started"


class Endpoint(Protocol):
    """A gateway under test.

    Attributes:
        shared: whether all runs meet the same process.
    """

    @property
    def shared(self) -> bool: ...

    def open(self, run: Run, urls: Mapping[str, str]) -> AbstractAsyncContextManager[Address]:
        """Where to ask for a run, while the block lasts.

        Args:
            run: what will be run.
            urls: the base URL of each role's upstream.
        """
        ...


@dataclass(frozen=True, slots=True)
class Given:
    """A gateway that is there already, and knows every run as a model.

    Attributes:
        url: up to and including `/v1`.
        headers: sent with each request.
        models: what a run's model is called there: by the run's name such as `s8-stream`, or for
            all of them under `creative`, with `{model}` or `{run}` in it.
        more: further headers for a run.
        shared: see `Endpoint`.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    more: Callable[[Run, Mapping[str, str]], Mapping[str, str]] | None = None
    shared: bool = True

    @asynccontextmanager
    async def open(self, run: Run, urls: Mapping[str, str]) -> AsyncIterator[Address]:
        """The same place each time."""
        template = self.models.get(run.name) or self.models.get("creative", "{model}")
        model = template.replace("{model}", run.model()).replace("{run}", run.name)
        more = self.more(run, urls) if self.more else {}
        yield Address(self.url, model, {**self.headers, **more})


class Ours:
    """`gateway serve` with shipped values, started anew for each run."""

    shared = False

    def __init__(self) -> None:
        self._starting = asyncio.Semaphore(2)  # a start is a second of CPU

    @asynccontextmanager
    async def open(self, run: Run, urls: Mapping[str, str]) -> AsyncIterator[Address]:
        """A process of this run's own."""
        with tempfile.TemporaryDirectory(prefix="faultlab-") as folder:
            log = Path(folder, "log")
            async with self._starting:
                process = _start(recipes.downshift(run, urls), Path(folder, "config.toml"), log)
                try:
                    url = await _listens(process, log)
                except BaseException:
                    await _stop(process)
                    raise
            try:
                yield Address(f"{url}/v1", "creative")
            finally:
                await _stop(process)


def _start(config: str, file: Path, log: Path) -> subprocess.Popen[bytes]:
    file.write_text(config, encoding="utf-8")
    command = [sys.executable, "-m", "gateway", "serve", "-c", str(file), "--port", "0"]
    with log.open("wb") as written:
        return subprocess.Popen(command, stderr=written)  # noqa: S603 - our own program


async def _listens(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where a process listens, once it says so."""
    for _ in range(int(_PATIENCE_S / _LOOK_S)):
        if match := _LISTENS.search(_read(log)):
            return match[1]
        if process.poll() is not None:
            break
        await asyncio.sleep(_LOOK_S)
    raise NotStarted(f"the gateway did not start: {_read(log)[-500:].strip()}")


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


async def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process; it would wait for answers under way, which nobody reads any more."""
    process.terminate()
    for _ in range(int(_STOPPING_S / _LOOK_S)):
        if process.poll() is not None:
            return
        await asyncio.sleep(_LOOK_S)
    process.kill()
    process.wait()
