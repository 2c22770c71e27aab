"""Down the ladder with scripted providers: which target, which mode, and what is remembered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from stage import WELL, ScriptedProvider, Stage, Step, finish, loop, play

from gateway.errors import (
    AllModesFailed,
    CircuitOpen,
    ErrorKind,
    GatewayError,
    StreamInterrupted,
    UpstreamError,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from gateway.events import AttemptFinished, TargetResting
from gateway.generation import Generation
from gateway.policies.phases import Phase


def fault(
    kind: ErrorKind, *, status: int | None = None, after: float | None = None
) -> UpstreamError:
    return UpstreamError(kind.value, kind=kind, status=status, retry_after=after)


async def ask(stage: Stage, mode: str = "creative", **more: Any) -> Generation:
    answer = await stage.gearbox(stage.request(mode, **more))
    try:
        return await answer.finish()
    finally:
        answer.close()
        stage.at_rest()


def three(creative: ScriptedProvider, **more: Any) -> Stage:
    below = {"balanced": ScriptedProvider(name="b"), "fast": ScriptedProvider(name="f")}
    return Stage({"creative": creative, **below}, **more)


RETRIED = [ErrorKind.CONNECT]
WALKED = [
    ErrorKind.TIMEOUT,
    ErrorKind.SERVER,  # without a status: not known to be quick and transient
    ErrorKind.MALFORMED,
    ErrorKind.INTERRUPTED,
    ErrorKind.EMPTY,
    ErrorKind.OVERLOADED,
    ErrorKind.LOADING,
    ErrorKind.RATE,
    ErrorKind.BURST,
    ErrorKind.TOKENS,
    ErrorKind.BILLING,
    ErrorKind.AUTH,
    ErrorKind.MODEL,
    ErrorKind.CONTEXT,
]
RAISED = [ErrorKind.CONTENT, ErrorKind.REQUEST]


def test_every_kind_of_error_has_its_way() -> None:
    assert set(RETRIED) | set(WALKED) | set(RAISED) == set(ErrorKind)


@pytest.mark.parametrize("kind", [*RETRIED, *WALKED])
def test_errors_that_another_mode_may_not_make(kind: ErrorKind) -> None:
    async def scenario() -> None:
        creative = ScriptedProvider([fault(kind)])
        stage = three(creative)
        answer = await ask(stage)
        assert (answer.mode, answer.text) == ("balanced", "fine")
        assert len(creative.calls) == (2 if kind in RETRIED else 1)
        assert loop().time() == 0.0

    play(scenario)


@pytest.mark.parametrize(
    ("status", "calls"), [(500, 2), (502, 2), (503, 2), (504, 1), (501, 1), (None, 1)]
)
def test_only_quick_server_errors_are_tried_again(status: int | None, calls: int) -> None:
    async def scenario() -> None:
        creative = ScriptedProvider([fault(ErrorKind.SERVER, status=status)])
        await ask(three(creative))
        assert len(creative.calls) == calls

    play(scenario)


@pytest.mark.parametrize("kind", RAISED)
def test_the_callers_own_mistakes_are_raised_at_once(kind: ErrorKind) -> None:
    async def scenario() -> None:
        stage = three(ScriptedProvider([fault(kind, status=400)]))
        for _ in range(10):
            with pytest.raises(UpstreamError) as raised:
                await ask(stage)
            assert raised.value.kind is kind
        assert stage.rung("creative").circuit.phase() is Phase.CLOSED
        assert all(not target.provider.calls for target in stage.rung("balanced").targets)  # type: ignore[attr-defined]

    play(scenario)


def test_a_fault_of_our_own_is_raised_and_counts_for_nobody() -> None:
    async def scenario() -> None:
        stage = three(ScriptedProvider(["a", ZeroDivisionError("ours")]))
        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                await ask(stage)
        assert stage.rung("creative").circuit.phase() is Phase.CLOSED
        assert stage.rung("creative").targets[0].budget.tokens == 10.0

    play(scenario)


@pytest.mark.parametrize(
    ("kind", "said", "cool", "alarm"),
    [
        (ErrorKind.OVERLOADED, None, 1.0, False),
        (ErrorKind.OVERLOADED, 99.0, 5.0, False),
        (ErrorKind.LOADING, 3.0, 3.0, False),
        (ErrorKind.RATE, 1e6, 60.0, False),
        (ErrorKind.RATE, None, 5.0, False),
        (ErrorKind.AUTH, None, 300.0, True),
        (ErrorKind.BILLING, None, 300.0, True),
        (ErrorKind.MODEL, None, 600.0, True),
    ],
)
def test_a_target_is_left_alone_for_as_long_as_it_needs(
    kind: ErrorKind, said: float | None, cool: float, alarm: bool
) -> None:
    async def scenario() -> None:
        creative = ScriptedProvider([fault(kind, after=said)], list(WELL))
        stage = three(creative)
        assert (await ask(stage)).mode == "balanced"
        [resting] = [e for e in stage.events if isinstance(e, TargetResting)]
        assert (resting.for_s, resting.alarm, resting.kind) == (cool, alarm, kind)
        await asyncio.sleep(cool - 0.001)
        answer = await ask(stage)
        assert (answer.mode, answer.reason) == ("balanced", "cooling")
        await asyncio.sleep(0.001)
        assert (await ask(stage)).mode == "creative"
        assert stage.rung("creative").circuit.phase() is Phase.CLOSED

    play(scenario)


def test_too_much_shrinks_the_limit() -> None:
    async def scenario() -> None:
        stage = three(ScriptedProvider([fault(ErrorKind.OVERLOADED)]))
        before = stage.rung("creative").limit.current
        await ask(stage)
        assert stage.rung("creative").limit.current < before

    play(scenario)


def test_time_that_ran_out_where_others_get_their_tokens_shrinks_it_too() -> None:
    async def scenario() -> None:
        stage = three(ScriptedProvider([1.0, *WELL], [1e9]))
        good = asyncio.ensure_future(stage.gearbox(stage.request()))
        await asyncio.sleep(0.5)
        hurried = asyncio.ensure_future(stage.gearbox(stage.request(deadline=3.5)))
        (await good).close()
        assert (await hurried).served.mode == "balanced"  # after a third of three seconds
        (await hurried).close()
        assert stage.rung("creative").limit.current < 512
        assert stage.rung("creative").circuit.phase() is Phase.CLOSED

    play(scenario)


def test_a_silent_mode_has_not_too_much_but_is_silent() -> None:
    async def scenario() -> None:
        stage = three(ScriptedProvider([1e9]))
        await ask(stage, deadline=3.0)
        assert stage.rung("creative").limit.current == 512

    play(scenario)


# -- several targets -------------------------------------------------------------------------------


def test_a_second_try_goes_to_another_target() -> None:
    async def scenario() -> None:
        sick = ScriptedProvider([fault(ErrorKind.CONNECT)], name="sick")
        well = ScriptedProvider(name="well")
        stage = Stage({"creative": [sick, well], "fast": ScriptedProvider(name="f")})
        answer = await ask(stage)
        assert (answer.mode, answer.served.target) == ("creative", "well")
        assert answer.served.attempts == 2
        assert stage.rung("creative").circuit.phase() is Phase.CLOSED

    play(scenario)


def test_a_resting_target_is_passed_over_and_the_mode_stays() -> None:
    async def scenario() -> None:
        dead = ScriptedProvider([fault(ErrorKind.AUTH)], name="dead")
        well = ScriptedProvider(name="well")
        stage = Stage({"creative": [dead, well], "fast": ScriptedProvider(name="f")})
        modes = [(await ask(stage)).served.target for _ in range(4)]
        assert modes.count("well") >= 3
        assert len(dead.calls) == 1

    play(scenario)


def test_a_longer_prompt_goes_to_a_larger_window_only() -> None:
    async def scenario() -> None:
        creative = ScriptedProvider([fault(ErrorKind.CONTEXT)], name="c", context_window=1000)
        same = ScriptedProvider(name="b", context_window=1000)
        larger = ScriptedProvider(name="f", context_window=4000)
        stage = Stage({"creative": creative, "balanced": same, "fast": larger})
        answer = await ask(stage)
        assert (answer.mode, answer.reason) == ("fast", "context")
        assert not same.calls
        assert stage.rung("creative").circuit.phase() is Phase.CLOSED

    play(scenario)


def test_a_prompt_too_long_for_everyone_is_the_callers_to_mend() -> None:
    async def scenario() -> None:
        too_long = UpstreamRejected("too long", kind=ErrorKind.CONTEXT, status=400)
        stage = Stage(
            {
                "creative": ScriptedProvider([too_long], name="c", context_window=1000),
                "fast": ScriptedProvider(name="f", context_window=1000),
            }
        )
        with pytest.raises(UpstreamRejected) as raised:
            await ask(stage)
        assert raised.value.http_status == 400

    play(scenario)


# -- what is asked ---------------------------------------------------------------------------------


def test_each_mode_asks_with_its_own_sampling_and_the_callers_over_it() -> None:
    async def scenario() -> None:
        creative = ScriptedProvider([fault(ErrorKind.MALFORMED)])
        stage = Stage(
            {"creative": creative, "fast": (fast := ScriptedProvider(name="f"))},
            mode_options={
                "creative": {"sampling": {"temperature": 1.0, "top_p": 0.9}, "thinking": True},
                "fast": {"sampling": {"temperature": 0.1, "max_tokens": 50}, "thinking": False},
            },
        )
        await ask(stage, params={"temperature": 0.5, "tools": []}, id="gen-7")
        [first], [second] = creative.calls, fast.calls
        assert first.params == {"temperature": 0.5, "top_p": 0.9, "tools": []}
        assert second.params == {"temperature": 0.5, "max_tokens": 50, "tools": []}
        assert (first.thinking, second.thinking) == (True, False)
        assert first.request_id == second.request_id == "gen-7"

    play(scenario)


def test_a_failed_attempt_leaves_nothing_in_the_answer() -> None:
    async def scenario() -> None:
        broken: list[Step] = ["half of it", fault(ErrorKind.INTERRUPTED)]
        answer = await ask(three(ScriptedProvider(broken)))
        assert answer.text == "fine"

    play(scenario)


def test_only_who_can_continue_a_text_is_asked_to() -> None:
    async def scenario() -> None:
        broken: list[Step] = ["half ", fault(ErrorKind.INTERRUPTED)]
        cannot = ScriptedProvider(name="b", continues=False)
        can = ScriptedProvider(["rest", finish()], name="f")
        stage = Stage({"creative": ScriptedProvider(broken), "balanced": cannot, "fast": can})
        answer = await stage.gearbox(stage.request(buffered=False, on_interrupt="continue"))
        assert (await answer.finish()).text == "half rest"
        answer.close()
        assert not cannot.calls
        assert can.calls[0].prefix == "half "
        stage.at_rest()

    play(scenario)


def test_a_stream_says_what_had_arrived_when_it_breaks() -> None:
    async def scenario() -> None:
        broken: list[Step] = ["half ", fault(ErrorKind.INTERRUPTED)]
        stage = three(ScriptedProvider(broken))
        answer = await stage.gearbox(stage.request(buffered=False))
        with pytest.raises(StreamInterrupted) as raised:
            await answer.finish()
        assert (raised.value.partial, raised.value.mode) == ("half ", "creative")
        answer.close()
        stage.at_rest()

    play(scenario)


# -- what is told ----------------------------------------------------------------------------------


def test_each_attempt_is_told_once_with_its_outcome() -> None:
    async def scenario() -> None:
        stage = three(ScriptedProvider([0.5, fault(ErrorKind.CONNECT)], [fault(ErrorKind.RATE)]))
        await ask(stage, id="gen-3")
        told = [e for e in stage.events if isinstance(e, AttemptFinished)]
        assert [(e.mode, e.outcome, e.kind) for e in told] == [
            ("creative", "failure", "connect"),
            ("creative", "ignored", "rate"),
            ("balanced", "success", ""),
        ]
        assert {e.request_id for e in told} == {"gen-3"}
        assert told[0].duration_s == 0.5
        assert told[0].first_token_s is None
        assert told[2].first_token_s == 0.0

    play(scenario)


def test_refusals_say_until_when() -> None:
    async def scenario() -> None:
        stage = three(ScriptedProvider())
        for mode in ("creative", "balanced", "fast"):
            stage.rung(mode).circuit.force("open")
        with pytest.raises(AllModesFailed) as failed:
            await ask(stage)
        assert all(isinstance(cause, CircuitOpen) for cause in failed.value.causes.values())
        with pytest.raises(CircuitOpen):
            await ask(stage, allow_degrade=False)

    play(scenario)


def test_the_last_error_of_a_lone_mode_is_the_callers() -> None:
    async def scenario() -> None:
        stage = Stage({"solo": ScriptedProvider([fault(ErrorKind.RATE, after=30.0)])})
        with pytest.raises(UpstreamError) as raised:
            await ask(stage, "solo")
        assert raised.value.retry_after == 30.0
        with pytest.raises(GatewayError):
            await ask(stage, "solo")

    play(scenario)


def test_throttled_twice_is_enough() -> None:
    async def scenario() -> None:
        busy = UpstreamThrottled("slow down", retry_after=0.5)
        creative = ScriptedProvider([busy], [busy], list(WELL))
        answer = await ask(three(creative))
        assert (answer.mode, answer.reason) == ("balanced", "cooling")
        assert len(creative.calls) == 2
        assert loop().time() == 0.5

    play(scenario)


def test_an_unavailable_target_tried_twice_counts_once() -> None:
    async def scenario() -> None:
        down = UpstreamUnavailable("down", status=500)
        stage = three(ScriptedProvider([down]))
        await ask(stage)
        circuit = stage.rung("creative").circuit
        assert stage.rung("creative").targets[0].budget.tokens == 8.0
        await ask(stage)
        assert circuit.phase() is Phase.CLOSED
        await ask(stage)
        assert circuit.phase() is Phase.OPEN

    play(scenario)
