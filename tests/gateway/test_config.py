"""config.toml: every default is written down, every mistake is named with its remedy."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import Config, ConfigError
from gateway.config import FeedbackOptions
from gateway.middleware.admission import AdmissionOptions
from gateway.modes import ModeOptions, TargetOptions
from gateway.policies.budget import BudgetOptions
from gateway.policies.keys import KeyOptions, key_hash
from gateway.policies.phases import CircuitOptions
from gateway.policies.ttl import CacheOptions
from gateway.server.options import ServerOptions

SHIPPED = Path(__file__).resolve().parents[2] / "config.toml"
TABLES: dict[str, type] = {
    "circuit": CircuitOptions,
    "cache": CacheOptions,
    "budget": BudgetOptions,
    "admission": AdmissionOptions,
    "feedback": FeedbackOptions,
    "server": ServerOptions,
}


def with_mode(**tables: Any) -> dict[str, Any]:
    return {"modes": {"only": {"targets": [{"kind": "simulated"}]}}, **tables}


@pytest.mark.parametrize("table", TABLES)
def test_the_shipped_file_states_every_knob_at_its_default(table: str) -> None:
    shipped = tomllib.loads(SHIPPED.read_text())[table]
    defaults = dataclasses.asdict(TABLES[table]())
    assert shipped == {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()}


def test_the_shipped_file_states_every_key_of_modes_and_targets() -> None:
    creative = tomllib.loads(SHIPPED.read_text())["modes"]["creative"]
    assert {f.name for f in dataclasses.fields(ModeOptions)} - {"name", "sampling"} <= set(creative)
    target = creative["targets"][0]
    missing = {f.name for f in dataclasses.fields(TargetOptions)} - set(target)
    assert missing == {"headers", "options"}  # tables of one's own making


def test_every_line_of_the_shipped_file_says_why() -> None:
    table = ""
    for line in SHIPPED.read_text().splitlines():
        if line.startswith("["):
            table = line
        elif "=" in line and not line.startswith(("#", " ")) and "modes" not in table:
            key = line.partition("=")[0].strip()
            told = "#" in line or key in {"enabled", "host", "port"}
            assert told, line


def test_the_order_in_the_file_is_the_ladder() -> None:
    assert [mode.name for mode in Config.from_toml(SHIPPED).modes] == [
        "creative",
        "balanced",
        "fast",
    ]


@pytest.mark.parametrize(
    ("tables", "place", "remedy"),
    [
        ({"circuits": {}}, "circuits", "did you mean circuit?"),
        ({"circuit": {"break_duration": 5}}, "[circuit]: break_duration", "break_duration_s"),
        ({"circuit": {"break_duration_ms": 5}}, "break_duration_ms", "in seconds"),
        ({"circuit": {"break_duration_s": "5m"}}, "break_duration_s", "seconds as a number"),
        ({"circuit": {"break_duration_s": True}}, "break_duration_s", "seconds as a number"),
        ({"circuit": {"break_duration_s": -1}}, "break_duration_s", "at least 0"),
        ({"circuit": {"break_duration_s": float("nan")}}, "break_duration_s", "finite"),
        ({"circuit": {"failure_ratio": 1.5}}, "failure_ratio", "between 0 and 1"),
        ({"circuit": {"failure_threshold": 0}}, "failure_threshold", "at least 1"),
        ({"circuit": {"failure_threshold": 2.5}}, "failure_threshold", "whole number"),
        ({"circuit": {"ramp": "square"}}, "ramp", "cosine, linear"),
        ({"cache": {"enabled": 1}}, "enabled", "true or false"),
        ({"cache": 5}, "[cache]", "expected a table"),
        ({"server": {"port": 70000}}, "port", "65535"),
        ({"modes": {}}, "[modes]", "[[modes.NAME.targets]]"),
        ({"modes": {"a": {}}}, "[modes.a]", "targets"),
        ({"modes": {"a": {"targets": {}}}}, "[modes.a]", "double brackets"),
        ({"modes": {"a": {"targets": [{}]}}}, "modes.a.targets[0]", "kind"),
        ({"modes": {"a": {"targets": [{"kind": "vlm"}]}}}, "targets[0]", "did you mean 'vllm'"),
        (
            {"modes": {"a": {"targets": [{"kind": "vllm", "transport": "http2"}]}}},
            "transport",
            "one of http1, httpx",
        ),
        ({"modes": {"a": {"tempratur": 1}}}, "[modes.a]: tempratur", "temperature"),
        ({"modes": {"a": {"deadline_s": 0}}}, "deadline_s", "at least 0.001"),
    ],
)
def test_mistakes_are_named(tables: dict[str, Any], place: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict({**with_mode(), **tables}, source="my.toml")
    told = str(caught.value)
    assert told.startswith("my.toml")
    assert place in told
    assert remedy in told


def test_a_file_that_is_missing_or_no_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        Config.from_toml(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("[circuit\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        Config.from_toml(bad)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        Config.from_toml(bad)


def test_variables_expand_after_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_HOST", 'evil"\n[server]\nport = 1')
    monkeypatch.delenv("NOT_SET", raising=False)
    target = {"kind": "vllm", "base_url": "${QWEN_HOST}", "model": "${NOT_SET:-qwen}"}
    config = Config.from_dict({"modes": {"a": {"targets": [target]}}})
    assert config.modes[0].targets[0].base_url == 'evil"\n[server]\nport = 1'
    assert config.modes[0].targets[0].model == "qwen"
    assert config.server.port == 8080
    with pytest.raises(ConfigError, match=r"base_url: environment variable NOT_SET is not set"):
        Config.from_dict(
            {"modes": {"a": {"targets": [{"kind": "vllm", "base_url": "${NOT_SET}"}]}}}
        )


def test_integers_are_fine_where_numbers_are_asked_for() -> None:
    assert Config.from_dict(with_mode(circuit={"break_duration_s": 5})).circuit == CircuitOptions(
        break_duration_s=5.0
    )


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*TABLES, "modes", "targets", "kind", "x"]), inner)
        ),
        max_leaves=12,
    )
)
def test_no_table_whatsoever_is_a_traceback(tables: Any) -> None:
    if isinstance(tables, dict):
        try:
            Config.from_dict(tables, source="my.toml")
        except ConfigError as error:
            assert "my.toml" in str(error)


# -- keys ------------------------------------------------------------------------------

ONE, OTHER = key_hash("one-long-random-string-1"), key_hash("another-long-random-string")


def test_keys_are_read_with_all_they_may_say() -> None:
    table = {"hash": ONE, "modes": ["only"], "requests_per_min": 5, "expires": "2027-01-31"}
    [key] = Config.from_dict(with_mode(keys={"alice": table})).keys
    assert key == KeyOptions(
        name="alice", hash=ONE, modes=("only",), requests_per_min=5, expires="2027-01-31"
    )


def test_a_date_of_tomls_own_is_a_date() -> None:
    text = f'[alice]\nhash = "{ONE}"\nexpires = 2027-01-31\n'
    [key] = Config.from_dict(with_mode(keys=tomllib.loads(text))).keys
    assert key.expires == "2027-01-31"


@pytest.mark.parametrize(
    ("keys", "place", "remedy"),
    [
        ({"a": {}}, "[keys.a]: hash", "missing"),
        ({"a": {"hash": "sk-pasted"}}, "[keys.a]: hash", "gateway keys hash"),
        ({"a": {"hash": ["sk-pasted"]}}, "[keys.a]: hash", "a string"),
        ({"a": "sk-pasted"}, "[keys.a]", "expected a table"),
        ("sk-pasted", "[keys]", "expected a table"),
        ({"a": {"hash": ONE, "expires": "soon"}}, "[keys.a]: expires", "2027-01-31"),
        ({"a": {"hash": ONE, "modes": ["onyl"]}}, "[keys.a]: modes", "did you mean 'only'"),
        ({"a": {"hash": ONE, "requests_per_minute": 1}}, "requests_per_minute", "requests_per_min"),
        ({"a": {"hash": ONE, "concurrency": -1}}, "[keys.a]: concurrency", "at least 0"),
        ({"a": {"hash": ONE}, "b": {"hash": ONE}}, "[keys.b]: hash", "[keys.a]"),
        ({"admin": {"hash": ONE}}, "[keys.admin]", "admin key"),
    ],
)
def test_mistakes_in_keys_are_named_and_never_quoted(keys: Any, place: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(with_mode(keys=keys), source="my.toml")
    told = str(caught.value)
    assert told.startswith("my.toml: ")
    assert place in told
    assert remedy in told
    assert "sk-pasted" not in told


def test_the_admin_key_is_a_key_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"\[server\] admin_key_hash, too"):
        Config.from_dict(with_mode(keys={"a": {"hash": ONE}}, server={"admin_key_hash": ONE}))
    with pytest.raises(ConfigError, match="admin_key_hash: expected what") as caught:
        Config.from_dict(with_mode(server={"admin_key_hash": "sk-pasted"}))
    assert "sk-pasted" not in str(caught.value)


def test_keys_may_lie_in_a_file_of_their_own(tmp_path: Path) -> None:
    main, apart = tmp_path / "config.toml", tmp_path / "keys.toml"
    main.write_text(
        '[server]\nkeys_file = "keys.toml"\n'
        f'[keys.a]\nhash = "{ONE}"\n'
        '[[modes.only.targets]]\nkind = "simulated"\n'
    )
    apart.write_text(f'[keys.b]\nhash = "{OTHER}"\n')
    config = Config.from_toml(main)
    assert [key.name for key in config.keys] == ["a", "b"]
    assert config.files == (str(main), str(apart))
    for text, told in [
        (f'[keys.a]\nhash = "{OTHER}"\n', r"keys.toml: \[keys.a\]: .*config.toml has this table"),
        ("[server]\nport = 1\n", r"keys.toml: \[server\]: expected nothing but"),
        ('[keys.b]\nhash = "x"\n', r"keys.toml: \[keys.b\]: hash: expected what"),
        ("[keys", "keys.toml: is not valid TOML"),
    ]:
        apart.write_text(text)
        with pytest.raises(ConfigError, match=told):
            Config.from_toml(main)
    apart.unlink()
    with pytest.raises(ConfigError, match=r"keys.toml: no such file"):
        Config.from_toml(main)


def test_a_configuration_does_not_print_what_it_knows_of_keys() -> None:
    config = Config.from_dict(
        with_mode(keys={"a": {"hash": ONE}}, server={"admin_key_hash": OTHER})
    )
    assert ONE.removeprefix("sha256:") not in repr(config)
    assert OTHER.removeprefix("sha256:") not in repr(config)


def test_auto_stands_for_a_mode_that_there_is() -> None:
    with pytest.raises(ConfigError, match=r"^\[server\]: default_mode: expected one of only"):
        Config.from_dict(with_mode(server={"default_mode": "onyl"}))
    assert Config.from_dict(with_mode(server={"default_mode": "only"})).server.default_mode


def test_a_mark_that_windows_editors_put_first_is_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(b"\xef\xbb\xbf" + SHIPPED.read_bytes())
    assert Config.from_toml(file).modes == Config.from_toml(SHIPPED).modes


def test_a_missing_file_names_one_to_begin_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        Config.from_toml("config.toml")
    words = refused.value.reason.split()
    assert Config.from_toml(words[words.index("copy") + 1]).modes
