"""`gateway serve`: takes the port, says what is served, and runs one process or several."""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from gateway.config import Config
from gateway.config_tables import options as check_options
from gateway.errors import ConfigError
from gateway.server import process
from gateway.server.access import check_exposure
from gateway.server.app import App
from gateway.server.greeting import address, greeting
from gateway.server.options import ServerOptions


def serve(config: Config, given: Mapping[str, Any] | None = None) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        config: what to serve.
        given: keys of `[server]` said on the command line.

    Raises:
        ConfigError: others could reach it and no keys are configured, the port cannot be taken, a
            target cannot be built, or a library is missing.
    """
    said = dict(given or {})
    check_options(ServerOptions, said, "server")  # what a line says is judged as in a file
    options = replace(config.server, **said)
    check_exposure(replace(config, server=options))
    _check_installed(options)
    _raise_file_limit(options.max_connections)
    with listen(options.host, options.port) as sock:

        def ready() -> None:
            sys.stderr.write(greeting(config, address(sock)))
            sys.stderr.flush()

        if options.workers == 1:
            process.run(lambda: App(config, said), sock, ready)
            return
        from gateway.server.supervisor import supervise  # noqa: PLC0415

        supervise(config, said, sock, ready)


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address, to be accepted from.

    Raises:
        ConfigError: no such address, or the port is in use or forbidden.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise ConfigError(
            f"{host!r} is no address of this machine; use 127.0.0.1, or 0.0.0.0 for all of them",
            table="server",
            key="host",
        ) from None
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise _cannot_listen(error, host, port) from None
    return sock


def _cannot_listen(error: OSError, host: str, port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        why = f"port {port} on {host} is in use; stop what uses it, or choose another with --port"
        return ConfigError(why, table="server", key="port")
    if error.errno == errno.EACCES:
        why = f"port {port} is not for everyone; choose one above 1023"
        return ConfigError(why, table="server", key="port")
    why = f"cannot listen on {host}: {os.strerror(error.errno or 0)}"
    return ConfigError(why, table="server", key="host")


def _check_installed(options: ServerOptions) -> None:
    for library, extra in (("uvicorn", "server"), (options.runner, options.runner)):
        if importlib.util.find_spec(library) is None:
            raise ConfigError(
                f"the HTTP service needs {library}: pip install 'downshift-gateway[{extra}]'",
                table="server",
            )


def _raise_file_limit(connections: int) -> None:
    """Each connection may need a second one to an upstream; shells allow 1,024 files in all."""
    with suppress(ImportError, ValueError, OSError):
        import resource  # noqa: PLC0415

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * connections + 512
        if soft < wanted:
            limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
