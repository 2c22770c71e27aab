"""The words of the house: what is asked, what comes back piece by piece, what it adds up to.

The pieces (`Chunk`, `Choice`, `Delta`) keep OpenAI's own field names, so an event decodes straight
into them. Merging pieces into one message is `gateway.assembly`'s business.

The garbage collector does not track them (`gc=False`): many are made for each request, none can
refer to itself, and each one tracked would bring the next collection nearer.
"""

from __future__ import annotations

from typing import Any

import msgspec

Message = dict[str, Any]
"""One chat message in OpenAI's shape: `{"role": ..., "content": ...}` and what else it bears."""


class Delta(msgspec.Struct, omit_defaults=True, gc=False):
    """What one event adds to one choice. A field that is None adds nothing."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    function_call: dict[str, Any] | None = None
    annotations: list[Any] | None = None
    audio: dict[str, Any] | None = None
    reasoning: str | None = None
    """vLLM's and Ollama's name for `reasoning_content`; providers fold it into that field."""

    def carries(self) -> bool:
        """Whether this is content a caller would see: a role chunk is not (behaviour.md, B15)."""
        return bool(
            self.content
            or self.reasoning_content
            or self.tool_calls
            or self.refusal
            or self.function_call
            or self.audio
        )


class Choice(msgspec.Struct, gc=False):
    """One choice (of `n`) inside a chunk."""

    delta: Delta
    index: int = 0
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class Chunk(msgspec.Struct, gc=False):
    """One event of an answer under way.

    Attributes:
        choices: usually one; empty on the usage event at the end.
        id, model, created: as the upstream says; `model` is the model that really answers.
        usage: token counts as the upstream reports them, on the last event.
        extra: top-level fields no name above covers (`system_fingerprint`, `timings`, ...).
    """

    choices: list[Choice] = []
    id: str = ""
    model: str = ""
    created: int = 0
    usage: dict[str, Any] | None = None
    extra: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """The content this event adds to the first choice, `""` if none."""
        first = self._first()
        return (first.delta.content or "") if first else ""

    @property
    def reasoning(self) -> str:
        """The reasoning this event adds to the first choice, `""` if none."""
        first = self._first()
        return (first.delta.reasoning_content or "") if first else ""

    @property
    def finish_reason(self) -> str | None:
        """Why the first choice ended, on the event that ends it."""
        first = self._first()
        return first.finish_reason if first else None

    def _first(self) -> Choice | None:
        """Choice 0, if this event adds to it: with `n` > 1 an event may be another choice's."""
        for choice in self.choices:
            if choice.index == 0:
                return choice
        return None

    def carries(self) -> bool:
        """Whether any choice carries content: the commit point of a stream (behaviour.md, B15)."""
        return any(choice.delta.content or choice.delta.carries() for choice in self.choices)


class CacheControl(msgspec.Struct, frozen=True, gc=False):
    """How one request may use the response cache (RFC 9111's request directives).

    Attributes:
        read: False is `no-cache`: ask upstream even if a fresh answer is stored.
        store: False is `no-store`: do not keep the answer.
        max_age_s: accept no stored answer older than this; None is the mode's own TTL.
        stale_if_error: False refuses a stale answer even when nothing else can be had.
    """

    read: bool = True
    store: bool = True
    max_age_s: float | None = None
    stale_if_error: bool = True


class GenerationRequest(msgspec.Struct, kw_only=True, gc=False):
    """One request on its way through the layers.

    Attributes:
        id: unique, also the generation's id; what `feedback` refers to.
        mode: the mode asked for.
        messages: chat messages, never empty.
        params: every other body field the caller set (`temperature`, `tools`, ...), kept whole.
        deadline: absolute, on the gateway's clock; inf for none until the deadline layer sets it.
        buffered: True if the caller wants one piece: it commits at the end instead of at the
            first token, so a failure half-way restarts clean on the next mode.
        on_interrupt: what a *stream* does when it breaks after its first token: `error`, or
            `continue` on the next mode where the target can continue a text.
        allow_degrade: False raises `CircuitOpen` instead of answering from a lower mode.
        cache: what this request may take from and leave in the response cache.
        tenant: answers are never shared between tenants.
        priority: 0 is served first when a queue forms.
        key: whose limits it counts against: the name of a `[keys.NAME]` table; "" has none.
        raw: `messages` is one user message whose text goes to the backend's `/completions` route as
            it stands, without a chat template; a backend that has no such route is asked as a chat.
        trace: W3C `traceparent` of the caller, "" if none.
        started: when it came in, on the gateway's clock.
        queued_s: seconds it has waited for a slot.
        upstream_s: seconds its upstream attempts have taken so far.
        attempts: upstream attempts that have ended.
    """

    id: str
    mode: str
    messages: list[Message]
    params: dict[str, Any] = {}
    deadline: float = float("inf")
    buffered: bool = True
    on_interrupt: str = "error"
    allow_degrade: bool = True
    cache: CacheControl = CacheControl()
    tenant: str = ""
    priority: int = 1
    key: str = ""
    raw: bool = False
    trace: str = ""
    started: float = 0.0
    queued_s: float = 0.0
    upstream_s: float = 0.0
    attempts: int = 0


class Served(msgspec.Struct, kw_only=True, gc=False):
    """Who answers, and honestly why (behaviour.md, B13). Complete once the first token is there.

    Attributes:
        requested_mode: the mode asked for.
        mode: the mode that answers; never above the requested one.
        model: the model that really answers, as the upstream names it.
        target: which target of that mode, such as `llama_cpp/smollm2-135m`.
        degraded: True if `mode` is lower than `requested_mode`.
        reason: why it is degraded or stale: `circuit_open`, `cooling`, `recovering`, `saturated`,
            `failed`, `forced`, `budget`, `context`, `upstream_error`; None if neither.
        until: seconds from now until the requested mode may be back, if known.
        cached: True if no upstream was asked for this request.
        stale: True if the entry was past its lifetime and served because upstream failed.
        age_s: age of the cached entry in seconds.
        ttl_s: freshness lifetime this answer has in the response cache, 0 if it is not kept.
        attempts: how many upstream attempts it took, 0 for a cached answer.
        first_token_s: seconds from the door to the first content token.
        queued_s: seconds spent waiting for a slot.
        upstream_s: seconds spent in upstream attempts, failed ones included.
    """

    requested_mode: str
    mode: str
    model: str = ""
    target: str = ""
    degraded: bool = False
    reason: str | None = None
    until: float | None = None
    cached: bool = False
    stale: bool = False
    age_s: float = 0.0
    ttl_s: float = 0.0
    attempts: int = 0
    first_token_s: float | None = None
    queued_s: float = 0.0
    upstream_s: float = 0.0


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts. Zero where the upstream did not say."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    details: dict[str, Any] = {}
    """The upstream's whole usage object, details included."""

    @classmethod
    def of(cls, usage: dict[str, Any] | None) -> Usage:
        """The counts out of an upstream's usage object, whatever it left out."""
        if not usage:
            return cls()
        prompt = _count(usage.get("prompt_tokens"))
        completion = _count(usage.get("completion_tokens"))
        total = _count(usage.get("total_tokens")) or prompt + completion
        return cls(prompt, completion, total, usage)


def _count(value: object) -> int:
    if type(value) is int:
        return value
    return int(value) if isinstance(value, (int, float)) else 0


class Generation(msgspec.Struct, kw_only=True, gc=False):
    """A finished answer.

    Attributes:
        id: what `Gateway.feedback` refers to.
        choices: OpenAI's `choices` of a non-streamed answer, merged from the deltas: each
            `{"index", "message", "finish_reason", "logprobs"}`.
        served: who answered and why, see `Served`; its fields are readable here too.
        usage: token counts.
        created: Unix seconds, as the upstream says.
        extra: top-level fields of the upstream's answer that no name covers.
        duration_s: seconds from the door to the end.
    """

    id: str
    choices: list[dict[str, Any]]
    served: Served
    usage: Usage = Usage()
    created: int = 0
    extra: dict[str, Any] = {}
    duration_s: float = 0.0

    @property
    def message(self) -> Message:
        """The first choice's message, tool calls and reasoning included."""
        message: Message = self.choices[0]["message"] if self.choices else {}
        return message

    @property
    def text(self) -> str:
        """The first choice's content, `""` if it is a pure tool call."""
        return self.message.get("content") or ""

    @property
    def reasoning(self) -> str:
        """The first choice's reasoning, `""` if none."""
        return self.message.get("reasoning_content") or ""

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The first choice's tool calls."""
        return self.message.get("tool_calls") or []

    @property
    def finish_reason(self) -> str | None:
        """Why the first choice ended: `stop`, `length`, `tool_calls`, `content_filter`."""
        return self.choices[0].get("finish_reason") if self.choices else None

    @property
    def mode(self) -> str:
        """The mode that answered."""
        return self.served.mode

    @property
    def requested_mode(self) -> str:
        """The mode asked for."""
        return self.served.requested_mode

    @property
    def degraded(self) -> bool:
        """Whether a lower mode than the requested one answered."""
        return self.served.degraded

    @property
    def reason(self) -> str | None:
        """Why it is degraded or stale, None if neither."""
        return self.served.reason

    @property
    def until(self) -> float | None:
        """Seconds until the requested mode may be back, if known."""
        return self.served.until

    @property
    def cached(self) -> bool:
        """Whether the answer came from the response cache."""
        return self.served.cached

    @property
    def model(self) -> str:
        """The model that really answered."""
        return self.served.model

    def __str__(self) -> str:
        return self.text
