"""What people think of the answers: one rating a generation, kept in SQLite."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from gateway.detectors.quality import QualityDetector
from gateway.errors import InvalidRequest
from gateway.generation import Generation

if TYPE_CHECKING:
    from gateway.stores.sqlite import FeedbackStore

_REMEMBERED = 10_000


class Ratings:
    """Takes ratings in, and knows which mode and model each generation came from.

    Args:
        path: the SQLite file, made on the first rating.

    Attributes:
        quality: what ratings are normal for each mode.
    """

    def __init__(self, path: str) -> None:
        self.quality = QualityDetector()
        self._path = path
        self._store: FeedbackStore | None = None
        self._made_by: dict[str, tuple[str, str]] = {}

    def remember(self, generation: Generation) -> None:
        """Keep in mind who made it; the oldest of 10,000 is forgotten."""
        made_by = self._made_by
        made_by[generation.id] = (generation.served.mode, generation.served.model)
        if len(made_by) > _REMEMBERED:
            del made_by[next(iter(made_by))]

    async def add(
        self, generation_id: str, rating: float, tenant: str, fields: dict[str, Any]
    ) -> None:
        """Keep one rating; a later one of the same generation replaces it."""
        from gateway.stores.sqlite import Feedback, FeedbackStore  # noqa: PLC0415

        if not isinstance(generation_id, str) or not generation_id.startswith("gen-"):
            raise InvalidRequest(
                f"{generation_id!r} is no generation id; pass answer.id", param="generation_id"
            )
        # After a restart the mode is no longer known; the rating is kept all the same.
        mode, model = self._made_by.get(generation_id, ("", ""))
        if self._store is None:
            self._store = FeedbackStore(self._path)
        kept = await self._store.add(
            Feedback(
                generation_id=generation_id,
                rating=rating,
                mode=mode,
                model=model,
                tenant=tenant,
                fields=fields,
                at=time.time(),
            )
        )
        if mode and kept:
            self.quality.hear(mode, float(rating))

    async def aclose(self) -> None:
        """Close the file."""
        if self._store is not None:
            await self._store.aclose()
