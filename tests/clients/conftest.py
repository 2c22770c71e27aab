"""Servers once a session, each client's script once a session; everything here is `slow`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import environments
import pytest
from client import CLIENTS, Client
from servers import Behind, Service, real_config, running, scripted_config

HERE = Path(__file__).parent

Play = Callable[[str], Client]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def missing() -> dict[str, str]:
    """Why an environment is not there, by its name; "" for those that are."""
    return environments.make_all()


@pytest.fixture(scope="session")
def need(missing: dict[str, str]) -> Callable[[str], None]:
    """Skips where an environment cannot be had; fails instead where CI_CLIENTS=required."""

    def need(environment: str) -> None:
        why = missing[environment]
        if why and os.environ.get("CI_CLIENTS") == "required":
            pytest.fail(f"the clients of {environment} are required here: {why}")
        if why:
            pytest.skip(f"the clients of {environment} cannot be installed: {why}")

    return need


@pytest.fixture(scope="session")
def behind() -> Iterator[Behind]:
    """The scripted upstream."""
    with Behind() as behind:
        yield behind


@pytest.fixture(scope="session")
def play(
    need: Callable[[str], None], behind: Behind, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Play]:
    """Plays a client's script, the first time it is asked for, against a service of its own: what
    one client was throttled with must not make the next one wait.
    """
    with ExitStack() as stack:

        def start(name: str) -> Client:
            need(CLIENTS[name].environment)
            folder = tmp_path_factory.mktemp(name)
            config = scripted_config(behind.brain.base_url)
            service = stack.enter_context(running(config, folder))
            client = Client(name, service.url, "scripted", folder)
            stack.callback(client.close)
            return client

        yield cache(start)


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The gateway in front of the embedded real model."""
    pytest.importorskip("xllamacpp", reason="needs the extra `local`")
    with running(real_config(), tmp_path_factory.mktemp("real")) as service:
        yield service


@pytest.fixture(scope="session")
def play_real(
    need: Callable[[str], None], real: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Play]:
    """Plays a client's script against the real model, the first time it is asked for."""
    with ExitStack() as stack:

        def start(name: str) -> Client:
            need(CLIENTS[name].environment)
            client = Client(name, real.url, "real", tmp_path_factory.mktemp(name))
            stack.callback(client.close)
            return client

        yield cache(start)
