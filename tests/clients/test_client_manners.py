"""Degrading is visible, leaving frees the upstream at once, patience is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from client import CLIENTS, Client
from servers import MODES, Behind

Play = Callable[[str], Client]
OPENAI_PYTHON = ["openai2", "openai3"]

LEAVINGS = [
    *[
        (name, scenario)
        for name in OPENAI_PYTHON
        for scenario in ("left_stream", "left_stalled", "left_async", "left_whole")
    ],
    ("langchain", "left_stream"),
    ("langchain", "left_async"),
    ("pydantic_ai", "left_stream"),
    ("llama_index", "left_stream"),
    ("openai_node", "left_stream"),
    ("openai_node", "left_whole"),
    ("ai_sdk", "left_stream"),
    ("ai_sdk", "left_whole"),
]


@pytest.mark.parametrize("name", CLIENTS)
def test_a_downshift_is_visible(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    facts = client["downshift"]
    assert facts["model"] == MODES["balanced"]
    asked = [seen.model for seen in behind.asked(client.tag("downshift"))]
    assert asked == [MODES["creative"], MODES["balanced"]]
    if told := facts.get("gateway"):
        assert (told["requested_mode"], told["mode"]) == ("creative", "balanced")
        assert (told["degraded"], told["reason"], told["attempts"]) == (True, "failed", 2)
    if headers := facts.get("headers"):
        assert headers["x-gateway-mode"] == "balanced"
        assert headers["x-gateway-requested-mode"] == "creative"
        assert headers["x-gateway-degraded"] == "failed"
        assert headers["x-gateway-attempts"] == "2"
    # pydantic-ai shows neither headers nor extra fields: there, `model` says it all.
    assert name == "pydantic_ai" or facts.get("gateway") or facts.get("headers")


@pytest.mark.parametrize("name", OPENAI_PYTHON)
def test_a_downshift_is_visible_in_a_stream(play: Play, name: str) -> None:
    facts = play(name)["downshift_streamed"]
    assert facts["models"] == [MODES["balanced"]]
    assert facts["headers"]["x-gateway-mode"] == "balanced"
    for told in facts["gateway"]:
        assert (told["mode"], told["degraded"]) == ("balanced", True)


@pytest.mark.parametrize("name", OPENAI_PYTHON)
def test_who_wants_one_piece_never_sees_a_stream_break(
    play: Play, behind: Behind, name: str
) -> None:
    client = play(name)
    facts = client["broken_whole"]
    assert facts["text"] == behind.said(client.tag("broken_whole"))
    assert facts["gateway"]["mode"] == "balanced"


@pytest.mark.parametrize("name", OPENAI_PYTHON)
def test_the_cache_answers_and_can_be_passed_by(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    facts = client["cached"]
    assert facts["cache"] == ["miss", "hit", "miss"]
    assert len(set(facts["texts"])) == 1
    assert len(behind.asked(client.tag("cached"))) == 2


@pytest.mark.parametrize("name", OPENAI_PYTHON)
def test_a_silent_mode_leaves_time_for_the_next(play: Play, name: str) -> None:
    facts = play(name)["impatient_downshift"]
    assert facts["gateway"]["mode"] == "balanced"
    assert facts["took_s"] < 1.5


@pytest.mark.parametrize(("name", "scenario"), LEAVINGS)
def test_leaving_frees_the_upstream_within_a_second(
    play: Play, behind: Behind, name: str, scenario: str
) -> None:
    client = play(name)
    left_at = client[scenario]["left_at"]
    assert behind.hung_up_at(client.tag(scenario)) - left_at < 1.0
    assert len(behind.asked(client.tag(scenario))) == 1
