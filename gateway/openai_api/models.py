"""What may stand in `model`: a mode, `auto`, an alias, or a concrete model of some mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.openai_api.errors import ModelNotFound, PermissionDenied
from gateway.openai_api.words import JSON, Call, Caller, Reply, Routes

_encode = msgspec.json.Encoder().encode


class Models:
    """Resolves names to modes and lists them.

    Args:
        gateway: has the modes and their targets.
        default_mode: what `auto`, and no name at all, stand for; None is the best mode.
        strict: whether a name nobody knows is an error, or stands for the default mode, too.
    """

    def __init__(self, gateway: Any, default_mode: str | None, *, strict: bool) -> None:
        self._gateway = gateway
        self._default_mode = default_mode
        self._strict = strict
        self._config: Any = None
        self._names: Mapping[str, str] = {}
        self._targets: Mapping[str, list[str]] | None = None

    def routes(self) -> Routes:
        """What this file answers."""
        return {("GET", "/models"): self.list_all, ("GET", "/models/"): self.show}

    def mode(self, name: str, caller: Caller) -> str:
        """The mode that `name` asks for.

        A concrete model asks for the best mode that has it; the ladder below it stays in place,
        and the answer's `model` says who really answered.

        Raises:
            ModelNotFound: nobody knows the name.
            PermissionDenied: the caller's key may not ask for that mode.
        """
        mode = self._find(name)
        if caller.modes is not None and mode not in caller.modes:
            allowed = ", ".join(sorted(caller.modes))
            raise PermissionDenied(
                f"this key may not ask for {mode}; it may ask for {allowed}", param="model"
            )
        return mode

    def _find(self, name: str) -> str:
        config = self._gateway.config
        if config is not self._config:
            self._read(config)
        known = self._names.get(name)
        if known is not None:
            return known
        name = config.aliases.get(name, name)
        for mode, models in self._concrete().items():
            if name in models:
                return mode
        if not self._strict:
            return self._names[""]
        modes = self._gateway.modes
        known = ", ".join([*modes, "auto", *self._gateway.config.aliases])
        raise ModelNotFound(
            f"the model {name[:100]!r} does not exist; ask for {known}", param="model"
        )

    def _concrete(self) -> Mapping[str, list[str]]:
        """The models of each mode, read once for each configuration."""
        config = self._gateway.config
        if config is not self._config:
            self._read(config)
        if self._targets is None:
            modes: dict[str, Any] = self._gateway.status()["modes"]
            self._targets = {
                mode: [target["model"] for target in of["targets"]] for mode, of in modes.items()
            }
        return self._targets

    def _read(self, config: Any) -> None:
        """Learn the names of a configuration: the path of every request goes by them."""
        modes: list[str] = self._gateway.modes
        default = self._default_mode or modes[0]
        names = {"": default, "auto": default} | {mode: mode for mode in modes}
        aliases = {alias: names.get(name) for alias, name in config.aliases.items()}
        # One that stands for a concrete model hides a mode of its name, and is looked up there.
        self._names = {n: mode for n, mode in {**names, **aliases}.items() if mode is not None}
        self._config, self._targets = config, None

    async def list_all(self, call: Call) -> Reply:
        """`GET /models`: the modes, `auto`, the aliases, concrete models and those that embed."""
        return 200, [JSON], _encode({"object": "list", "data": self._all(call.caller)})

    async def show(self, call: Call) -> Reply:
        """`GET /models/{id}`; ids may contain slashes."""
        name = call.path.removeprefix("/models/")
        for model in self._all(call.caller):
            if model["id"] == name:
                return 200, [JSON], _encode(model)
        raise ModelNotFound(f"the model {name[:100]!r} does not exist", param="model")

    def _all(self, caller: Caller) -> list[dict[str, Any]]:
        concrete = self._concrete()
        ours = dict.fromkeys([*self._gateway.modes, "auto", *self._gateway.config.aliases])
        theirs = dict.fromkeys(model for of in concrete.values() for model in of if model)
        names = [name for name in {**ours, **theirs} if self._may(name, caller)]
        names += [
            model
            for model in dict.fromkeys(target.model for target in self._gateway.config.embeddings)
            if model and model not in names and (caller.modes is None or model in caller.modes)
        ]
        return [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "gateway" if name in ours else "upstream",
            }
            for name in names
        ]

    def _may(self, name: str, caller: Caller) -> bool:
        try:
            self.mode(name, caller)
        except (PermissionDenied, ModelNotFound):
            return False
        return True
