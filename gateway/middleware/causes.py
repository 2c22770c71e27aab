"""Why each mode did not answer, and what that adds up to if none does."""

from __future__ import annotations

from gateway.detectors.failures import Then
from gateway.errors import (
    AdmissionRejected,
    AllModesFailed,
    CircuitOpen,
    DeadlineExceeded,
    ErrorKind,
    GatewayError,
    UpstreamError,
)
from gateway.policies.downshift import Refusal

_REASONS = {Then.WAIT: "cooling", Then.LARGER: "context"}


class Causes:
    """What one request met on its way down the ladder.

    Attributes:
        reason: why the best mode it met did not answer, "" while none failed (`Served.reason`).
    """

    __slots__ = ("_errors", "_too_small", "_waits", "reason")

    def __init__(self) -> None:
        self.reason = ""
        self._errors: dict[str, GatewayError] = {}
        self._too_small: set[str] = set()
        self._waits: list[float] = []

    def failed(self, mode: str, error: UpstreamError, then: Then) -> None:
        """A mode was tried and failed."""
        self._errors[mode] = error
        if error.kind is ErrorKind.CONTEXT:
            self._too_small.add(mode)
        self.reason = self.reason or _REASONS.get(then, "failed")

    def refused(self, mode: str, refusal: Refusal) -> None:
        """A mode was not tried, or not again."""
        self.reason = self.reason or refusal.reason
        if refusal.retry_after is not None:
            self._waits.append(refusal.retry_after)
        if refusal.reason == "context":
            self._too_small.add(mode)
        if mode in self._errors:
            return  # it was tried: how it failed says more than why it is not tried again
        message = f"mode {mode!r} is not available: {refusal.reason.replace('_', ' ')}"
        self._errors[mode] = (
            AdmissionRejected(message, retry_after=refusal.retry_after)
            if refusal.reason in ("saturated", "recovering")
            else CircuitOpen(message, mode=mode, retry_after=refusal.retry_after)
        )

    def late(self, waited_s: float, partial: str) -> DeadlineExceeded:
        """The error of a request whose time ran out on the way, with the text that had arrived."""
        tried = f" ({self})" if self else ""
        return DeadlineExceeded(f"no answer in {waited_s:.3g} s{tried}", partial=partial)

    def error(self, *, lone: bool) -> GatewayError:
        """The error of a request that no mode answered.

        Args:
            lone: it might use one mode only, so that mode's own error says it all.
        """
        errors = self._errors
        if self._too_small and errors.keys() <= self._too_small:
            return next(iter(errors.values()))  # no larger window anywhere: the caller's to mend
        if lone and len(errors) == 1:
            return next(iter(errors.values()))
        retry_after = min(self._waits, default=None)
        if all(isinstance(cause, AdmissionRejected) for cause in errors.values()):
            message = "every allowed mode is at its limit; try again shortly"
            return AdmissionRejected(message, retry_after=retry_after)
        return AllModesFailed(f"no mode could answer ({self})", errors, retry_after=retry_after)

    def __bool__(self) -> bool:
        return bool(self._errors)

    def __str__(self) -> str:
        return "; ".join(f"{mode}: {error}" for mode, error in self._errors.items())
