from __future__ import annotations

import pytest

from gateway.detectors.quality import QualityDetector


def taught(*ratings: float, **options: float) -> QualityDetector:
    detector = QualityDetector(**options)  # type: ignore[arg-type]
    for rating in ratings:
        detector.hear("fast", rating)
    return detector


def test_what_is_normal() -> None:
    detector = taught(1.0, 2.0, 4.0, 5.0)
    assert detector.normal("fast") == {"count": 4, "mean": 3.0, "std": pytest.approx(2.5**0.5)}
    assert detector.normal("creative") == {"count": 0, "mean": 0.0, "std": 0.0}


def test_one_bad_rating_says_little_and_many_say_much() -> None:
    assert taught(1.0).health("fast") == pytest.approx(10 / 11)
    assert taught(*[1.0] * 90).health("fast") == pytest.approx(0.1)


def test_the_best_and_the_middle() -> None:
    assert taught(*[5.0] * 50).health("fast") == 1.0
    assert taught(*[3.0] * 290, prior=10).health("fast") == pytest.approx(1 - 0.5 * 290 / 300)


def test_only_the_window_is_remembered() -> None:
    detector = taught(*[1.0] * 50, *[5.0] * 20, window=20)
    assert detector.health("fast") == 1.0
    assert detector.normal("fast")["count"] == 20


def test_a_prior_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="prior"):
        QualityDetector(prior=0)
