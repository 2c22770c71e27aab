"""config.toml -> frozen options. Unknown keys, wrong types and units are errors with a remedy.

Each table's options stand at the top of the file they configure; this file only gathers them.
"""

from __future__ import annotations

import os
import sysconfig
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

from gateway.config_tables import expand, options, unknown, unknown_value
from gateway.errors import ConfigError
from gateway.middleware.admission import AdmissionOptions
from gateway.modes import ModeOptions, TargetOptions
from gateway.policies.budget import BudgetOptions
from gateway.policies.keys import KeyOptions, digest_of
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
        _check_keys(self, names)
        auto = self.server.default_mode
        if auto and auto not in names:
            raise unknown_value(auto, names, "server", "default_mode")

    @property
    def files(self) -> tuple[str, ...]:
        """The files it was read from: a change in any of them may mean another configuration."""
        if self.source is None:
            return ()
        more = self.server.keys_file
        return (self.source, _beside(self.source, more)) if more else (self.source,)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str] = "config.toml") -> Config:
        """Read a configuration file.

        Raises:
            ConfigError: the file is missing or no TOML, a key is unknown, a value has the wrong
                type, unit or range, or an environment variable it names is not set.
        """
        file = os.fspath(path)
        tables = _toml(file, f"copy {_template()} there, or name another")
        return cls.from_dict(tables, source=file)

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any], *, source: str | None = None) -> Config:
        """Read a configuration from nested dicts, as TOML has them.

        Raises:
            ConfigError: see `from_toml`.
        """
        try:
            return _config(expand(tables, ""), source)
        except RecursionError:
            raise ConfigError("tables or lists are nested too deep", file=source) from None
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
            raise ConfigError(f"expected a table, got {type(table).__name__}", table=name)
    read: dict[str, Any] = {
        name: options(kind, tables[name], name) for name, kind in parts.items() if name in tables
    }
    return Config(
        modes=tuple(_mode(name, table) for name, table in tables.get("modes", {}).items()),
        embeddings=_embeddings(tables.get("embeddings", {})),
        aliases=_aliases(tables.get("aliases", {})),
        keys=_all_keys(tables, read.get("server"), source),
        source=source,
        **read,
    )


def _toml(file: str, remedy: str) -> dict[str, Any]:
    try:
        text = Path(file).read_text(encoding="utf-8-sig")  # some editors put a mark before it
        return tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"no such file; {remedy}", file=file) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"is not valid TOML: {error}", file=file) from None
    except RecursionError:
        raise ConfigError("tables or lists are nested too deep", file=file) from None
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a zero byte in the path
        raise ConfigError(f"cannot be read: {error}", file=file) from None


def _template() -> str:
    """The commented configuration: in a checkout at its top, else where the wheel has put it."""
    checkout = Path(__file__).parents[1] / "config.toml"
    installed = Path(sysconfig.get_path("data"), "share", "downshift-gateway", "config.toml")
    return next((str(file) for file in (checkout, installed) if file.is_file()), "the project's")


def _beside(source: str | None, file: str) -> str:
    return str(Path(source).parent / file) if source else file


def _all_keys(
    tables: Mapping[str, Any], server: ServerOptions | None, source: str | None
) -> tuple[KeyOptions, ...]:
    """The keys of this file, and those of the file that `[server] keys_file` names."""
    keys = _keys(tables.get("keys", {}))
    if server is None or not server.keys_file:
        return keys
    file = _beside(source, server.keys_file)
    try:
        apart = expand(_toml(file, "make it, or empty [server] keys_file"), "")
        for name, table in apart.items():
            if name != "keys" or not isinstance(table, Mapping):
                raise ConfigError("expected nothing but [keys.NAME] tables", table=name)
        more = _keys(apart.get("keys", {}))
        for key in more:
            if key.name in {other.name for other in keys}:
                raise ConfigError(f"{source} has this table, too", table=f"keys.{key.name}")
    except ConfigError as error:
        if error.file:
            raise
        raise ConfigError(error.reason, file=file, table=error.table, key=error.key) from None
    return keys + more


def _keys(tables: Mapping[str, Any]) -> tuple[KeyOptions, ...]:
    return tuple(_key(name, table) for name, table in tables.items())


def _key(name: str, table: Any) -> KeyOptions:
    place = f"keys.{name}"
    if isinstance(table, Mapping) and isinstance(table.get("expires"), date):
        table = {**table, "expires": table["expires"].isoformat()}  # TOML has dates of its own
    return options(KeyOptions, table, place, name=name)


def _check_keys(config: Config, modes: list[str]) -> None:
    """Raises ConfigError unless each key is told from all others and may ask for what there is."""
    admin = config.server.admin_key_hash
    if admin:
        try:
            digest_of(admin)
        except ValueError as error:
            raise ConfigError(
                str(error), file=config.source, table="server", key="admin_key_hash"
            ) from None
    seen = {admin: "[server] admin_key_hash"}
    for key in config.keys:
        place = f"keys.{key.name}"
        if key.hash in seen:
            raise ConfigError(f"is that of {seen[key.hash]}, too", table=place, key="hash")
        seen[key.hash] = f"[{place}]"
        for mode in key.modes:
            if mode not in modes:
                raise unknown_value(mode, modes, place, "modes")


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
