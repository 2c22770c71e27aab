"""Retry budget: second attempts into a failing domain are paid for by its successes.

Ladder rungs often share a host and a key; then walking down *is* a retry. Each failure domain has
a purse: -1 per failure, +0.1 per success, second attempts only while more than half is left
(gRPC A6, "retry throttling"). A full outage then costs about 1.1 attempts per request.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOptions:
    """How dear a second attempt is: `[budget]`.

    Attributes:
        tokens: what a full purse holds; second attempts need more than half of it. Default 10.
        success_refund: what a success puts back, in tokens. Default 0.1.
    """

    tokens: float = 10.0
    success_refund: float = 0.1


class RetryBudget:
    """The purse of one failure domain.

    Args:
        options: see `BudgetOptions`.
    """

    def __init__(self, options: BudgetOptions) -> None:
        self._options = options
        self.tokens = options.tokens

    def resize(self, options: BudgetOptions) -> None:
        """Take new options from a reload; the purse stays as full as it is, in proportion."""
        share = self.tokens / self._options.tokens if self._options.tokens else 1.0
        self._options = options
        self.tokens = share * options.tokens

    def allows_retry(self, above: float = 0.5) -> bool:
        """Whether a second attempt into this domain may be made.

        Args:
            above: the share of a full purse it must hold more than.
        """
        return self.tokens > self._options.tokens * above

    def failed(self, *, late: bool = False) -> None:
        """A call into this domain failed.

        Args:
            late: only because its mode had opened meanwhile. That many give up at once: they never
                bring the purse down to half, or most of them could not walk down any more.
        """
        if not late or self.tokens - 1.0 > self._options.tokens / 2:
            self.tokens = max(0.0, self.tokens - 1.0)

    def succeeded(self) -> None:
        """A call into this domain succeeded."""
        if self.tokens < self._options.tokens:
            self.tokens = min(self._options.tokens, self.tokens + self._options.success_refund)
