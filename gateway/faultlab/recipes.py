"""How gateways are told of the lab: what their configuration says, run by run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from gateway.faultlab.scenario import ROLES, Run

Urls = Callable[[Run], Mapping[str, str]]
"""From a run to each role's base URL."""

EARLY_PROBE_S: Final = 10
"""The one value that is not as shipped, for the scenario that demands recovery within 30 s."""

_MODES: Final = {
    "creative": {"deadline_s": 180, "first_token_s": 12, "stall_s": 20},
    "balanced": {"deadline_s": 120, "first_token_s": 12},
    "fast": {"deadline_s": 30, "first_token_s": 5},
}
"""The limits of `config.toml` as it is shipped."""


def downshift(run: Run, urls: Mapping[str, str]) -> str:
    """A `config.toml` of shipped values for one run: our circuits belong to modes, so that each
    run has a gateway of its own.
    """
    lines: list[str] = []
    for role in run.roles:
        limits = [f"{key} = {value}" for key, value in _MODES[role].items()]
        lines += [f"[modes.{role}]", *limits, f"[[modes.{role}.targets]]", 'kind = "openai"']
        lines += [f'base_url = "{urls[role]}"', f'model = "{run.model(role)}"', ""]
    if run.scenario.early_probe:
        lines += ["[circuit]", f"early_probe_s = {EARLY_PROBE_S}", ""]
    return "\n".join(lines)


def litellm(runs: Iterable[Run], urls: Urls) -> str:
    """A `config.yaml` for LiteLLM's proxy: every run as models of its own.

    One retry, none after a time-out, fallbacks, time-outs, cooldown after the third failure, the
    local cache: what its documentation offers for reliability.
    """
    models, fallbacks = [], []
    for run in runs:
        for role in run.roles:
            model = run.model(role)
            models += [
                f"  - model_name: {model}",
                "    litellm_params:",
                f"      model: openai/{model}",
                f"      api_base: {urls(run)[role]}",
                "      api_key: unused",
            ]
        first, *others = (run.model(role) for role in run.roles)
        if others:
            fallbacks.append(f"    - {first}: [{', '.join(others)}]")
    return "\n".join(
        [
            "model_list:",
            *models,
            "router_settings:",
            "  num_retries: 1",
            "  timeout: 30",
            "  stream_timeout: 12",
            "  allowed_fails: 2",
            "  cooldown_time: 20",
            "  retry_policy: {TimeoutErrorRetries: 0, RateLimitErrorRetries: 1, "
            "InternalServerErrorRetries: 1}",
            "  fallbacks:",
            *fallbacks,
            "litellm_settings:",
            "  cache: true",
            "  cache_params: {type: local}",
            "",
        ]
    )


def portkey(run: Run, urls: Mapping[str, str]) -> dict[str, str]:
    """The headers that configure Portkey's gateway for one run.

    One retry that minds Retry-After, fallback on faults of the upstream, a time-out, its cache.
    """
    targets = [
        {
            "provider": "openai",
            "api_key": "unused",
            "custom_host": urls[role],
            "override_params": {"model": run.model(role)},
            "request_timeout": 12000,
            "retry": {
                "attempts": 1,
                "on_status_codes": [429, 500, 502, 503, 504],
                "use_retry_after_header": True,
            },
        }
        for role in run.roles
    ]
    strategy = {"mode": "fallback", "on_status_codes": [408, 429, 500, 502, 503, 504]}
    config = {"strategy": strategy, "cache": {"mode": "simple"}, "targets": targets}
    return {"x-portkey-config": json.dumps(config)}


def model_names(runs: Iterable[Run]) -> str:
    """A line a run: what the caller asks for, and who shall stand in."""
    lines = []
    for run in runs:
        first, *others = (run.model(role) for role in ROLES[: run.scenario.ladder])
        lines.append(f"{first:<26} -> {', '.join(others) or 'nobody stands in'}")
    return "\n".join(lines)
