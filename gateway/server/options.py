"""The table `[server]`. Stands apart from the server so that reading it needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How the HTTP service listens: `[server]`.

    Attributes:
        host: address; loopback only unless keys are configured.
        port: TCP port, 0 picks a free one.
        workers: processes that share the port and agree on modes.
        admin_key_hash: who may force modes and reload: what `gateway keys hash` prints; "" leaves
            those routes to callers on this machine.
        keys_file: a TOML file with more `[keys.NAME]` tables, seen from this file's folder, so
            that they can live apart from it; "" is none.
        usage_path: the SQLite file that remembers what keys with `monthly_tokens` have used, made
            when first needed; ":memory:" forgets at exit.
        open_metrics: answer /metrics without a key.
        default_mode: what the model `auto` stands for; "" is the best mode.
        max_body_bytes: longest request body taken.
        header_s: a client must have sent its request's head by then, seconds.
        body_s: and its body by then, seconds.
        send_s: a client that leaves its answer unread for this long is cut off, seconds.
        keep_alive_s: an idle connection is closed after this, seconds.
        ping_s: a stream that says nothing for this long gets a comment, seconds; 0 is never.
        stream_headers_s: a stream without a first token by then begins with an empty 200, seconds.
        shutdown_s: how long streams may finish after a stop signal, seconds.
        max_connections: most open connections of one worker.
        cors_origins: origins whose web pages may call, such as "https://app.example"; none.
        watch: reload when the configuration file changes.
        runner: what speaks HTTP: "uvicorn" or "granian".
        traces: OpenTelemetry spans and metrics, through the providers this process has (the extra
            `otel`; `opentelemetry-instrument` sets them up).
        log: "json" or "console" lines on standard error, or "off".
    """

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    admin_key_hash: str = field(default="", repr=False)
    keys_file: str = ""
    usage_path: str = "usage.sqlite"
    open_metrics: bool = False
    default_mode: str = ""
    max_body_bytes: int = 10_485_760
    header_s: float = 10.0
    body_s: float = 30.0
    send_s: float = 60.0
    keep_alive_s: float = 75.0
    ping_s: float = 15.0
    stream_headers_s: float = 10.0
    shutdown_s: float = 30.0
    max_connections: int = 4096
    cors_origins: tuple[str, ...] = ()
    watch: bool = False
    runner: str = "uvicorn"
    traces: bool = False
    log: str = "json"
