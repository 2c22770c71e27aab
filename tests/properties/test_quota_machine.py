"""Limits of a key under any interleaving of requests, ends and time, in two workers at once."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.clock import ManualClock
from gateway.errors import AdmissionRejected
from gateway.policies.keys import KeyOptions, key_hash
from gateway.policies.quota import Accounts, QuotaExhausted, Reservation
from gateway.policies.rate import MemoryLedger, Rate

REQUESTS, TOKENS, AT_ONCE, MONTH = 7, 1000, 6, 20_000
KEY = KeyOptions(
    name="k", hash=key_hash("k"), requests_per_min=REQUESTS, tokens_per_min=TOKENS,
    concurrency=AT_ONCE, monthly_tokens=MONTH,
)  # fmt: skip
WORKERS = 2


class Keyholders(RuleBasedStateMachine):
    """What was let in is written down here, and never more than the limits say."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(1000.0)
        rates, months = MemoryLedger(), MemoryLedger()
        self.workers = [
            Accounts(self.clock, rates=rates, open_months=lambda _: months, now=lambda: 1.8e9)
            for _ in range(WORKERS)
        ]
        for accounts in self.workers:
            accounts.configure([KEY], workers=WORKERS)
        self.held: list[tuple[int, Reservation, int]] = []
        self.settled: list[Reservation] = []
        self.used = self.beyond = 0
        self.moves: list[tuple[float, int, int]] = []  # when, requests, tokens taken or given back

    @rule(worker=st.integers(0, WORKERS - 1), tokens=st.integers(0, 1200), guessed=st.booleans())
    def ask(self, worker: int, tokens: int, guessed: bool) -> None:
        try:
            self.let_in(worker, tokens, guessed)
        except AdmissionRejected as error:
            if error.retry_after is None or "concurrency" in str(error):
                return
            self.comes_back(worker, tokens, guessed, error.retry_after)

    def let_in(self, worker: int, tokens: int, guessed: bool) -> None:
        at_least = 0 if guessed else tokens
        reservation = self.workers[worker].reserve("k", tokens, at_least=at_least)
        taken = min(tokens, TOKENS)
        self.held.append((worker, reservation, taken))
        self.moves.append((self.clock(), 1, taken))

    def comes_back(self, worker: int, tokens: int, guessed: bool, wait_s: float) -> None:
        """Not a moment early, and then it is let in: Retry-After is the truth."""
        early = max(0.0, wait_s - 0.003)
        self.clock.advance(early)
        if early:
            try:
                self.let_in(worker, tokens, guessed)
            except AdmissionRejected:
                pass
            else:
                raise AssertionError(f"could have come back before {wait_s} s")
        self.clock.advance(wait_s - early)
        self.let_in(worker, tokens, guessed)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99), used=st.integers(0, 1500))
    def end(self, which: int, used: int) -> None:
        worker, reservation, taken = self.held.pop(which % len(self.held))
        before = self.workers[worker].status()["k"]["in_flight"]
        reservation.settle(used)
        assert self.workers[worker].status()["k"]["in_flight"] == before - 1
        self.settled.append(reservation)
        self.used += used
        self.beyond += max(0, used - reservation.tokens)
        self.moves.append((self.clock(), 0, min(0, used - taken)))

    @precondition(lambda self: self.settled)
    @rule(which=st.integers(0, 99), used=st.integers(0, 1500))
    def end_again(self, which: int, used: int) -> None:
        self.settled[which % len(self.settled)].settle(used)

    @rule(seconds=st.one_of(st.floats(0, 5), st.floats(0, 200)))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def rates_hold_over_every_span_of_time(self) -> None:
        now = self.clock()
        backwards = self.moves[::-1]
        requests = accumulate(requests for _, requests, _ in backwards)
        tokens = accumulate(tokens for _, _, tokens in backwards)
        for (since, _, _), asked, taken in zip(backwards, requests, tokens, strict=True):
            minutes = 1 + (now - since) / 60
            assert asked <= REQUESTS * minutes + 1e-6
            assert taken <= TOKENS * minutes + 1e-6

    @invariant()
    def a_month_holds(self) -> None:
        reserved = sum(reservation.tokens for _, reservation, _ in self.held)
        for accounts in self.workers:
            assert accounts.status()["k"]["monthly_tokens"]["used"] == self.used + reserved
        assert self.used + reserved <= MONTH + self.beyond

    @invariant()
    def no_more_at_once_than_allowed(self) -> None:
        in_flight = [accounts.status()["k"]["in_flight"] for accounts in self.workers]
        assert in_flight == [sum(w == worker for w, *_ in self.held) for worker in range(WORKERS)]
        assert sum(in_flight) <= AT_ONCE

    def teardown(self) -> None:
        for _, reservation, _ in self.held:
            reservation.settle(0)
        self.clock.advance(60 * (2 + self.used / TOKENS))  # whatever is owed is paid by then
        for accounts in self.workers:
            status = accounts.status()["k"]
            assert status["in_flight"] == 0
            assert status["requests_per_min"]["left"] == REQUESTS
            assert status["tokens_per_min"]["left"] == TOKENS
            assert status["monthly_tokens"]["used"] == self.used


Keyholders.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestKeyholders = Keyholders.TestCase


@given(
    st.lists(st.tuples(st.integers(1, 400), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_a_month_that_is_crowded_is_never_overshot(
    asked: list[tuple[int, bool]], workers: int
) -> None:
    months, limit = MemoryLedger(), 1000
    crowd = [
        Accounts(ManualClock(), open_months=lambda _: months, now=lambda: 1.8e9)
        for _ in range(workers)
    ]
    for accounts in crowd:
        accounts.configure([KeyOptions(name="k", hash=key_hash("k"), monthly_tokens=limit)])
    spent, held = 0, []
    for number, (tokens, ends) in enumerate(asked):
        try:
            held.append((crowd[number % workers].reserve("k", tokens), tokens))
        except QuotaExhausted:
            assert spent + sum(reserved for _, reserved in held) + tokens > limit
        if ends and held:
            reservation, reserved = held.pop(0)
            reservation.settle(reserved // 2)
            spent += reserved // 2
        assert spent + sum(reserved for _, reserved in held) <= limit


@given(st.integers(1, 10**7), st.lists(st.floats(0, 90), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_a_bucket_gives_at_any_pace_what_it_earns(per_min: int, pauses: list[float]) -> None:
    clock = ManualClock(1e6)  # a machine that has been up for twelve days
    rate = Rate(MemoryLedger(), "r", clock)
    started, given_out = clock(), 0
    for pause in pauses:
        clock.advance(pause)
        left = rate.left(per_min)
        assume(left >= 0)
        assert rate.take(left, per_min) == 0.0
        given_out += left
        assert rate.left(per_min) <= max(1, per_min // 10**5)  # what rounding leaves
    # One unit of rounding each time, and the clock's own: 1e-10 s so long after the start.
    earned = per_min * (1 + (clock() - started) / 60)
    assert given_out <= earned + len(pauses) * (1 + per_min / 10**9)
