"""One environment for each family of clients, because their pins conflict: `.clients/NAME`.

Each is made from a lock in `requirements/clients/`, with pip and npm alone (pip brings uv, which
is ten times as fast), and made again only when its lock changes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
LOCKS: Final = ROOT / "requirements" / "clients"
HOME: Final = ROOT / ".clients"
NODE_MAJOR: Final = 20
_UV: Final = "uv==0.13.9"
_LONGEST_S: Final = 600


class EnvironmentMissingError(Exception):
    """An environment cannot be made here; says why."""


def python(name: str) -> Path:
    """The interpreter of one family's environment."""
    return HOME / name / "bin" / "python"


def node_project() -> Path:
    """The folder with `node_modules`."""
    return HOME / "node"


def make(lock: Path) -> str:
    """Make the one environment of a lock that lies in any folder of `requirements`.

    Returns:
        "" or, in words, why it is not there.
    """
    _prepare(lock.stem)
    return _why_not(lambda: _make_python(lock))


def make_all() -> dict[str, str]:
    """Make what is missing, all at once.

    Returns:
        For each environment "" or, in words, why it is not there.
    """
    makers: dict[str, Callable[[], None]] = {
        lock.stem: lambda lock=lock: _make_python(lock)  # type: ignore[misc]
        for lock in sorted(LOCKS.glob("*.lock"))
    }
    makers["node"] = _make_node
    _prepare(*(name for name in makers if name != "node"))
    with ThreadPoolExecutor(len(makers)) as pool:
        return dict(zip(makers, pool.map(_why_not, makers.values()), strict=True))


def _prepare(*names: str) -> None:
    HOME.mkdir(exist_ok=True)
    (HOME / ".gitignore").write_text("*\n")
    if not all(_is_current(name) for name in names):
        _fetch_uv()


def _why_not(make: Callable[[], None]) -> str:
    try:
        make()
    except EnvironmentMissingError as missing:
        return str(missing)
    return ""


def _fetch_uv() -> None:
    """Into a folder, not an environment; without it pip does the work."""
    if not (HOME / "uv" / "bin" / "uv").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(HOME / "uv"), _UV]
        _run(pip, check=False)


def _make_python(lock: Path) -> None:
    name, home = lock.stem, HOME / lock.stem
    if _is_current(name):
        return
    shutil.rmtree(home, ignore_errors=True)
    uv = str(HOME / "uv" / "bin" / "uv")
    if Path(uv).exists() and _run(
        [uv, "venv", "--quiet", "-p", sys.executable, str(home)], check=False
    ):
        install = [uv, "pip", "install", "--quiet", "--no-deps", "-p", str(home), "-r", str(lock)]
        if _run(install, check=False):
            _stamp(name)
            return
    _run([sys.executable, "-m", "venv", "--clear", str(home)])
    _run([str(python(name)), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(lock)])
    _stamp(name)


def _make_node() -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise EnvironmentMissingError(
            f"node and npm are not installed (Node {NODE_MAJOR} or later)"
        )
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.lstrip("v").partition(".")[0]) < NODE_MAJOR:
        raise EnvironmentMissingError(f"node is {version.strip()}; {NODE_MAJOR} or later is needed")
    if _is_current("node"):
        return
    home = node_project()
    home.mkdir(parents=True, exist_ok=True)
    for lock in _locks("node"):
        shutil.copy(lock, home)
    _run([npm, "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=home)
    _stamp("node")


def _locks(name: str) -> list[Path]:
    if name == "node":
        return [LOCKS / "package.json", LOCKS / "package-lock.json"]
    return list(LOCKS.parent.glob(f"*/{name}.lock"))


def _digest(name: str) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for lock in _locks(name):
        digest.update(lock.read_bytes())
    return digest.hexdigest()


def _is_current(name: str) -> bool:
    stamp = HOME / name / "lock.sha256"
    return stamp.exists() and stamp.read_text() == _digest(name)


def _stamp(name: str) -> None:
    (HOME / name / "lock.sha256").write_text(_digest(name))


def _run(command: list[str], *, check: bool = True, cwd: Path | None = None) -> bool:
    """Run an installer; whether it went well.

    Raises:
        EnvironmentMissingError: it did not, and `check` is True.
    """
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    if "PIP_FIND_LINKS" in env:  # uv reads none of pip's settings
        env.setdefault("UV_FIND_LINKS", env["PIP_FIND_LINKS"])
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=env,
            capture_output=True,
            text=True,
            timeout=_LONGEST_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        done = subprocess.CompletedProcess(command, 1, "", str(error))
    if check and done.returncode:
        tail = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise EnvironmentMissingError(f"{' '.join(command[:4])} ... failed: {' '.join(tail)}")
    return done.returncode == 0


if __name__ == "__main__":  # python tests/clients/environments.py: make them ahead of the tests
    missing = {name: why for name, why in make_all().items() if why}
    for name, why in missing.items():
        print(f"{name}: {why}", file=sys.stderr)
    sys.exit(bool(missing))
