"""Qwen's data: profiles that a mode can take as they are, and what each model can do."""

from __future__ import annotations

import pytest

from gateway.modes import ModeOptions
from gateway.providers import qwen
from gateway.providers.qwen import Switch


@pytest.mark.parametrize("name", ["creative", "balanced", "fast", "precise", "code", "deep"])
def test_a_profile_is_options_of_a_mode(name: str) -> None:
    profile = qwen.profile(name)
    assert profile is not None
    mode = ModeOptions(name=name, **profile)
    assert mode.first_token_s < mode.deadline_s
    assert 0 <= mode.sampling["temperature"] < 2
    assert 0 < mode.sampling["top_p"] <= 1
    budget = mode.sampling.get("thinking_budget", 0)
    assert (budget > 0) == mode.thinking
    assert budget < mode.sampling["max_tokens"], "reasoning counts against max_tokens"


def test_the_three_modes_differ_as_their_names_say() -> None:
    creative, balanced, fast = (qwen.PROFILES[name] for name in ("creative", "balanced", "fast"))
    assert creative["sampling"]["temperature"] > balanced["sampling"]["temperature"]
    assert fast["deadline_s"] < balanced["deadline_s"] < creative["deadline_s"]
    assert fast["sampling"]["max_tokens"] < balanced["sampling"]["max_tokens"]


def test_other_names_say_nothing_and_profiles_cannot_be_changed() -> None:
    assert qwen.profile("turbo-chat") is None
    profile = qwen.PROFILES["fast"]
    with pytest.raises(TypeError):
        profile["sampling"]["temperature"] = 2


@pytest.mark.parametrize(
    ("model", "switch"),
    [
        ("qwen3.8-max", Switch.EFFORT),
        ("qwen3.8-max-2026-10-01", Switch.EFFORT),
        ("qwen3.8-flash", Switch.FLAG),
        ("qwen3.7-plus", Switch.FLAG),
        ("qwen-plus-latest", Switch.FLAG),
        ("qwen-turbo", Switch.FLAG),
        ("Qwen/Qwen3-8B", Switch.FLAG),
        ("qwen3-235b-a22b-thinking-2507", Switch.ALWAYS),
        ("qwq-plus", Switch.ALWAYS),
        ("qvq-max", Switch.ALWAYS),
        ("qwen3-235b-a22b-instruct-2507", Switch.NONE),
        ("qwen3-coder-plus", Switch.NONE),
        ("qwen2.5-72b-instruct", Switch.NONE),
        ("deepseek-v4", Switch.NONE),
        ("", Switch.NONE),
    ],
)
def test_how_reasoning_is_switched(model: str, switch: Switch) -> None:
    assert qwen.switch(model) is switch


def test_what_models_can_do() -> None:
    assert qwen.is_qwen("Qwen/Qwen3-8B")
    assert qwen.is_qwen("qwq-32b")
    assert not qwen.is_qwen("smollm2")
    assert qwen.stream_only("qwq-plus")
    assert qwen.stream_only("qwen3.8-omni-flash")
    assert not qwen.stream_only("qwen3.8-max")
    assert qwen.context_window("qwen3.8-max") == 991_808
    assert qwen.output_cap("qwen3.8-max") == 131_072
    assert qwen.output_cap("qwen-turbo") == 16_384
    assert qwen.context_window("gpt-9") is None
    assert qwen.output_cap("gpt-9") is None


@pytest.mark.parametrize(
    ("budget", "word"),
    [(None, "medium"), (512, "low"), (8192, "medium"), (20_000, "high"), (32_768, "xhigh")],
)
def test_a_budget_has_an_effort(budget: int | None, word: str) -> None:
    assert qwen.effort(budget) == word
