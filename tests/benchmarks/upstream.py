"""The stub as the measuring side holds it: started, steered, ended."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

from tests.benchmarks import stub
from tests.benchmarks.native import compiled

_STUB = Path(__file__).with_name("stub.py")
_PORTS = 10  # a primary and a backup for each of five that fail over side by side


class Upstream:
    """A stub in a process of its own, in C where it can be compiled; use as a context manager.

    Args:
        cpu: the core it is pinned to, -1 for none.
        ports: how many backends it pretends to be.

    Attributes:
        ports: where they listen.
        language: "C" or "Python": what the figures rest on.
    """

    def __init__(self, cpu: int, *, ports: int = _PORTS) -> None:
        program = compiled("stub")
        self.language = "C" if program else "Python"
        command = [str(program), str(cpu), str(ports), str(stub.EVENTS)]
        if program is None:
            command = [sys.executable, str(_STUB), "--ports", str(ports), "--cpu", str(cpu)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        if program:
            answers = [*[stub.WHOLE] * ports, stub.ERROR, stub.STREAM_HEAD, *stub.FRAMES]
            self._process.stdin.write(b"".join(b"%d\n%b" % (len(one), one) for one in answers))
            self._process.stdin.flush()
        self.ports: list[int] = json.loads(self._process.stdout.readline())

    def url(self, number: int = 0) -> str:
        """Base URL of one port, `/v1` included."""
        return f"http://127.0.0.1:{self.ports[number]}/v1"

    def set(
        self, number: int = 0, *, mode: str = "ok", delay_s: float = 0.0, interval_s: float = 0.0
    ) -> None:
        """Say how one port behaves from now on."""
        query = urlencode({"mode": mode, "delay_s": delay_s, "interval_s": interval_s})
        self._get(number, f"/__set?{query}")

    def requests(self, number: int = 0) -> int:
        """How many requests one port has seen."""
        return int(self._get(number, "/__stats")["requests"])

    def first_s(self, number: int = 0) -> float:
        """When it first answered since it was last set (as `time.monotonic()`), 0 if not yet."""
        return float(self._get(number, "/__stats")["first_us"]) / 1e6

    def _get(self, number: int, path: str) -> dict[str, Any]:
        # Blocks the loop for some 0.2 ms: never called while something here is timed.
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[number], timeout=5)
        try:
            connection.request("GET", path)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def modes(urls: list[str], **target: Any) -> dict[str, Any]:
    """The `modes` table of a gateway whose modes, best first, are those backends."""
    names = ("creative", "balanced", "fast")
    return {
        name: {"targets": [{"kind": "openai", "base_url": url, "model": name, **target}]}
        for name, url in zip(names, urls, strict=False)
    }
