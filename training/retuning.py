"""From ratings to suggestions: the owner's point rules, and beside them how sure one may be.

At a true mean of 3.0 the rule "mean below 3.0" fires half of the time, so a suggestion says whether
it should be applied: only once a bound that holds at every look (a normal-mixture confidence
sequence, Howard et al. 2021, arXiv:1810.08240) clears the threshold.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from training.config import RetuningConfig
from training.errors import FeedbackRejected

# The mixture's weight: the bound is tightest near 100 ratings, where it is first asked.
_RHO = 20.0
_LEAST_STD = 0.5


class Suggestions(dict[str, float]):
    """Hyperparameters and their suggested values, a plain dict to whoever only wants that.

    Attributes:
        n: ratings behind it.
        mean, std: of these ratings, population.
        half_width: the true mean lies within `mean` ± this, at the configured confidence, however
            often one looks.
        should_apply: whether the ratings are clear enough to act on.
        reasons: one sentence a suggestion, and one for what holds back.
        policy_version: the version of the policy that was rated.
    """

    n: int = 0
    mean: float = 0.0
    std: float = 0.0
    half_width: float = math.inf
    should_apply: bool = False
    reasons: tuple[str, ...] = ()
    policy_version: int = 0


class Retuning:
    """Collects ratings: one vote per user and formula, the newest `max_feedback`.

    Args:
        config: read anew at each rating.
    """

    def __init__(self, config: Callable[[], RetuningConfig]) -> None:
        self._config = config
        self._votes: dict[tuple[str, str], float] = {}
        self._anonymous = 0
        self._suggested_at = 0
        self._standing: frozenset[str] = frozenset()
        self.policy_version = 0

    @property
    def count(self) -> int:
        """Votes that count now."""
        return len(self._votes)

    def add(self, feedback: Mapping[str, Any]) -> Suggestions | None:
        """Take one rating; suggestions once there are enough and anything is to be suggested.

        With a `policy_version` that is not the present one it is left out.

        Raises:
            FeedbackRejected: no rating from 1 to 5.
        """
        config = self._config()
        key, rating = self._vote(feedback)
        if feedback.get("policy_version", self.policy_version) != self.policy_version:
            return None  # it rates what another policy made
        if not self._takes(key, config):
            return None
        self._votes.pop(key, None)  # a later vote replaces an earlier one, and is the newest
        self._votes[key] = rating
        while len(self._votes) > config.max_feedback:
            del self._votes[next(iter(self._votes))]
        n = len(self._votes)
        due = self._suggested_at + config.min_feedback
        if n < config.min_feedback or (n < due and n < config.max_feedback):
            return None
        if self._suggested_at >= config.max_feedback:
            return None
        suggestions = self.suggest()
        self._suggested_at, self._standing = n, frozenset(suggestions)
        return suggestions or None

    def suggest(self) -> Suggestions:
        """What the votes so far suggest; empty if nothing."""
        config = self._config()
        votes = list(self._votes.values())
        found = Suggestions()
        found.n, found.policy_version = len(votes), self.policy_version
        if not votes:
            return found
        found.mean = math.fsum(votes) / len(votes)
        found.std = math.sqrt(math.fsum((v - found.mean) ** 2 for v in votes) / len(votes))
        found.half_width = half_width(found.n, found.std, 1.0 - config.confidence)
        reasons, sure = [], []
        stays = dict.fromkeys(self._standing, config.hysteresis)
        if found.mean < config.low_rating + stays.get("entropy_coef", 0.0):
            found["entropy_coef"] = config.entropy_coef
            reasons.append(f"mean {found.mean:.2f} is below {config.low_rating:g}: explore more")
            sure.append(found.mean + found.half_width < config.low_rating)
        if found.std > config.high_spread - stays.get("learning_rate", 0.0):
            found["learning_rate"] = config.learning_rate
            spread = config.high_spread
            reasons.append(f"spread {found.std:.2f} is above {spread:g}: learn more slowly")
            sure.append(_spread_bound(votes, found) > spread)
        if found.mean >= config.high_rating - stays.get("clip_epsilon", 0.0):
            found["clip_epsilon"] = config.clip_epsilon
            reasons.append(f"mean {found.mean:.2f} is at least {config.high_rating:g}: keep to it")
            sure.append(found.mean - found.half_width >= config.high_rating)
        found.should_apply = bool(sure) and all(sure)
        if sure and not found.should_apply:
            reasons.append(f"not sure yet: the mean is known to ±{found.half_width:.2f}")
        found.reasons = tuple(reasons)
        return found

    def new_policy(self) -> None:
        """The policy changed: what was rated before says nothing of it."""
        self._votes.clear()
        self._suggested_at, self._standing = 0, frozenset()
        self.policy_version += 1

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON types."""
        return {
            "votes": [[user, formula, rating] for (user, formula), rating in self._votes.items()],
            "anonymous": self._anonymous,
            "suggested_at": self._suggested_at,
            "standing": sorted(self._standing),
            "policy_version": self.policy_version,
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        self._votes = {(str(u), str(f)): float(rating) for u, f, rating in state["votes"]}
        self._anonymous = int(state["anonymous"])
        self._suggested_at = int(state["suggested_at"])
        self._standing = frozenset(state["standing"])
        self.policy_version = int(state["policy_version"])

    def _vote(self, feedback: Mapping[str, Any]) -> tuple[tuple[str, str], float]:
        if not isinstance(feedback, Mapping) or "rating" not in feedback:
            raise FeedbackRejected('feedback is a dict with a "rating" from 1 to 5')
        rating = feedback["rating"]
        number = isinstance(rating, (int, float)) and not isinstance(rating, bool)
        if not number or not 1.0 <= rating <= 5.0:
            raise FeedbackRejected(f"rating must be a number from 1 to 5, got {rating!r}")
        version = feedback.get("policy_version", 0)
        if not isinstance(version, int):
            raise FeedbackRejected(f"policy_version must be a whole number, got {version!r}")
        user, formula = feedback.get("user_id"), feedback.get("formula_id")
        if user is None or formula is None:  # nothing says that two such ratings are the same vote
            self._anonymous += 1
            formula = formula if formula is not None else f"anonymous-{self._anonymous}"
        return (str(user) if user is not None else "", str(formula)), float(rating)

    def _takes(self, key: tuple[str, str], config: RetuningConfig) -> bool:
        """Whether this user may still be heard: one voice must not drown the others."""
        user = key[0]
        if not user or key in self._votes:
            return True
        most = max(1, math.floor(config.max_share_per_user * config.min_feedback))
        return Counter(name for name, _ in self._votes)[user] < most


def half_width(n: int, std: float, alpha: float) -> float:
    """How far the true mean may lie from the observed one, at every look with chance 1 - alpha."""
    variance = n * max(std, _LEAST_STD) ** 2
    total = variance + _RHO
    return math.sqrt(total * math.log(total / (_RHO * alpha**2))) / n


def _spread_bound(votes: list[float], found: Suggestions) -> float:
    """The least the true spread may be, by the same inflation as the mean's."""
    n = len(votes)
    fourth = math.fsum((vote - found.mean) ** 4 for vote in votes) / n
    of_variance = math.sqrt(max(0.0, fourth - found.std**4) / n)
    inflation = found.half_width / (max(found.std, _LEAST_STD) / math.sqrt(n))
    return math.sqrt(max(0.0, found.std**2 - inflation * of_variance))
