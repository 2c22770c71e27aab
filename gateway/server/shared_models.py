"""One embedded model for all workers: they ask for it by a file, the supervisor runs it.

In a folder of the service, `NAME.wanted` says with what options a worker needs a model, and `NAME`
says where it answers, as long as it does.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from gateway.config import Config
from gateway.errors import ErrorKind, GatewayError, UpstreamUnavailable
from gateway.providers.local import LocalModel, LocalOptions
from gateway.providers.model_process import Endpoint
from gateway.registry import resolve

_LOOK_S: Final = 0.05
_DYING_S: Final = 0.5  # the supervisor may hear later of a death than the worker


class FollowedModel(LocalModel):
    """A model that another process runs.

    Args:
        options: what it is started with.
        folder: where it is asked for.
    """

    def __init__(self, options: LocalOptions, folder: Path) -> None:
        super().__init__(options)
        self._file = folder / _name(options)
        self._known: tuple[int, Endpoint] | None = None

    async def endpoint(self) -> Endpoint:
        """Where it answers; asks for it and waits if it does not run.

        Raises:
            UpstreamUnavailable: it did not come up in time (kind LOADING).
        """
        endpoint = self._read()
        if endpoint is not None:
            return endpoint
        _write(self._file.with_suffix(".wanted"), msgspec.json.encode(self.options))
        until = time.monotonic() + self.options.start_timeout_s
        while time.monotonic() < until:
            await asyncio.sleep(_LOOK_S)
            endpoint = self._read()
            if endpoint is not None:
                return endpoint
        raise UpstreamUnavailable(
            f"the model was not ready after {self.options.start_timeout_s:g} s",
            kind=ErrorKind.LOADING,
            target=self.name,
        )

    async def dies(self, endpoint: Endpoint) -> bool:
        """Whether that process is gone, or goes within a moment."""
        until = time.monotonic() + _DYING_S
        while self._read() == endpoint:
            if time.monotonic() >= until:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    async def aclose(self) -> None:
        """Nothing: it is not ours to stop."""

    def _read(self) -> Endpoint | None:
        try:
            changed = os.stat(self._file).st_mtime_ns  # noqa: PTH116 - on every request
            if self._known is None or self._known[0] != changed:
                endpoint = msgspec.json.decode(self._file.read_bytes(), type=Endpoint)
                self._known = changed, endpoint
        except OSError:
            return None
        return self._known[1]

    @classmethod
    def follow_all(cls, config: Config, folder: Path) -> None:
        """Targets of a configuration that are built from now on follow, and start nothing."""
        targets = [(t, mode.name) for mode in config.modes for t in mode.targets]
        for target, mode in targets:
            options = resolve(target, mode)
            if options.kind == "local":
                needs = LocalOptions.of(options)
                with cls._sharing:
                    cls._shared.setdefault(needs, cls(needs, folder))


class ModelKeeper:
    """Runs the models that workers ask for.

    Args:
        folder: where they ask.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._models: dict[str, LocalModel] = {}
        self._told: dict[str, Endpoint] = {}

    async def keep(self, every_s: float = 0.1) -> None:
        """Start what is wanted, and start it again when it has died, until cancelled."""
        while True:
            for wanted in self._folder.glob("*.wanted"):
                if wanted.stem not in self._models:
                    options = msgspec.json.decode(wanted.read_bytes(), type=LocalOptions)
                    self._models[wanted.stem] = LocalModel.share(options)
            for name, model in self._models.items():
                await self._tell(name, model)
            await asyncio.sleep(every_s)

    async def _tell(self, name: str, model: LocalModel) -> None:
        endpoint = None
        with suppress(TimeoutError, GatewayError):  # not yet, or not for a while
            endpoint = await asyncio.wait_for(model.endpoint(), 0.05)
        if endpoint == self._told.get(name):
            return
        if endpoint is None:
            (self._folder / name).unlink(missing_ok=True)
            del self._told[name]
        else:
            _write(self._folder / name, msgspec.json.encode(endpoint))
            self._told[name] = endpoint

    async def aclose(self) -> None:
        """Stop them all."""
        for model in self._models.values():
            await model.aclose()


def _name(options: LocalOptions) -> str:
    return hashlib.sha256(msgspec.json.encode(options)).hexdigest()[:16]


def _write(file: Path, data: bytes) -> None:
    """All of it at once, for those who read at the same time."""
    new = file.with_name(f".{file.name}.{os.getpid()}")
    new.write_bytes(data)
    new.replace(file)
