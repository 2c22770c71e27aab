"""One of several workers: what the supervisor starts, by `python -m gateway.server.worker`.

What to serve comes as JSON in the environment, the socket as an open file. On standard output it
says `ready` once; when standard input ends, the supervisor is gone and so goes the worker.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.config import Config
from gateway.errors import GatewayError
from gateway.server import process
from gateway.server.app import App
from gateway.server.shared_models import FollowedModel
from gateway.stores.shared import SharedStore

ORDER: Final = "GATEWAY_WORKER"


class Order(msgspec.Struct, frozen=True):
    """What a worker is told.

    Attributes:
        config: the configuration file.
        given: keys of `[server]` said on the command line.
        sock: the listening socket's file number.
        folder: what the workers of this service share.
    """

    config: str
    given: dict[str, Any]
    sock: int
    folder: str


def main() -> int:
    """Serve as ordered; the exit code."""
    order = msgspec.json.decode(os.environ.pop(ORDER), type=Order)
    folder = Path(order.folder)
    try:
        config = Config.from_toml(order.config)
        FollowedModel.follow_all(config, folder / "models")
        threading.Thread(target=_end_with_supervisor, daemon=True).start()
        shared = SharedStore(folder / "shared.sqlite")
        with socket.socket(fileno=order.sock) as sock:
            process.run(
                lambda: App(
                    config,
                    order.given,
                    shared=shared,
                    before_reload=lambda new: FollowedModel.follow_all(new, folder / "models"),
                ),
                sock,
                _say_ready,
            )
    except GatewayError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _say_ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def _end_with_supervisor() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
