"""langchain-tests' ChatModelIntegrationTests, as any provider of LangChain's has to pass them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import environments
import pytest
from client import SCRIPTS
from servers import Behind, Service, running, scripted_config

LONGEST_S = 240


def run_suite(url: str, part: str, folder: Path) -> dict[str, str]:
    """Each test's fate: "passed", or the word and why not."""
    report = folder / "report.xml"
    command = [
        str(environments.python("openai3")),
        "-m",
        "pytest",
        str(SCRIPTS / "langchain_suite.py"),
    ]
    # One loop for all: ChatOpenAI shares its async connections between models.
    command += ["-o", "asyncio_mode=auto", "-o", "asyncio_default_test_loop_scope=session"]
    command += ["--disable-socket", "--allow-hosts=127.0.0.1", "--noconftest"]
    command += ["-q", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", f"--rootdir={folder}", "-c", os.devnull]
    about = {"GATEWAY_URL": url, "PART": part, "LANGCHAIN_TRACING_V2": "false"}
    done = subprocess.run(
        command,
        env=os.environ | about,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert report.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    fates = {}
    for case in ElementTree.parse(report).iter("testcase"):
        what = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        fates[str(case.get("name"))] = (
            "passed"
            if what is None
            else f"{what.tag}: {what.get('message')} {what.text or ''}"[-1500:]
        )
    return fates


def check(fates: dict[str, str], at_least: int) -> None:
    bad = {name: fate for name, fate in fates.items() if not fate.startswith(("passed", "skipped"))}
    assert not bad, "\n\n".join(f"{name}\n{fate}" for name, fate in bad.items())
    passed = [name for name, fate in fates.items() if fate == "passed"]
    assert len(passed) >= at_least, fates


def test_with_tools_and_schemas(
    need: Callable[[str], None], behind: Behind, tmp_path: Path
) -> None:
    need("openai3")
    with running(scripted_config(behind.brain.base_url, keys=False), tmp_path) as service:
        fates = run_suite(service.url, "scripted", tmp_path)
    check(fates, at_least=43)
    assert (
        fates["test_tool_calling[model0]"] == fates["test_structured_output[pydantic]"] == "passed"
    )


@pytest.mark.model
def test_on_the_real_model(need: Callable[[str], None], real: Service, tmp_path: Path) -> None:
    need("openai3")
    check(run_suite(real.url, "real", tmp_path), at_least=20)
