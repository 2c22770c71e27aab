"""What an update says of itself: how far the policy moved, how much of a choice it still makes.

Most of it deserves no more than a look. Two things are sure enough to go back for, because no
update that learns looks like that, and because rewards tell so late: a mean of the last hundred
episodes of 500 steps each still contains the good ones for a hundred updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from training.config import AnomalyConfig
from training.findings import Anomaly, Patience
from training.tracks import Track

_KL_FACTOR = 1.5
# Updates that moved the policy this far, and this many times further than nine of ten lately, did
# not learn: a learning rate out of hand shows here long before rewards tell. Two in a row act, or
# one that went further than this alone; once it is over, well below where it began, or the next one
# would break what was just restored; but after five at the latest.
_KL_LEAST, _KL_TIMES, _KL_ALONE, _KL_OVER = 0.05, 10.0, 1.0, 0.25
_KL_PATIENCE, _KL_LONGEST = 2, 5
_EV_FLOOR, _EV_PATIENCE = -1.0, 10
_ENTROPY_SHARE, _ENTROPY_PATIENCE = 0.1, 20
# Learning takes the entropy down step by step. At once to a tenth of the lowest seen lately is a
# broken policy; by half of the median as well, as an entropy of Gaussians may pass through zero.
_ENTROPY_FALL = 0.5
_GRAD_DEVIATIONS = 6.0


class Signals:
    """Looks at `approx_kl`, `entropy`, `grad_norm` and `explained_variance`, where they are told.

    Args:
        patience: the detector's own.
    """

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._tracks: dict[str, Track] = {}
        self._first_entropy = math.nan

    def look(
        self,
        found: list[Anomaly],
        options: AnomalyConfig,
        step: int,
        numbers: Mapping[str, float],
    ) -> None:
        """Add to `found` what stands out in this step."""
        holds = self._patience.holds

        def warn(metric: str, reference: float, *, acts: bool = False) -> None:
            kind = "kl" if metric == "approx_kl" else metric
            found.append(Anomaly(kind, metric, step, numbers[metric], reference, acts))

        kl = numbers.get("approx_kl")
        if kl is not None:
            acts, most = self._thrown_off(options, kl)
            if acts:
                warn("approx_kl", most, acts=True)
            most = _KL_FACTOR * numbers.get("target_kl", math.inf)
            if holds("kl", kl > most) >= options.patience and not acts:
                warn("approx_kl", most)
        entropy = numbers.get("entropy")
        if entropy is not None:
            acts, low = self._collapsed(options, entropy)
            if acts:
                warn("entropy", low, acts=True)
            first = self._first_entropy
            if math.isnan(first):
                first = self._first_entropy = entropy
            faded = first > 0.0 and entropy < _ENTROPY_SHARE * first
            if holds("entropy", faded) >= _ENTROPY_PATIENCE and not acts:
                warn("entropy", first)
        grad = numbers.get("grad_norm")
        if grad is not None:
            track = self._track("grad_norm", options)
            most = track.median + _GRAD_DEVIATIONS * track.deviation
            if grad > most > 0.0 and track.seen >= options.guard_after:
                warn("grad_norm", track.median)
                track.refuse(grad, 0.0)
            else:
                track.admit(grad)
        variance = numbers.get("explained_variance")
        if variance is not None and (
            holds("explained_variance", variance < _EV_FLOOR) >= _EV_PATIENCE
        ):
            warn("explained_variance", _EV_FLOOR)

    def forget(self) -> None:
        """The run went back to an earlier state."""
        for track in self._tracks.values():
            track.forget()

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON types; NaN is None."""
        first = self._first_entropy
        return {
            "tracks": {name: track.state_dict() for name, track in self._tracks.items()},
            "first_entropy": None if math.isnan(first) else first,
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        tracks = {}
        for name, kept in state["tracks"].items():
            tracks[name] = Track(int(kept["size"]))
            tracks[name].load_state_dict(kept)
        self._tracks = tracks
        first = state["first_entropy"]
        self._first_entropy = math.nan if first is None else float(first)

    # -- inside ---------------------------------------------------------------------------------

    def _thrown_off(self, options: AnomalyConfig, kl: float) -> tuple[bool, float]:
        """Whether the policy was thrown off, and what would have been too far."""
        track, counts = self._track("approx_kl", options), self._patience.counts
        most = max(_KL_LEAST, _KL_TIMES * track.upper)
        known = track.seen >= options.guard_after and options.profile != "spec"
        if known and kl > (_KL_OVER * most if "thrown_off" in counts else most):
            track.refuse(kl, 0.0)
            if kl >= max(_KL_ALONE, most):
                counts["alone"] = 1
            return self._patience.holds("thrown_off", now=True) >= _KL_LONGEST, most
        track.admit(kl)
        storm = counts.pop("thrown_off", 0) + counts.pop("alone", 0)
        return storm >= _KL_PATIENCE, most

    def _collapsed(self, options: AnomalyConfig, entropy: float) -> tuple[bool, float]:
        """Whether the policy stopped choosing from one update to the next, and from where."""
        track = self._track("entropy", options)
        known = track.seen >= options.guard_after and options.profile != "spec"
        if known and entropy <= _ENTROPY_SHARE * track.low:
            track.refresh()
        low = track.low
        gone = (
            known
            and low > 0.0
            and entropy <= _ENTROPY_SHARE * low
            and low - entropy >= _ENTROPY_FALL * track.median
        )
        if gone:
            track.refuse(entropy, 0.0)
        else:
            track.admit(entropy)
        lasting = self._patience.holds("collapsed", gone) >= options.patience
        # Within a storm of updates the next one would break what was just restored.
        return lasting and "thrown_off" not in self._patience.counts, low

    def _track(self, metric: str, options: AnomalyConfig) -> Track:
        track = self._tracks.get(metric)
        if track is None:
            track = self._tracks[metric] = Track(options.window)
        elif track.size != options.window:
            track = self._tracks[metric] = track.resized(options.window)
        return track
