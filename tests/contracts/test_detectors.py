"""What every `Detector` keeps to, whatever it senses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.detectors.base import Detector
from gateway.detectors.latency import LatencyDetector
from gateway.detectors.quality import QualityDetector


@dataclass(frozen=True)
class Kind:
    """A detector, its good and bad values, and which direction is worse."""

    make: Callable[[], Detector]
    good: float
    bad: float
    invalid: tuple[float, ...]

    def value(self, badness: float) -> float:
        return self.good + (self.bad - self.good) * badness


KINDS = {
    "latency": Kind(LatencyDetector, 0.5, 30.0, (-1.0, math.nan, math.inf)),
    "quality": Kind(QualityDetector, 5.0, 1.0, (0.5, 5.5, math.nan, math.inf)),
}
kinds = st.sampled_from(sorted(KINDS)).map(KINDS.__getitem__)
badnesses = st.lists(st.floats(0.0, 1.0), max_size=60)


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def test_it_is_a_detector(kind: Kind) -> None:
    assert isinstance(kind.make(), Detector)


def test_fresh_is_healthy_and_knows_nothing(kind: Kind) -> None:
    detector = kind.make()
    assert detector.health("creative") == 1.0
    assert set(detector.normal("creative").values()) == {0}


def test_asking_leaves_no_trace(kind: Kind) -> None:
    detector = kind.make()
    for _ in range(1000):
        detector.health("never heard")
        detector.normal("never heard")
    assert detector.normal("never heard")["count"] == 0


def test_modes_do_not_touch_each_other(kind: Kind) -> None:
    detector = kind.make()
    for _ in range(30):
        detector.hear("fast", kind.good)
    before = detector.normal("fast"), detector.health("fast")
    for _ in range(30):
        detector.hear("creative", kind.bad)
    assert (detector.normal("fast"), detector.health("fast")) == before


def test_good_stays_healthy_and_bad_after_good_does_not(kind: Kind) -> None:
    detector = kind.make()
    for _ in range(40):
        detector.hear("fast", kind.good)
    assert detector.health("fast") == 1.0
    for _ in range(40):
        detector.hear("fast", kind.bad)
    assert detector.health("fast") < 0.6


def test_nonsense_is_refused_without_a_trace(kind: Kind) -> None:
    detector = kind.make()
    for value in kind.invalid:
        with pytest.raises(ValueError, match="got"):
            detector.hear("fast", value)
    assert detector.normal("fast")["count"] == 0
    detector.hear("fast", kind.good)
    before = detector.normal("fast"), detector.health("fast")
    for value in kind.invalid:
        with pytest.raises(ValueError, match="got"):
            detector.hear("fast", value)
    assert (detector.normal("fast"), detector.health("fast")) == before


@given(kinds, badnesses)
@settings(max_examples=100)
def test_health_stays_within_0_and_1(kind: Kind, history: list[float]) -> None:
    detector = kind.make()
    for count, badness in enumerate(history, 1):
        detector.hear("fast", kind.value(badness))
        assert 0.0 <= detector.health("fast") <= 1.0
        assert detector.normal("fast")["count"] == count


@given(kinds, badnesses, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
@settings(max_examples=100)
def test_a_worse_value_never_leaves_it_healthier(
    kind: Kind, history: list[float], a: float, b: float
) -> None:
    better, worse = kind.make(), kind.make()
    for badness in history:
        better.hear("fast", kind.value(badness))
        worse.hear("fast", kind.value(badness))
    better.hear("fast", kind.value(min(a, b)))
    worse.hear("fast", kind.value(max(a, b)))
    assert worse.health("fast") <= better.health("fast") + 1e-12
