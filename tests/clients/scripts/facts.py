"""What the scripts of Python clients share: scenarios, prompts with cues, lines of facts."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

URL = os.environ["GATEWAY_URL"]
CLIENT = os.environ["CLIENT"]
KEYS = json.loads(os.environ["GATEWAY_KEYS"])
KEY = KEYS["tests"]

_parts: dict[str, dict[str, Callable[[], Any]]] = {"scripted": {}, "real": {}}


def scenario(play: Callable[[], Any], part: str = "scripted") -> Callable[[], Any]:
    """Play this, and print what it returns under its name."""
    _parts[part][play.__name__] = play
    return play


def real(play: Callable[[], Any]) -> Callable[[], Any]:
    """Play this where the embedded real model answers."""
    return scenario(play, "real")


def ask(tag: str, *cues: str, say: str = "Name three woody notes.") -> str:
    """A prompt nobody else asks, with what the scripted upstream shall play, see brain.py."""
    return f"{say} [[{'; '.join([f'{CLIENT}.{tag}', *cues])}]]"


def error_facts(error: BaseException, **more: Any) -> dict[str, Any]:
    """An exception of openai's as plain data."""
    response = getattr(error, "response", None)
    return {
        "error": type(error).__name__,
        "bases": [base.__name__ for base in type(error).__mro__],
        "message": str(error),
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
        "type": getattr(error, "type", None),
        "param": getattr(error, "param", None),
        "headers": dict(response.headers) if response is not None else {},
        **more,
    }


def caught(call: Callable[[], Any]) -> dict[str, Any]:
    """What a call raises, and how long that took."""
    began = time.monotonic()
    try:
        answer = call()
    except Exception as error:
        return error_facts(error, took_s=time.monotonic() - began)
    return {"error": None, "answer": repr(answer)[:500], "took_s": time.monotonic() - began}


def play_all() -> None:
    """Play the scenarios of the part asked for, then live on until standard input closes."""
    with asyncio.Runner() as runner:  # one loop: some clients keep connections beyond a call
        for name, play in _parts[os.environ["PART"]].items():
            try:
                facts = runner.run(play()) if inspect.iscoroutinefunction(play) else play()
            except BaseException:
                facts = {"crash": traceback.format_exc()[-4000:]}
            _tell(name, facts)
        _tell("", {})
        runner.run(asyncio.to_thread(sys.stdin.read))  # the loop turns on, as in a program


def _tell(name: str, facts: dict[str, Any]) -> None:
    print(json.dumps({"scenario": name, "facts": facts}, default=repr), flush=True)
