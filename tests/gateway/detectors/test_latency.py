from __future__ import annotations

import math
import random

import pytest

from gateway.detectors.latency import LatencyDetector


def taught(*times: float, **options: float) -> LatencyDetector:
    detector = LatencyDetector(**options)  # type: ignore[arg-type]
    for seconds in times:
        detector.hear("creative", seconds)
    return detector


def test_nothing_is_slow_before_twenty_times_are_known() -> None:
    detector = taught(*[1.0] * 19)
    assert detector.slow_s("creative") == math.inf
    assert not detector.is_slow("creative", 1e6)
    detector.hear("creative", 1.0)
    assert detector.is_slow("creative", 1e6)
    assert not detector.is_slow("fast", 1e6)


def test_slow_is_beyond_the_median_by_k_robust_deviations() -> None:
    times = [1.0, 2.0, 3.0, 4.0, 5.0] * 4  # median 3, MAD 1
    limit = 3.0 + 5.0 * 1.4826
    detector = taught(*times)
    assert detector.slow_s("creative") == pytest.approx(limit)
    assert not detector.is_slow("creative", limit - 1e-6)
    assert detector.is_slow("creative", limit + 1e-6)
    assert taught(*times, k=1.0).slow_s("creative") == pytest.approx(3.0 + 1.4826)


def test_times_that_never_differ_leave_room() -> None:
    assert taught(*[2.0] * 20).slow_s("creative") == pytest.approx(2.0 + 5.0 * 0.2)


def test_a_few_hangs_do_not_make_slow_normal() -> None:
    rng = random.Random(1)
    healthy = [rng.lognormvariate(0.0, 0.3) for _ in range(180)]
    calm = taught(*healthy).slow_s("creative")
    shaken = taught(*healthy, *[120.0] * 20).slow_s("creative")
    assert shaken < 1.5 * calm


def test_a_lasting_change_becomes_normal() -> None:
    detector = taught(*[1.0] * 200)
    for _ in range(20):
        detector.hear("creative", 4.0)
    assert detector.is_slow("creative", 4.0)
    assert detector.health("creative") == 0.0
    for _ in range(150):
        detector.hear("creative", 4.0)
    assert not detector.is_slow("creative", 4.0)
    assert detector.health("creative") == 1.0


def test_health_is_the_share_of_the_last_twenty_in_time() -> None:
    detector = taught(*[1.0] * 40)
    for _ in range(5):
        detector.hear("creative", 60.0)
    assert detector.health("creative") == pytest.approx(0.75)
    for _ in range(20):
        detector.hear("creative", 1.0)
    assert detector.health("creative") == 1.0


def test_healthy_traffic_is_hardly_ever_slow() -> None:
    rng = random.Random(2)
    detector = taught(*[rng.lognormvariate(0.0, 0.3) for _ in range(200)])
    slow = 0
    for _ in range(2000):
        seconds = rng.lognormvariate(0.0, 0.3)
        slow += detector.is_slow("creative", seconds)
        detector.hear("creative", seconds)
    assert slow / 2000 < 0.005


def test_what_is_normal() -> None:
    detector = taught(*[n / 100 for n in range(101)])
    normal = detector.normal("creative")
    assert normal == {"count": 101, "median_s": 0.5, "p95_s": pytest.approx(0.95)}
    assert detector.normal("fast") == {"count": 0, "median_s": 0.0, "p95_s": 0.0}


def test_only_the_window_is_remembered() -> None:
    assert taught(*[9.0] * 30, *[1.0] * 30, window=30).normal("creative")["p95_s"] == 1.0
