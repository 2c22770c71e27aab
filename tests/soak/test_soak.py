"""The soak itself, for a few seconds; and its arithmetic."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.soak.report import judged, text
from tests.soak.run import Plan, soak
from tests.soak.slopes import floors, theil_sen


@pytest.mark.slow
async def test_some_seconds_of_everything_leave_nothing_behind(tmp_path: Path) -> None:
    plan = Plan(
        minutes=0.2, per_s=60, every_s=1, reload_s=3, calm_s=(0.5, 1.5), bad_s=(1, 2), seed=3
    )
    found = await soak(plan, tmp_path)
    assert found.failures() == []
    assert found.ends["answered whole"] > 50
    assert found.ends["answered as a stream"] > 50
    assert found.ends["left by the caller"] > 20
    assert found.ends["answered whole, from the cache"] > 0
    assert found.reloads["applied"] + found.reloads["refused"] >= 2
    assert len(found.samples) >= 10
    assert len(found.episodes) >= 5
    assert "all is well" in text(found, "picture.png")
    assert judged(found) == [], "too short to judge growth"


def test_a_slope_is_found_among_noise_and_outliers() -> None:
    dice = random.Random(1)
    at = [60.0 * minute for minute in range(45)]
    flat = [100 + dice.gauss(0, 2) for _ in at]
    rising = [value + 10 * second / 3600 for value, second in zip(flat, at, strict=True)]
    rising[7], rising[30] = 400.0, 0.0
    slope = theil_sen(at, flat)
    assert slope.low < 0 < slope.high
    slope = theil_sen(at, rising)
    assert 0 < slope.low < 10 < slope.high
    assert theil_sen(at, [4.0] * 45) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="four points"):
        theil_sen(at[:3], flat[:3])


def test_floors_are_what_is_left_when_load_goes() -> None:
    at = [5.0 * step for step in range(24)]
    values = [99.0] * 24
    values[3], values[20] = 1.0, 2.0
    assert floors(at, values, 60.0) == ([27.5, 87.5], [1.0, 2.0])
