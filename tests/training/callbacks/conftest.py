"""The hosts live in an environment of their own; each script is run there once a session.

A script plays its scenarios against the real library and prints a line of JSON for each.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from tests.clients import environments

HERE: Final = Path(__file__).parent
LOCK: Final = environments.ROOT / "requirements" / "adapters" / "adapters.lock"
_LONGEST_S: Final = 300

Facts = dict[str, Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE) and "play" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def host_python() -> Path:
    """The interpreter that has the hosts. Skips where it cannot be had; fails instead where
    CI_CLIENTS=required.
    """
    why = environments.make(LOCK)
    if why and os.environ.get("CI_CLIENTS") == "required":
        pytest.fail(f"the trainers are required here: {why}")
    if why:
        pytest.skip(f"the trainers cannot be installed: {why}")
    return environments.python(LOCK.stem)


@pytest.fixture(scope="session")
def play(host_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Facts]:
    """Plays a script the first time it is asked for; what it found, by scenario."""

    @cache
    def play(name: str) -> Facts:
        folder = tmp_path_factory.mktemp(name)
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [str(host_python), str(HERE / "scripts" / f"{name}.py"), str(folder)],
            cwd=folder,
            env={**os.environ, **quiet, "PYTHONPATH": str(environments.ROOT)},
            capture_output=True,
            text=True,
            timeout=_LONGEST_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        lines = [line for line in done.stdout.splitlines() if line.startswith('{"scenario"')]
        return {told["scenario"]: told for told in map(json.loads, lines)}

    return play
