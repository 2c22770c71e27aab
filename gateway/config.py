"""config.toml -> frozen options. Unknown keys, wrong types and units are errors with a remedy.

Each table's options stand at the top of the file they configure; this file only gathers them.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from gateway.errors import ConfigError
from gateway.middleware.admission import AdmissionOptions
from gateway.modes import ModeOptions, TargetOptions
from gateway.policies.budget import BudgetOptions
from gateway.policies.phases import CircuitOptions
from gateway.policies.ttl import CacheOptions
from gateway.registry import KINDS, TRANSPORTS

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackOptions:
    """Where ratings are kept: `[feedback]`.

    Attributes:
        path: an SQLite file, made on the first rating; ":memory:" forgets at exit.
    """

    path: str = "feedback.sqlite"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Where the HTTP service listens: `[server]`.

    Attributes:
        host: address; loopback only unless keys are configured.
        port: TCP port, 0 picks a free one.
    """

    host: str = "127.0.0.1"
    port: int = 8080


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything a gateway can be told. Each part documents its own keys.

    Attributes:
        modes: best first: the ladder.
        source: the file it came from, None if it was built in code.
    """

    modes: tuple[ModeOptions, ...]
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
            return _config(_expand(tables, ""), source)
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
    for name in tables:
        if name != "modes" and name not in parts:
            raise _unknown(name, ["modes", *parts], None)
    modes = tables.get("modes", {})
    if not isinstance(modes, Mapping):
        raise ConfigError("expected tables such as [modes.creative]", key="modes")
    read: dict[str, Any] = {
        name: _options(options, tables[name], name)
        for name, options in parts.items()
        if name in tables
    }
    return Config(
        modes=tuple(_mode(name, table) for name, table in modes.items()), source=source, **read
    )


def _mode(name: str, table: Any) -> ModeOptions:
    place = f"modes.{name}"
    if not isinstance(table, Mapping):
        raise ConfigError("expected a table", table=place)
    own = {f.name for f in fields(ModeOptions)} - {"name", "sampling", "targets"}
    known = sorted(own | _SAMPLING | {"targets"})
    sampling = {key: value for key, value in table.items() if key in _SAMPLING}
    for key in table:
        if key not in known:
            raise _unknown(key, known, place)
    targets = table.get("targets", [])
    if not isinstance(targets, list):
        raise ConfigError(f"write [[{place}.targets]], in double brackets", table=place)
    options = _options(ModeOptions, {k: table[k] for k in own if k in table}, place, name=name)
    return replace(
        options,
        sampling=sampling,
        targets=tuple(_target(t, f"{place}.targets[{i}]") for i, t in enumerate(targets)),
    )


def _target(table: Any, place: str) -> TargetOptions:
    if isinstance(table, Mapping) and "kind" not in table:
        raise ConfigError(f"missing; one of {', '.join(sorted(KINDS))}", table=place, key="kind")
    target = _options(TargetOptions, table, place)
    if target.kind not in KINDS:
        raise _unknown_value(target.kind, KINDS, place, "kind")
    if target.transport not in TRANSPORTS:
        raise _unknown_value(target.transport, TRANSPORTS, place, "transport")
    return target


# -- one table ------------------------------------------------------------------------------

_SAMPLING = frozenset(
    {
        "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
        "repetition_penalty", "max_tokens", "max_completion_tokens", "seed", "stop",
        "reasoning_effort", "thinking_budget", "logit_bias", "response_format",
    }
)  # fmt: skip
"""Body fields a mode may set for callers who left them out."""

_BETWEEN: dict[str, tuple[float, float]] = {
    "failure_threshold": (1, math.inf),
    "failure_ratio": (0, 1),
    "minimum_throughput": (1, math.inf),
    "break_growth": (1, math.inf),
    "max_in_flight": (1, math.inf),
    "max_bytes": (0, math.inf),
    "max_queue": (0, math.inf),
    "tokens": (0, math.inf),
    "success_refund": (0, math.inf),
    "weight": (1e-6, math.inf),
    "context_window": (0, math.inf),
    "port": (0, 65535),
}
_POSITIVE_S = frozenset(
    {"deadline_s", "first_token_s", "stall_s", "connect_s", "headers_s", "failure_window_s",
     "sampling_duration_s", "probe_lease_s"}
)  # fmt: skip
_ONE_OF = {"ramp": ("linear", "cosine")}


def _options(kind: type[_T], table: Any, place: str, **given: Any) -> _T:
    """Fill a dataclass of options from a TOML table, checking names, types, units and ranges."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"expected a table, got {table!r}", table=place)
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    values = dict(given)
    for key, value in table.items():
        if key not in known:
            raise _unknown(key, list(known), place)
        values[key] = _checked(key, value, hints[key], place)
    for name, f in known.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError("missing", table=place, key=name)
    return kind(**values)


def _checked(key: str, value: Any, hint: Any, place: str) -> Any:
    accepted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    origin = typing.get_origin(accepted[0]) or accepted[0]
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    right = isinstance(value, origin) and not (isinstance(value, bool) and origin is not bool)
    if not right:
        raise ConfigError(_expected(key, value, origin), table=place, key=key)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"expected a finite number, got {value}", table=place, key=key)
    if key.endswith("_s"):
        low, high = (1e-3 if key in _POSITIVE_S else 0.0), math.inf
    else:
        low, high = _BETWEEN.get(key, (-math.inf, math.inf))
    if isinstance(value, (int, float)) and not low <= value <= high:
        bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ConfigError(f"expected {bounds}, got {value:g}", table=place, key=key)
    if key in _ONE_OF and value not in _ONE_OF[key]:
        raise _unknown_value(value, _ONE_OF[key], place, key)
    return value


def _expected(key: str, value: Any, origin: type) -> str:
    if key.endswith("_s"):
        return f"expected seconds as a number, such as {key} = 30, got {value!r}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    return f"expected {names.get(origin, 'a table')}, got {value!r}"


def _unknown(key: str, known: list[str], place: str | None) -> ConfigError:
    stem = re.sub(r"_(ms|sec|secs|seconds|min|minutes|h|hours)$", "", key)
    if f"{stem}_s" in known:
        hint = f"; write {stem}_s, in seconds"
    else:
        close = difflib.get_close_matches(key, known, 1)
        hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
    return ConfigError(f"unknown key{hint}", table=place, key=key)


def _unknown_value(value: Any, known: typing.Iterable[str], place: str, key: str) -> ConfigError:
    close = difflib.get_close_matches(str(value), list(known), 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ConfigError(
        f"expected one of {', '.join(sorted(known))}, got {value!r}{hint}", table=place, key=key
    )


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def _expand(value: Any, place: str) -> Any:
    """Replace `${NAME}` and `${NAME:-default}` in every string, after parsing."""
    if isinstance(value, Mapping):
        return {k: _expand(v, f"{place}.{k}" if place else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, f"{place}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = os.environ.get(name) or default
        if found is None:
            table, _, key = place.rpartition(".")
            raise ConfigError(
                f"environment variable {name} is not set; export it or write ${{{name}:-default}}",
                table=table or None,
                key=key,
            )
        return found

    return _VARIABLE.sub(variable, value)
