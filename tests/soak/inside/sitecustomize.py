"""Lets the soak look into a server process that knows nothing of it.

Its folder stands on the path of the processes under test, so that Python imports it as each of
them starts. On SIGUSR1 a process writes into `SOAK_INSIDE` how many asyncio tasks and objects it
holds.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
from pathlib import Path


def _tell(*_: object) -> None:
    try:
        tasks = len(asyncio.all_tasks(asyncio.get_running_loop()))
    except RuntimeError:  # between two loops
        tasks = 0
    gc.collect()  # what only waits to be collected is no leak
    path = Path(os.environ["SOAK_INSIDE"]) / str(os.getpid())
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"tasks": tasks, "objects": len(gc.get_objects())}))
    fresh.replace(path)


signal.signal(signal.SIGUSR1, _tell)
