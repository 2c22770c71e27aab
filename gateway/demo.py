"""The demonstration: a real model answers in every mode, creative is cut off, the answers keep
coming, creative heals. Nothing is pretended but the length of the hold, and that is said.

The first mode's target is reached through a `Cable`, which is pulled. What was promised is checked
on the way; the demonstration fails if a promise does.
"""

from __future__ import annotations

import asyncio
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from gateway.config import Config
from gateway.errors import ConfigError, GatewayError
from gateway.events import Listener
from gateway.gateway import Gateway
from gateway.generation import CacheControl, Generation
from gateway.modes import ModeOptions, TargetOptions
from gateway.providers.capabilities import KINDS, capabilities
from gateway.registry import resolve
from gateway.simulator.cable import Cable

PROMPT = "Describe cedar wood in one short sentence."
HOLD_S = 5.0
_RAMP_S = 3.0

# The answer that lies in the cache is not what a demonstration is for; new ones are kept.
_ASK_ANEW = CacheControl(read=False)

_TABLES = {
    "modes": {
        mode: {
            "temperature": temperature,
            "top_p": 0.9,
            "max_tokens": 64,
            "seed": 7,
            "targets": [{"kind": "local"}],
        }
        for mode, temperature in (("creative", 0.9), ("balanced", 0.6), ("fast", 0.2))
    }
}

Say = Callable[[str], None]


class BrokenPromiseError(GatewayError):
    """The demonstration did not go as promised."""

    code = "promise_broken"


async def demo(
    say: Say,
    *,
    config: Config | None = None,
    prompt: str = PROMPT,
    listeners: Sequence[Listener] = (),
) -> list[Generation]:
    """Run the demonstration; ten seconds or so with the embedded model.

    Args:
        say: gets each line, to print it.
        config: what to demonstrate on; None is the embedded model in three modes. Its first mode
            is the one that is cut off.
        prompt: what is asked.
        listeners: hear the gateway's events.

    Returns:
        Every answer, in order.

    Raises:
        ConfigError: the embedded model is not installed, or the first mode cannot be cut off.
        BrokenPromiseError: something promised did not happen.
        GatewayError: a request failed.
    """
    began = time.monotonic()
    config = config or Config.from_dict(_TABLES)
    if len(config.modes) < 2:
        raise ConfigError("the demonstration needs two modes: one to cut off, one to go on")
    top = config.modes[0]
    async with AsyncExitStack() as stack:
        target, cable = await _through_cable(top, stack)
        config = replace(
            config,
            modes=(replace(top, targets=(target,)), *config.modes[1:]),
            circuit=replace(config.circuit, break_duration_s=HOLD_S, ramp_s=_RAMP_S),
        )
        gateway = await stack.enter_async_context(Gateway(config, listeners=listeners))
        story = _Story(gateway, config, cable, prompt, say)
        say(f"A real model, {target.model or target.kind}, is asked: {prompt}")
        await story.each_mode_answers()
        await story.cut_off()
        await story.held()
        await story.heal()
    say("")
    say(f"Everything happened as promised, in {time.monotonic() - began:.0f} s.")
    return story.answers


async def _through_cable(mode: ModeOptions, stack: AsyncExitStack) -> tuple[TargetOptions, Cable]:
    """The mode's first target, behind a cable that can be pulled."""
    target = resolve(mode.targets[0], mode.name)
    kind, model, address = target.kind, target.model, target.base_url
    options = target.options
    if kind == "local":
        from gateway.providers.local import LocalModel, LocalOptions  # noqa: PLC0415

        embedded = LocalModel.share(LocalOptions.of(target))
        stack.push_async_callback(embedded.aclose)
        address = (await embedded.endpoint()).address + "/v1"
        kind, model, options = "llama_cpp", model or embedded.options.model, {}
    elif kind in KINDS:
        address = address or capabilities(kind).base_url
    url = urlsplit(address)
    if url.scheme != "http" or url.hostname is None:
        raise ConfigError(
            "the demonstration pulls the cable to this target, which must be of kind 'local' or"
            f" reached by plain http://, not {url.scheme or kind}",
            table=f"modes.{mode.name}.targets[0]",
            key="base_url",
        )
    cable = await stack.enter_async_context(Cable(url.hostname, url.port or 80))
    behind = replace(
        target, kind=kind, model=model, base_url=cable.address + url.path, options=options
    )
    return behind, cable


class _Story:
    """The acts, in order."""

    def __init__(
        self, gateway: Gateway, config: Config, cable: Cable, prompt: str, say: Say
    ) -> None:
        self._gateway = gateway
        self._config = config
        self._cable = cable
        self._prompt = prompt
        self._say = say
        self._top = config.modes[0].name
        self._requests = 0
        self.answers: list[Generation] = []

    async def each_mode_answers(self) -> None:
        self._act("Each mode answers.")
        for mode in self._gateway.modes:
            answer = await self._generate(mode)
            _promise(answer.mode == mode and not answer.degraded, f"{mode} answers for itself")
            self._say(f"   {mode:<9} {_speed(answer)}")
            self._text(answer)

    async def cut_off(self) -> None:
        threshold = self._config.circuit.failure_threshold
        self._act(f"The cable to {self._top} is pulled: it refuses every connection. We ask it.")
        await self._cable.unplug()
        answer = None
        for _ in range(threshold):
            answer = await self._ask()
            _promise(answer.degraded, "an answer of a lower mode says so")
            _promise(answer.reason == "failed", "the reason is that the mode failed")
        assert answer is not None
        self._text(answer)
        ttl_s = self._config.cache.degraded_ttl_s
        status = self._status()
        _promise(status["phase"] == "open", f"{threshold} failures open the circuit")
        _promise(status["ttl_s"] == ttl_s, f"the TTL is {ttl_s:g} s while the circuit is open")
        self._say(
            f"   {threshold} failures: the circuit of {self._top} is open, and its cache TTL is"
            f" {ttl_s:g} s instead of {self._config.cache.ttl_s:g} s."
        )

    async def held(self) -> None:
        self._act(f"While it is open nobody waits for {self._top}.")
        answer = await self._ask()
        _promise(answer.reason == "circuit_open", "the reason is the open circuit")
        _promise(answer.served.attempts == 1, f"{self._top} is not even tried")
        if answer.served.ttl_s:
            ttl_s = self._config.cache.degraded_ttl_s
            _promise(answer.served.ttl_s == ttl_s, f"a stand-in is fresh for {ttl_s:g} s")
        self._text(answer)

    async def heal(self) -> None:
        self._act(f"The cable to {self._top} is plugged in again.")
        await self._cable.plug()
        wait_s = self._status()["until_s"] or 0.0
        self._say(f"   The hold ends in {wait_s:.1f} s ...")
        self._say(f"   (hold shortened to {HOLD_S:g} s so that you need not wait five minutes)")
        await asyncio.sleep(wait_s)
        answer = await self._ask(" (the probe)")
        _promise(answer.mode == self._top, f"the probe reaches {self._top}")
        _promise(not answer.degraded, "an answer of the mode asked for is not degraded")
        self._text(answer)
        ttl_s = self._config.cache.ttl_s
        status = self._status()
        _promise(status["phase"] in ("recovering", "closed"), "one good probe closes the circuit")
        _promise(status["ttl_s"] == ttl_s, f"the TTL is {ttl_s:g} s again")
        self._say(
            f"   {self._top} is {status['phase']}: its circuit is closed, its cache TTL is"
            f" {ttl_s:g} s again."
        )

    # -- telling --------------------------------------------------------------------------------

    async def _ask(self, remark: str = "") -> Generation:
        """Ask the mode that is cut off, and tell how it went."""
        self._requests += 1
        answer = await self._generate(self._top)
        served = answer.served
        told = f"degraded={served.degraded} attempts={served.attempts}"
        told += f" reason={served.reason}" if served.reason else ""
        told += f" ttl={served.ttl_s:g} s" if served.ttl_s else ""
        who = f"{answer.mode} answers in {answer.duration_s:.1f} s"
        self._say(f"   request {self._requests}: {who}; {told}{remark}")
        return answer

    async def _generate(self, mode: str) -> Generation:
        answer = await self._gateway.generate(self._prompt, mode, cache=_ASK_ANEW)
        self.answers.append(answer)
        return answer

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = self._gateway.status()["modes"][self._top]
        return status

    def _act(self, title: str) -> None:
        self._say("")
        self._say(f"-- {title}")

    def _text(self, answer: Generation) -> None:
        text = " ".join(answer.text.split())
        for line in textwrap.wrap(f"“{text}”", 88):
            self._say(f"      {line}")


def _promise(kept: bool, promise: str) -> None:
    if not kept:
        raise BrokenPromiseError(f"this was promised and did not happen: {promise}")


def _speed(answer: Generation) -> str:
    tokens = answer.usage.completion_tokens
    first_s = answer.served.first_token_s or 0.0
    rate = f", {tokens / (answer.duration_s - first_s):.0f} tokens/s" if tokens > 1 else ""
    return f"{tokens} tokens, the first after {first_s * 1000:.0f} ms{rate}"
