"""The modes of answering, best first, and the ladder they form: creative -> balanced -> fast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions:
    """One endpoint a mode may call: `[[modes.NAME.targets]]`.

    Attributes:
        kind: backend dialect: dashscope, vllm, sglang, llama_cpp, ollama, lmdeploy, tgi,
            transformers, openai, local (the embedded model), simulated.
        base_url: up to and including `/v1`; "" uses the kind's own default.
        model: the model's name there; "" uses the kind's own default.
        api_key_env: environment variable holding the key; "" sends none.
        api_key_file: file holding the key (systemd credentials, Kubernetes secrets).
        headers: extra request headers.
        stream_upstream: ask upstream for a stream even for callers who want one piece (B2).
        transport: "http1" (our own pooled client) or "httpx" (proxies, HTTP/2, custom TLS).
        connect_s: connect timeout in seconds, DNS and TLS included.
        headers_s: time from the request being sent to response headers, seconds.
        ca_file: PEM file of a private certificate authority; "" uses the system's.
        context_window: tokens; 0 = unknown.
        instance: kind "local" only: targets with the same instance share one model process.
        weight: relative share among equally loaded targets of a mode, > 0.
        options: the kind's own further knobs, such as `threads` for kind "local".
    """

    kind: str
    base_url: str = ""
    model: str = ""
    api_key_env: str = ""
    api_key_file: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    stream_upstream: bool = True
    transport: str = "http1"
    connect_s: float = 3.0
    headers_s: float = 60.0
    ca_file: str = ""
    context_window: int = 0
    instance: str = "default"
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeOptions:
    """One mode: `[modes.NAME]`. Order in the file is the ladder, best first.

    Attributes:
        name: the table's name.
        targets: endpoints; the least loaded healthy one is used.
        deadline_s: whole answer, seconds, where the caller sets no deadline.
        first_token_s: silence allowed before the first content token, seconds.
        stall_s: silence allowed between two tokens, seconds.
        thinking: turn the model's reasoning on or off; None leaves it as the model has it.
        max_in_flight: most requests in this mode at once; the live limit moves below it (AIMD).
        sampling: body fields applied only where the caller left them unset.
    """

    name: str
    targets: tuple[TargetOptions, ...] = ()
    deadline_s: float = 180.0
    first_token_s: float = 12.0
    stall_s: float = 20.0
    thinking: bool | None = None
    max_in_flight: int = 512
    sampling: Mapping[str, Any] = field(default_factory=dict)


class Modes:
    """The modes in ladder order.

    Args:
        options: best mode first; names are unique and at least one is given (config checks it).
    """

    def __init__(self, options: tuple[ModeOptions, ...]) -> None:
        self._options = options
        self._index = {mode.name: index for index, mode in enumerate(options)}

    def __iter__(self) -> Iterator[ModeOptions]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)

    def __getitem__(self, index: int) -> ModeOptions:
        return self._options[index]

    @property
    def names(self) -> list[str]:
        """The modes' names, best first."""
        return list(self._index)

    def index(self, name: str) -> int:
        """The rung of a mode, 0 is the best.

        Raises:
            InvalidRequest: no such mode; the message lists those there are.
        """
        index = self._index.get(name)
        if index is None:
            raise InvalidRequest(
                f"unknown mode {name!r}; this gateway has {', '.join(map(repr, self._index))}",
                param="mode",
            )
        return index
