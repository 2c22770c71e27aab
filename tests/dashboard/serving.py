"""`gateway serve` in a process of its own, on a port it keeps when it comes back."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
SAFETY_S: Final = 30.0

LADDER: Final = """
[modes.creative]
[[modes.creative.targets]]
kind = "simulated"
model = "qwen3.8-max"
options = { %s }
[modes.balanced]
[[modes.balanced.targets]]
kind = "simulated"
model = "qwen3.8-plus"
options = { first_token_s = 0.05, tokens = 24, tokens_per_s = 20 }
[modes.fast]
[[modes.fast.targets]]
kind = "simulated"
model = "qwen3.8-flash"
options = { first_token_s = 0.02, tokens_per_s = 400 }
[feedback]
path = ":memory:"
[server]
shutdown_s = 20
"""
WELL: Final = LADDER % "first_token_s = 0.05, tokens_per_s = 400"
DOWN: Final = LADDER % 'faults = [{ kind = "outage", start = 0, end = 100000 }]'


class Service:
    """The service on one configuration.

    Attributes:
        url: where a browser finds the dashboard.
    """

    def __init__(self, config: str, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self._folder = folder
        self._asked = 0
        (folder / "gateway.toml").write_text(config)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve, and return once requests are answered."""
        log = self._folder / "gateway.log"
        command = ["-m", "gateway", "serve", "-c", "gateway.toml", "--port", str(self.port)]
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self._folder,
                stdout=out,
                stderr=out,
                env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            )
        ends = time.monotonic() + SAFETY_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > ends:
                self._process.kill()
                raise RuntimeError(f"the service did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.05)  # a process of its own has no event to wait for

    def stop(self) -> tuple[int, float]:
        """Stop as an operator would. Returns the exit status and how long it took, seconds."""
        process, self._process = self._process, None
        if process is None:
            return 0, 0.0
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(SAFETY_S)
        finally:
            process.kill()
        return status, time.monotonic() - began

    def ask(self, mode: str, times: int = 1, **headers: str) -> list[dict[str, Any]]:
        """Ask for `times` different answers of a mode, one after the other."""
        return [self._ask(mode, headers) for _ in range(times)]

    def _ask(self, mode: str, headers: dict[str, str]) -> dict[str, Any]:
        self._asked += 1
        message = {"role": "user", "content": f"prompt {self._asked} for {mode}"}
        body = json.dumps({"model": mode, "messages": [message]}).encode()
        request = urllib.request.Request(
            f"{self.url}v1/chat/completions",
            body,
            {"content-type": "application/json", **headers},
        )
        with urllib.request.urlopen(request, timeout=SAFETY_S) as response:
            answer: dict[str, Any] = json.load(response)
            return answer

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}livez", timeout=1):
                return True
        except OSError:
            return False
