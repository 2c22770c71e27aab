"""A server process under measurement: started, pinned, its CPU time and memory read, ended."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PATIENCE_S = 60.0
_REFUSING_S = 5.0  # some answer with an error until they have read everything they need
_SETTLED = 0.1  # of a core: what a server that has nothing to do may use
_NUMBER = "#" * 16  # the load generator puts a number here that never comes again


def question(content: str) -> dict[str, Any]:
    """What every server is asked, but for model and stream."""
    return {"messages": [{"role": "user", "content": content}], "temperature": 0.2}


@dataclass(frozen=True, slots=True)
class Models:
    """What a server is asked for, so that it puts to its upstream the question others put.

    Args:
        whole: for an answer in one piece, asked of the upstream in one piece.
        stream: for a stream.
    """

    whole: str
    stream: str = ""

    def of(self, *, stream: bool) -> str:
        """The model for one of the two."""
        return self.stream if stream and self.stream else self.whole


class Server:
    """One server with all its children; use as a context manager.

    Args:
        command: how it is started.
        port: where it listens on the loopback.
        models: what it is asked for.
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
        models: Models,
        core: int,
        folder: Path,
        path: str = "/v1/chat/completions",
        headers: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port, self.path, self.models = port, path, models
        self.headers = {"content-type": "application/json", **(headers or {})}
        self.start_s = 0.0
        self._command = ["taskset", "-c", str(core), *command] if core >= 0 else [*command]
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

    def ask(self, *, stream: bool = False, model: str = "") -> tuple[int, bytes]:
        """Ask once; the status and the body, status 0 if there is no answer."""
        asked = {"model": model or self.models.of(stream=stream), "stream": stream}
        # Two questions: modes with one target share their answers, and one kept is no stream.
        about = "France, bit by bit" if stream else "France"
        body = json.dumps({**asked, **question(f"What is the capital of {about}?")})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("POST", self.path, body, dict(self.headers))
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def request(self, *, stream: bool, model: str = "") -> bytes:
        """A whole request with a place for the load generator's number."""
        asked = {"model": model or self.models.of(stream=stream), "stream": stream}
        body = json.dumps({**asked, **question(f"What is the capital of country {_NUMBER}?")})
        headers = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        head = f"POST {self.path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\n{headers}"
        return f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()

    def settle(self, patience_s: float = 10.0) -> None:
        """Wait until it has worked off what was left, so that it does not disturb the next."""
        end = time.perf_counter() + patience_s
        while time.perf_counter() < end:
            began = self.cpu_s()
            time.sleep(0.1)
            if self.cpu_s() - began <= _SETTLED * 0.1:
                return

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
        refusing_since = 0.0
        while (status := self.ask()[0]) != 200:
            now = time.perf_counter()
            refusing_since = (refusing_since or now) if status else 0.0
            ended = self._process.poll() is not None
            if ended or now > began + _PATIENCE_S or now > (refusing_since or now) + _REFUSING_S:
                self.__exit__(None, None, None)
                said = (self._folder / "output.log").read_text(errors="replace").split("\n")
                last = next((line for line in reversed(said) if line.strip()), "")
                raise RuntimeError(f"answers {status}" if status else f"no answer: {last[-80:]}")
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
