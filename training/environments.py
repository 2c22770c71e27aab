"""Environments: how they are made, and how their state is taken and put back.

Gymnasium has no way to save an environment (Gymnasium#94). Those of classic control are a few
numbers in attributes and a random generator, so those attributes are what is kept. Where anything
else takes part, a physics engine for one, `exact` says so, and episodes begin anew after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np


class EnvironmentUnknown(ValueError):
    """There is no such environment, or what it needs is not installed; says which."""


def make(env_id: str, n_envs: int) -> Any:
    """A vector of environments whose next episode begins in the step that ended the last.

    Raises:
        EnvironmentUnknown: no such environment, a package it needs is missing, or its actions or
            observations are of a kind PPO here does not know.
        ModuleNotFoundError: gymnasium is not installed; names the extra.
    """
    try:
        import gymnasium  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "environments need gymnasium: pip install 'downshift-gateway[training]'"
        ) from None
    vector = gymnasium.vector
    try:
        envs = vector.SyncVectorEnv(
            [lambda: gymnasium.make(env_id, disable_env_checker=True) for _ in range(n_envs)],
            autoreset_mode=vector.AutoresetMode.SAME_STEP,
        )
    except (gymnasium.error.Error, ImportError) as error:
        told = " ".join(str(error).split())
        raise EnvironmentUnknown(f"{env_id}: {told}") from None
    seen, acts = envs.single_observation_space, envs.single_action_space
    if not isinstance(seen, gymnasium.spaces.Box):
        raise EnvironmentUnknown(f"{env_id}: observations must be a Box of numbers, got {seen}")
    if not isinstance(acts, (gymnasium.spaces.Box, gymnasium.spaces.Discrete)):
        raise EnvironmentUnknown(f"{env_id}: actions must be Discrete or a Box, got {acts}")
    return envs


def spaces(env: Any) -> dict[str, Any]:
    """`state_dim`, `action_dim` and `continuous` of an environment; what it declares of them."""
    seen: Any = getattr(env, "single_observation_space", getattr(env, "observation_space", None))
    acts: Any = getattr(env, "single_action_space", getattr(env, "action_space", None))
    found: dict[str, Any] = {}
    if getattr(seen, "shape", None) is not None:
        found["state_dim"] = math.prod(seen.shape)
    if hasattr(acts, "n"):
        found |= {"action_dim": int(acts.n), "continuous": False}
    elif hasattr(acts, "low"):
        found |= {"action_dim": math.prod(acts.shape), "continuous": True}
    return found


def state_of(env: Any) -> dict[str, Any]:
    """Every environment of a vector, wrappers included, in JSON types.

    Returns:
        `envs`, and `exact`: whether that is all there is.
    """
    exact = True
    members = []
    for member in getattr(env, "envs", [env]):
        layers = []
        for layer in _layers(member):
            kept: dict[str, Any] = {}
            for name, value in _attributes(layer):
                try:
                    kept[name] = encoded(value)
                except TypeError:
                    exact = exact and _beside_the_point(name, value)
            layers.append(kept)
        members.append(layers)
    return {"exact": exact, "envs": members}


def put_state(env: Any, state: Mapping[str, Any]) -> None:
    """Put back what `state_of` gave.

    Raises:
        ValueError: it is of other environments.
    """
    members = getattr(env, "envs", [env])
    for member, saved in zip(members, state["envs"], strict=True):
        for layer, kept in zip(_layers(member), saved, strict=True):
            for name, _ in _attributes(layer):
                if name in kept:
                    setattr(layer, name, decoded(kept[name]))


def encoded(value: Any) -> list[Any]:
    """A value in JSON types that come back as they were: `[kind, ...]`.

    Arrays keep their type and every bit, numbers beyond 64 bits (a generator's state has 128) and
    those that are not finite survive, tuples stay tuples.

    Raises:
        TypeError: it is something else than data.
    """
    if isinstance(value, np.random.Generator):
        return ["generator", encoded(value.bit_generator.state)]
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return [kind, value.dtype.str, list(value.shape), value.tobytes().hex()]
    if type(value) in (int, float):
        return [type(value).__name__, value.hex() if type(value) is float else hex(value)]
    if value is None or type(value) in (bool, str):
        return ["plain", value]
    if type(value) in (list, tuple):
        return [type(value).__name__, [encoded(item) for item in value]]
    if type(value) is dict and all(type(key) is str for key in value):
        return ["dict", {key: encoded(item) for key, item in value.items()}]
    raise TypeError(f"{type(value).__name__} is no data")


def decoded(saved: Sequence[Any]) -> Any:
    """What `encoded` was given.

    Raises:
        ValueError: this is nothing `encoded` gave.
    """
    kind, *data = saved
    if kind == "generator":
        state = decoded(data[0])
        if state["bit_generator"] not in _GENERATORS:
            raise ValueError(f"unknown random generator {state['bit_generator']!r}")
        bits = getattr(np.random, state["bit_generator"])()
        bits.state = state
        return np.random.Generator(bits)
    if kind in ("array", "scalar"):
        array = np.frombuffer(bytes.fromhex(data[2]), data[0]).reshape(data[1]).copy()
        return array if kind == "array" else array[()]
    if kind == "dict":
        return {key: decoded(item) for key, item in data[0].items()}
    if kind not in _DECODERS:
        raise ValueError(f"unknown kind {kind!r}")
    return _DECODERS[kind](data[0])


_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float.fromhex,
    "plain": lambda value: value,
    "list": lambda items: [decoded(item) for item in items],
    "tuple": lambda items: tuple(decoded(item) for item in items),
}
# How it is shown is no part of an environment's state.
_SHOWN = {"render_mode", "metadata", "screen", "clock", "surf", "window", "font"}


def _layers(env: Any) -> list[Any]:
    """The wrappers from the outside in, and what they wrap."""
    layers = [env]
    while hasattr(layers[-1], "env"):
        layers.append(layers[-1].env)
    return layers


def _attributes(layer: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(layer).items() if name not in _SHOWN]


def _beside_the_point(name: str, value: Any) -> bool:
    """Whether an attribute that is no data may be left out: it does not change with the steps."""
    described = type(value).__module__.startswith(("gymnasium.spaces", "gymnasium.envs.registra"))
    return name == "env" or described or callable(value) or isinstance(value, ModuleType)
