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

_STUB = Path(__file__).with_name("stub.py")


class Upstream:
    """A stub in a process of its own; use as a context manager.

    Args:
        cpu: the core it is pinned to, -1 for none.
        exact: whether its delays are exact to some 0.1 ms; slower, and for few connections.

    Attributes:
        ports: one per mode of the gateway under test, best mode first.
    """

    def __init__(self, cpu: int, *, exact: bool = False) -> None:
        command = [sys.executable, str(_STUB), "--ports", "3", "--cpu", str(cpu)]
        self._process = subprocess.Popen(
            [*command, "--exact"] if exact else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
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

    def _get(self, number: int, path: str) -> dict[str, Any]:
        # Blocks the loop for some 0.2 ms: never called while something is timed.
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


def modes(upstream: Upstream, **target: Any) -> dict[str, Any]:
    """The `modes` table of a gateway whose three modes are the stub's three ports."""
    return {
        name: {
            "targets": [
                {"kind": "openai", "base_url": upstream.url(number), "model": name, **target}
            ]
        }
        for number, name in enumerate(("creative", "balanced", "fast"))
    }
