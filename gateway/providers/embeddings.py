"""One target that embeds texts, behind an OpenAI-compatible `/embeddings`.

The vectors pass through as the bytes they came in: they are most of the answer, and no float is
read or written anew. Only a caller who asked for base64 where the backend knows none has them
encoded here.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from gateway.errors import ConfigError, ErrorKind, UpstreamError, UpstreamUnavailable
from gateway.generation import Usage
from gateway.modes import TargetOptions
from gateway.providers.address import address, secrets
from gateway.providers.capabilities import capabilities
from gateway.providers.dialects import parse_error, parse_event_error
from gateway.transport.base import Client, Response

_encode = msgspec.json.Encoder().encode
_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_usage = msgspec.json.Decoder(dict[str, Any] | None).decode
_text = msgspec.json.Decoder(str).decode

_MOST_BYTES = 256 * 1024 * 1024
# The official clients ask for base64 unless told otherwise; these answer that with a 400.
_FLOATS_ONLY = frozenset({"dashscope"})
_FIRST_VECTOR = re.compile(rb'"embedding"\s*:\s*(.)')
_HOSTED_MODEL = "text-embedding-v4"  # DashScope's default


class Vectors(msgspec.Struct):
    """What a target answered.

    Attributes:
        fields: the whole JSON object, each value as it came; `data` holds the vectors.
        model: who embedded, as the target says.
        usage: token counts.
    """

    fields: dict[str, msgspec.Raw]
    model: str
    usage: Usage


class Embedder(Protocol):
    """One target.

    Attributes:
        name: for people and logs, such as `vllm/bge-m3`; never a credential.
        model: what a request's `model` is compared with.
        domain: failure domain: targets that fail together share it.
        headers_s: how long one answer may take, seconds.
    """

    name: str
    model: str
    domain: str
    headers_s: float

    async def embed(self, body: Mapping[str, Any], request_id: str) -> Vectors:
        """Send one request.

        Args:
            body: `input` and the caller's other fields.
            request_id: sent upstream as `x-request-id`.

        Raises:
            UpstreamError: it did not answer with vectors.
        """
        ...


def build_embedder(
    options: TargetOptions, client: Client, api_key: Callable[[TargetOptions], str | None]
) -> Embedder:
    """Build one resolved target of `[[embeddings.targets]]`.

    Raises:
        ConfigError: a kind that cannot embed, no model, a missing key.
    """
    if options.kind in ("local", "simulated", "callable"):
        raise ConfigError(
            f"kind {options.kind!r} cannot embed; name an endpoint that can", key="kind"
        )
    return HTTPEmbedder(options, client, api_key=api_key(options))


class HTTPEmbedder:
    """An endpoint and a model; an `Embedder`.

    Args:
        options: the target.
        client: sends the requests. Not closed here.
        api_key: sent as a bearer token, None sends none. Shown nowhere.

    Raises:
        ConfigError: a model that must be named, an address or header that cannot be sent.
    """

    def __init__(self, options: TargetOptions, client: Client, *, api_key: str | None) -> None:
        row = capabilities(options.kind)
        model = options.model or (_HOSTED_MODEL if options.kind == "dashscope" else "")
        if not model:
            raise ConfigError("an embedding target must be told which model", key="model")
        self.model = model
        self.name = f"{options.kind}/{model}"
        self.headers_s = options.headers_s
        self._kind = options.kind
        self._client = client
        self._origin, self._head = address(
            options.base_url or row.base_url,
            "embeddings",
            options,
            api_key,
            accept="application/json",
        )
        self._secrets = secrets(options, api_key)
        digest = hashlib.sha256((api_key or "").encode()).hexdigest()[:8]
        self.domain = f"{self._origin}#{digest}"

    def __repr__(self) -> str:
        return f"HTTPEmbedder({self.name!r}, {str(self._origin)!r})"

    async def embed(self, body: Mapping[str, Any], request_id: str) -> Vectors:
        """Send one request; see `Embedder.embed`."""
        wants_base64 = body.get("encoding_format") == "base64"
        asked = {**body, "model": self.model}
        if wants_base64 and self._kind in _FLOATS_ONLY:
            asked["encoding_format"] = "float"
        head = self._head
        if request_id.isascii() and request_id.isprintable():
            head += b"x-request-id: %b\r\n" % request_id.encode("ascii")
        try:
            response = await self._client.request(self._origin, head, _encode(asked))
            try:
                answer = await response.read_all(_MOST_BYTES)
                response.release()
            except BaseException:
                response.close()
                raise
        except UpstreamError as error:
            error.target = error.target or self.name
            raise
        if not 200 <= response.status < 300:
            raise self._refusal(response, answer)
        return self._read(answer, wants_base64=wants_base64)

    def _refusal(self, response: Response, body: bytes) -> UpstreamError:
        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in response.headers}
        return parse_error(
            response.status,
            headers,
            body[:65536],
            kind=self._kind,
            target=self.name,
            secrets=self._secrets,
        )

    def _read(self, answer: bytes, *, wants_base64: bool) -> Vectors:
        try:
            fields = _raw_fields(answer)
            data = bytes(fields.get("data", b"")).strip()
            usage = _usage(fields.get("usage", b"null"))
            model = _text(fields.get("model", b'""'))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise self._broken(
                ErrorKind.MALFORMED, "something that is no list of vectors"
            ) from None
        if "data" not in fields and ("error" in fields or "code" in fields):
            raise parse_event_error(
                answer, kind=self._kind, target=self.name, secrets=self._secrets
            )
        if not data.startswith(b"["):
            raise self._broken(ErrorKind.MALFORMED, "something that is no list of vectors")
        first = _FIRST_VECTOR.search(data)
        if first is None:
            raise self._broken(ErrorKind.EMPTY, "no vectors")
        if wants_base64 and first[1] == b"[":
            try:
                fields["data"] = msgspec.Raw(_in_base64(data))
            except ValueError:
                raise self._broken(ErrorKind.MALFORMED, "vectors of no numbers") from None
        return Vectors(fields, model or self.model, Usage.of(usage))

    def _broken(self, kind: ErrorKind, what: str) -> UpstreamUnavailable:
        return UpstreamUnavailable(f"{self.name} answered with {what}", kind=kind, target=self.name)


def _in_base64(data: bytes) -> bytes:
    """The same entries with each vector as little-endian 32-bit floats in base64 (OpenAI).

    Raises:
        ValueError: they are no entries with vectors of numbers.
    """
    entries = msgspec.json.decode(data)
    try:
        for entry in entries:
            floats = entry["embedding"]
            packed = struct.pack(f"<{len(floats)}f", *floats)
            entry["embedding"] = base64.b64encode(packed).decode()
    except (TypeError, KeyError, struct.error, OverflowError) as error:
        raise ValueError(str(error)) from None
    return _encode(entries)
