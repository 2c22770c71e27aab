"""A server process under measurement: started, pinned, its CPU time and memory read, ended."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PATIENCE_S = 60.0
QUESTION = {
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0.2,
}


class Server:
    """One server with all its children; use as a context manager.

    Args:
        command: how it is started.
        port: where it listens on the loopback.
        model: what it is asked for.
        core: the core all its processes are pinned to.
        path: of its chat completions.
        headers: what each request must bear.
        environment: added to this process's own.
        folder: where it runs, and where its output goes.

    Attributes:
        start_s: from the start to its first answer, seconds.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        *,
        model: str,
        core: int,
        folder: Path,
        path: str = "/v1/chat/completions",
        headers: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port, self.path, self.model = port, path, model
        self.headers = {"content-type": "application/json", **(headers or {})}
        self.start_s = 0.0
        self._command = ["taskset", "-c", str(core), *command]
        self._environment = {**os.environ, **(environment or {})}
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def cpu_s(self) -> float:
        """CPU seconds of all its processes so far, those that ended and were waited for too."""
        ticks = 0
        for fields in self._each():
            ticks += sum(int(field) for field in fields[11:15])
        return ticks * _TICK_S

    def memory_mb(self) -> float:
        """Resident memory of all its processes."""
        return sum(int(fields[21]) for fields in self._each()) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def ask(self, *, stream: bool = False) -> int:
        """Ask once; the status, or 0 if there is no answer."""
        body = json.dumps({"model": self.model, "stream": stream, **QUESTION})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("POST", self.path, body, dict(self.headers))
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()
        whole = b"choices" in text and (not stream or b"[DONE]" in text)
        return response.status if whole or response.status != 200 else 0

    def _each(self) -> list[list[str]]:
        """The fields of /proc/PID/stat after the name, of each process of the group."""
        assert self._process is not None
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == self._process.pid:
                found.append(fields)
        return found

    def __enter__(self) -> Self:
        began = time.perf_counter()
        with (self._folder / "output.log").open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=self._environment,
                start_new_session=True,
            )
        while self.ask() != 200:
            if self._process.poll() is not None or time.perf_counter() > began + _PATIENCE_S:
                self.__exit__(None, None, None)
                said = (self._folder / "output.log").read_text(errors="replace")[-600:]
                raise RuntimeError(f"no answer from {self._command[3]}: {said}")
            time.sleep(0.02)
        self.start_s = time.perf_counter() - began
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()
