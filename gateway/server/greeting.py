"""What a service says of itself when it starts."""

from __future__ import annotations

import json
import shlex
import socket

from gateway import __version__
from gateway.config import Config
from gateway.modes import TargetOptions
from gateway.providers.address import shown
from gateway.registry import resolve

_ASK = "Name three woody perfume notes."


def greeting(config: Config, url: str) -> str:
    """Where it listens, a line to try it with, and who answers in which mode."""
    body = {"model": config.modes[0].name, "messages": [{"role": "user", "content": _ASK}]}
    key = ' -H "authorization: Bearer $GATEWAY_KEY"' if config.keys else ""
    lines = [
        f"downshift-gateway {__version__} serves {config.source or 'its configuration'} at {url}",
        "",
        f"  dashboard  {url}/",
        f"  try it     curl {url}/v1/chat/completions{key}"
        f" -H 'content-type: application/json' -d {shlex.quote(json.dumps(body))}",
    ]
    if not config.keys:
        lines.append(
            "  keys       none, so only this machine is answered; see [keys] in config.toml"
        )
    for number, mode in enumerate(config.modes):
        who = ", ".join(_who(resolve(target, mode.name)) for target in mode.targets)
        lines.append(f"  {'modes' if number == 0 else '':<9}  {mode.name:<10} {who}")
    return "\n".join([*lines, "", ""])


def _who(target: TargetOptions) -> str:
    if target.kind == "local":
        return "the embedded model"
    model = f"/{target.model}" if target.model else ""
    where = shown(target.base_url)
    return f"{target.kind}{model}{f' at {where}' if where else ''}"


def address(sock: socket.socket) -> str:
    """The URL under which this machine reaches a listening socket."""
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - all addresses, this one among them
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
