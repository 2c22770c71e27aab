"""openai-python: the routes beside chat completions, keys, and the limits of a key."""

from __future__ import annotations

from typing import Any

from facts import caught, scenario
from openai_common import client, create


@scenario
def models() -> dict[str, Any]:
    listed = [model.id for model in client.models.list()]
    one = client.models.retrieve("creative")
    unknown = caught(lambda: client.models.retrieve("gpt-nope"))
    return {"ids": listed, "one": one.id, "owner": one.owned_by, "unknown": unknown}


@scenario
def throttled() -> dict[str, Any]:
    """A wait too long to be worth it: told at once, once. Last, as `fast` then rests."""
    no_lower = {"x-gateway-allow-degrade": "false"}
    return caught(
        lambda: create("throttled", "*=429_retry_after_date", model="fast", extra_headers=no_lower)
    )
