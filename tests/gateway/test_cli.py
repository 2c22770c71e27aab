"""The command `gateway`: what it prints, where, and its exit codes. Never a traceback."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gateway import __version__
from gateway.cli import main

ROOT = Path(__file__).resolve().parents[2]
QUICK = "options = { first_token_s = 0.001, tokens_per_s = 10000, tokens = 8 }"
CONFIG = f"""
[modes.creative]
[[modes.creative.targets]]
kind = "simulated"
model = "big"
{QUICK}
[modes.fast]
[[modes.fast.targets]]
kind = "simulated"
model = "small"
{QUICK}
"""
DOWN = CONFIG.replace(QUICK, 'options = {faults = [{kind = "outage", start = 0, end = 1e9}]}', 1)


def run(*arguments: str, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(main, list(arguments), input=stdin)
    # Whatever happened, it ended the way a command ends.
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def spawn(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
        **options,
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a config.toml, to work in."""
    (tmp_path / "config.toml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one_line_error(result: Result) -> str:
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


# -- generate -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
class TestGenerate:
    def test_the_answer_and_nothing_else_goes_to_standard_output(self) -> None:
        result = run("generate", "hello", "--mode", "creative")
        assert result.exit_code == 0
        assert len(result.stdout.split()) == 8
        assert result.stderr == ""

    def test_without_a_mode_the_best_one_answers(self) -> None:
        data = json.loads(run("generate", "hello", "--json").stdout)
        assert data["mode"] == data["requested_mode"] == "creative"

    def test_a_stream_is_the_same_text(self) -> None:
        assert run("generate", "hello", "--stream").stdout == run("generate", "hello").stdout

    def test_json_says_who_answered_and_why(self) -> None:
        data = json.loads(run("generate", "hello", "--json", "--max-tokens", "4").stdout)
        assert len(data["text"].split()) == 4
        assert data["finish_reason"] == "length"
        assert data["model"] == "big" and data["target"] == "simulated/big"
        assert data["degraded"] is False and data["reason"] is None and data["cached"] is False
        assert data["usage"]["completion_tokens"] == 4
        assert data["attempts"] == 1 and data["first_token_s"] > 0 and data["duration_s"] > 0

    def test_a_stream_as_json_is_one_object_a_line(self) -> None:
        *pieces, last = map(
            json.loads, run("generate", "hi", "--stream", "--json").stdout.splitlines()
        )
        assert "".join(piece["text"] for piece in pieces) == last["text"]
        assert last["mode"] == "creative"

    def test_the_prompt_may_come_from_standard_input(self) -> None:
        assert run("generate", "-", stdin="hello").stdout == run("generate", "hello").stdout

    def test_a_system_message_goes_before_the_prompt(self) -> None:
        with_system = json.loads(
            run("generate", "two words", "--system", "be kind", "--json").stdout
        )
        assert with_system["usage"]["prompt_tokens"] == 4

    def test_a_degraded_answer_is_said_in_one_line_on_standard_error(self, here: Path) -> None:
        (here / "config.toml").write_text(DOWN, encoding="utf-8")
        result = run("generate", "hello", "--mode", "creative")
        assert result.exit_code == 0
        (remark,) = result.stderr.splitlines()
        assert remark.startswith("note: fast answered for creative (failed)")

    def test_an_answer_cut_off_is_said_too(self) -> None:
        assert "cut off" in run("generate", "hello", "--max-tokens", "2").stderr

    def test_no_degrade_fails_instead(self, here: Path) -> None:
        (here / "config.toml").write_text(DOWN, encoding="utf-8")
        result = run("generate", "hello", "--no-degrade")
        assert result.exit_code == 1
        assert "connection refused" in one_line_error(result)

    def test_events_are_logged_when_asked_for(self) -> None:
        result = run("generate", "my question", "--log-json")
        events = [json.loads(line)["event"] for line in result.stderr.splitlines()]
        assert events == ["attempt_finished", "request_finished"]
        assert "request_finished" in run("generate", "my question", "--verbose").stderr
        assert "my question" not in result.stderr


@pytest.mark.usefixtures("here")
class TestErrorsOfGenerate:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["hello", "--config", "nowhere.toml"], "nowhere.toml: no such file"),
            (["hello", "--mode", "dreamy"], "unknown mode 'dreamy'; this gateway has 'creative'"),
            (["   "], "the prompt is empty"),
            (["", "--system", "be kind"], "the prompt is empty"),
            (["hello", "--deadline", "-3"], "deadline must be a positive number of seconds"),
        ],
    )
    def test_what_the_caller_can_mend(self, arguments: list[str], said: str) -> None:
        result = run("generate", *arguments)
        assert result.exit_code == 2
        assert said in one_line_error(result)

    @pytest.mark.parametrize(
        ("table", "said"),
        [
            ("[circuit]\nbreak_duration = 3", "[circuit]: break_duration: unknown key; write"),
            ("[cache]\nttl_s = 'long'", "[cache]: ttl_s: expected seconds as a number"),
            ("[modes.fast", "is not valid TOML"),
            ('[cache]\npath = "${NOT_EXPORTED}"', "NOT_EXPORTED is not set; export it"),
        ],
    )
    def test_what_is_wrong_with_the_file(self, here: Path, table: str, said: str) -> None:
        (here / "config.toml").write_text(f"{CONFIG}\n{table}\n", encoding="utf-8")
        result = run("generate", "hello")
        assert result.exit_code == 2
        assert said in one_line_error(result)
        assert "config.toml" in result.stderr

    def test_a_target_that_cannot_be_reached_names_the_command_that_helps(self, here: Path) -> None:
        target = 'kind = "vllm"\nbase_url = "http://127.0.0.1:9/v1"\n'
        modes = "".join(
            f"[modes.{mode}]\n[[modes.{mode}.targets]]\n{target}" for mode in ("good", "plain")
        )
        (here / "config.toml").write_text(modes, encoding="utf-8")
        result = run("generate", "hello")
        assert result.exit_code == 1
        line = one_line_error(result)
        assert "good: cannot connect to http://127.0.0.1:9" in line
        assert "plain: " in line
        assert "`gateway check`" in line

    def test_a_missing_extra_names_the_line_that_installs_it(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (here / "config.toml").write_text(
            '[modes.fast]\n[[modes.fast.targets]]\nkind = "local"\n', encoding="utf-8"
        )
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest: None if name == "xllamacpp" else find(name, *rest),
        )
        result = run("generate", "hello")
        assert result.exit_code == 2
        assert "pip install 'downshift-gateway[local]'" in one_line_error(result)

    def test_an_answer_that_breaks_off_is_an_error_after_its_words(self, here: Path) -> None:
        cut = QUICK.replace("{", "{ faults = [{kind='cut_stream', start=0, end=1e9}],")
        (here / "config.toml").write_text(CONFIG.replace(QUICK, cut), encoding="utf-8")
        result = run("generate", "hello", "--stream")
        assert result.exit_code == 1
        assert len(result.stdout.split()) == 3 and result.stdout.endswith("\n")
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: the answer broke off")

    def test_as_json_an_error_is_an_object(self) -> None:
        result = run("generate", "hello", "--mode", "dreamy", "--json")
        assert result.exit_code == 2 and result.stdout == ""
        error = json.loads(result.stderr)["error"]
        assert error["code"] == "invalid_request"
        assert error["type"] == "invalid_request_error"
        assert "dreamy" in error["message"]


# -- check, simulate, demo ------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
class TestCheck:
    def test_all_is_well(self) -> None:
        result = run("check")
        assert result.exit_code == 0
        assert result.stdout.count(" ok") == 2

    def test_a_target_is_not_well(self, here: Path) -> None:
        (here / "other.toml").write_text(DOWN, encoding="utf-8")
        result = run("check", "other.toml")
        assert result.exit_code == 1
        assert "NOT WELL" in result.stdout and "connection refused" in result.stdout

    def test_as_data(self) -> None:
        data = json.loads(run("check", "--json").stdout)
        assert data["ok"] is True
        assert [target["mode"] for target in data["targets"]] == ["creative", "fast"]
        assert data["targets"][0]["first_token_s"] > 0

    def test_nobody_is_asked_without_probe(self) -> None:
        result = run("check", "--no-probe")
        assert result.exit_code == 0
        assert result.stdout.count("not asked") == 2

    def test_a_missing_file(self) -> None:
        result = run("check", "nowhere.toml")
        assert result.exit_code == 2
        assert "nowhere.toml: no such file" in one_line_error(result)


class TestSimulate:
    def test_it_tells_a_story_that_loses_no_request(self) -> None:
        result = run("simulate", "outage", "--minutes", "4")
        assert result.exit_code == 0
        assert "0 failed" in result.stdout and "creative: circuit opens" in result.stdout
        assert "4 simulated minutes took" in result.stderr

    def test_as_data_with_a_picture(self, tmp_path: Path) -> None:
        picture = tmp_path / "brownout.svg"
        result = run("simulate", "brownout", "--minutes", "3", "--json", "--plot", str(picture))
        assert json.loads(result.stdout)["scenario"] == "brownout"
        assert "<svg" in picture.read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["meltdown"], "unknown scenario 'meltdown'; there are outage, brownout"),
            (["outage", "--minutes", "0"], "minutes must be above 0"),
            (["outage", "--rps", "-1"], "requests per second must be above 0"),
            (["outage", "--plot", "picture.gif"], "ends in .png or .svg"),
        ],
    )
    def test_what_the_caller_can_mend(self, arguments: list[str], said: str) -> None:
        result = run("simulate", *arguments)
        assert result.exit_code == 2
        assert said in one_line_error(result)

    def test_without_matplotlib_only_drawing_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        result = run("simulate", "outage", "--plot", str(tmp_path / "outage.png"))
        assert result.exit_code == 2
        assert "pip install 'downshift-gateway[plot]'" in one_line_error(result)
        assert run("simulate", "outage", "--minutes", "0.2").exit_code == 0

    def test_two_processes_print_the_same_bytes(self) -> None:
        command = ("simulate", "flapping", "--seed", "5", "--minutes", "3")
        first, second = (
            spawn(*command, env={"PYTHONHASHSEED": seed, "TZ": zone})
            for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo"))
        )
        assert first.returncode == 0 and first.stdout
        assert first.stdout == second.stdout


@pytest.mark.usefixtures("here")
def test_a_demo_that_cannot_be_given_says_why() -> None:
    result = run("demo", "--config", "config.toml")
    assert result.exit_code == 2
    assert "kind 'local' or reached by plain http://, not simulated" in one_line_error(result)


# -- the command itself ---------------------------------------------------------------------------


def test_the_installed_command_is_this_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["gateway"].partition(":")
    assert (module, name) == ("gateway.cli", "main")
    assert callable(main)


def test_as_a_process_it_answers(here: Path) -> None:
    result = spawn("generate", "hello", cwd=here)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) == 8
    assert result.stderr == ""


def test_a_mistyped_option_is_a_usage_error() -> None:
    result = spawn("generate", "hello", "--mood", "creative")
    assert result.returncode == 2
    assert "--mood" in result.stderr and "Traceback" not in result.stderr


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"gateway {__version__}\n")


def test_help_lists_the_commands_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom gateway.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    for command in ("generate", "check", "simulate", "demo"):
        assert command in result.stdout
    loaded = {name.partition(".")[0] for name in result.stderr.split()}
    assert not loaded & {"httpx", "matplotlib", "numpy", "xllamacpp", "structlog", "rich"}


def test_control_c_ends_it_quietly(here: Path) -> None:
    stalls = QUICK.replace("{", "{ faults = [{kind='stall', start=0, end=1e9, after_chunks=2}],")
    (here / "config.toml").write_text(CONFIG.replace(QUICK, stalls), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "generate", "hello", "--stream", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        # A shell that runs the tests in the background may have told us to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    with process:
        assert process.stdout is not None
        assert "text" in process.stdout.readline()  # it is in the middle of the answer
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip() == ""


def test_a_prompt_is_read_where_control_c_ends_it(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loops: list[object] = []

    class Typed(io.StringIO):
        def read(self, size: int | None = -1) -> str:
            # In a loop the first Ctrl-C would cancel a task, which a blocked read does not notice.
            loops.append(asyncio._get_running_loop())
            return super().read(size)

    monkeypatch.setattr(sys, "stdin", Typed("hello"))
    main(["generate", "-"], standalone_mode=False)
    assert loops == [None]
    assert capsys.readouterr().out.strip()


def test_check_takes_its_file_either_way(here: Path) -> None:
    (here / "config.toml").rename(here / "other.toml")
    for words in (["other.toml"], ["--config", "other.toml"], ["-c", "other.toml"]):
        assert run("check", *words, "--no-probe").exit_code == 0
    assert run("check").exit_code == 2


def test_no_command_is_described_by_half_a_sentence() -> None:
    for group in ([], ["keys"], ["faultlab"]):
        assert "..." not in run(*group, "--help").stdout.partition("Commands:")[2]
