"""What comes back: vectors, and who made them."""

from __future__ import annotations

import base64
import struct

import msgspec

from gateway.generation import Usage


class Embedding(msgspec.Struct, kw_only=True):
    """Vectors, and who made them.

    Attributes:
        id: of this request.
        model: the model that really answered.
        target: which target, such as `vllm/bge-m3`.
        attempts: how many upstream attempts it took.
        usage: token counts.
        fields: the upstream's whole answer, each value as the bytes it came in.
        duration_s: seconds in all.
        upstream_s: seconds of those in upstream attempts.
    """

    id: str
    model: str
    target: str
    attempts: int
    usage: Usage
    fields: dict[str, msgspec.Raw]
    duration_s: float = 0.0
    upstream_s: float = 0.0

    @property
    def vectors(self) -> list[list[float]]:
        """One vector an input, in the order of the inputs."""
        entries = msgspec.json.decode(self.fields["data"], type=list[_Entry])
        return [_floats(entry.embedding) for entry in sorted(entries, key=_index)]


class _Entry(msgspec.Struct):
    embedding: list[float] | str
    index: int = 0


def _index(entry: _Entry) -> int:
    return entry.index


def _floats(vector: list[float] | str) -> list[float]:
    if not isinstance(vector, str):
        return vector
    packed = base64.b64decode(vector)
    return list(struct.unpack(f"<{len(packed) // 4}f", packed))
