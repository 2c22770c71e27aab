"""The wall and its card. A proxy that hands everything on is scored without a gateway: the lab
itself, asked directly, is one.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes import run
from typer.testing import CliRunner

from gateway.cli import main
from gateway.config import Config
from gateway.errors import ConfigError
from gateway.faultlab import Given, Lab, Result, recipes, runs, scorecard, wall
from gateway.faultlab.catalogue import ELSEWHERE, SCENARIOS
from gateway.faultlab.operations import fallen, series
from gateway.faultlab.scenario import ROLES, Grade, Run, Verdict
from gateway.faultlab.trial import Trial
from gateway.simulator.scripted import FAULTS

ROOT = Path(__file__).resolve().parents[3]


async def _naive(*only: str) -> dict[str, Result]:
    wanted = runs(only)
    async with Lab(wanted) as lab:
        results = await wall(wanted, Given(f"{lab.url}/v1"), lab.url, lab.urls)
    return {result.run.name: result for result in results}


@pytest.mark.parametrize(
    ("name", "grade", "says"),
    [
        ("s3-whole", Grade.SAFE, "HTTP 500"),
        ("s8-stream", Grade.SAFE, "broken off after 40 tokens"),
        ("s10-stream", Grade.FAIL, "garbage"),
        ("s11-stream", Grade.PARTIAL, "no [DONE]"),
        ("s13-whole", Grade.PASS, "content po"),
        ("s17a-whole", Grade.SAFE, "broken off"),
        ("s17c-whole", Grade.FAIL, "garbage"),
        ("s18-stream", Grade.FAIL, "a role chunk, then an error"),
        ("s19-stream", Grade.FAIL, "a role chunk, then an error"),
        ("s24-whole", Grade.SAFE, "the 4th request went to creative again"),
        ("s26-whole", Grade.SAFE, "did not trip on the third failure"),
        ("s35a-whole", Grade.SAFE, "no cache"),
        ("s36-stream", Grade.PASS, "8 by creative"),
        ("s41-stream", Grade.PASS, "creative answered"),
        ("s48-whole", Grade.SAFE, "no metrics"),
    ],
)
async def test_a_proxy_that_hands_everything_on(name: str, grade: Grade, says: str) -> None:
    result = (await _naive(name.removeprefix("s")))[name]
    assert (result.verdict.grade, says in result.verdict.evidence) == (grade, True), result


async def test_a_run_that_does_not_end_fails_and_others_go_on() -> None:
    async def never(t: Trial) -> Verdict:
        return t.judge(await t.ask(patience_s=60))

    async def well(t: Trial) -> Verdict:
        return t.judge(await t.ask())

    hanging = run("stream", plays={"creative": ["silent"]}, limit_s=0.1)
    object.__setattr__(hanging.scenario, "check", never)
    good = run("whole")
    object.__setattr__(good.scenario, "check", well)
    told: list[Result] = []
    async with Lab([hanging, good]) as lab:
        given = Given(f"{lab.url}/v1")
        results = await wall([hanging, good], given, lab.url, lab.urls, tell=told.append)
    assert [result.verdict.grade for result in results] == [Grade.FAIL, Grade.PASS]
    assert "not over after 0 s" in results[0].verdict.evidence
    assert len(told) == 2


def test_every_scenario_can_be_named() -> None:
    assert len({run.name for run in runs()}) == len(runs())
    assert {run.scenario.id for run in runs(["17"])} == {"17a", "17b", "17c"}
    assert [run.name for run in runs(["8-stream"])] == ["s8-stream"]
    assert {run.scenario.group for run in runs(["cache"])} == {"cache"}
    with pytest.raises(ConfigError, match="no scenario or group 'nonsense'"):
        runs(["1", "nonsense"])


def test_scenarios_1_to_49_are_all_there_or_said_to_be_elsewhere() -> None:
    here = {scenario.id.rstrip("abc") for scenario in SCENARIOS}
    elsewhere = {one.id for one in ELSEWHERE}
    assert {str(number) for number in range(1, 50)} <= here | elsewhere
    for one in ELSEWHERE:
        assert (ROOT / one.tested).exists(), one


def test_every_play_that_is_named_is_in_the_catalogue() -> None:
    for scenario in SCENARIOS:
        assert set(scenario.plays) <= set(ROLES)
        for script in scenario.plays.values():
            lists = list(script.values()) if isinstance(script, dict) else [script]
            names = {entry for entries in lists for entry in entries if isinstance(entry, str)}
            assert names <= set(FAULTS), scenario.id


# -- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["8-stream", "22-stream", "23-whole"])
def test_our_own_configuration_is_as_shipped(name: str) -> None:
    urls = dict.fromkeys(ROLES, "http://127.0.0.1:9/v1")
    wanted = runs([name])[0]
    ours = Config.from_dict(tomllib.loads(recipes.downshift(wanted, urls)))
    shipped = Config.from_toml(ROOT / "config.toml")
    assert [mode.name for mode in ours.modes] == list(wanted.roles)
    for mode, like in zip(ours.modes, shipped.modes, strict=False):
        assert (mode.deadline_s, mode.first_token_s, mode.stall_s, mode.max_in_flight) == (
            like.deadline_s, like.first_token_s, like.stall_s, like.max_in_flight,
        )  # fmt: skip
    assert (ours.circuit, ours.cache, ours.budget) == (
        shipped.circuit, shipped.cache, shipped.budget,
    )  # fmt: skip


def test_one_scenario_alone_probes_early() -> None:
    early = {run.scenario.id for run in runs() if run.scenario.early_probe}
    assert early == {"15"}
    wanted = runs(["15-stream"])[0]
    config = recipes.downshift(wanted, dict.fromkeys(ROLES, "http://127.0.0.1:9/v1"))
    assert Config.from_dict(tomllib.loads(config)).circuit.early_probe_s == 10


def test_recipes_for_others_name_every_upstream() -> None:
    wanted = runs(["23-whole", "22-stream"])
    urls = {
        role: f"http://127.0.0.1:{port}/v1" for role, port in zip(ROLES, (1, 2, 3), strict=True)
    }
    told = recipes.litellm(wanted, lambda _: urls)
    assert "    - creative-s23-whole: [balanced-s23-whole, fast-s23-whole]" in told
    assert "api_base: http://127.0.0.1:3/v1" in told
    assert "- creative-s22-stream:" not in told, "nobody stands in"
    config = json.loads(recipes.portkey(wanted[-1], urls)["x-portkey-config"])
    assert config["targets"][0]["override_params"] == {"model": wanted[-1].model()}


# -- the card -------------------------------------------------------------------------------------


def _results() -> list[Result]:
    verdicts = [Verdict(Grade.PASS, ["creative answered"]), Verdict(Grade.FAIL, ["a [lie]"])]
    both = [Result(r, v, 1.0) for r, v in zip(runs(["8"]), verdicts, strict=True)]
    return [*both, Result(runs(["15-stream"])[0], Verdict(Grade.PARTIAL, ["late"]), 90.0)]


def test_the_card_in_plain_text() -> None:
    card = scorecard.plain(_results(), ours=True, width=100)
    assert "pass    fail    whole: a [lie]" in card
    assert "3 runs: 1 pass, 1 partial, 0 safe, 1 fail" in card
    assert "15*" in card
    assert "early_probe_s = 10" in card
    assert "early_probe_s" not in scorecard.plain(_results(), ours=False)
    assert max(len(line) for line in card.splitlines()[:5]) <= 100


def test_the_card_for_programs() -> None:
    card = json.loads(scorecard.as_json(_results(), endpoint="x"))
    assert card["endpoint"] == "x"
    assert card["runs"][1] == {
        "id": "8", "form": "whole", "group": "resilience",
        "title": "cut off after 40 of 60 tokens", "grade": "fail", "evidence": "a [lie]",
        "took_s": 1.0,
    }  # fmt: skip


def test_a_verdict_says_the_worst_first() -> None:
    verdict = Verdict(Grade.PASS, ["answered"])
    verdict.demand(True, Grade.FAIL, "unsaid").demand(False, Grade.FAIL, "lied")
    verdict.demand(False, Grade.PARTIAL, "was late").note("and more")
    assert verdict.grade is Grade.FAIL
    assert verdict.evidence == "lied; answered; was late; and more"


def test_counters_that_go_back_are_found() -> None:
    before = series('a_total{b="c d"} 3\na_gauge 5\n# TYPE\nd_count 1.5e1 17\n')
    assert before == {'a_total{b="c d"}': 3, "a_gauge": 5, "d_count": 15}
    after = {'a_total{b="c d"}': 4.0, "a_gauge": 1.0}
    assert fallen(before, after) == ["d_count"]


# -- the command ----------------------------------------------------------------------------------


def test_the_command_lists_and_refuses() -> None:
    said = CliRunner().invoke(main, ["faultlab", "--list"])
    assert said.exit_code == 0
    assert "cut off after 40 of 60 tokens" in said.stdout
    assert "not a black-box matter" in said.stdout
    for arguments in (
        ["--only", "nonsense"],
        ["--url", "http://x", "--recipe", "nonsense"],
        ["--url", "http://x", "--upstream", "nonsense", "--only", "3"],
        ["--url", "http://x", "--api-key-env", "NOT_SET_ANYWHERE"],
        ["--models", "creative"],
        ["config", "nonsense"],
    ):
        assert CliRunner().invoke(main, ["faultlab", *arguments]).exit_code == 2, arguments


def test_the_command_writes_a_configuration() -> None:
    said = CliRunner().invoke(main, ["faultlab", "config", "litellm", "--only", "3"])
    assert said.exit_code == 0
    assert "api_base: http://127.0.0.1:9001/v1" in said.stdout


def test_the_command_scores_whoever_is_given(tmp_path: Path) -> None:
    wanted, card = ["3-whole", "18"], tmp_path / "card.json"
    with _lab_beside(runs(wanted)) as url:
        arguments = ["--url", url, "--upstream", url, "--json", str(card)]
        said = CliRunner().invoke(main, ["faultlab", *arguments, "--only", ",".join(wanted)])
        unknown = CliRunner().invoke(main, ["faultlab", *arguments, "--only", "4-whole"])
    assert said.exit_code == 1, "one of them fails"
    assert "2 runs: 0 pass, 0 partial, 1 safe, 1 fail" in said.stdout
    told = json.loads(card.read_text())
    assert told["endpoint"] == f"{url}/v1"
    assert [run["grade"] for run in told["runs"]] == ["safe", "fail"]
    assert unknown.exit_code == 1
    assert "that knows s4-whole" in unknown.stderr


@contextmanager
def _lab_beside(wanted: list[Run]) -> Iterator[str]:
    """A lab in a thread of its own: the command has an event loop of its own."""
    started: queue.Queue[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def play() -> None:
        over = asyncio.Event()
        async with Lab(wanted) as lab:
            started.put((lab.url, asyncio.get_running_loop(), over))
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(play()))
    thread.start()
    url, loop, over = started.get(timeout=10)
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(timeout=10)
