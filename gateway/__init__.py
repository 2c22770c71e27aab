"""The LLM gateway that keeps answering: creative -> balanced -> fast when Qwen falters, honestly.

async with Gateway.from_toml("config.toml") as gateway:
    answer = await gateway.generate("Name three woody perfume notes", mode="creative")
"""

from gateway.config import Config
from gateway.errors import (
    AdmissionRejected,
    AllModesFailed,
    AuthenticationFailed,
    CircuitOpen,
    ConfigError,
    DeadlineExceeded,
    ErrorKind,
    GatewayError,
    InvalidRequest,
    RequestRejected,
    StreamInterrupted,
    UpstreamError,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.events import Event, Listener
from gateway.gateway import Gateway
from gateway.generation import CacheControl, Chunk, Generation, Served, Usage
from gateway.policies.phases import Phase
from gateway.streaming import GenerationStream

__all__ = [
    "AdmissionRejected",
    "AllModesFailed",
    "AuthenticationFailed",
    "CacheControl",
    "Chunk",
    "CircuitOpen",
    "Config",
    "ConfigError",
    "DeadlineExceeded",
    "ErrorKind",
    "Event",
    "Gateway",
    "GatewayError",
    "Generation",
    "GenerationStream",
    "InvalidRequest",
    "Listener",
    "Phase",
    "RequestRejected",
    "Served",
    "StreamInterrupted",
    "UpstreamError",
    "UpstreamRejected",
    "UpstreamThrottled",
    "UpstreamTimeout",
    "UpstreamUnavailable",
    "Usage",
]
__version__ = "0.1.0"
