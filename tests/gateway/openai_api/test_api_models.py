"""What may stand in `model`, and what is listed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from api_stage import MESSAGES, Stage, Upstream, config, stage, target

from gateway import Gateway
from gateway.config import Config
from gateway.openai_api.api import OpenAIAPI
from gateway.openai_api.errors import ModelNotFound, PermissionDenied
from gateway.openai_api.models import Models
from gateway.openai_api.words import ANYONE, Caller


def two(**tables: Any) -> Config:
    modes = {
        "creative": {"targets": [target(Upstream(), model="org/large")]},
        "fast": {"targets": [target(Upstream(), model="small")]},
    }
    return Config.from_dict({"modes": modes, "aliases": {"gpt-4o": "fast"}, **tables})


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("creative", "creative"), ("fast", "fast"), ("gpt-4o", "fast"), ("small", "fast")),
        *(("org/large", "creative"), ("auto", "fast"), ("", "fast")),
    ],
)
async def test_a_name_stands_for_a_mode(name: str, mode: str) -> None:
    async with Gateway(two()) as gateway:
        assert Models(gateway, "fast", strict=True).mode(name, ANYONE) == mode


async def test_a_name_nobody_knows_is_an_error_or_the_default() -> None:
    async with Gateway(two()) as gateway:
        assert Models(gateway, None, strict=False).mode("gpt-5", ANYONE) == "creative"
        with pytest.raises(ModelNotFound, match="creative, fast, auto, gpt-4o") as caught:
            Models(gateway, None, strict=True).mode("gpt-5", ANYONE)
    assert (caught.value.http_status, caught.value.param) == (404, "model")


async def test_a_key_asks_only_for_its_modes() -> None:
    caller = Caller(modes=frozenset({"fast"}))
    async with Gateway(two()) as gateway:
        models = Models(gateway, None, strict=True)
        assert models.mode("small", caller) == "fast"
        with pytest.raises(PermissionDenied, match="fast"):
            models.mode("org/large", caller)


async def test_a_reload_changes_what_is_known() -> None:
    async with Gateway(two()) as gateway:
        models = Models(gateway, None, strict=True)
        assert models.mode("small", ANYONE) == "fast"
        gateway.reload(config(Upstream()))
        with pytest.raises(ModelNotFound):
            models.mode("small", ANYONE)
        assert models.mode("qwen", ANYONE) == "creative"


async def get(s: Stage, path: str) -> tuple[int, Any]:
    answer = await s.http.get(path)
    return answer.status_code, answer.json()


async def test_all_names_are_listed_and_shown() -> None:
    async with stage(two()) as s:
        _, listed = await get(s, "/models")
        assert listed["object"] == "list"
        ids = [model["id"] for model in listed["data"]]
        assert ids == ["creative", "fast", "auto", "gpt-4o", "org/large", "small"]
        for model in listed["data"]:
            assert await get(s, f"/models/{model['id']}") == (200, model)
            assert (model["object"], model["created"]) == ("model", 0)
        assert {m["id"]: m["owned_by"] for m in listed["data"]}["org/large"] == "upstream"
        status, missing = await get(s, "/models/org%2Fnone")
        assert (status, missing["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/models", 405),
        ("GET", "/chat/completions", 405),
        ("GET", "/responses/resp_1", 404),
        ("GET", "/nothing", 404),
    ],
)
async def test_other_paths_and_methods_are_refused(method: str, path: str, status: int) -> None:
    async with stage(two()) as s:
        answer = await s.http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"].keys() >= {"message", "type", "param", "code"}
    assert ("allow" in answer.headers) == (status == 405)


async def test_the_body_names_the_model_that_really_answered() -> None:
    async with stage(config(Upstream())) as s:
        api = OpenAIAPI(s.gateway)
        body = json.dumps({"model": "auto", "messages": MESSAGES}).encode()
        _, _, said = await api.handle("POST", "/v1/chat/completions", {}, body)
    assert isinstance(said, bytes)
    assert json.loads(said)["model"] == "qwen-real"
