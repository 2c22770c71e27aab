"""OpenTelemetry's names for generative AI, in one table.

The conventions are in development and names move: what shipped libraries emit today
(opentelemetry-semantic-conventions 0.66b2) is `SHIPPED`; `NEWEST` has what the newest text of the
conventions renames. https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

# Attributes; the same in both.
OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - no secret
ERROR: Final = "error.type"
METHOD: Final = "http.request.method"
ROUTE: Final = "http.route"
STATUS: Final = "http.response.status_code"

# What no convention names: the ladder.
REQUESTED_MODE: Final = "gateway.requested_mode"
MODE: Final = "gateway.mode"
OUTCOME: Final = "gateway.outcome"
DEGRADED: Final = "gateway.degraded"
REASON: Final = "gateway.reason"
CACHED: Final = "gateway.cached"
STALE: Final = "gateway.stale"
ATTEMPTS: Final = "gateway.attempts"
PROBE: Final = "gateway.probe"
QUEUED_S: Final = "gateway.queued_s"
OVERHEAD_S: Final = "gateway.overhead_s"
TENANT: Final = "gateway.tenant"
KEY: Final = "gateway.key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The metrics. Durations are in seconds.

    Attributes:
        tokens: tokens used, one histogram for all, told apart by `gen_ai.token.type`; or one for
            each attribute of the tokens.
    """

    client_duration: str
    client_first_chunk: str
    tokens: str | dict[str, str]
    server_duration: str = "gen_ai.server.request.duration"
    server_first_token: str = "gen_ai.server.time_to_first_token"  # noqa: S105 - no secret
    server_per_token: str = "gen_ai.server.time_per_output_token"  # noqa: S105 - no secret


SHIPPED: Final = Names(
    client_duration="gen_ai.client.operation.duration",
    client_first_chunk="gen_ai.client.operation.time_to_first_chunk",
    tokens="gen_ai.client.token.usage",
)
NEWEST: Final = replace(
    SHIPPED,
    client_duration="gen_ai.client.inference.duration",
    client_first_chunk="gen_ai.client.inference.time_to_first_chunk",
    tokens={
        INPUT_TOKENS: "gen_ai.client.inference.usage.input_tokens",
        OUTPUT_TOKENS: "gen_ai.client.inference.usage.output_tokens",
        CACHED_TOKENS: "gen_ai.client.inference.usage.cache_read.input_tokens",
        REASONING_TOKENS: "gen_ai.client.inference.usage.reasoning.output_tokens",
    },
)

TOKEN_TYPES: Final = {INPUT_TOKENS: "input", OUTPUT_TOKENS: "output"}
"""The others are among these: adding them up would count them twice."""

# The conventions' own boundaries.
SECONDS: Final = tuple(0.01 * 2**n for n in range(14))
TOKENS: Final = tuple(4**n for n in range(14))
PER_TOKEN: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
