"""A client's script in its own environment: started once, its facts read, and let go at the end.

A script plays its scenarios one after the other and prints a line of JSON for each. Then it lives
on until its standard input closes: a connection that it left must be freed by what the client did,
not by its death.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import environments
from servers import KEYS

SCRIPTS: Final = Path(__file__).parent / "scripts"
LONGEST_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Kind:
    """One client.

    Attributes:
        environment: where its packages are.
        script: what it plays.
    """

    environment: str
    script: str

    def command(self) -> list[str]:
        """How to start its script."""
        script = SCRIPTS / self.script
        if self.environment != "node":
            return [str(environments.python(self.environment)), str(script)]
        return ["node", str(script)]


CLIENTS: Final = {
    "openai2": Kind("openai2", "openai_python.py"),
    "openai3": Kind("openai3", "openai_python.py"),
    "langchain": Kind("openai3", "langchain_chat.py"),
    "pydantic_ai": Kind("openai3", "pydantic_agent.py"),
    "instructor": Kind("openai2", "instructor_models.py"),
    "llama_index": Kind("openai2", "llama_index_like.py"),
    "openai_node": Kind("node", "openai_node.mjs"),
    "ai_sdk": Kind("node", "ai_sdk.mjs"),
}


class Client:
    """One run of a client's script.

    Args:
        name: which of `CLIENTS`.
        url: base URL of the gateway.
        part: which scenarios: "scripted", or "real" for those of the real model.
        folder: for its standard error.
    """

    def __init__(self, name: str, url: str, part: str, folder: Path) -> None:
        self.name = name
        self._errors = folder / f"{name}.{part}.err"
        about = {
            "CLIENT": name,
            "PART": part,
            "GATEWAY_URL": url,
            "GATEWAY_KEYS": json.dumps(KEYS),
            "NO_PROXY": "127.0.0.1",
        }
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                CLIENTS[name].command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | about,
                cwd=environments.HOME / CLIENTS[name].environment,
            )
        self._facts = self._read()

    def __getitem__(self, scenario: str) -> dict[str, Any]:
        """What a scenario found.

        Raises:
            AssertionError: it crashed, or was never played.
        """
        assert scenario in self._facts, f"{self.name} did not play {scenario}; see\n{self._said()}"
        facts = self._facts[scenario]
        assert "crash" not in facts, f"{self.name}, {scenario}:\n{facts.get('crash')}"
        return facts

    def tag(self, scenario: str) -> str:
        """How the scripted upstream knows a request."""
        return f"{self.name}.{scenario}"

    def close(self) -> None:
        """Let the script end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.stdout.close()

    def _read(self) -> dict[str, dict[str, Any]]:
        assert self._process.stdout is not None
        alarm = threading.Timer(LONGEST_S, self._process.kill)
        alarm.start()
        facts: dict[str, dict[str, Any]] = {}
        try:
            for line in self._process.stdout:
                told = json.loads(line)
                if told["scenario"] == "":
                    return facts
                facts[told["scenario"]] = told["facts"]
        finally:
            alarm.cancel()
        return facts  # it died on the way: what is missing says so

    def _said(self) -> str:
        return self._errors.read_text(errors="replace")[-3000:]
