"""One run of a model server in a child process, from before its start until after its end."""

from __future__ import annotations

import asyncio
import atexit
import http.client
import json
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import IO, ClassVar
from urllib.parse import urlsplit

import msgspec

from gateway.clock import Clock

_STOP_S = 5.0  # from SIGTERM to SIGKILL
_DYING_S = 0.5
_HEALTH_EVERY_S = 0.05
_HEALTH_TIMEOUT_S = 5.0


class Endpoint(msgspec.Struct, frozen=True):
    """A model server that answers.

    Attributes:
        address: its URL without a path, such as `http://127.0.0.1:38733`.
        pid: its process id.
        context_window: tokens per answer, as the server says; 0 if it does not.
    """

    address: str
    pid: int
    context_window: int


class NotStartedError(Exception):
    """The server never answered. `overdue` is True if it was given up for taking too long."""

    def __init__(self, message: str, *, overdue: bool) -> None:
        super().__init__(message)
        self.overdue = overdue


class ModelProcess:
    """A server that prints `{"address": ...}` when it listens and ends when its input does.

    A thread watches it, so any event loop, in any thread, may wait for `ready`. That thread also
    has to be the one that starts it: Linux sends the parent-death signal when the *thread* that
    made the child ends, and only this one is sure to outlive it.

    Args:
        command: the program and its arguments.
        start_timeout_s: it is killed if it is not healthy by then.
        clock: dates its beginning and end.

    Attributes:
        ready: done once `/health` says 200 (the endpoint) or it has failed (`NotStartedError`).
    """

    _running: ClassVar[set[ModelProcess]] = set()

    def __init__(self, command: Sequence[str], start_timeout_s: float, clock: Clock) -> None:
        self.ready: Future[Endpoint] = Future()
        self.ready.set_running_or_notify_cancel()  # so no waiter can cancel it for the others
        self._command = command
        self._start_timeout_s = start_timeout_s
        self._clock = clock
        self._ended: Future[float] = Future()
        self._ended.set_running_or_notify_cancel()
        self._ready_at: float | None = None
        self._overdue = False
        self._stopped = False
        self._output: deque[str] = deque(maxlen=20)
        self._starting = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._thread = threading.Thread(target=self._watch, name="model-process", daemon=True)
        self._running.add(self)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it serves, or may yet; False as soon as the kernel says so."""
        child = self._child
        return not self._ended.done() and (child is None or child.poll() is None)

    @property
    def ended_at(self) -> float:
        """When it ended, on the clock; now, if it has not."""
        return self._ended.result() if self._ended.done() else self._clock()

    @property
    def served_s(self) -> float:
        """How long it was ready, seconds; 0 if it never was."""
        return 0.0 if self._ready_at is None else self.ended_at - self._ready_at

    async def ends_soon(self) -> bool:
        """Whether it is dead or dies within a moment; ask after it refused a connection.

        A killed process closes its sockets some milliseconds before the kernel calls it dead.
        """
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._ended), _DYING_S)
        except TimeoutError:
            return False
        return True

    def stop(self) -> None:
        """Terminate it, wait, kill it if that does not help. Blocks; idempotent.

        In a forked copy of the parent it does nothing: the child is not the copy's to end.
        """
        if self._owner != os.getpid():
            return
        with self._starting:
            self._stopped = True
        if self._child is not None:
            self._child.terminate()
            self._thread.join(_STOP_S)
            self._child.kill()
        self._thread.join()

    def _watch(self) -> None:
        try:
            with self._starting:
                if not self._stopped:
                    self._child = self._spawn()
            if self._child is not None:
                self._attend(self._child)
        except OSError as error:  # the program itself cannot be run
            self._output.append(str(error))
        finally:
            self._running.discard(self)  # before anyone hears of its end and looks
            self._ended.set_result(self._clock())
            if not self.ready.done():
                self.ready.set_exception(NotStartedError(self._epitaph(), overdue=self._overdue))

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - our own program, no shell
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the parent, which may want to finish answers
        )

    def _attend(self, child: subprocess.Popen[bytes]) -> None:
        """See it start, then listen to it until it ends, so that its pipe never fills up."""
        with child:
            output = child.stdout
            assert output is not None
            alarm = threading.Timer(self._start_timeout_s, self._give_up)
            alarm.daemon = True
            alarm.start()
            endpoint = self._see_start(child, output)
            alarm.cancel()
            if endpoint is not None:
                self._ready_at = self._clock()
                self.ready.set_result(endpoint)
            for line in output:
                self._note(line)

    def _see_start(self, child: subprocess.Popen[bytes], output: IO[bytes]) -> Endpoint | None:
        for line in output:
            if line.startswith(b'{"address"'):
                address = json.loads(line)["address"]
                break
            self._note(line)
        else:
            return None
        while child.poll() is None:
            if _get(address, "/health") is not None:
                props = json.loads(_get(address, "/props") or b"{}")
                window = props.get("default_generation_settings", {}).get("n_ctx", 0)
                return Endpoint(address, child.pid, window)
            time.sleep(_HEALTH_EVERY_S)
        return None

    def _give_up(self) -> None:
        self._overdue = True
        if self._child is not None:
            self._child.kill()

    def _note(self, line: bytes) -> None:
        if text := line.decode(errors="replace").strip():
            self._output.append(text)

    def _epitaph(self) -> str:
        if self._overdue:
            how = f"it was not ready after {self._start_timeout_s:g} s"
        elif self._stopped:
            how = "it was stopped"
        elif self._child is None:
            how = "it could not be run"
        elif self._child.returncode < 0:
            how = f"it was ended by {signal.Signals(-self._child.returncode).name}"
        else:
            how = f"it exited with status {self._child.returncode}"
        return ": ".join(["the model process did not start", how, *self._output])[:1500]

    @classmethod
    def stop_all(cls) -> None:
        """Stop every one there is; runs by itself at interpreter exit."""
        for process in list(cls._running):
            process.stop()


atexit.register(ModelProcess.stop_all)


def _get(address: str, path: str) -> bytes | None:
    """The body of a 200, None for anything else."""
    server = urlsplit(address)
    connection = http.client.HTTPConnection(server.netloc, timeout=_HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.read() if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
