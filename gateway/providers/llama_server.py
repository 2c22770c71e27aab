"""The child program that runs the embedded model: llama.cpp's own HTTP server, and nothing else.

    python -m gateway.providers.llama_server --model weights.gguf

When it listens it prints one JSON line, `{"address": "http://127.0.0.1:38733"}`, and serves until
its standard input ends. That is its leash: the pipe's other end closes when the parent exits,
however it exits, so no orphan stays behind. It imports nothing of the gateway and may be run as a
file, which keeps its start short.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_STDIN, _STDOUT = 0, 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve one model until standard input ends."""
    options = _parse(arguments)
    _die_with_parent()
    server = _serve(options)
    # One write of its own line: logs share this pipe and must not split it.
    os.write(_STDOUT, f"\n{json.dumps({'address': server.listening_address})}\n".encode())
    threading.Event().wait()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gateway.providers.llama_server")
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--alias", default="local", help="the model's name on the wire")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--threads", type=int, default=1, help="more spin against each other")
    parser.add_argument("--slots", type=int, default=4, help="answers generated side by side")
    parser.add_argument("--context", type=int, default=2048, help="tokens per slot")
    return parser.parse_args(arguments)


def _die_with_parent() -> None:
    """Exit when standard input ends, and on Linux also by the kernel's hand.

    The pipe alone would not do while the model loads (the loader holds the interpreter), nor if
    a forked sibling of ours still held the other end.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_exit_at_end_of_input, daemon=True).start()


def _exit_at_end_of_input() -> None:
    while os.read(_STDIN, 1024):
        pass
    os._exit(0)  # at once: a running answer has nobody left to read it


def _serve(options: argparse.Namespace) -> Any:
    """Load the model; the server answers from threads of its own as soon as this returns."""
    import xllamacpp  # noqa: PLC0415 - the extra `local`; only this program needs it

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.model_alias = {options.alias}
    params.hostnames = [options.host]
    params.port = options.port
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.n_parallel = options.slots
    params.n_ctx = options.context * options.slots  # llama.cpp divides it among the slots
    params.fit_params = False  # our sizes are fixed: fitting would only load the file twice
    params.verbosity = 1  # errors only
    params.endpoint_metrics = True
    params.endpoint_slots = False  # it would show prompts
    params.ui = False
    params.cors_origins = ""  # no web page may call it from a browser
    params.cache_ram_mib = 0  # else old prompts pile up in memory, to 8 GiB
    try:
        return xllamacpp.Server(params)
    except RuntimeError:
        # llama.cpp has said why on standard error; its exception does not.
        raise SystemExit(f"cannot serve {options.model}") from None


if __name__ == "__main__":
    main()
