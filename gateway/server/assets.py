"""The dashboard's files: read once, served from memory, nothing from anywhere else."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Final

from gateway.openai_api.errors import NotFound
from gateway.openai_api.words import Call, Reply

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

SAFE: Final = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
]
"""The page runs nothing inline, loads nothing foreign and cannot be framed."""


class Assets:
    """The files of `gateway/server/page`."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[list[tuple[str, str]], bytes]] = {}
        for file in resources.files("gateway.server").joinpath("page").iterdir():
            content_type = _TYPES.get("." + file.name.rpartition(".")[2])
            if content_type is not None:
                body = file.read_bytes()
                tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
                headers = [("content-type", content_type), ("etag", tag)]
                self._files[file.name] = ([*headers, ("cache-control", "no-cache"), *SAFE], body)

    def reply(self, name: str, call: Call) -> Reply:
        """One file; 304 if the caller has it already, for it asks each time.

        Raises:
            NotFound: there is no such file.
        """
        if name not in self._files:
            raise NotFound(f"there is no {name[:200]} here")
        headers, body = self._files[name]
        tags = call.headers.get("if-none-match", "")
        if dict(headers)["etag"] in (tag.strip().removeprefix("W/") for tag in tags.split(",")):
            return 304, headers, b""
        return 200, headers, body
