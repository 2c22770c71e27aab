"""Going back to what last worked: keep the last few states, know which were good, return to one.

The gateway keeps configurations in it, training keeps checkpoints: the state may be any object,
also only the path of one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

S = TypeVar("S")


class Stateful(Protocol[S]):
    """Anything whose whole state can be taken and put back (torch's modules and optimizers can)."""

    def state_dict(self) -> S:
        """Return the state."""
        ...

    def load_state_dict(self, state: S, /) -> object:
        """Become `state`."""
        ...


@dataclass(slots=True)
class Snapshot(Generic[S]):
    """One state that was kept.

    Attributes:
        id: rises by one with each commit, from 1.
        state: as it was handed over.
        tag: the caller's own name for the moment, such as a step or a configuration's hash.
        score: how good it was, higher is better, None if unknown.
        healthy: proved good: `Rollback` may return to it.
        pinned: never evicted while so.
        suspect: proved bad since: never returned to again.
    """

    id: int
    state: S
    tag: str | int = ""
    score: float | None = None
    healthy: bool = False
    pinned: bool = False
    suspect: bool = False


class Snapshots(Generic[S]):
    """The newest `keep` snapshots, oldest first when iterated.

    A commit beyond `keep` evicts the oldest one that is neither pinned nor the last healthy one
    nor the one just committed. Pins count within `keep`; only more than `keep - 2` of them make
    the whole larger.

    Args:
        keep: how many, >= 2: the one to return to and the one on trial.
        on_evict: told of each snapshot that has left, to delete what it stands for.
    """

    def __init__(
        self, keep: int = 5, *, on_evict: Callable[[Snapshot[S]], object] | None = None
    ) -> None:
        if keep < 2:
            raise ValueError(
                f"keep at least 2 snapshots, the good one and the one on trial, got {keep}"
            )
        self.keep = keep
        self._on_evict = on_evict
        self._kept: dict[int, Snapshot[S]] = {}
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Snapshot[S]]:
        return iter(list(self._kept.values()))

    def __getitem__(self, snapshot_id: int) -> Snapshot[S]:
        try:
            return self._kept[snapshot_id]
        except KeyError:
            raise KeyError(f"no snapshot {snapshot_id}; kept are {list(self._kept)}") from None

    def commit(self, state: S, tag: str | int = "", score: float | None = None) -> int:
        """Keep `state`, not yet known to be healthy; return its id."""
        self._last_id += 1
        self._kept[self._last_id] = Snapshot(self._last_id, state, tag, score)
        self._evict()
        return self._last_id

    def _evict(self) -> None:
        good = self.latest()
        spared = {self._last_id, good.id if good else 0}
        while len(self._kept) > self.keep:
            oldest = next((s for s in self if not s.pinned and s.id not in spared), None)
            if oldest is None:
                return
            del self._kept[oldest.id]
            if self._on_evict is not None:
                self._on_evict(oldest)

    def latest(self, *, healthy: bool = True) -> Snapshot[S] | None:
        """The newest healthy one, or with `healthy=False` the newest; suspects never; else None."""
        for snapshot in reversed(self._kept.values()):
            if not snapshot.suspect and (snapshot.healthy or not healthy):
                return snapshot
        return None

    def best(self) -> Snapshot[S] | None:
        """The one with the highest score, the newer of equals; suspects never; None if none has."""
        scored = [s for s in self if s.score is not None and not s.suspect]
        return max(scored, key=lambda s: (s.score, s.id)) if scored else None

    def tag_healthy(self, snapshot_id: int) -> None:
        """This one proved good. Raises KeyError if it is gone; a suspect stays suspect."""
        self[snapshot_id].healthy = True

    def suspect(self, snapshot_id: int) -> None:
        """This one proved bad: `latest` and `best` pass it by. Raises KeyError if it is gone."""
        self[snapshot_id].suspect = True

    def pin(self, snapshot_id: int) -> None:
        """Never evict this one. Raises KeyError if it is gone."""
        self[snapshot_id].pinned = True

    def unpin(self, snapshot_id: int) -> None:
        """Evict this one in its turn again, which may be at once. Raises KeyError if it is gone."""
        self[snapshot_id].pinned = False
        self._evict()


class Rollback(Generic[S]):
    """Commits a target's state, and returns the target to the last one that was healthy.

    Args:
        target: whose state it is.
        snapshots: where states are kept.
        duplicate: copies a state on its way in and out, so that a target which goes on changing
            it cannot reach what is kept. Default `copy.deepcopy`; immutable states need none.
    """

    def __init__(
        self,
        target: Stateful[S],
        snapshots: Snapshots[S] | None = None,
        *,
        duplicate: Callable[[S], S] = copy.deepcopy,
    ) -> None:
        self.target = target
        self.snapshots: Snapshots[S] = Snapshots() if snapshots is None else snapshots
        self.current: int | None = None
        """Id of the snapshot the target was last committed to or restored from."""
        self._duplicate = duplicate

    def commit(self, tag: str | int = "", score: float | None = None) -> int:
        """Keep the target's present state; return its id."""
        self.current = self.snapshots.commit(self._duplicate(self.target.state_dict()), tag, score)
        return self.current

    def healthy(self) -> None:
        """The current snapshot proved good. Raises LookupError before the first commit."""
        if self.current is None:
            raise LookupError("nothing has been committed that could be healthy")
        self.snapshots.tag_healthy(self.current)

    def suspect(self, snapshot_id: int) -> None:
        """That snapshot proved bad: the next rollback goes past it."""
        self.snapshots.suspect(snapshot_id)

    def rollback(self) -> int:
        """Return the target to the last healthy snapshot; return its id.

        Raises:
            LookupError: there is none. What the target itself raises passes through, and
                `current` is as before: mark the snapshot suspect and try again.
        """
        good = self.snapshots.latest()
        if good is None:
            raise LookupError("no healthy snapshot to return to")
        self.target.load_state_dict(self._duplicate(good.state))
        self.current = good.id
        return good.id
