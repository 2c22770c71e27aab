"""What clients talk to: the gateway in a process of its own, and what stands behind it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from brain import Brain, Seen

from gateway.policies.keys import key_hash

ROOT: Final = Path(__file__).resolve().parents[2]
SAFETY_S: Final = 30.0
EMBEDDER: Final = "qwen-embedder"
KEYS: Final = {
    "tests": "sk-tests-may-ask-for-everything",
    "narrow": "sk-tests-may-only-ask-for-fast",
    "rare": "sk-tests-may-ask-once-in-a-minute",
}
"""Keys of the scripted service; a client that sent none would not come in."""
MODES: Final = {"creative": "qwen-large", "balanced": "qwen-medium", "fast": "qwen-small"}
"""The modes of the scripted service, best first, and their models."""

_T = TypeVar("_T")

# Failures are played by the dozen here: nothing may rest because of them, and what is under test
# is the wire, not the circuits.
_STEADY = """
[circuit]
failure_threshold = 100000
failure_ratio = 0
slow_s = 0
[budget]
tokens = 100000
[feedback]
path = ":memory:"
[server]
shutdown_s = 3
"""


class Behind:
    """The scripted upstream on a thread's own event loop, so that tests may simply block."""

    def __init__(self) -> None:
        self.brain = Brain()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Behind:
        self._thread.start()
        self._run(self.brain.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._run(self.brain.__aexit__())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(SAFETY_S)
            self._loop.close()

    def asked(self, tag: str) -> list[Seen]:
        """What reached the upstream of one request."""
        return self.brain.asked(tag)

    def said(self, tag: str) -> str:
        """The text of the latest answer to a request."""
        return self.asked(tag)[-1].text

    def hung_up_at(self, tag: str) -> float:
        """Unix time at which the gateway let go of the upstream; waited for."""
        seen = self.asked(tag)[-1]
        self._run(self.brain.until(lambda: seen.hung_up_at is not None, within_s=5.0))
        assert seen.hung_up_at is not None
        return seen.hung_up_at

    def _run(self, doing: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result(SAFETY_S)


class Service:
    """`python -m gateway serve` on a configuration.

    Args:
        config: text of its configuration file.
        folder: for that file and the log.
        env: environment variables it gets besides the usual.

    Attributes:
        url: base URL for clients, `/v1` included.
    """

    def __init__(self, config: str, folder: Path, **env: str) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.log = folder / "gateway.log"
        file = folder / "gateway.toml"
        file.write_text(config)
        command = ["-m", "gateway", "serve", "-c", str(file), "--port", str(self.port)]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stderr=log, stdout=log, env=os.environ | env
            )

    def __enter__(self) -> Service:
        ends = time.monotonic() + SAFETY_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > ends:
                self._process.kill()
                raise RuntimeError(f"the service did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)  # a process of its own has no event to wait for
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(SAFETY_S)
        finally:
            self._process.kill()

    def complaints(self) -> str:
        """The part of the log that begins with a fault of our own; "" if there was none."""
        text = self.log.read_text(errors="replace")
        found = re.search("Traceback|never retrieved|never awaited|internal_error", text)
        return "" if found is None else text[max(0, found.start() - 300) :][:4000]

    def _answers(self) -> bool:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        with contextlib.closing(line), contextlib.suppress(OSError, http.client.HTTPException):
            line.request("GET", "/livez")
            return line.getresponse().status == 200
        return False


def scripted_config(base_url: str, *, keys: bool = True) -> str:
    """Three modes in front of a scripted upstream."""
    modes = [
        f"""
[modes.{mode}]
deadline_s = 60
first_token_s = 30
stall_s = 30
[[modes.{mode}.targets]]
kind = "vllm"
base_url = "{base_url}"
model = "{model}"
"""
        for mode, model in MODES.items()
    ]
    embeddings = f"""
[[embeddings.targets]]
kind = "vllm"
base_url = "{base_url}"
model = "{EMBEDDER}"
"""
    return "".join([*modes, embeddings, _STEADY, *(_key_tables() if keys else ())])


def _key_tables() -> list[str]:
    more = {"narrow": 'modes = ["fast"]', "rare": "requests_per_min = 1"}
    return [
        f'[keys.{name}]\nhash = "{key_hash(key)}"\n{more.get(name, "")}\n'
        for name, key in KEYS.items()
    ]


def real_config() -> str:
    """Three modes of the embedded model, sober enough to compare answers."""
    modes = [
        f"""
[modes.{mode}]
temperature = 0
max_tokens = 48
[[modes.{mode}.targets]]
kind = "local"
"""
        for mode in MODES
    ]
    return "".join([*modes, _STEADY])


@contextlib.contextmanager
def running(config: str, folder: Path, **env: str) -> Iterator[Service]:
    """A service that must not complain in its log."""
    with Service(config, folder, **env) as service:
        yield service
    assert not service.complaints(), service.complaints()


def until(reached: Callable[[], bool], within_s: float = SAFETY_S) -> None:
    """Wait for what another process does, which has no event to wait for."""
    ends = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
