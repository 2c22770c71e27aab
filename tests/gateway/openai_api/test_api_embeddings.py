"""`POST /embeddings` as OpenAI's client sends and reads it."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import openai
import pytest
from api_stage import Stage, Upstream, config, stage, target

from gateway.openai_api.api import OpenAIAPI
from gateway.openai_api.words import Call, Caller

VECTOR = [0.25, -1.0]
ANSWER = {
    "object": "list",
    "model": "bge-real",
    "data": [{"object": "embedding", "index": 0, "embedding": VECTOR}],
    "usage": {"prompt_tokens": 2, "total_tokens": 2},
    "extra": {"kept": True},
}


@pytest.fixture
def upstream() -> Upstream:
    return Upstream(json.dumps(ANSWER).encode())


def embeds(upstream: Upstream, **tables: Any) -> Any:
    return config(Upstream(), embeddings={"targets": [target(upstream, model="org/bge")]}, **tables)


async def test_the_sdk_asks_for_base64_and_gets_floats(upstream: Upstream) -> None:
    packed = base64.b64encode(struct.pack("<2f", *VECTOR)).decode()
    upstream.body = upstream.body.replace(b"[0.25, -1.0]", json.dumps(packed).encode())
    async with stage(embeds(upstream)) as s:
        sdk = openai.AsyncOpenAI(http_client=s.http, base_url="http://gateway/v1", api_key="x")
        answer = await sdk.embeddings.create(model="org/bge", input=["cedar"], dimensions=2)
    assert answer.data[0].embedding == VECTOR
    assert upstream.asked == [
        {"model": "org/bge", "input": ["cedar"], "dimensions": 2, "encoding_format": "base64"}
    ]


async def test_the_answer_passes_with_who_gave_it(upstream: Upstream) -> None:
    async with stage(embeds(upstream)) as s:
        answer = await s.post("/embeddings", {"model": "org/bge", "input": "x", "user": "u"})
    body = answer.json()
    assert body.pop("gateway") == {"target": "vllm/org/bge", "attempts": 1}
    assert body == ANSWER
    assert upstream.asked[0]["user"] == "u"
    assert answer.headers["x-gateway-attempts"] == "1"
    assert float(answer.headers["x-gateway-overhead-ms"]) >= 0
    assert answer.headers["x-gateway-id"].startswith("gen-")


async def test_fields_named_like_our_arguments_go_upstream_and_nowhere_else(
    upstream: Upstream,
) -> None:
    fields = {"input": "x", "tenant": "other", "key": "k", "deadline": -1, "texts": 5}
    async with stage(embeds(upstream)) as s:
        assert (await s.post("/embeddings", fields)).status_code == 200
    assert upstream.asked[0] == {**fields, "model": "org/bge"}


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({}, 400, "input"),
        ({"input": ""}, 400, "input[0]"),
        ({"input": {}}, 400, "input"),
        ({"input": "x", "model": 5}, 400, "model"),
        ({"input": "x", "model": "nobody"}, 404, "model"),
        ({"input": "x", "dimensions": "many"}, 400, "dimensions"),
        ({"input": "x", "encoding_format": "hex"}, 400, "encoding_format"),
    ],
)
async def test_bad_fields_are_named(
    upstream: Upstream, fields: dict[str, Any], status: int, param: str
) -> None:
    async with stage(embeds(upstream)) as s:
        answer = await s.post("/embeddings", fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert not upstream.asked


async def test_a_client_that_waits_a_blink_is_not_kept(upstream: Upstream) -> None:
    async with stage(embeds(upstream)) as s:
        answer = await s.post("/embeddings", {"input": "x"}, **{"x-stainless-timeout": "nan"})
    assert answer.status_code == 200


async def test_an_upstreams_error_is_openais(upstream: Upstream) -> None:
    upstream.fail(401, "bad key")
    async with stage(embeds(upstream)) as s:
        answer = await s.post("/embeddings", {"input": "x"})
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_authentication"


async def test_models_that_embed_are_listed_and_shown(upstream: Upstream) -> None:
    async with stage(embeds(upstream, aliases={"gpt-4o": "creative"})) as s:
        ids = [model["id"] for model in (await s.http.get("/models")).json()["data"]]
        shown = (await s.http.get("/models/org/bge")).json()
        missing = await s.http.get("/models/org/none")
    assert ids == ["creative", "auto", "gpt-4o", "qwen", "org/bge"]
    assert shown == {"id": "org/bge", "object": "model", "created": 0, "owned_by": "upstream"}
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


async def ask(s: Stage, caller: Caller, method: str, path: str, body: Any = None) -> Any:
    routes = OpenAIAPI(s.gateway, strict_models=True).routes
    prefix = "/models/" if path.startswith("/models/") else path
    call = Call(method, path, body=json.dumps(body).encode(), caller=caller)
    return await routes[method, prefix](call)


async def test_a_key_for_some_modes_embeds_only_what_it_names(upstream: Upstream) -> None:
    narrow = Caller(modes=frozenset({"creative"}))
    wide = Caller(modes=frozenset({"creative", "org/bge"}))
    body = {"input": "x", "model": "org/bge"}
    async with stage(embeds(upstream)) as s:
        with pytest.raises(Exception, match="may not ask for org/bge"):
            await ask(s, narrow, "POST", "/embeddings", body)
        assert (await ask(s, wide, "POST", "/embeddings", body))[0] == 200
        listed = json.loads((await ask(s, narrow, "GET", "/models"))[2])["data"]
    assert "org/bge" not in [model["id"] for model in listed]
