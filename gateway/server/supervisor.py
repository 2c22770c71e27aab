"""Several workers on one socket: started, watched, started again, stopped together.

What they share lies in a folder of its own that lives as long as the service: agreed circuits and
the blackboard (`shared.sqlite`), counters (`metrics/`), and the embedded model (`models/`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.config import Config
from gateway.errors import ConfigError, GatewayError
from gateway.server.run_folder import run_folder
from gateway.server.shared_models import ModelKeeper
from gateway.server.worker import ORDER, Order

_GRACE_S: Final = 5.0  # what a worker may need past `shutdown_s`
_STEADY_S: Final = 10.0  # a worker that served this long was well
_MAX_PAUSE_S: Final = 10.0
_NEVER: Final = 5  # deaths before it was ever ready, while no worker is


class WorkersFailed(GatewayError):
    """Workers do not start."""

    code = "workers_failed"


def supervise(
    config: Config, given: Mapping[str, Any], sock: socket.socket, ready: Callable[[], None]
) -> None:
    """Serve with several workers until a signal comes.

    Args:
        config: what to serve; it must come from a file.
        given: keys of `[server]` said on the command line.
        sock: a listening socket.
        ready: called once when all workers are ready for the first time.

    Raises:
        WorkersFailed: no worker starts; why is on standard error.
    """
    if config.source is None:
        raise ConfigError("several workers need a configuration file")
    with run_folder() as folder:
        (folder.path / "models").mkdir()
        _prepare_metrics(folder.path / "metrics")
        source = str(Path(config.source).absolute())
        order = Order(source, dict(given), sock.fileno(), str(folder.path))
        supervisor = Supervisor(order, config.server.shutdown_s, keep_open=(folder.lock,))
        asyncio.run(supervisor.run(_count(config, given), ready))


@dataclass(slots=True, eq=False)
class _Worker:
    """One place for a worker, and who fills it."""

    process: asyncio.subprocess.Process | None = None
    ready: bool = False
    deaths: int = 0


class Supervisor:
    """Keeps workers running.

    Args:
        order: what each is told.
        shutdown_s: how long a worker may take to stop, and some grace.
        keep_open: files that stay open as long as any worker lives.
    """

    def __init__(self, order: Order, shutdown_s: float, keep_open: tuple[int, ...] = ()) -> None:
        self._order = order
        self._files = (order.sock, *keep_open)
        self._shutdown_s = shutdown_s
        self._workers: list[_Worker] = []
        self._stopping = asyncio.Event()
        self._failed: str = ""
        self._ready: Callable[[], None] | None = None

    async def run(self, count: int, ready: Callable[[], None]) -> None:
        """Keep `count` workers until a signal comes; see `supervise`."""
        self._ready = ready
        self._workers = [_Worker() for _ in range(count)]
        self._on_signals()
        keeper = ModelKeeper(Path(self._order.folder) / "models")
        keeping = asyncio.create_task(keeper.keep())
        places = [asyncio.create_task(self._fill(worker)) for worker in self._workers]
        try:
            await self._stopping.wait()
            self._signal_all(signal.SIGTERM)
            _, late = await asyncio.wait(places, timeout=self._shutdown_s + _GRACE_S)
            if late:
                self._signal_all(signal.SIGKILL)
                await asyncio.wait(late)
        finally:
            keeping.cancel()
            await asyncio.wait({keeping})
            await keeper.aclose()
        if self._failed:
            raise WorkersFailed(self._failed)

    async def _fill(self, worker: _Worker) -> None:
        """Keep one place filled."""
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            began = loop.time()
            code = await self._one_life(worker)
            if self._stopping.is_set():
                return
            worker.deaths = 1 if loop.time() - began >= _STEADY_S else worker.deaths + 1
            if self._hopeless(worker, code):
                return
            pause_s = min(_MAX_PAUSE_S, 0.1 * 2.0**worker.deaths)
            _note(f"worker ended with status {code}; the next one starts in {pause_s:g} s")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)

    async def _one_life(self, worker: _Worker) -> int:
        """Start a worker, wait for its end; its exit code."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "gateway.server.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=self._files,
            env={**os.environ, ORDER: msgspec.json.encode(self._order).decode()},
            start_new_session=True,  # Ctrl-C is for us, who tell them
        )
        worker.process = process
        assert process.stdout is not None
        try:
            if self._stopping.is_set():
                process.terminate()
            if await process.stdout.readline() == b"ready\n":
                worker.ready = True
                self._tell_ready()
            return await process.wait()
        finally:
            worker.ready, worker.process = False, None
            _forget_metrics(process.pid)

    def _tell_ready(self) -> None:
        if self._ready is not None and all(worker.ready for worker in self._workers):
            self._ready()
            self._ready = None

    def _hopeless(self, worker: _Worker, code: int) -> bool:
        """Whether to give up: nobody serves, and nobody will."""
        wrong = self._ready is not None and code == 2  # they have said why
        if wrong or (worker.deaths >= _NEVER and not any(w.ready for w in self._workers)):
            self._failed = f"workers do not start: status {code}"
            self._stopping.set()
        return bool(self._failed)

    def _on_signals(self) -> None:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if self._stopping.is_set():
                self._signal_all(signal.SIGTERM)  # the second one: now
            self._stopping.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        loop.add_signal_handler(signal.SIGHUP, self._signal_all, signal.SIGHUP)

    def _signal_all(self, number: signal.Signals) -> None:
        for worker in self._workers:
            # One that is not ready yet has no handler: a reload would end it, and it reads the
            # file anyway.
            if worker.process is not None and (worker.ready or number is not signal.SIGHUP):
                with suppress(ProcessLookupError):
                    worker.process.send_signal(number)


def _count(config: Config, given: Mapping[str, Any]) -> int:
    return int(given.get("workers", config.server.workers))


def _note(text: str) -> None:
    sys.stderr.write(f"gateway: {text}\n")
    sys.stderr.flush()


def _prepare_metrics(folder: Path) -> None:
    from gateway.telemetry.worker_metrics import prepare_workers  # noqa: PLC0415

    prepare_workers(folder)


def _forget_metrics(pid: int) -> None:
    from gateway.telemetry.worker_metrics import forget_worker  # noqa: PLC0415

    forget_worker(pid)
