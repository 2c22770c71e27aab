"""Names in config.toml become parts, or errors that say what to write instead."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from gateway import Config, ConfigError, Gateway
from gateway.modes import TargetOptions
from gateway.policies.ttl import CacheOptions
from gateway.registry import Clients, api_key, build_provider, build_store, resolve

AUTO = TargetOptions(kind="auto")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QWEN_BASE_URL", "QWEN_KIND", "QWEN_MODEL", "QWEN_API_KEY", "DASHSCOPE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_auto_is_the_embedded_model_without_any_key() -> None:
    assert resolve(AUTO, "creative").kind == "local"


def test_auto_is_dashscope_with_a_key_and_each_mode_has_its_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-x")
    models = [resolve(AUTO, mode).model for mode in ("creative", "balanced", "fast", "other")]
    assert models == ["qwen3.8-max", "qwen3.7-plus", "qwen3.8-flash", "qwen3.7-plus"]
    assert resolve(AUTO, "fast").kind == "dashscope"


def test_auto_is_your_own_server_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-x")
    monkeypatch.setenv("QWEN_BASE_URL", "http://127.0.0.1:8000/v1")
    monkeypatch.setenv("QWEN_MODEL", "Qwen/Qwen3.6-27B")
    own = resolve(AUTO, "creative")
    assert (own.kind, own.base_url, own.model) == (
        "vllm",
        "http://127.0.0.1:8000/v1",
        "Qwen/Qwen3.6-27B",
    )
    assert own.api_key_env == ""


def test_other_kinds_stay_as_they_are() -> None:
    target = TargetOptions(kind="ollama", model="qwen3:8b")
    assert resolve(target, "fast") is target


def test_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="dashscope"):
        build_provider(TargetOptions(kind="qwen"), Clients())


def test_a_missing_key_names_the_variable_and_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    target = {"kind": "dashscope", "model": "qwen3.8-max", "api_key_env": "DASHSCOPE_API_KEY"}
    config = Config.from_dict({"modes": {"creative": {"targets": [target]}}}, source="my.toml")
    with pytest.raises(ConfigError) as caught:
        Gateway(config)
    told = str(caught.value)
    assert "my.toml" in told
    assert "modes.creative.targets[0]" in told
    assert "export DASHSCOPE_API_KEY" in told


def test_a_key_can_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-from-file\n")
    assert api_key(TargetOptions(kind="openai", api_key_file=str(file))) == "sk-from-file"
    with pytest.raises(ConfigError, match="cannot read"):
        api_key(TargetOptions(kind="openai", api_key_file=str(tmp_path / "none")))


def test_an_unknown_store_says_what_is_expected() -> None:
    with pytest.raises(ConfigError, match="valkey://"):
        build_store(CacheOptions(path="memcached://x"), lambda: 0.0)


async def test_any_httpx_transport_can_carry_a_target() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        message = {"role": "assistant", "content": "cedar"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return httpx.Response(200, json={"id": "1", "model": "m", "choices": [choice]})

    target = {
        "kind": "openai",
        "model": "m",
        "base_url": "http://qwen.test/v1",
        "transport": "httpx",
        "stream_upstream": False,
        "options": {"transport": httpx.MockTransport(answer)},
    }
    config = Config.from_dict({"modes": {"only": {"targets": [target]}}})
    async with Gateway(config) as gateway:
        assert (await gateway.generate("A woody note?")).text == "cedar"
    assert seen[0].url == "http://qwen.test/v1/chat/completions"
