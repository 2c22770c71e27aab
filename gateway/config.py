"""config.toml -> frozen options. Unknown keys, wrong types and units are errors with a remedy.

Each table's options stand at the top of the file they configure; this file only gathers them.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gateway.config_tables import expand, options, unknown, unknown_value
from gateway.errors import ConfigError
from gateway.middleware.admission import AdmissionOptions
from gateway.modes import ModeOptions, TargetOptions
from gateway.policies.budget import BudgetOptions
from gateway.policies.keys import KeyOptions
from gateway.policies.phases import CircuitOptions
from gateway.policies.ttl import CacheOptions
from gateway.registry import KINDS, TRANSPORTS
from gateway.server.options import ServerOptions

SAMPLING = frozenset(
    {
        "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
        "repetition_penalty", "max_tokens", "max_completion_tokens", "seed", "stop",
        "reasoning_effort", "thinking_budget", "logit_bias", "response_format",
    }
)  # fmt: skip
"""Body fields a mode may set for callers who left them out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackOptions:
    """Where ratings are kept: `[feedback]`.

    Attributes:
        path: an SQLite file, made on the first rating; ":memory:" forgets at exit.
    """

    path: str = "feedback.sqlite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything a gateway can be told. Each part documents its own keys.

    Attributes:
        modes: best first: the ladder.
        embeddings: who embeds; targets of the same model stand in for one another.
        aliases: other names for modes and models, such as `"gpt-4o" = "creative"`.
        keys: who may call the HTTP service, and how much; none means this machine only.
        source: the file it came from, None if it was built in code.
    """

    modes: tuple[ModeOptions, ...]
    embeddings: tuple[TargetOptions, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[KeyOptions, ...] = ()
    circuit: CircuitOptions = field(default_factory=CircuitOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    admission: AdmissionOptions = field(default_factory=AdmissionOptions)
    feedback: FeedbackOptions = field(default_factory=FeedbackOptions)
    server: ServerOptions = field(default_factory=ServerOptions)
    source: str | None = None

    def __post_init__(self) -> None:
        names = [mode.name for mode in self.modes]
        if not names:
            raise ConfigError(
                "no modes; add a [modes.NAME] table with one [[modes.NAME.targets]]",
                file=self.source,
                table="modes",
            )
        if len(set(names)) < len(names):
            raise ConfigError(f"mode names must differ, got {names}", file=self.source)
        for mode in self.modes:
            if not mode.targets:
                raise ConfigError(
                    "a mode needs at least one target; add [[modes.NAME.targets]] with kind = ...",
                    file=self.source,
                    table=f"modes.{mode.name}",
                    key="targets",
                )

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str] = "config.toml") -> Config:
        """Read a configuration file.

        Raises:
            ConfigError: the file is missing or no TOML, a key is unknown, a value has the wrong
                type, unit or range, or an environment variable it names is not set.
        """
        file = os.fspath(path)
        try:
            text = Path(file).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(
                "no such file; copy config.toml from the project", file=file
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot be read: {error}", file=file) from None
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"is not valid TOML: {error}", file=file) from None
        return cls.from_dict(tables, source=file)

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any], *, source: str | None = None) -> Config:
        """Read a configuration from nested dicts, as TOML has them.

        Raises:
            ConfigError: see `from_toml`.
        """
        try:
            return _config(expand(tables, ""), source)
        except ConfigError as error:
            if error.file or not source:
                raise
            raise ConfigError(error.reason, file=source, table=error.table, key=error.key) from None


def _config(tables: Mapping[str, Any], source: str | None) -> Config:
    parts: dict[str, type] = {
        "circuit": CircuitOptions,
        "cache": CacheOptions,
        "budget": BudgetOptions,
        "admission": AdmissionOptions,
        "feedback": FeedbackOptions,
        "server": ServerOptions,
    }
    others = ["modes", "embeddings", "aliases", "keys"]
    for name, table in tables.items():
        if name not in parts and name not in others:
            raise unknown(name, [*others, *parts], None)
        if not isinstance(table, Mapping):
            raise ConfigError(f"expected a table, got {table!r}", table=name)
    read: dict[str, Any] = {
        name: options(kind, tables[name], name) for name, kind in parts.items() if name in tables
    }
    return Config(
        modes=tuple(_mode(name, table) for name, table in tables.get("modes", {}).items()),
        embeddings=_embeddings(tables.get("embeddings", {})),
        aliases=_aliases(tables.get("aliases", {})),
        keys=tuple(
            options(KeyOptions, table, f"keys.{name}", name=name)
            for name, table in tables.get("keys", {}).items()
        ),
        source=source,
        **read,
    )


def _aliases(table: Mapping[str, Any]) -> Mapping[str, str]:
    for name, stands_for in table.items():
        if not isinstance(stands_for, str):
            raise ConfigError(
                f"expected a mode's or model's name in quotes, got {stands_for!r}",
                table="aliases",
                key=name,
            )
    return table


def _embeddings(table: Mapping[str, Any]) -> tuple[TargetOptions, ...]:
    for name in table:
        if name != "targets":
            raise unknown(name, ["targets"], "embeddings")
    return _targets(table.get("targets", []), "embeddings")


def _mode(name: str, table: Any) -> ModeOptions:
    place = f"modes.{name}"
    if not isinstance(table, Mapping):
        raise ConfigError("expected a table", table=place)
    own = {f.name for f in fields(ModeOptions)} - {"name", "sampling", "targets"}
    known = sorted(own | SAMPLING | {"targets"})
    sampling = {key: value for key, value in table.items() if key in SAMPLING}
    for key in table:
        if key not in known:
            raise unknown(key, known, place)
    mode = options(ModeOptions, {k: table[k] for k in own if k in table}, place, name=name)
    return replace(
        mode,
        sampling=sampling,
        targets=_targets(table.get("targets", []), place),
    )


def _targets(tables: Any, place: str) -> tuple[TargetOptions, ...]:
    if not isinstance(tables, list):
        raise ConfigError(f"write [[{place}.targets]], in double brackets", table=place)
    return tuple(_target(table, f"{place}.targets[{i}]") for i, table in enumerate(tables))


def _target(table: Any, place: str) -> TargetOptions:
    if isinstance(table, Mapping) and "kind" not in table:
        raise ConfigError(f"missing; one of {', '.join(sorted(KINDS))}", table=place, key="kind")
    target = options(TargetOptions, table, place)
    if target.kind not in KINDS:
        raise unknown_value(target.kind, KINDS, place, "kind")
    if target.transport not in TRANSPORTS:
        raise unknown_value(target.transport, TRANSPORTS, place, "transport")
    return target
