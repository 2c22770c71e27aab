"""When the configuration file is read again by itself, and what of it has to wait for a restart."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from typing import Final

from gateway.errors import ConfigError
from gateway.server.options import ServerOptions

_AT_ONCE: Final = {"admin_key_hash", "keys_file", "open_metrics"}


def restart_needed(running: ServerOptions, wanted: ServerOptions) -> list[str]:
    """Keys of `[server]` that differ and take effect only at the next start."""
    return [
        field.name
        for field in fields(ServerOptions)
        if field.name not in _AT_ONCE
        and getattr(running, field.name) != getattr(wanted, field.name)
    ]


class FileWatch:
    """Calls when one of some files has changed.

    It is looked at, not listened to: network and overlay file systems tell nothing, and a
    Kubernetes ConfigMap changes by a symbolic link two folders away.

    Args:
        paths: gives the files; one may be gone for a while.
        changed: called after each change; a `ConfigError` of it is told elsewhere.
        every_s: how often it is looked at.
    """

    def __init__(
        self,
        paths: Callable[[], Iterable[str | os.PathLike[str]]],
        changed: Callable[[], object],
        every_s: float = 1.0,
    ) -> None:
        self._paths = paths
        self._changed = changed
        self._every_s = every_s
        self._known = self._look()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            self.look()

    def look(self) -> None:
        """Compare with what was there the last time."""
        found = self._look()
        if found is not None and found != self._known:
            self._known = found
            with suppress(ConfigError):
                self._changed()

    def _look(self) -> list[tuple[int, int, int]] | None:
        try:
            stats = [os.stat(path) for path in self._paths()]  # follows links  # noqa: PTH116
        except OSError:
            return None
        return [(stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats]
