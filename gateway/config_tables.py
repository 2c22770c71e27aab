"""One TOML table -> one dataclass of options: names, types, units and ranges are checked."""

from __future__ import annotations

import difflib
import math
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from gateway.errors import ConfigError

_T = TypeVar("_T")

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
    "workers": (1, 256),
    "max_body_bytes": (1024, math.inf),
    "max_connections": (1, math.inf),
    "requests_per_min": (0, math.inf),
    "tokens_per_min": (0, math.inf),
    "monthly_tokens": (0, math.inf),
    "concurrency": (0, math.inf),
    "priority": (0, 9),
}
_POSITIVE_S = frozenset(
    {"deadline_s", "first_token_s", "stall_s", "connect_s", "headers_s", "failure_window_s",
     "sampling_duration_s", "probe_lease_s", "header_s", "body_s", "keep_alive_s", "send_s",
     "stream_headers_s"}
)  # fmt: skip
# What may hold a secret, or one pasted into the wrong place: errors never quote it.
_SECRET = frozenset({"hash", "admin_key_hash", "headers", "options"})
_ONE_OF = {"ramp": ("linear", "cosine"), "log": ("json", "console", "off"),
           "runner": ("uvicorn", "granian")}  # fmt: skip


def options(kind: type[_T], table: Any, place: str, **given: Any) -> _T:
    """Fill a dataclass of options from a TOML table, checking names, types, units and ranges."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"expected a table, got {type(table).__name__}", table=place)
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    values = dict(given)
    for key, value in table.items():
        if key not in known:
            raise unknown(key, list(known), place)
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
    if origin is tuple and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
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
        raise unknown_value(value, _ONE_OF[key], place, key)
    return value


def _expected(key: str, value: Any, origin: type) -> str:
    if key in _SECRET:
        value = type(value)
    if key.endswith("_s"):
        return f"expected seconds as a number, such as {key} = 30, got {value!r}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string",
             tuple: "a list of strings"}  # fmt: skip
    return f"expected {names.get(origin, 'a table')}, got {value!r}"


def unknown(key: str, known: list[str], place: str | None) -> ConfigError:
    """The error for a key nobody reads; names the one that may have been meant."""
    stem = re.sub(r"_(ms|sec|secs|seconds|min|minutes|h|hours)$", "", key)
    if f"{stem}_s" in known:
        hint = f"; write {stem}_s, in seconds"
    else:
        close = difflib.get_close_matches(key, known, 1)
        hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
    return ConfigError(f"unknown key{hint}", table=place, key=key)


def unknown_value(value: Any, known: typing.Iterable[str], place: str, key: str) -> ConfigError:
    """The error for a value that is none of those known."""
    close = difflib.get_close_matches(str(value), list(known), 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ConfigError(
        f"expected one of {', '.join(sorted(known))}, got {value!r}{hint}", table=place, key=key
    )


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def expand(value: Any, place: str) -> Any:
    """Replace `${NAME}` and `${NAME:-default}` in every string, after parsing.

    Raises:
        ConfigError: a variable is not set, or an integer is longer than TOML's 64 bits.
    """
    if isinstance(value, Mapping):
        return {k: expand(v, f"{place}.{k}" if place else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [expand(v, f"{place}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, str):
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            table, _, key = place.rpartition(".")
            raise ConfigError("expected a number of 64 bits", table=table or None, key=key)
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
