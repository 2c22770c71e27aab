"""Puts the service together: configuration -> gateway, keys, telemetry, routes -> application."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from gateway.config import Config
from gateway.errors import ConfigError
from gateway.events import ConfigReloaded, EventBus, Listener
from gateway.gateway import Gateway
from gateway.server import openapi
from gateway.server.access import Access
from gateway.server.asgi import ASGI
from gateway.server.dashboard import Dashboard
from gateway.server.operations import Operations
from gateway.server.options import ServerOptions
from gateway.server.reloading import FileWatch, restart_needed
from gateway.server.service import Service
from gateway.stores.shared import SharedStore
from gateway.telemetry.live import Live
from gateway.telemetry.logs import Log, log_listener
from gateway.telemetry.metrics import Metrics

_RELOAD: Final = "reload"
_FOLLOW_S: Final = 0.5
_STAND_S: Final = 3.0


class App:
    """One worker's service.

    Args:
        config: what to serve.
        given: keys of `[server]` that the command line said; a reload does not change them.
        shared: where several workers meet; None is a worker alone.
        before_reload: called with a new configuration before it takes effect.

    Attributes:
        config: what it was started with.
        gateway, service, operations, dashboard: its parts.
        asgi: the ASGI application.
    """

    def __init__(
        self,
        config: Config,
        given: Mapping[str, Any] | None = None,
        *,
        shared: SharedStore | None = None,
        before_reload: Callable[[Config], None] | None = None,
    ) -> None:
        self._given = dict(given or {})
        self._shared = shared
        self._before_reload = before_reload
        self._version = 0
        self.config = replace(config, server=replace(config.server, **self._given))
        _load_lean()
        self._log = _log(self.config.server)
        listeners: list[Listener] = [self._log] if self._log is not None else []
        listeners += _traces(self.config.server)
        self.gateway = Gateway(self.config, listeners=listeners, shared=shared)
        live = Live(self.gateway.status, board=shared)
        self._metrics = Metrics(self.gateway.status, at_once=False)
        events = EventBus()  # the server's own, for the same listeners
        for listener in listeners:
            events.listen(listener)
        for counting in (live, self._metrics):
            self.gateway.listen(counting)
            events.listen(counting)
        self._tell = events.emit
        self.operations = Operations(self.gateway, self.reload_all, self._metrics)
        self.dashboard = Dashboard(self.gateway, live)
        self.service = Service(
            self.gateway,
            Access(self.config),
            self.operations.routes(),
            self.dashboard.routes(),
            openapi.routes(),
            tell=self._tell,
        )
        self.asgi = ASGI(self.service, self.config.server)
        self._beside: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin what goes on beside requests."""
        self.dashboard.start()
        create = asyncio.get_running_loop().create_task
        if self.config.server.watch and self.config.source is not None:
            self._beside.append(
                create(FileWatch(lambda: self.gateway.config.files, self.reload).run())
            )
        if self._shared is not None:
            self._beside += [create(self._follow(self._shared)), create(self._stand())]

    def draining(self) -> None:
        """A stop signal came: not ready any more, and nobody watches to the end."""
        self.operations.stopping = self.service.stopping = True
        self.dashboard.close()

    async def stop(self) -> None:
        """Close the gateway."""
        for task in self._beside:
            task.cancel()
        await self.gateway.aclose()
        if self._log is not None:
            self._log.close()

    def reload_all(self) -> list[str]:
        """`reload`, and if it went well in all the other workers, too."""
        waiting = self.reload()
        if self._shared is not None:
            self._version = self._shared.bump(_RELOAD)
        return waiting

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
            if self._before_reload is not None:
                self._before_reload(config)
        except ConfigError as error:
            refused = ConfigReloaded(at=time.monotonic(), result="refused", detail=error.message)
            self._tell(refused)
            raise
        running, wanted = self.config.server, replace(config.server, **self._given)
        # How many workers there are is a fact of this run: limits are shared out by it.
        self.gateway.reload(replace(config, server=replace(wanted, workers=running.workers)))
        return restart_needed(running, wanted)

    async def _follow(self, shared: SharedStore) -> None:
        """Reload when another worker has."""
        self._version = shared.version(_RELOAD)
        while True:
            await asyncio.sleep(_FOLLOW_S)
            version = shared.version(_RELOAD)
            if version != self._version:
                self._version = version
                with suppress(ConfigError):  # told by its event
                    self.reload()

    async def _stand(self) -> None:
        """Keep what this worker adds to the common page of metrics up to date."""
        while True:
            self._metrics.refresh()
            await asyncio.sleep(_STAND_S)


def _load_lean() -> None:
    """Load aiobreaker as if redis were not installed.

    Where it is, aiobreaker imports it for a storage that nobody here uses, and redis imports
    OpenTelemetry: 8 MB and a fifth of the time to the first answer.
    """
    if "aiobreaker" in sys.modules or "redis" in sys.modules:
        return
    sys.modules["redis"] = None  # type: ignore[assignment]  # so `import redis` says it is missing
    try:
        import gateway.policies.breaker  # noqa: F401, PLC0415
    finally:
        del sys.modules["redis"]


def _log(options: ServerOptions) -> Log | None:
    if options.log == "off":
        return None
    # In the background: a log nobody reads must not hold up those who are served.
    return log_listener(json=options.log == "json", level="info", background=True)


def _traces(options: ServerOptions) -> list[Listener]:
    if not options.traces:
        return []
    from gateway.telemetry.traces import Traces  # noqa: PLC0415

    return [Traces()]
