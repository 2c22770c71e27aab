"""Every number of the guide, checked when it is set."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from training import (
    AnomalyConfig,
    CheckpointConfig,
    CircuitBreakerConfig,
    ConfigValueError,
    LearningScheduleConfig,
    RetuningConfig,
)

ALL = (
    AnomalyConfig,
    CheckpointConfig,
    CircuitBreakerConfig,
    LearningScheduleConfig,
    RetuningConfig,
)
FIELDS = [(kind, field.name) for kind in ALL for field in fields(kind)]


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_nonsense_is_refused_by_name(kind: Any, name: str) -> None:
    config = kind()
    before = getattr(config, name)
    for wrong in (None, "nonsense", -1e9, math.nan, []):
        with pytest.raises(ConfigValueError, match=f"{kind.__name__}.{name} must be") as refused:
            setattr(config, name, wrong)
        assert repr(wrong) in str(refused.value)
        assert getattr(config, name) == before
    with pytest.raises(ConfigValueError):
        kind(**{name: "nonsense"})


@pytest.mark.parametrize("kind", ALL)
def test_a_field_that_is_not_there_is_named_with_those_that_are(kind: Any) -> None:
    with pytest.raises(AttributeError, match=r"no field 'typo'; it has"):
        kind().typo = 1


@pytest.mark.parametrize(
    ("decay", "halfway"),
    [("cosine", 0.0055), ("linear", 0.0055), ("exponential", 10**-2.5), ("constant", 0.01)],
)
def test_the_entropy_schedule(decay: str, halfway: float) -> None:
    config = LearningScheduleConfig(entropy_decay_type=decay)
    assert config.entropy_coef(0) == 0.01
    assert config.entropy_coef(5_000) == pytest.approx(halfway)
    end = 0.01 if decay == "constant" else 0.001
    assert config.entropy_coef(10_000) == config.entropy_coef(10**9) == end
    assert config.entropy_coef(-5) == 0.01
    values = [config.entropy_coef(step) for step in range(0, 10_001, 50)]
    assert values == sorted(values, reverse=True)


def test_an_exponential_to_zero_is_refused_when_asked_and_not_silently_wrong() -> None:
    config = LearningScheduleConfig(entropy_coef_end=0.0, entropy_decay_type="exponential")
    with pytest.raises(ValueError, match="exponential"):
        config.entropy_coef(1)
