"""The README's blocks run, and the output it shows is what the commands print."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
NEEDS_MODEL = [block for block in BLOCKS if "from_toml" in block]
PLAIN = [block for block in BLOCKS if "from_toml" not in block]


async def run(block: str) -> None:
    code = compile(block, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, {})
    if inspect.isawaitable(result):
        await result


@pytest.mark.parametrize("number", range(len(PLAIN)))
async def test_block_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    await run(PLAIN[number])


@pytest.mark.model
async def test_the_first_example_answers_on_the_real_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text((ROOT / "config.toml").read_text())
    for name in ("DASHSCOPE_API_KEY", "QWEN_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    assert len(NEEDS_MODEL) == 1
    await run(NEEDS_MODEL[0])
    *text, last = capsys.readouterr().out.strip().splitlines()
    assert "".join(text).strip()
    assert last == "creative False None"


def test_the_simulated_outage_is_what_the_command_prints() -> None:
    shown = re.search(r"^\$ gateway simulate outage\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert shown is not None
    command = [sys.executable, "-m", "gateway", "simulate", "outage"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert printed.stdout.strip() == shown[1].strip()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
