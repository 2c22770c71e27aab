"""What a detector is: it hears values mode by mode and says what is normal and how well it goes."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Detector(Protocol):
    """Senses one quantity for each mode. Synchronous, in memory; modes appear as they are heard.

    It only reports: what follows from a low health is a policy's business.
    """

    def hear(self, mode: str, value: float) -> None:
        """Take in one value, in the detector's unit.

        Raises:
            ValueError: the value cannot be one; nothing has changed.
        """
        ...

    def normal(self, mode: str) -> dict[str, float]:
        """What is normal for `mode` lately, `count` included; zeros for one never heard."""
        ...

    def health(self, mode: str) -> float:
        """From 0 (all of late was bad) to 1 (nothing was, or nothing is known)."""
        ...
