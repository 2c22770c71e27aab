"""One agreed state, as one worker sees it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from gateway.stores.shared import SharedStore
from gateway.stores.shared_file import UNSETTLED

_RETRY_S: Final = 1.0


class Cell:
    """One agreed state. Keeps `gateway.policies.agreement.Agreement`, which says what it promises.

    While nobody changes anything a look costs one read of 8 bytes, and each second a SELECT in
    case a worker was killed between its change and the telling of it.
    """

    def __init__(self, store: SharedStore, name: str) -> None:
        self.worker = store.worker
        self.life = 0
        self._store = store
        self._name = name
        self._seen: bytes | None = None
        self._known: bytes | None = None
        self._look_at = -math.inf

    def alive(self, worker: str) -> bool:
        """Whether the process behind a worker's name may still be there."""
        return self._store.alive(worker)

    def look(self) -> bytes | None:
        """What others have made of the state since it was last seen here; None if nothing."""
        store = self._store
        now = store.clock()
        mark = store.mark(now)
        if mark == self._seen and now < self._look_at:
            return None
        found = store.state(self._name)
        # An unsettled mark may stand for a commit still to come: look again. So does our own,
        # once: another's commit may lie between ours and its mark.
        self._seen = mark if mark != UNSETTLED else None
        self._look_at = now + _RETRY_S
        self.life = store.life
        return self._theirs(found)

    def change(self, step: Callable[[bytes | None], bytes | None]) -> None:
        """Run `step` on what others have made of the state, None if it is as known; keep what it
        returns, None changes nothing.
        """

        kept: bytes | None = None

        def known(found: bytes | None) -> bytes | None:
            nonlocal kept
            self.life = self._store.life
            kept = step(self._theirs(found))
            return kept

        if self._store.change(self._name, known) and kept is not None:
            self._known = kept

    def _theirs(self, found: bytes | None) -> bytes | None:
        if found is None or found == self._known:
            return None
        self._known = found
        return found
