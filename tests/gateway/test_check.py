"""`gateway check`: what is well is said to be, what is not is named, with what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stub_upstream import Stub

from gateway.check import TargetCheck, check, exit_code, table
from gateway.config import Config
from gateway.errors import ConfigError
from gateway.simulator import clock


def one_target(**target: Any) -> Config:
    return Config.from_dict({"modes": {"creative": {"temperature": 1.0, "targets": [target]}}})


async def only(config: Config, **options: Any) -> TargetCheck:
    (found,) = await check(config, **options)
    return found


async def test_a_well_target_tells_its_first_token() -> None:
    async with Stub() as stub:
        found = await only(one_target(kind="vllm", base_url=stub.base_url, model="qwen"))
    assert found.ok is True and found.problem == "" and found.model == "qwen"
    assert found.first_token_s is not None and 0 < found.first_token_s < 5
    assert [path for path, _ in stub.requests] == ["/health", "/v1/chat/completions"]
    assert exit_code([found]) == 0


async def test_the_question_is_tiny_and_bears_the_modes_own_sampling() -> None:
    async with Stub() as stub:
        await only(one_target(kind="vllm", base_url=stub.base_url, model="qwen"))
    asked = stub.requests[-1][1]
    assert asked["max_tokens"] <= 5
    assert asked["temperature"] == 1.0


async def test_without_probe_nobody_is_asked() -> None:
    async with Stub() as stub:
        found = await only(one_target(kind="vllm", base_url=stub.base_url), probe=False)
    assert found.ok is None and not stub.requests
    assert exit_code([found]) == 0
    assert "not asked" in table([found])


async def test_where_a_kind_has_no_health_check_only_the_question_is_asked() -> None:
    async with Stub() as stub:
        found = await only(one_target(kind="openai", base_url=stub.base_url, model="gpt"))
    assert found.ok is True
    assert [path for path, _ in stub.requests] == ["/v1/chat/completions"]


async def test_a_server_that_is_not_there_is_named_with_its_address() -> None:
    async with Stub() as stub:
        address = stub.base_url
    found = await only(one_target(kind="vllm", base_url=address))
    assert found.ok is False and found.built
    assert f"start the server at {address}" in found.remedy
    assert "modes.creative.targets[0]" in found.remedy
    assert exit_code([found]) == 1


async def test_a_loading_server_is_told_from_a_broken_one() -> None:
    async with Stub(health=503) as stub:
        found = await only(one_target(kind="vllm", base_url=stub.base_url))
    assert found.ok is False
    assert "loading" in found.remedy
    assert [path for path, _ in stub.requests] == ["/health"]


@pytest.mark.parametrize(
    ("status", "error", "remedy"),
    [
        (401, {"message": "Incorrect API key", "code": "invalid_api_key"}, "CHECK_KEY"),
        (404, {"message": "no such model", "code": "model_not_found"}, "/v1/models"),
        (429, {"message": "slow down", "code": "limit_requests"}, "check again later"),
        (500, {"message": "boom"}, "its own log"),
        (400, {"message": "top_p must be positive"}, "sampling fields"),
    ],
)
async def test_each_refusal_has_its_remedy(
    monkeypatch: pytest.MonkeyPatch, status: int, error: dict[str, Any], remedy: str
) -> None:
    monkeypatch.setenv("CHECK_KEY", "sk-very-secret")
    async with Stub(health=200) as stub:
        stub.fail(status, error)
        config = one_target(
            kind="openai", base_url=stub.base_url, model="gpt", api_key_env="CHECK_KEY"
        )
        found = await only(config)
    assert found.ok is False
    assert remedy in found.remedy
    assert "sk-very-secret" not in table([found])


async def test_a_web_page_is_no_api() -> None:
    async with Stub(content_type="text/html", body=b"<html>hello</html>") as stub:
        found = await only(one_target(kind="openai", base_url=stub.base_url, model="gpt"))
    assert found.ok is False
    assert "/v1" in found.remedy


async def test_an_empty_answer_is_not_well() -> None:
    async with Stub(body=b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n') as stub:
        found = await only(one_target(kind="openai", base_url=stub.base_url, model="gpt"))
    assert found.ok is False and "nothing" in found.problem


def test_silence_ends_at_the_patience_given() -> None:
    silent = {"faults": [{"kind": "outage", "start": 0, "end": 1e9, "how": "silent"}]}
    config = one_target(kind="simulated", options=silent)
    found = clock.run(lambda: only(config, timeout_s=7.0))
    assert found.ok is False
    assert "7 s" in found.problem and "--timeout" in found.remedy


def test_one_bad_target_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    config = Config.from_dict(
        {
            "modes": {
                "creative": {
                    "targets": [
                        {"kind": "dashscope", "api_key_env": "NOT_THERE"},
                        {"kind": "simulated"},
                    ]
                },
                "fast": {"targets": [{"kind": "simulated"}]},
            }
        }
    )
    checks = clock.run(lambda: check(config))
    assert [found.ok for found in checks] == [False, True, True]
    assert not checks[0].built and "export NOT_THERE=" in checks[0].problem
    assert exit_code(checks) == 2
    printed = table(checks)
    assert "[modes.creative.targets[0]]" in printed
    assert printed.count("NOT WELL") == 1


async def test_a_store_that_cannot_be_built_is_the_configurations_fault() -> None:
    config = Config.from_dict(
        {
            "modes": {"fast": {"targets": [{"kind": "simulated"}]}},
            "cache": {"path": "memcached://x"},
        }
    )
    with pytest.raises(ConfigError, match="cache"):
        await check(config)


async def test_nothing_stays_open() -> None:
    async with Stub() as stub:
        await only(one_target(kind="vllm", base_url=stub.base_url))
        await only(one_target(kind="vllm", base_url=stub.base_url, transport="httpx"))
    # leaving the server would hang, and unclosed sockets would be warnings, which are errors


def embedding(**target: Any) -> Config:
    modes = {"fast": {"targets": [{"kind": "simulated"}]}}
    return Config.from_dict({"modes": modes, "embeddings": {"targets": [target]}})


async def test_those_that_embed_are_asked_for_a_vector() -> None:
    async with Stub() as stub:
        stub.content_type = "application/json"
        stub.body = b'{"object":"list","model":"bge","data":[{"index":0,"embedding":[1.0]}]}'
        _, found = await check(embedding(kind="openai", base_url=stub.base_url, model="bge"))
    assert found.ok is True and found.mode == "embeddings" and found.model == "bge"
    assert found.first_token_s is not None
    assert stub.requests == [("/v1/embeddings", {"input": "Say yes.", "model": "bge"})]


async def test_an_embedding_target_that_serve_would_refuse_is_not_well() -> None:
    checks = await check(embedding(kind="openai"), probe=False)
    assert checks[1].problem == "model: an embedding target must be told which model"
    assert exit_code(checks) == 2 and "[embeddings.targets[0]] model" in table(checks)
    async with Stub() as stub:
        stub.fail(400, {"message": "no"})
        _, found = await check(embedding(kind="openai", base_url=stub.base_url, model="bge"))
    assert found.ok is False and "[embeddings]" in found.remedy


async def test_an_address_that_python_cannot_even_split_is_the_files_fault() -> None:
    for config in (
        one_target(kind="openai", model="m", base_url="http://[::1/v1"),
        embedding(kind="openai", model="m", base_url="http://[::1/v1"),
    ):
        found = (await check(config, probe=False))[-1]
        assert found.problem == "base_url: Invalid IPv6 URL" and not found.built


async def test_certificates_that_are_not_there_or_none_are_the_files_fault(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing", encoding="utf-8")
    for transport in ("http1", "httpx"):
        for name in ("none.pem", "empty.pem"):
            file = str(tmp_path / name)
            target = {"kind": "openai", "model": "m", "transport": transport, "ca_file": file}
            found = await only(one_target(**target), probe=False)
            assert found.problem.startswith(f"ca_file: cannot read {file} as PEM: ")
            assert not found.built
