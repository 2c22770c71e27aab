"""The dashboard and the alerts ask only for what is exported, and Prometheus accepts them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from promql import (
    CONFIG,
    DASHBOARD,
    OPS,
    RULES,
    dashboard_expressions,
    groupings_in,
    labels_in,
    metrics_in,
    panels,
    rules,
)

from gateway.telemetry.families import COUNTED
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.state import GAUGES, PHASES

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")

LABELS: dict[str, tuple[str, ...]] = {
    **{name: row.labels for name, row in COUNTED.items()},
    **{name: gauge.labels for name, gauge in GAUGES.items()},
    "up": (),
    **{rule["record"]: () for rule in rules() if "record" in rule},
}
EXPRESSIONS = {
    **dashboard_expressions(),
    **{rule.get("record") or rule["alert"]: rule["expr"] for rule in rules()},
}


def exported(name: str) -> str:
    """The metric a sample belongs to."""
    base = name
    for end in ("_bucket", "_sum", "_count"):
        if name.removesuffix(end) in COUNTED:
            base = name.removesuffix(end)
    return base


def test_how_an_expression_is_read() -> None:
    expression = (
        'sum by (mode, le) (rate(a_total{mode=~"b|c(d)",le!="1"}[5m])) / on (job) group_left '
        "(x) (b_c:d5m offset 1h) > 1e3 and min(e) unless vector(1)"
    )
    assert metrics_in(expression) == {"a_total", "b_c:d5m", "e"}
    assert labels_in(expression) == {("a_total", "mode"), ("a_total", "le")}
    assert groupings_in(expression) == {"mode", "le", "job", "x"}


def test_the_page_has_every_metric_of_the_tables() -> None:
    page = Metrics().render().decode()
    types = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
    missing = {name for name in LABELS if name.startswith(("gateway_", "operations_"))} - types
    assert {name.removesuffix("_total") for name in missing} <= types


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_only_what_is_exported_is_asked_for(where: str) -> None:
    expression = EXPRESSIONS[where]
    names = {exported(name) for name in metrics_in(expression)}
    assert names
    assert names <= set(LABELS), "not exported"
    known = {"job", "instance", "le"}
    for name, label in labels_in(expression):
        assert label in {*LABELS[exported(name)], *known}, f"{name} has no label {label}"
    grouped = groupings_in(expression)
    assert grouped <= {*known, *(label for name in names for label in LABELS[name])}


def test_every_metric_has_a_place_on_the_dashboard() -> None:
    shown = {
        exported(name)
        for expression in dashboard_expressions().values()
        for name in metrics_in(expression)
    }
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert set(LABELS) - recorded <= shown
    assert {name for name in shown if ":" in name} <= recorded


def test_the_dashboard_can_be_moved_and_read() -> None:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert [variable["name"] for variable in board["templating"]["list"]] == [
        "datasource", "job", "mode",
    ]  # fmt: skip
    assert "id" not in board  # Grafana gives it one
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, f"{panel['title']} covers another panel"
        taken |= cells
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_the_phases_have_the_names_of_their_numbers() -> None:
    [timeline] = [panel for panel in panels() if panel["type"] == "state-timeline"]
    [mapping] = timeline["fieldConfig"]["defaults"]["mappings"]
    words = [mapping["options"][str(number)]["text"] for number in range(len(PHASES))]
    assert [word.replace(" ", "_") for word in words] == list(PHASES)


def test_every_alert_is_explained() -> None:
    text = (OPS / "README.md").read_text(encoding="utf-8")
    for rule in rules():
        if "alert" in rule:
            assert f"`{rule['alert']}`" in text
            assert "severity" in rule["labels"]


def promtool(*arguments: str | Path) -> None:
    assert PROMTOOL is not None
    command = [PROMTOOL, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_promtool_accepts_the_rules_and_the_configuration() -> None:
    promtool("check", "rules", RULES)
    promtool("check", "config", CONFIG)


@needs_promtool
def test_promtool_reads_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    file = tmp_path / "dashboard.yml"
    recorded = [
        {"record": f"panel:{number}", "expr": expression}
        for number, expression in enumerate(dashboard_expressions().values())
    ]
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": recorded}]}))
    promtool("check", "rules", file)


@needs_promtool
def test_the_alerts_fire_when_they_should_and_not_before() -> None:
    promtool("test", "rules", Path(__file__).with_name("alerts_test.yml"))
    told = Path(__file__).with_name("alerts_test.yml").read_text(encoding="utf-8")
    for rule in rules():
        if "alert" in rule:
            assert told.count(f"alertname: {rule['alert']}\n") >= 2, "both fires and does not"
