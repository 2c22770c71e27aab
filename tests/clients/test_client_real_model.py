"""Real words, token by token, out of the embedded model and through every client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from client import CLIENTS, Client

pytestmark = pytest.mark.model

Play = Callable[[str], Client]
MODEL = "SmolLM2-135M"


@pytest.mark.parametrize("name", [name for name in CLIENTS if name != "instructor"])
def test_whole_and_streamed_are_the_same_words(play_real: Play, name: str) -> None:
    """Asked soberly twice, once past the cache, the model says the same."""
    facts = play_real(name)["real_text"]
    whole, streamed = facts["whole"], facts["streamed"]
    assert "Paris" in whole["text"]
    assert streamed["text"] == whole["text"]
    assert MODEL.lower() in str(whole["model"]).lower()
    assert streamed["chunks"] >= 5
    assert _tokens(whole["usage"]) > 10


@pytest.mark.parametrize("name", ["openai2", "openai3"])
def test_a_schema_is_kept_by_the_real_model(play_real: Play, name: str) -> None:
    parsed = play_real(name)["real_schema"]["parsed"]
    assert parsed["family"] in ("woody", "citrus")
    assert isinstance(parsed["strong"], bool)


@pytest.mark.parametrize("name", ["openai2", "openai3"])
def test_a_prompt_too_long_for_the_real_model(play_real: Play, name: str) -> None:
    facts = play_real(name)["real_too_long"]
    assert (facts["error"], facts["status"]) == ("BadRequestError", 400)
    assert facts["code"] == "context_length_exceeded"


@pytest.mark.parametrize("name", ["openai2", "openai3"])
def test_a_response_of_the_real_model(play_real: Play, name: str) -> None:
    facts = play_real(name)["real_response"]
    assert "Paris" in facts["text"]
    assert "".join(facts["deltas"]) == facts["text"]


@pytest.mark.parametrize("name", ["openai2", "openai3"])
def test_a_raw_text_goes_on_without_a_chat_template(play_real: Play, name: str) -> None:
    assert play_real(name)["real_completion"]["text"].startswith(" Paris")


def _tokens(usage: dict[str, Any]) -> int:
    total = usage.get("total_tokens")
    return int(total if total is not None else usage["input_tokens"] + usage["output_tokens"])
