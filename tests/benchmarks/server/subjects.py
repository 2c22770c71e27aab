"""Who is compared, and how each is started. A peer that is not installed is left out."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.server.processes import Server

PEERS = Path(".peers")
"""Where `python -m tests.benchmarks.server --install-peers` puts them."""

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
base_url = "http://127.0.0.1:{stub}/v1"
model = "pretended"
stream_upstream = {streamed}
[modes.fast]
[[modes.fast.targets]]
kind = "openai"
base_url = "http://127.0.0.1:{stub}/v1"
model = "pretended"
[server]
port = {port}
log = "json"
"""
_LITELLM = """
model_list:
  - model_name: pretended
    litellm_params:
      model: openai/pretended
      api_base: http://127.0.0.1:{stub}/v1
      api_key: unused
"""

Start = Callable[[int, int, Path], Server | None]
"""From the stub's port, the core and an empty folder to a server, or None if not installed."""


def _port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def nginx(stub: int, core: int, folder: Path) -> Server | None:
    """The limit: no features."""
    if shutil.which("nginx") is None:
        return None
    port = _port()
    (folder / "nginx.conf").write_text(_NGINX.format(port=port, stub=stub))
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    return Server(command, port, model="pretended", core=core, folder=folder)


def bare(stub: int, core: int, folder: Path) -> Server | None:
    """Uvicorn with our own HTTP client and JSON both ways, and nothing else."""
    port = _port()
    script = Path(__file__).with_name("bare.py").resolve()
    command = [sys.executable, str(script), str(port), str(stub)]
    root = str(Path(__file__).resolve().parents[3])
    environment = {"PYTHONPATH": root}
    return Server(
        command, port, model="pretended", core=core, folder=folder, environment=environment
    )


def ours(*, streamed: bool = False, runner: str = "uvicorn") -> Start:
    """The gateway, everything on; `streamed` asks upstream for streams always, as it is shipped."""

    def start(stub: int, core: int, folder: Path) -> Server | None:
        port = _port()
        flag = "true" if streamed else "false"
        config = folder / "config.toml"
        config.write_text(_OURS.format(stub=stub, port=port, streamed=flag))
        command = [sys.executable, "-m", "gateway", "serve", "-c", str(config)]
        if runner != "uvicorn":
            command += ["--runner", runner]
        root = str(Path(__file__).resolve().parents[3])
        environment = {"PYTHONPATH": root}
        return Server(
            command, port, model="creative", core=core, folder=folder, environment=environment
        )

    return start


def ferrogw(stub: int, core: int, folder: Path) -> Server | None:
    """A Go gateway from a wheel. By default it limits each address to a few requests a second."""
    binary = PEERS / "ferrogw/bin/ferrogw"
    if not binary.exists():
        return None
    port = _port()
    (folder / "config.yaml").write_text(
        "strategy: {mode: fallback}\ntargets:\n  - virtual_key: openai\n"
    )
    environment = {
        "GATEWAY_CONFIG": str(folder / "config.yaml"),
        "MASTER_KEY": "fgw_bench",
        "OPENAI_API_KEY": "sk-unused",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{stub}",
        "PORT": str(port),
        "RATE_LIMIT_RPS": "0",
        "GOMAXPROCS": "1",
    }
    return Server(
        [str(binary.resolve()), "serve"],
        port,
        model="gpt-4o-mini",
        core=core,
        folder=folder,
        headers={"authorization": "Bearer fgw_bench"},
        environment=environment,
    )


def portkey(stub: int, core: int, folder: Path) -> Server | None:
    """A TypeScript gateway from npm."""
    script = PEERS / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
    if not script.exists() or shutil.which("node") is None:
        return None
    port = _port()
    return Server(
        ["node", str(script.resolve()), f"--port={port}", "--headless"],
        port,
        model="pretended",
        core=core,
        folder=folder,
        headers={
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"http://127.0.0.1:{stub}/v1",
            "authorization": "Bearer unused",
        },
        # Without it, it refuses upstreams on the loopback.
        environment={"TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"},
    )


def litellm(stub: int, core: int, folder: Path) -> Server | None:
    """LiteLLM's proxy, OpenTelemetry beside it: without, it retries an import each request."""
    binary = PEERS / "litellm/bin/litellm"
    if not binary.exists():
        return None
    port = _port()
    (folder / "config.yaml").write_text(_LITELLM.format(stub=stub))
    command = [str(binary.resolve()), "--config", str(folder / "config.yaml"), "--port", str(port)]
    environment = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    return Server(
        [*command, "--host", "127.0.0.1"],
        port,
        model="pretended",
        core=core,
        folder=folder,
        environment=environment,
    )


OURS = "gateway"
WHOLE = "gateway, upstream not streamed"
SUBJECTS: dict[str, Start] = {
    "nginx (the limit)": nginx,
    "uvicorn, bare client": bare,
    OURS: ours(streamed=True),
    WHOLE: ours(),
    "gateway on granian": ours(streamed=True, runner="granian"),
    "ferrogw": ferrogw,
    "portkey": portkey,
    "litellm proxy": litellm,
}


_RUNS = itertools.count()


def lua(server: Server, *, stream: bool) -> str:
    """A script for wrk: every question is new, so that nobody answers from a cache."""
    body = json.dumps({"model": server.model, "stream": stream, "temperature": 0.2})[:-1]
    headers = "".join(f'wrk.headers["{k}"] = "{v}"\n' for k, v in server.headers.items())
    return f"""
wrk.method = "POST"
{headers}
local count = 0
function request()
  count = count + 1
  local body = '{body}, "messages": [{{"role": "user", "content": "What is the capital of '
    .. 'country {next(_RUNS)}-' .. count .. '?"}}]}}'
  return wrk.format(nil, nil, nil, body)
end
function done(s, l, r)
  io.write(string.format("RESULT %d %d %d %d %d\\n", s.requests, s.duration,
    s.errors.connect + s.errors.read + s.errors.write + s.errors.status + s.errors.timeout,
    l:percentile(50), l:percentile(99)))
end
"""
