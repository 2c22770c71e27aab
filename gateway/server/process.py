"""One serving process: from its first request to its last, and the signals in between.

| signal | |
|---|---|
| SIGTERM, SIGINT | not ready any more, no new connections, answers under way end, exit 0 |
| a second one | now |
| SIGHUP | read the configuration again |
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol

from gateway.errors import ConfigError
from gateway.server.app import App

# A request makes some hundred containers, and next to none of them are garbage in circles. Looked
# for every 700 of them, as by default, that took 5 % of all instructions of a request.
_COLLECT_AFTER: Final = 10_000


class HTTPServer(Protocol):
    """Speaks HTTP for an application."""

    async def start(self) -> None:
        """Accept connections."""

    async def stop(self, at_once: asyncio.Event) -> None:
        """Let answers under way end, for `shutdown_s` or until `at_once`; then break them off."""


def run(app: Callable[[], App], sock: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until a signal comes.

    Args:
        app: makes the application, within the event loop.
        sock: a bound socket.
        ready: called once connections are accepted.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_live(app, sock, ready))


async def _live(make: Callable[[], App], sock: socket.socket, ready: Callable[[], None]) -> None:
    app = make()
    server = _server(app, sock)
    stopping, at_once = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        if app.service.stopping:
            at_once.set()
        app.draining()  # readiness says no before anything else happens
        stopping.set()

    def reload() -> None:
        with suppress(ConfigError):  # told by its event: the old configuration stays
            app.reload()

    _on_signals({"SIGTERM": stop, "SIGINT": stop, "SIGHUP": reload})
    await app.start()
    await server.start()
    gc.collect()
    gc.freeze()  # what is there by now stays: no need to look at it again and again
    gc.set_threshold(_COLLECT_AFTER, 10, 10)
    ready()
    await stopping.wait()
    await server.stop(at_once)
    await app.stop()


def _server(app: App, sock: socket.socket) -> HTTPServer:
    if app.config.server.runner == "granian":
        from gateway.server.granian_server import GranianServer  # noqa: PLC0415

        return GranianServer(app, sock)
    from gateway.server.uvicorn_server import UvicornServer  # noqa: PLC0415

    return UvicornServer(app, sock)


def _on_signals(handlers: dict[str, Callable[[], None]]) -> None:
    loop = asyncio.get_running_loop()
    for name, handler in handlers.items():
        with suppress(NotImplementedError, AttributeError):  # Windows has neither
            loop.add_signal_handler(getattr(signal, name), handler)


def _loop_factory() -> Any:
    if sys.platform == "win32":
        return None
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return None
    return uvloop.new_event_loop
