"""uvicorn as a part: `process.py` starts, drains and stops it; no signals and logs of its own."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from functools import partial
from typing import Any

import uvicorn

from gateway.server.app import App
from gateway.server.connection import Connection, sweep

_CUT_S = 1.0  # for the last words of streams that are broken off


class UvicornServer:
    """Serves an application on a socket.

    Args:
        app: what to serve.
        sock: a bound socket; workers share one.
    """

    def __init__(self, app: App, sock: socket.socket) -> None:
        self._app = app
        self._sock = sock
        self._options = app.config.server
        connection: Any = partial(Connection, self._options, app.service)
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        config = uvicorn.Config(
            _nothing,  # what answers is in `connection`
            http=connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            # Whoever is on this machine could say to be anyone; keys and peers are judged as met.
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=math.ceil(self._options.keep_alive_s),
        )
        config.load()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Accept connections."""
        await self._server.startup(sockets=[self._sock])
        create = asyncio.get_running_loop().create_task
        self._tasks = [create(self._server.main_loop()), create(self._sweep())]

    async def stop(self, at_once: asyncio.Event) -> None:
        """Accept nobody any more, let answers under way end, then break off what is left.

        Args:
            at_once: breaks off as soon as it is set, and not only after `shutdown_s`.
        """
        state = self._server.server_state
        for server in self._server.servers:
            server.close()
        self._sock.close()
        for connection in list(state.connections):
            connection.shutdown()
        await self._emptied(at_once, self._options.shutdown_s)
        for task in list(state.tasks):
            task.cancel()
        await self._emptied(None, _CUT_S)
        for connection in list(state.connections):
            connection.transport.abort()
        self._server.should_exit = True
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _emptied(self, at_once: asyncio.Event | None, within_s: float) -> None:
        state, loop = self._server.server_state, asyncio.get_running_loop()
        until = loop.time() + within_s
        while (state.connections or state.tasks) and loop.time() < until:
            if at_once is not None and at_once.is_set():
                return
            await asyncio.sleep(0.02)

    async def _sweep(self) -> None:
        options = self._options
        bounds = (options.header_s, options.body_s, options.keep_alive_s, options.send_s)
        every_s = min(1.0, min(bounds) / 4)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(every_s)
            sweep(self._server.server_state.connections, loop.time())


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    """uvicorn wants an application; `Connection` never asks it."""
