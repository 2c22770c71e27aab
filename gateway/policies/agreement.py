"""Workers that share a circuit: each has a copy, and changes it only in its turn.

The state is one value that all workers keep together; each acts on its own copy of it. Before an
act that others must know of, a worker takes its turn: it alone may change the value, it first takes
over what the others have made of it, and then runs the very code that a single worker runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec

from gateway.policies.standing import Standing

T = TypeVar("T")


class Agreement(Protocol):
    """One value that workers keep together. Never raises; without the others it does nothing.

    `gateway.stores.shared.Cell` is one. All is synchronous.
    """

    worker: str
    """This worker's name among the others, another after a restart."""

    life: int
    """Grows whenever the others are lost or found again. Not 0 once anything was called."""

    def look(self) -> bytes | None:
        """What others have made of the value since it was last seen here; None if nothing.

        Asked once or twice a request, so it must cost a microsecond or two.
        """
        ...

    def change(self, step: Callable[[bytes | None], bytes | None]) -> None:
        """Run `step` exactly once, while nobody else changes the value.

        Args:
            step: given what others have made of the value since it was last seen here, None if
                nothing; returns what it shall be from now on, or None to leave it.
        """
        ...

    def alive(self, worker: str) -> bool:
        """Whether that worker may still be there; True in doubt."""
        ...


class Turns:
    """One worker's way to act on the state that all agree on.

    Args:
        agreement: the value that is kept together.
        adopt: puts what others have made of the state in place of ours. Told besides whether we
            acted alone meanwhile; says whether we know more than the others do.
        present: our state, complete, for the others.

    Attributes:
        within: whether it is our turn just now.
    """

    def __init__(
        self,
        agreement: Agreement,
        adopt: Callable[[Standing, bool], bool],
        present: Callable[[], Standing],
    ) -> None:
        self.agreement = agreement
        self.within = False
        self._adopt = adopt
        self._present = present
        self._told = b""
        self._life = 0

    def look(self) -> bool:
        """Take over what the others have done, if anything. Returns whether there was something."""
        theirs = self.agreement.look()
        strangers = self.agreement.life != self._life
        if theirs is None and not strangers:
            return False
        more = strangers
        if theirs is not None:
            self.within = True  # what changes by it is nothing to tell the others
            try:
                more |= self._hear(theirs)
            finally:
                self.within = False
        if more:
            self.take(lambda: None)
        return True

    def take(self, step: Callable[[], T], *, by_hand: bool = False) -> T:
        """Run `step` on the agreed state and tell the others what came of it.

        Args:
            by_hand: `step` is done already; whatever the others did, ours is the later word.
        """
        if self.within:
            return step()
        results: list[T] = []

        def turn(theirs: bytes | None) -> bytes | None:
            if theirs is not None:
                (self._overrule if by_hand else self._hear)(theirs)
            results.append(step())
            ours = _encode(self._present())
            if ours == self._told and self.agreement.life == self._life:
                return None
            self._told, self._life = ours, self.agreement.life
            return ours

        self.within = True
        try:
            self.agreement.change(turn)
        finally:
            self.within = False
        return results[0]

    def _hear(self, theirs: bytes) -> bool:
        alone = self._life not in (self.agreement.life, 0)
        self._told, self._life = theirs, self.agreement.life
        state = _decode(theirs)
        return state is not None and self._adopt(state, alone)

    def _overrule(self, theirs: bytes) -> None:
        state, ours = _decode(theirs), self._present()
        if state is not None:
            ours.epoch = max(ours.epoch, state.epoch + 1)


def _decode(value: bytes) -> Standing | None:
    try:
        return _decoder.decode(value)
    except msgspec.DecodeError:
        return None  # of another version, or damaged: ours will replace it


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Standing)
