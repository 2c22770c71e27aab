"""The peers: which are here, and how they come here (`make bench-peers`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).resolve().parents[2] / ".peers"
"""One folder each, of their own: their requirements do not agree with ours."""

ABSENT = "not installed: make bench-peers"

_PIP = ("bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check")
_OTEL = ("opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp")
_PINNED: dict[str, tuple[str, ...]] = {
    "ferrogw": ("ferrogw==1.5.10",),
    # Without OpenTelemetry beside it the proxy tries to import it again on each request.
    "litellm": ("litellm[proxy]==1.106.2", "uvloop", *_OTEL),
    "tensorzero": ("tensorzero==2026.6.0", "uvloop"),
}
_PORTKEY = "@portkey-ai/gateway@1.15.2"
_STARTER = "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
# As published it answers every stream with 500 (`TypeError: immutable`, Node 20): it hands fetch's
# own headers on to a server that changes them. A copy of them is all it takes.
_BROKEN = ":new Response(p,e)}"
_MENDED = ":new Response(p,{status:e.status,headers:new Headers(e.headers)})}"


def binary(peer: str, name: str) -> Path | None:
    """A program of a Python peer, None if it is not installed."""
    path = PEERS / peer / "bin" / name
    return path if path.exists() else None


def portkey() -> Path | None:
    """Portkey's start script with its streams mended, None if it is not installed."""
    script = PEERS / _STARTER
    if not script.exists():
        return None
    mended = script.with_name("start-server-mended.js")
    text = script.read_text(encoding="utf-8").replace(_BROKEN, _MENDED, 1)
    if not mended.exists() or mended.read_text(encoding="utf-8") != text:
        mended.write_text(text, encoding="utf-8")
    return mended


def install() -> None:
    """From PyPI and npm, at the versions the figures were taken with.

    Raises:
        subprocess.CalledProcessError: a registry or npm is not there.
    """
    PEERS.mkdir(exist_ok=True)
    for name, packages in _PINNED.items():
        folder = PEERS / name
        if not (folder / "bin/python").exists():
            _run(sys.executable, "-m", "venv", str(folder))
        _run(str(folder / _PIP[0]), *_PIP[1:], *packages)
    _run("npm", "install", "--silent", "--prefix", str(PEERS / "portkey"), _PORTKEY)


def versions() -> str:
    """What is installed, in words."""
    found = [packages[0] for name, packages in _PINNED.items() if (PEERS / name).exists()]
    if portkey() is not None:
        found.append(f"{_PORTKEY} (streams mended)")
    return ", ".join(found) or ABSENT


def _run(*command: str) -> None:
    print(" ".join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=True, cwd=PEERS)
