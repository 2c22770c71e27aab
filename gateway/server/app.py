"""Puts the service together: configuration -> gateway, keys, telemetry, routes -> application."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gateway.config import Config
from gateway.errors import ConfigError
from gateway.events import ConfigReloaded, Event, Listener
from gateway.gateway import Gateway
from gateway.server.access import Access
from gateway.server.asgi import ASGI
from gateway.server.dashboard import Dashboard
from gateway.server.operations import Operations
from gateway.server.reloading import FileWatch, restart_needed
from gateway.server.service import Service
from gateway.telemetry.live import Live


class App:
    """One worker's service.

    Args:
        config: what to serve.
        given: keys of `[server]` that the command line said; a reload does not change them.

    Attributes:
        config: what it was started with.
        gateway, service, operations, dashboard: its parts.
        asgi: the ASGI application.
    """

    def __init__(self, config: Config, given: Mapping[str, Any] | None = None) -> None:
        self._given = dict(given or {})
        self.config = replace(config, server=replace(config.server, **self._given))
        listeners = _listeners(self.config)
        self.gateway = Gateway(self.config, listeners=listeners)
        live = Live(self.gateway.status)
        self.gateway.listen(live)
        self._tell = _all([*listeners, live])
        self.operations = Operations(self.gateway, self.reload)
        self.dashboard = Dashboard(self.gateway, live)
        self.service = Service(
            self.gateway,
            Access(self.config),
            self.operations.routes(),
            self.dashboard.routes(),
            tell=self._tell,
        )
        self.asgi = _with_cors(ASGI(self.service, self.config.server), self.config)
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin what goes on beside requests."""
        self.dashboard.start()
        source = self.config.source
        if self.config.server.watch and source is not None:
            watch = FileWatch(source, self.reload)
            self._watching = asyncio.get_running_loop().create_task(watch.run())

    def draining(self) -> None:
        """A stop signal came: not ready any more, and nobody watches to the end."""
        self.operations.stopping = self.service.stopping = True
        self.dashboard.close()

    async def stop(self) -> None:
        """Close the gateway."""
        if self._watching is not None:
            self._watching.cancel()
        await self.gateway.aclose()

    def reload(self) -> list[str]:
        """Read the configuration file again and put it in force.

        Returns:
            Keys of `[server]` that changed and wait for a restart.

        Raises:
            ConfigError: it is broken, and nothing has changed.
        """
        source = self.config.source
        try:
            if source is None:
                raise ConfigError("this service was not started from a file")
            config = Config.from_toml(source)
        except ConfigError as error:
            at = asyncio.get_running_loop().time()
            self._tell(ConfigReloaded(at=at, result="refused", detail=error.message))
            raise
        self.gateway.reload(config)
        return restart_needed(self.config.server, replace(config.server, **self._given))


def _listeners(config: Config) -> list[Listener]:
    listeners: list[Listener] = []
    if config.server.log != "off":
        from gateway.telemetry.logs import log_listener  # noqa: PLC0415

        listeners.append(log_listener(json=config.server.log == "json"))
    return listeners


def _all(listeners: list[Listener]) -> Listener:
    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell


def _with_cors(asgi: ASGI, config: Config) -> Any:
    """Web pages of other origins may call only where they are named."""
    origins = config.server.cors_origins
    if not origins:
        return asgi
    from starlette.middleware.cors import CORSMiddleware  # noqa: PLC0415

    return CORSMiddleware(
        asgi,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["*"],
        max_age=600,
    )
