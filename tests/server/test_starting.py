"""Starting the service: what it says of itself, and one clear line where it cannot start."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli import main
from tests.server.conftest import UVICORN, Serve
from tests.server.live import ROOT

CONFIG = '[modes.fast]\n[[modes.fast.targets]]\nkind = "simulated"\n'


def refused(tmp_path: Path, config: str, *arguments: str) -> str:
    """The one line with which it does not start."""
    file = tmp_path / "config.toml"
    file.write_text(config, encoding="utf-8")
    result = CliRunner().invoke(main, ["serve", "-c", str(file), *arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(tmp_path, CONFIG, "--port", str(port))
    assert f"port {port} on 127.0.0.1 is in use" in line
    assert "--port" in line


@pytest.mark.parametrize("host", ["no.such.host.invalid", "256.1.1.1", "192.0.2.1", "\x00"])
def test_a_bad_host(tmp_path: Path, host: str) -> None:
    line = refused(tmp_path, CONFIG, "--host", host, "--port", "0")
    assert "[server]: host" in line


def test_a_broken_configuration(tmp_path: Path) -> None:
    line = refused(tmp_path, CONFIG + "[server]\nprot = 1\n")
    assert "[server]: prot: unknown key; did you mean port?" in line
    line = refused(tmp_path, CONFIG, "--runner", "gunicorn", "--port", "0")
    assert "[server]: runner: expected one of granian, uvicorn" in line
    assert "between 0 and 65535" in refused(tmp_path, CONFIG, "--port", "99999")
    line = refused(tmp_path, CONFIG.replace('"simulated"', '"vllm"\napi_key_env = "NOT_SET"'))
    assert "NOT_SET is not set" in line


async def test_what_it_says_works_as_pasted(serve: Serve) -> None:
    async with serve() as live:
        said = "".join(live.log)
        assert f"dashboard  http://127.0.0.1:{live.port}/" in said
        assert "creative   vllm/creative-model at http://127.0.0.1" in said
        curl = next(line.partition("try it")[2] for line in live.log if "try it" in line)
        found = json.loads(await shell(shlex.split(curl)))
        assert found["choices"][0]["message"]["content"]


@UVICORN
async def test_status_is_a_table_or_data_and_an_exit_code(serve: Serve) -> None:
    async with serve() as live:
        url = f"http://127.0.0.1:{live.port}"
        python = [sys.executable, "-m", "gateway", "status", "--url", url]
        text = await shell(python)
        assert "creative    closed" in text
        assert "vllm/creative-model" in text
        assert "ready; 0 in flight" in text
        assert json.loads(await shell([*python, "--json"]))["modes"]["fast"]["phase"] == "closed"
        for mode in ("creative", "fast"):
            await live.post("/admin/force", {"mode": mode, "how": "open"})
        assert "forced open" in await shell(python, code=1)
        live.send_signal(signal.SIGTERM)
        await live.ended()
        result = CliRunner().invoke(main, ["status", "--url", url])
        assert result.exit_code == 1
        assert f"no gateway answers at {url}" in result.stderr
    assert CliRunner().invoke(main, ["status", "--url", "ftp://x"]).exit_code == 2


async def shell(command: list[str], code: int = 0) -> str:
    import asyncio

    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    out, _ = await process.communicate()
    assert process.returncode == code
    return out.decode()
