"""A client that already exists -> a configuration whose targets are that client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gateway.config import Config
from gateway.errors import ConfigError
from gateway.modes import ModeOptions, TargetOptions
from gateway.providers.qwen import profile

_MODES = ("creative", "balanced", "fast")


def wrapped_config(
    client: object | Mapping[str, object],
    model: str | Mapping[str, str],
    tables: Mapping[str, Any],
) -> Config:
    """Build the configuration of `Gateway.wrap`.

    Raises:
        ConfigError: no client, a model for a mode that has none, or `modes` among the tables.
    """
    if "modes" in tables:
        raise ConfigError("the client is what modes are made of here; leave them out", key="modes")
    names = model if isinstance(model, Mapping) else _MODES
    clients = dict(client) if isinstance(client, Mapping) else dict.fromkeys(names, client)
    if not clients:
        raise ConfigError("no client to wrap; pass one, or {mode: client}")
    models = dict(model) if isinstance(model, Mapping) else dict.fromkeys(clients, model)
    if nobody := models.keys() - clients.keys():
        raise ConfigError(f"no client for {', '.join(sorted(nobody))}", key="model")
    modes = tuple(_mode(str(name), one, models.get(name, "")) for name, one in clients.items())
    placeholder = {"modes": {"wrapped": {"targets": [{"kind": "callable"}]}}}
    return replace(Config.from_dict({**tables, **placeholder}), modes=modes)


def _mode(name: str, client: object, model: str) -> ModeOptions:
    natural = profile(name) or {}
    return ModeOptions(
        name=name,
        targets=(TargetOptions(kind="callable", model=model, options={"client": client}),),
        deadline_s=natural.get("deadline_s", 180.0),
        first_token_s=natural.get("first_token_s", 12.0),
        thinking=natural.get("thinking"),
        sampling=natural.get("sampling", {}),
    )
