from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.clock import ManualClock
from gateway.policies.trial import Trial, Verdict

outcomes = st.lists(st.booleans(), max_size=80)


def run(trial: Trial, results: list[bool]) -> Verdict:
    for ok in results:
        trial.record(ok)
    return trial.judge()


def test_the_first_five_failing_reverts_at_once() -> None:
    trial = Trial((1, 100), clock=ManualClock())
    assert [trial.record(False) for _ in range(5)] == [Verdict.UNDECIDED] * 4 + [Verdict.REVERT]


def test_one_early_success_makes_it_wait_for_evidence() -> None:
    trial = Trial((0, 100), clock=ManualClock())
    assert run(trial, [True] + [False] * 18) is Verdict.UNDECIDED
    assert trial.record(False) is Verdict.REVERT  # the twentieth call


def test_failing_as_before_an_outage_blames_nobody() -> None:
    trial = Trial((90, 100), clock=ManualClock())
    assert run(trial, [False] * 200) is Verdict.KEEP


def test_the_margin_is_exact() -> None:
    clock = ManualClock()
    at_margin = Trial((10, 100), margin=0.2, clock=clock)  # 30 % is still allowed
    assert run(at_margin, [True] * 14 + [False] * 6) is Verdict.UNDECIDED
    beyond = Trial((10, 100), margin=0.2, clock=clock)
    assert run(beyond, [True] * 13 + [False] * 7) is Verdict.REVERT


def test_time_alone_keeps_it() -> None:
    clock = ManualClock()
    trial = Trial((0, 0), window_s=120, clock=clock)
    clock.advance(119.9)
    assert trial.judge() is Verdict.UNDECIDED
    clock.advance(0.1)
    assert trial.judge() is Verdict.KEEP
    assert run(trial, [False] * 50) is Verdict.KEEP  # a verdict stands
    assert trial.calls == 0


def test_the_end_judges_by_what_there_is() -> None:
    clock = ManualClock()
    few, fewer = Trial((0, 100), clock=clock), Trial((0, 100), clock=clock)
    run(few, [True, False, False, False, False])
    run(fewer, [True, False, False, False])
    clock.advance(120)
    assert (few.judge(), fewer.judge()) == (Verdict.REVERT, Verdict.KEEP)


def test_enough_good_calls_end_it_early() -> None:
    trial = Trial((0, 100), clock=ManualClock())
    assert run(trial, [True] * 199) is Verdict.UNDECIDED
    assert trial.record(True) is Verdict.KEEP


def test_few_failures_before_excuse_little() -> None:
    trial = Trial((2, 2), clock=ManualClock())  # counts as 2 of 20, not as 100 %
    assert run(trial, [False] * 5) is Verdict.REVERT


def test_a_change_that_changes_nothing_is_rarely_reverted() -> None:
    rng = random.Random(11)
    reverted = 0
    for _ in range(1000):
        trial = Trial((5, 100), clock=ManualClock())
        reverted += run(trial, [rng.random() >= 0.05 for _ in range(200)]) is Verdict.REVERT
    assert reverted <= 5


@pytest.mark.parametrize(
    ("before", "options"),
    [
        ((2, 1), {}),
        ((-1, 1), {}),
        ((0, 1), {"margin": 1.5}),
        ((0, 1), {"window_s": 0}),
        ((0, 1), {"min_calls": 3}),
        ((0, 1), {"max_calls": 10}),
    ],
)
def test_bad_arguments_are_refused(before: tuple[int, int], options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        Trial(before, **options)  # type: ignore[arg-type]


@given(st.integers(0, 50), st.integers(0, 50), outcomes, outcomes)
@settings(max_examples=100)
def test_a_verdict_never_changes(failed: int, passed: int, a: list[bool], b: list[bool]) -> None:
    trial = Trial((failed, failed + passed), clock=ManualClock())
    first = run(trial, a)
    heard = trial.calls
    second = run(trial, b)
    if first is not Verdict.UNDECIDED:
        assert (second, trial.calls) == (first, heard)


@given(st.integers(0, 50), st.integers(0, 50), outcomes)
@settings(max_examples=100)
def test_revert_only_for_a_share_clearly_above_the_one_before(
    failed: int, passed: int, results: list[bool]
) -> None:
    before = failed / max(20, failed + passed)
    trial = Trial((failed, failed + passed), clock=ManualClock())
    if run(trial, results) is Verdict.REVERT:
        assert trial.failures / trial.calls > before + 0.2 - 1e-9
        assert trial.calls >= 20 or trial.failures == trial.calls == 5


@given(st.integers(0, 50), st.integers(0, 50), outcomes, st.integers(0, 79))
@settings(max_examples=100)
def test_one_more_failure_never_turns_revert_into_keep(
    failed: int, passed: int, results: list[bool], where: int
) -> None:
    def final(sequence: list[bool]) -> Verdict:
        clock = ManualClock()
        trial = Trial((failed, failed + passed), clock=clock)
        run(trial, sequence)
        clock.advance(1e9)
        return trial.judge()

    worse = [ok and n != where for n, ok in enumerate(results)]
    if final(results) is Verdict.REVERT:
        assert final(worse) is Verdict.REVERT
