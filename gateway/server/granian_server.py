"""granian as a part: a server in Rust that hands requests to our event loop by RSGI.

Its embedded form is called experimental by its authors; uvicorn is the default. What differs here:

| bound | here |
|---|---|
| a head's size and time | granian's, in its own words |
| `keep_alive_s` | unknown to it: an idle connection is closed after `header_s` |
| `max_connections` requests under way | 503 of ours, from `rsgi.py` |
| `max_connections` and 256 connections | not accepted, and not told: they wait in the kernel |
| `send_s` with nothing read | the kernel cuts the connection off, on Linux; elsewhere nobody does |

What a client does not read waits in granian without bound: `send_bytes` of RSGI never waits.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
from typing import Any, Final

from granian._granian import SocketHolder
from granian.constants import HTTPModes
from granian.http import HTTP1Settings
from granian.server.embed import Server

from gateway.server.app import App
from gateway.server.rsgi import RSGI

_CUT_S = 1.0  # for the last words of streams that are broken off
# granian leaves whoever is past its bound in the kernel's queue, where nobody tells them why.
_SPARE: Final = 256


class GranianServer:
    """Serves an application on a socket.

    Args:
        app: what to serve.
        sock: a bound socket; workers share one.
    """

    def __init__(self, app: App, sock: socket.socket) -> None:
        options = app.config.server
        self._app = app
        self._sock = sock
        self._rsgi = RSGI(app.service, options)
        self._shutdown_s = options.shutdown_s
        _cut_off_after(sock, options.send_s)
        self._server = _OnSocket(
            sock,
            self._rsgi,
            # Over HTTP/2 a client can stop reading one stream only, and no bound here would see it.
            http=HTTPModes.http1,
            log_enabled=False,
            websockets=True,  # so that we hear of them, and refuse
            backpressure=options.max_connections + _SPARE,  # of connections
            http1_settings=HTTP1Settings(header_read_timeout=int(options.header_s * 1000)),
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Accept connections."""
        self._serving = asyncio.get_running_loop().create_task(self._server.serve())
        await asyncio.sleep(0)

    async def stop(self, at_once: asyncio.Event) -> None:
        """Accept nobody any more, let answers under way end, then break off what is left."""
        assert self._serving is not None
        self._sock.close()
        self._server.stop()  # type: ignore[no-untyped-call]
        await self._emptied(at_once, self._shutdown_s)
        for task in list(self._rsgi.tasks):
            task.cancel()
        await self._emptied(None, _CUT_S)
        await asyncio.wait({self._serving}, timeout=_CUT_S)

    async def _emptied(self, at_once: asyncio.Event | None, within_s: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        while self._rsgi.tasks and loop.time() < until:
            if at_once is not None and at_once.is_set():
                return
            await asyncio.sleep(0.02)


class _OnSocket(Server):
    """Serves on a socket that is there already."""

    def __init__(self, sock: socket.socket, target: Any, **options: Any) -> None:
        super().__init__(target, **options)
        self._given = sock

    def _init_shared_socket(self) -> None:
        holder: Any = (
            SocketHolder  # its stub does not know what it takes: not a Unix socket; backlog
        )
        self._ssp, self._shd = None, holder(os.dup(self._given.fileno()), False, 2048)


def _cut_off_after(sock: socket.socket, wait_s: float) -> None:
    """Let the kernel end accepted connections on which nothing was taken for so long.

    They inherit it from the socket that listens. It holds for a client that is gone as for one with
    a full window: tcp(7), TCP_USER_TIMEOUT.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        wait_ms = math.ceil(min(wait_s * 1000, 2**31 - 1))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, wait_ms)
