"""What a caller hears when no lower mode may answer, kind by kind; how long a target rests."""

from __future__ import annotations

import pytest
from lab import Lab

from gateway.errors import (
    ErrorKind,
    GatewayError,
    StreamInterrupted,
    UpstreamError,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.simulator.scripted import FAULTS

# What is raised for each kind of fault: class, HTTP status and code of our own answer.
RAISED: dict[ErrorKind, tuple[type[GatewayError], int, str]] = {
    ErrorKind.CONNECT: (UpstreamUnavailable, 502, "upstream_unavailable"),
    ErrorKind.TIMEOUT: (UpstreamTimeout, 504, "upstream_timeout"),
    ErrorKind.SERVER: (UpstreamUnavailable, 502, "upstream_unavailable"),
    ErrorKind.MALFORMED: (UpstreamUnavailable, 502, "upstream_unavailable"),
    ErrorKind.INTERRUPTED: (StreamInterrupted, 502, "stream_interrupted"),
    ErrorKind.EMPTY: (UpstreamUnavailable, 502, "upstream_unavailable"),
    ErrorKind.OVERLOADED: (UpstreamUnavailable, 502, "upstream_unavailable"),
    ErrorKind.LOADING: (UpstreamUnavailable, 502, "upstream_unavailable"),
    ErrorKind.RATE: (UpstreamThrottled, 429, "rate_limit_exceeded"),
    ErrorKind.BURST: (UpstreamThrottled, 429, "rate_limit_exceeded"),
    ErrorKind.TOKENS: (UpstreamThrottled, 429, "rate_limit_exceeded"),
    ErrorKind.BILLING: (UpstreamThrottled, 429, "rate_limit_exceeded"),
    ErrorKind.AUTH: (UpstreamRejected, 502, "upstream_authentication"),
    ErrorKind.MODEL: (UpstreamRejected, 404, "model_not_found"),
    ErrorKind.CONTEXT: (UpstreamRejected, 400, "context_length_exceeded"),
    ErrorKind.CONTENT: (UpstreamRejected, 400, "content_filter"),
    ErrorKind.REQUEST: (UpstreamRejected, 422, "upstream_rejected"),
}
# Of each kind one fault that every form of call meets, before any token.
ONE_OF_EACH = {
    fault.kind: name
    for name, fault in FAULTS.items()
    if fault.kind and fault.strikes(stream=True) and not fault.tokens and fault.status != 400
} | {ErrorKind.CONTENT: "400_content_openai", ErrorKind.CONTEXT: "400_context_openai"}


@pytest.mark.parametrize("caller", ["whole", "stream"])
@pytest.mark.parametrize("kind", ErrorKind)
async def test_the_one_mode_that_may_answer_says_what_went_wrong(
    lab: Lab, kind: ErrorKind, caller: str
) -> None:
    raised, status, code = RAISED[kind]
    name = ONE_OF_EACH[kind]
    lab.start(creative={"first_token_s": 0.1})
    lab.script("creative", name)
    if caller == "stream":
        heard = await lab.hear(allow_degrade=False)
        assert not heard.chunks
        error: GatewayError | None = heard.error
    else:
        with pytest.raises(GatewayError) as caught:
            await lab.ask(allow_degrade=False)
        error = caught.value
    assert isinstance(error, UpstreamError)
    assert type(error) is raised
    assert (error.kind, error.http_status, error.code) == (kind, status, code)
    assert error.target == "vllm/creative"
    assert error.retry_after == FAULTS[name].retry_after
    assert "vllm/creative" in str(error) or "127.0.0.1" in str(error), "it says where"
    assert lab.requests("balanced") == 0


@pytest.mark.parametrize(
    ("fault", "rests_s"),
    [
        ("429_requests", 5.0),
        ("429_retry_after_seconds", 2.0),
        ("429_retry_after_ms", 1.5),
        ("429_retry_after_date", 3.0),
        ("429_retry_after_zero", 1.0),
        ("429_retry_after_negative", 1.0),
        ("429_retry_after_absurd", 60.0),
        ("429_retry_after_words", 5.0),
        ("429_tokens", 10.0),
        ("503_loading", 2.0),
        ("503_sglang", 1.0),
        ("503_retry_after", 4.0),
        ("401", 300.0),
        ("402", 300.0),
        ("404_vllm", 600.0),
    ],
)
async def test_a_target_is_left_alone_as_long_as_it_asks_within_reason(
    lab: Lab, fault: str, rests_s: float
) -> None:
    lab.start()
    lab.script("creative", fault)
    assert (await lab.ask()).mode == "balanced"
    rest = lab.rests()[-1]
    assert rest.for_s == pytest.approx(rests_s, abs=0.01)
    seen = lab.requests()

    lab.script("creative", "ok")
    lab.clock.skip(rests_s - 0.5)
    answer = await lab.ask()
    assert (answer.mode, answer.reason) == ("balanced", "cooling")
    assert answer.until is not None and 0 < answer.until <= 0.5
    assert lab.requests() == seen
    lab.clock.skip(0.5)
    assert (await lab.ask()).mode == "creative"
