"""A loop of one's own: the block in the README runs as it stands, and without the added lines."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.training import steps

torch = pytest.importorskip("torch", reason="needs the extra `training`")

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "training" / "callbacks" / "README.md").read_text(encoding="utf-8")
HOSTS = {
    "sb3": ("stable_baselines3", "stable-baselines3"),
    "trl": ("transformers", "transformers trl"),
    "lightning": ("lightning", "lightning"),
    "torchrl": ("torchrl", "torchrl"),
}


def block() -> list[str]:
    found = re.search(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].splitlines()


def run(lines: list[str]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    return names


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    torch.manual_seed(1)


def test_five_lines_are_added_and_the_run_has_checkpoints(tmp_path: Path) -> None:
    assert sum(line.endswith("# +") for line in block()) <= 5
    names = run(block())
    assert names["step"] == 600
    assert len(list((tmp_path / "checkpoints").glob("*.pt"))) == 1
    assert names["result"]["rollback_path"] is None


def test_without_them_the_loop_is_whole(tmp_path: Path) -> None:
    names = run([line for line in block() if not line.endswith("# +")])
    assert names["step"] == 600
    assert not (tmp_path / "checkpoints").exists()


def test_with_them_a_nan_in_the_data_does_no_harm() -> None:
    struck = [
        line + "\n    if step == 550: inputs[0, 0] = float('nan')" if "randn" in line else line
        for line in block()
    ]
    names = run(struck)
    assert all(bool(torch.isfinite(p).all()) for p in names["model"].parameters())
    alone = run([line for line in struck if not line.endswith("# +")])
    assert not all(bool(torch.isfinite(p).all()) for p in alone["model"].parameters())


def test_ppo_in_one_file_takes_five_lines_too(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    assert steps.added_lines() <= 5
    for with_ops in (False, True):
        folder = tmp_path / str(with_ops)
        assert list(steps.single_file_loop(folder, 2, every=1, with_ops=with_ops)) == [1, 2]
        assert len(list(folder.glob("*.pt"))) == (2 if with_ops else 0)


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_a_missing_host_is_told_with_the_line_that_installs_it(name: str) -> None:
    module, package = HOSTS[name]
    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"{module} is installed here")
    with pytest.raises(ModuleNotFoundError, match=f"needs {module}: pip install {package}$"):
        importlib.import_module(f"training.callbacks.{name}")
