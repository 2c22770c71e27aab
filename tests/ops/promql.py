"""What a PromQL expression asks for, and every expression that ops/ holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OPS = Path(__file__).resolve().parents[2] / "ops"
DASHBOARD = OPS / "grafana" / "gateway.json"
RULES = OPS / "prometheus" / "alerts.yml"
CONFIG = OPS / "prometheus" / "prometheus.yml"

_WORDS = frozenset({"and", "or", "unless", "bool", "offset"})
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_NAME = re.compile(r"[a-zA-Z_:][\w:]*")


def metrics_in(expression: str) -> set[str]:
    """The metrics an expression reads."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\bgroup_(?:left|right)\b", " ", _GROUPING.sub(" ", bare))
    found = set()
    for match in _NAME.finditer(bare):
        called = bare[match.end() :].lstrip().startswith("(")
        number = match.start() and bare[match.start() - 1].isdigit()
        if not called and not number and match[0] not in _WORDS:
            found.add(match[0])
    return found


def labels_in(expression: str) -> set[tuple[str, str]]:
    """Each metric with each label that the expression selects it by."""
    return {
        (name, label)
        for name, matchers in _SELECTOR.findall(expression)
        for label in re.findall(r"(\w+)\s*[=!]~?", re.sub(r'"[^"]*"', '""', matchers))
    }


def groupings_in(expression: str) -> set[str]:
    """The labels it groups by."""
    return {word.strip() for group in _GROUPING.findall(expression) for word in group.split(",")}


def panels() -> Iterator[dict[str, Any]]:
    """The dashboard's panels, rows apart."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    yield from (panel for panel in board["panels"] if panel["type"] != "row")


def filled_in(expression: str) -> str:
    """As Grafana sends it, with every variable chosen."""
    for name, value in {"$__rate_interval": "1m", "$job": "gateway", "$mode": ".*"}.items():
        expression = expression.replace(name, value)
    return expression


def dashboard_expressions() -> dict[str, str]:
    """Each expression of the dashboard, by panel and letter."""
    return {
        f"{panel['title']} {target['refId']} ({panel['id']})": filled_in(target["expr"])
        for panel in panels()
        for target in panel["targets"]
    }


def rules() -> list[dict[str, str]]:
    """Each rule's keys of one line, and its expression. Our own file's shape, not all of YAML."""
    found: list[dict[str, str]] = []
    lines = iter(RULES.read_text(encoding="utf-8").splitlines())
    in_expression = False
    for line in lines:
        key, _, value = line.strip().removeprefix("- ").partition(": ")
        if line.strip().startswith("#"):
            continue
        if key in {"record", "alert"}:
            found.append({key: value})
        elif key in {"expr", "expr:"} or line.strip() == "expr: |":
            found[-1]["expr"] = "" if value == "|" else value
            in_expression = value == "|"
            continue
        elif in_expression and line.startswith(" " * 10):
            found[-1]["expr"] += f"{line.strip()}\n"
            continue
        elif found and value and key in {"for", "labels"}:
            found[-1][key] = value
        in_expression = False
    return found
