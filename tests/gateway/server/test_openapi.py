"""The document tells of every route there is, and of none that is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.config import Config
from gateway.openai_api.words import Call
from gateway.server import openapi
from gateway.server.app import App

TABLES = {"modes": {"fast": {"targets": [{"kind": "simulated"}]}}, "server": {"log": "off"}}


async def test_every_route_is_described_and_nothing_else() -> None:
    app = App(Config.from_dict(TABLES))
    try:
        assert set(openapi.OPERATIONS) == set(app.service.router.routes)
        reply = await app.service.handle(
            Call("GET", "/openapi.json", {"host": "localhost"}, peer="127.0.0.1")
        )
    finally:
        await app.stop()
    status, _, body = reply
    assert status == 200
    assert isinstance(body, bytes)
    document = msgspec.json.decode(body)
    operations = [op for path in document["paths"].values() for op in path.values()]
    assert len(operations) == len(openapi.OPERATIONS)
    assert len({op["operationId"] for op in operations}) == len(operations)
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    used = set(references(document))
    assert used <= known
    assert known - used == set(), "schemas nobody uses"


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)
