"""Runs the service on uvicorn until a signal comes."""

from __future__ import annotations

from gateway.config import Config
from gateway.errors import ConfigError
from gateway.server.app import App


def serve(config: Config) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ConfigError: uvicorn is not installed.
    """
    try:
        import uvicorn  # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            "the HTTP service needs uvicorn: pip install 'downshift-gateway[server]'"
        ) from None
    options = config.server
    uvicorn.run(
        App(config).asgi,
        host=options.host,
        port=options.port,
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=int(options.keep_alive_s),
        timeout_graceful_shutdown=int(options.shutdown_s),
        limit_concurrency=None,
    )
