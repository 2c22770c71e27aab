"""The names config.toml may use, one line a part. Optional libraries load when a name is used."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from gateway.clock import Clock
from gateway.errors import ConfigError
from gateway.modes import TargetOptions
from gateway.policies.ttl import CacheOptions
from gateway.providers.base import Provider
from gateway.stores.base import Store
from gateway.transport.base import Client

# What `kind = "auto"` calls at DashScope, by the mode's name; other modes take the middle one.
_DASHSCOPE_MODELS = {
    "creative": "qwen3.8-max",
    "balanced": "qwen3.7-plus",
    "fast": "qwen3.8-flash",
}


class Clients:
    """HTTP clients, shared by all targets that reach their upstreams the same way."""

    def __init__(self) -> None:
        self._clients: dict[tuple[object, ...], Client] = {}

    def for_target(self, options: TargetOptions) -> Client:
        """The client of this target's `transport`, `connect_s` and `ca_file`.

        With `transport = "httpx"`, `options["transport"]` may be any `httpx.AsyncBaseTransport`.

        Raises:
            ConfigError: `ca_file` is not there, or holds no certificates.
        """
        own = options.options.get("transport")
        key = (options.transport, options.connect_s, options.ca_file, id(own) if own else None)
        if key not in self._clients:
            try:
                self._clients[key] = _TRANSPORTS[options.transport](options)
            except OSError as error:  # ssl.SSLError is one, too
                raise ConfigError(
                    f"cannot read {options.ca_file} as PEM: {error.strerror or error}",
                    key="ca_file",
                ) from None
        return self._clients[key]

    async def aclose(self) -> None:
        """Close them all."""
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()


def resolve(options: TargetOptions, mode: str) -> TargetOptions:
    """Say what `kind = "auto"` stands for here and now; any other kind stays as it is.

    `QWEN_BASE_URL` points at your own server (`QWEN_KIND`, default vllm; `QWEN_MODEL`;
    `QWEN_API_KEY`); else `DASHSCOPE_API_KEY` means DashScope; else the embedded model answers.
    """
    if options.kind != "auto":
        return options
    if os.environ.get("QWEN_BASE_URL"):
        return replace(
            options,
            kind=os.environ.get("QWEN_KIND", "vllm"),
            base_url=os.environ["QWEN_BASE_URL"],
            model=options.model or os.environ.get("QWEN_MODEL", ""),
            api_key_env="QWEN_API_KEY" if os.environ.get("QWEN_API_KEY") else "",
        )
    if os.environ.get("DASHSCOPE_API_KEY"):
        model = options.model or _DASHSCOPE_MODELS.get(mode, _DASHSCOPE_MODELS["balanced"])
        return replace(options, kind="dashscope", model=model, api_key_env="DASHSCOPE_API_KEY")
    return replace(options, kind="local")


def build_provider(options: TargetOptions, clients: Clients) -> Provider:
    """Build the provider of one resolved target.

    Raises:
        ConfigError: unknown kind, missing key, or a kind whose extra is not installed.
    """
    build = _PROVIDERS.get(options.kind)
    if build is None:
        known = ", ".join(sorted([*_PROVIDERS, "auto"]))
        raise ConfigError(f"unknown kind {options.kind!r}; known: {known}", key="kind")
    return build(options, clients)


def build_store(options: CacheOptions, clock: Clock) -> Store:
    """Build the store that `[cache] path` names.

    Raises:
        ConfigError: an address of no known kind, or its extra is not installed.
    """
    scheme = options.path.partition("://")[0] if "://" in options.path else options.path
    build = _STORES.get(scheme)
    if build is None:
        raise ConfigError(
            f"expected '' (memory) or a valkey:// or redis:// address, got {scheme!r}",
            table="cache",
            key="path",
        )
    return build(options, clock)


def api_key(options: TargetOptions) -> str | None:
    """Read a target's credential. It is never kept anywhere but in the request head.

    Raises:
        ConfigError: the variable is not set, or the file cannot be read.
    """
    if options.api_key_env:
        key = os.environ.get(options.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"environment variable {options.api_key_env} is not set; "
                f"export {options.api_key_env}=... or remove api_key_env",
                key="api_key_env",
            )
        return key
    if options.api_key_file:
        try:
            return Path(options.api_key_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(
                f"cannot read {options.api_key_file}: {error.strerror}", key="api_key_file"
            ) from None
    return None


def _openai_compatible(options: TargetOptions, clients: Clients) -> Provider:
    from gateway.providers.openai_compatible import OpenAICompatible  # noqa: PLC0415

    return OpenAICompatible(options, clients.for_target(options), api_key=api_key(options))


def _local(options: TargetOptions, clients: Clients) -> Provider:
    from gateway.providers.local import LocalProvider  # noqa: PLC0415

    return LocalProvider(options, clients.for_target(options))


def _simulated(options: TargetOptions, clients: Clients) -> Provider:
    from gateway.simulator.upstream import SimulatedProvider  # noqa: PLC0415

    return SimulatedProvider.from_options(options)


def _callable(options: TargetOptions, clients: Clients) -> Provider:
    from gateway.providers.callable import wrap_client  # noqa: PLC0415

    if "client" not in options.options:
        raise ConfigError("kind 'callable' is for Gateway.wrap(client), not for a file", key="kind")
    return wrap_client(options.options["client"], model=options.model)


def _http1(options: TargetOptions) -> Client:
    from gateway.transport.pool import HTTP1Client  # noqa: PLC0415

    return HTTP1Client(connect_s=options.connect_s, ca_file=options.ca_file or None)


def _httpx(options: TargetOptions) -> Client:
    from gateway.transport.httpx import HttpxClient  # noqa: PLC0415

    own = options.options.get("transport")
    return HttpxClient(own, connect_s=options.connect_s, ca_file=options.ca_file or None)


def _memory(options: CacheOptions, clock: Clock) -> Store:
    from gateway.stores.memory import MemoryStore  # noqa: PLC0415

    return MemoryStore(options.max_bytes, clock=clock)


def _valkey(options: CacheOptions, clock: Clock) -> Store:
    from gateway.stores.valkey import ValkeyStore  # noqa: PLC0415

    return ValkeyStore(options.path, clock=clock)


_PROVIDERS: Mapping[str, Callable[[TargetOptions, Clients], Provider]] = {
    "dashscope": _openai_compatible,
    "vllm": _openai_compatible,
    "sglang": _openai_compatible,
    "llama_cpp": _openai_compatible,
    "ollama": _openai_compatible,
    "lmdeploy": _openai_compatible,
    "tgi": _openai_compatible,
    "transformers": _openai_compatible,
    "openai": _openai_compatible,
    "local": _local,
    "simulated": _simulated,
    "callable": _callable,
}
_TRANSPORTS: Mapping[str, Callable[[TargetOptions], Client]] = {"http1": _http1, "httpx": _httpx}
_STORES: Mapping[str, Callable[[CacheOptions, Clock], Store]] = {
    "": _memory,
    "valkey": _valkey,
    "valkeys": _valkey,
    "redis": _valkey,
    "rediss": _valkey,
}

KINDS = frozenset({*_PROVIDERS, "auto"})
"""Kinds a target may have."""

TRANSPORTS = frozenset(_TRANSPORTS)
"""Transports a target may choose."""
