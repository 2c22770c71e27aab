"""Whether a stream arrived as sent: every token once, in order, in proper frames, to its end."""

from __future__ import annotations

import json
import re

from tests.benchmarks.stub import TOKENS

_TOKEN = re.compile(r" token(\d\d) \d{16}")


def inspect(stream: bytes) -> list[str]:
    """What is wrong with the body of a stream that relays the stub's events; nothing if it is well.

    Frames may be joined, and may say more than the stub does; none may be lost, doubled or broken,
    the reason it finished is told once and `[DONE]` comes last.
    """
    wrong: list[str] = []
    text, reasons = "", []
    payloads = []
    for event in stream.replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
        if lines:
            payloads.append(b"\n".join(lines))
    if not payloads or payloads[-1] != b"[DONE]":
        wrong.append("no [DONE] at the end")
    for payload in payloads:
        if payload == b"[DONE]":
            continue
        try:
            frame = json.loads(payload)
            choices = frame["choices"]
        except (ValueError, KeyError, TypeError):
            wrong.append(f"not a chunk: {payload[:60]!r}")
            continue
        for choice in choices:
            text += (choice.get("delta") or {}).get("content") or ""
            reasons += [choice["finish_reason"]] if choice.get("finish_reason") else []
    tokens = [int(token) for token in _TOKEN.findall(text)]
    if tokens != list(range(1, TOKENS + 1)):
        wrong.append(f"{len(set(tokens))} of {TOKENS} tokens, {len(tokens)} in all")
    if _TOKEN.sub("", text):
        wrong.append(f"foreign text: {_TOKEN.sub('', text)[:40]!r}")
    if reasons != ["stop"]:
        wrong.append(f"finish reasons {reasons}")
    return wrong
