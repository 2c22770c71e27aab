"""What an error body says, whatever its shape: message, code, type; fit to be shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

MAX_WORDS = 500
"""Most characters of an upstream's own words that an error carries."""


class Words(NamedTuple):
    """What an error body says, whatever its shape."""

    message: str
    code: str = ""
    type: str = ""


def read(body: bytes) -> Words:
    """Read an error body: JSON of any shape, plain text, HTML. Never raises."""
    try:
        return read_object(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Words(_plain(body.decode("utf-8", "replace")))


def read_object(data: object) -> Words:
    """Parse order: `error` object, `error` text, flat, `detail`, anything else."""
    if not isinstance(data, dict):
        return Words(data if isinstance(data, str) else "")
    error = data.get("error")
    if isinstance(error, dict):
        return _flat(error)
    if isinstance(error, str):
        return Words(error, _text(data.get("code")), _text(data.get("error_type")))
    if "detail" in data and "message" not in data:
        return Words(_detail(data["detail"]))
    return _flat(data)


def _flat(error: dict[Any, Any]) -> Words:
    message = error.get("message")
    if not isinstance(message, str):
        message = _text(message) or _text(error.get("msg"))
    return Words(message, _text(error.get("code")), _text(error.get("type")))


def _detail(detail: object) -> str:
    """FastAPI's `detail`: a sentence, or a list of what is wrong where."""
    if not isinstance(detail, list):
        return _text(detail)
    found = [
        f"{'.'.join(map(str, item.get('loc', ())))}: {item.get('msg', '')}"
        for item in detail
        if isinstance(item, dict) and isinstance(item.get("loc", ()), list | tuple)
    ]
    return "; ".join(found) or _text(detail)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, RecursionError):
        return type(value).__name__


# Each try ends where the next could begin, or a page of nothing but `<` would take a second.
_TAG = re.compile(r"<(script|style)\b(?:(?!<\1\b).)*?</\1>|<[^<>]*>", re.DOTALL | re.IGNORECASE)

_SECRET = re.compile(
    r"""(?ix)
    \bbearer\s+ [^\s"',;]+
    | \b(?:sk|pk|rk|gsk|hf|xai)[-_] [\w*.\-]{6,}
    | \beyJ[\w-]+\.[\w.-]+
    | (?<=://) [^/@\s]+ (?=@)
    | (?:(?<=key)|(?<=token)|(?<=secret)|(?<=password)) ["']? \s*[:=]\s* ["']? [^\s"',;&]{4,}
    """
)


def _plain(text: str) -> str:
    """The words of a page without its markup."""
    return _TAG.sub(" ", text[: 16 * MAX_WORDS]) if "<" in text else text


def presentable(words: str, secrets: Sequence[str]) -> str:
    """An upstream's words on one line, bounded, without anything that looks like a credential."""
    for secret in secrets:
        words = words.replace(secret, "[redacted]")
    words = _SECRET.sub("[redacted]", words[: 4 * MAX_WORDS])
    words = " ".join(words.split())[:MAX_WORDS]
    if words.isprintable():
        return words
    return "".join(char if char.isprintable() else " " for char in words)  # no terminal obeys it
