"""Who is compared, and how each is started, plain or with a backup to fall back to."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.peers import binary, portkey
from tests.benchmarks.report import ROOT
from tests.benchmarks.server.processes import Models, Server

_NGINX = """
daemon off; worker_processes 1; pid nginx.pid; error_log nginx.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3;
  uwsgi_temp_path t4; scgi_temp_path t5; keepalive_requests 1000000;
  upstream stub {{ server 127.0.0.1:{stub}; keepalive 1024; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://stub; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""
_OURS = """
[modes.creative]
[[modes.creative.targets]]
kind = "openai"
base_url = "http://127.0.0.1:{0}/v1"
model = "pretended"
[modes.fast]
[[modes.fast.targets]]
kind = "openai"
base_url = "http://127.0.0.1:{1}/v1"
model = "pretended"
stream_upstream = false
[server]
port = {port}
log = "json"
"""
# As in the library's failures: an attempt may take 1 s, and 0.3 s without a first token is slow.
_OURS_FAILOVER = """
[circuit]
slow_s = 0.3
early_probe_s = 5
"""
_LITELLM = """
model_list:
  - model_name: primary
    litellm_params:
      model: openai/pretended
      api_base: http://127.0.0.1:{0}/v1
      api_key: unused
  - model_name: backup
    litellm_params:
      model: openai/pretended
      api_base: http://127.0.0.1:{1}/v1
      api_key: unused
"""
_LITELLM_FAILOVER = """
router_settings:
  fallbacks: [{primary: [backup]}]
  timeout: 1
  num_retries: 1
  retry_after: 0
  allowed_fails: 3
  cooldown_time: 5
"""
# request_timeout is its only limit on an answer in one piece, and spans the fallback, too.
_FERROGW = "strategy: {mode: fallback}\ntargets:\n  - virtual_key: openai\n"
_FERROGW_FAILOVER = """
request_timeout: 3s
strategy: {mode: fallback}
targets:
  - virtual_key: openai
    circuit_breaker: {failure_threshold: 5, success_threshold: 1, timeout: 5s}
  - virtual_key: deepseek
    model_map: {gpt-4o-mini: deepseek-chat}
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server runs, and before what.

    Args:
        stubs: the ports of the primary and of the backup.
        core: its core.
        folder: an empty one of its own.
        failover: whether it is to fall back to the backup, an attempt lasting 1 s at most.
    """

    stubs: Sequence[int]
    core: int
    folder: Path
    failover: bool = False


Start = Callable[[Place], Server | None]
"""A server, or None if it is not installed."""


def _port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def nginx(place: Place) -> Server | None:
    """The limit: no features."""
    if shutil.which("nginx") is None or place.failover:
        return None
    port, folder = _port(), place.folder
    (folder / "nginx.conf").write_text(_NGINX.format(port=port, stub=place.stubs[0]))
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    return Server(command, port, models=Models("pretended"), core=place.core, folder=folder)


def bare(place: Place) -> Server | None:
    """Uvicorn with our own HTTP client and JSON both ways, and nothing else."""
    if place.failover:
        return None
    port = _port()
    command = [sys.executable, "-m", "tests.benchmarks.server.bare", str(port)]
    return Server(
        [*command, str(place.stubs[0])],
        port,
        models=Models("pretended"),
        core=place.core,
        folder=place.folder,
        environment={"PYTHONPATH": str(ROOT)},
    )


def ours(runner: str) -> Start:
    """The gateway with everything on; streams always from upstream in `creative`, as shipped."""

    def start(place: Place) -> Server | None:
        port = _port()
        config = place.folder / "config.toml"
        backup = place.stubs[1 if place.failover else 0]  # else everyone asks the same stub
        text = _OURS.format(place.stubs[0], backup, port=port)
        if place.failover:
            text = (
                text.replace(".creative]\n[", ".creative]\nfirst_token_s = 1\n[") + _OURS_FAILOVER
            )
        config.write_text(text)
        command = [sys.executable, "-m", "gateway", "serve", "-c", str(config), "--runner", runner]
        return Server(
            command,
            port,
            models=Models("creative" if place.failover else "fast", "creative"),
            core=place.core,
            folder=place.folder,
            environment={"PYTHONPATH": str(ROOT)},
        )

    return start


def ferrogw(place: Place) -> Server | None:
    """A Go gateway from a wheel. By default it limits each address to a few requests a second."""
    program = binary("ferrogw", "ferrogw")
    if program is None:
        return None
    port, config = _port(), place.folder / "config.yaml"
    config.write_text(_FERROGW_FAILOVER if place.failover else _FERROGW)
    environment = {
        "GATEWAY_CONFIG": str(config),
        "MASTER_KEY": "fgw_bench",
        "OPENAI_API_KEY": "sk-unused",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{place.stubs[0]}",
        "PORT": str(port),
        "RATE_LIMIT_RPS": "0",
        "GOMAXPROCS": "1",
    }
    if place.failover:
        environment["DEEPSEEK_API_KEY"] = "sk-unused"
        environment["DEEPSEEK_BASE_URL"] = f"http://127.0.0.1:{place.stubs[1]}"
    return Server(
        [str(program), "serve"],
        port,
        models=Models("gpt-4o-mini"),
        core=place.core,
        folder=place.folder,
        headers={"authorization": "Bearer fgw_bench"},
        environment=environment,
    )


def by_portkey(place: Place) -> Server | None:
    """A TypeScript gateway from npm, told in a header where to go."""
    script = portkey()
    if script is None or shutil.which("node") is None:
        return None
    port = _port()
    hosts = [f"http://127.0.0.1:{stub}/v1" for stub in place.stubs[:2]]
    target = {"provider": "openai", "api_key": "unused", "request_timeout": 1000}
    targets = [{**target, "custom_host": host} for host in hosts]
    plain = {
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": hosts[0],
        "authorization": "Bearer unused",
    }
    config = json.dumps({"strategy": {"mode": "fallback"}, "targets": targets})
    return Server(
        ["node", str(script), f"--port={port}", "--headless"],
        port,
        models=Models("pretended"),
        core=place.core,
        folder=place.folder,
        headers={"x-portkey-config": config} if place.failover else plain,
        # Without it, it refuses upstreams on the loopback.
        environment={"TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"},
    )


def litellm(place: Place) -> Server | None:
    """LiteLLM's proxy."""
    program = binary("litellm", "litellm")
    if program is None:
        return None
    port, config = _port(), place.folder / "config.yaml"
    failover = _LITELLM_FAILOVER if place.failover else ""
    config.write_text(_LITELLM.format(*place.stubs[:2]) + failover)
    environment = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    return Server(
        [str(program), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"],
        port,
        models=Models("primary"),
        core=place.core,
        folder=place.folder,
        environment=environment,
    )


NGINX, BARE, OURS, GRANIAN = "nginx", "uvicorn + bare client", "gateway", "gateway on granian"
FERROGW, PORTKEY, LITELLM = "ferrogw", "Portkey", "LiteLLM proxy"
PEERS = (FERROGW, PORTKEY, LITELLM)
SUBJECTS: dict[str, Start] = {
    NGINX: nginx,
    BARE: bare,
    OURS: ours("uvicorn"),
    GRANIAN: ours("granian"),
    FERROGW: ferrogw,
    PORTKEY: by_portkey,
    LITELLM: litellm,
}
