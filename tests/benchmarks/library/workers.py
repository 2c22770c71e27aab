"""The callers' processes as the measuring side holds them: started, asked, ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.benchmarks.library.asking import Given
from tests.benchmarks.peers import PEERS
from tests.benchmarks.report import ROOT

_PATIENCE_S = 90.0
_CALLERS = "tests.benchmarks.library.callers"


class Worker:
    """One caller in a process of its own; use as a context manager.

    Args:
        caller: "module.function" below `callers/`.
        given: where it asks, and how.
        peer: the environment below the peers' folder it needs; this one's by default.

    Attributes:
        kinds: the ways it can ask.

    Raises:
        RuntimeError: it did not start, did not answer in time, or has ended; with its last words.
    """

    def __init__(self, caller: str, given: Given, *, peer: str = "") -> None:
        module, _, function = caller.rpartition(".")
        python = str(PEERS / peer / "bin/python") if peer else sys.executable
        self._name = caller
        self._command = [python, "-m", "tests.benchmarks.library.worker"]
        self._command += [f"{_CALLERS}.{module}", function]
        self._given = given
        self.kinds: list[str] = []

    def ready(self) -> None:
        """Wait until it can be asked."""
        self.kinds = self._answer(_PATIENCE_S)["kinds"]

    def closed(self, kind: str, concurrency: int, seconds: float) -> dict[str, Any]:
        """So many at once for so long; see `worker.py`."""
        order = {"do": "closed", "kind": kind, "concurrency": concurrency, "seconds": seconds}
        self._say(order)
        return self._answer(seconds + _PATIENCE_S)

    def begin_open(self, rate: float, seconds: float) -> None:
        """Begin to ask at a steady rate."""
        self._say({"do": "open", "rate": rate, "seconds": seconds})

    def end_open(self, seconds: float) -> list[tuple[float, float, str]]:
        """Wait for the last answer: when asked (`time.monotonic()`), seconds it took, error."""
        return [tuple(one) for one in self._answer(seconds + _PATIENCE_S)["asked"]]

    def _say(self, what: object) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def _answer(self, patience_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        end = threading.Timer(patience_s, self._process.kill)
        end.start()
        try:
            line = self._process.stdout.readline()
        finally:
            end.cancel()
        if not line:
            raise self._gone()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _gone(self) -> RuntimeError:
        self._process.wait()
        words = Path(self._log.name).read_text(errors="replace").split("\n")
        return RuntimeError(f"{self._name} ended: {' / '.join(words[-3:])[-300:]}")

    def __enter__(self) -> Self:
        self._log = tempfile.NamedTemporaryFile(prefix="bench-")
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self._say(asdict(self._given))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()
