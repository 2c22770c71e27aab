"""Learning curves as pictures; matplotlib is loaded when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_BLUE, _RED, _GREY = "#1f6fb2", "#c0392b", "#8a8a8a"


def learning_curve(rows: Sequence[Mapping[str, Any]], title: str, file: Path) -> None:
    """Mean return over steps; checkpoints are ticks on the axis, rollbacks red lines.

    Args:
        rows: with `steps`, `reward` (None before the first episode has ended) and `event`.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; names the extra.
    """
    figure, axes = _canvas(title)
    learned = [row for row in rows if row["reward"] is not None]
    axes.plot([row["steps"] for row in learned], [row["reward"] for row in learned], color=_BLUE)
    saved = [row["steps"] for row in rows if row["event"] == "checkpoint"]
    axes.plot(
        saved,
        [0.0] * len(saved),
        "|",
        color=_GREY,
        markersize=9,
        transform=axes.get_xaxis_transform(),
        clip_on=False,
        label=f"checkpoints ({len(saved)})",
    )
    back = [row["steps"] for row in rows if row["event"] == "rollback"]
    for number, at in enumerate(back):
        label = f"rollbacks ({len(back)})" if number == 0 else None
        axes.axvline(at, color=_RED, linewidth=1.2, linestyle="--", label=label)
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(file)


def _canvas(title: str) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "plots need matplotlib: pip install 'downshift-gateway[plot]'"
        ) from None
    figure = Figure(figsize=(8.0, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    _label(axes)
    return figure, axes


def _label(axes: Any) -> None:
    axes.set_xlabel("environment steps")
    axes.set_ylabel("mean return of the last 100 episodes")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def yardstick_curves(
    panels: Sequence[tuple[str, Sequence[Sequence[tuple[int, float]]], float | None]], file: Path
) -> None:
    """A panel for each protocol, a line for each seed.

    Args:
        panels: title, curves, and the published figure where it is of the same kind.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; names the extra.
    """
    figure, first = _canvas("")
    first.remove()
    figure.set_size_inches(4.6 * len(panels), 4.0)
    for axes, (title, curves, published) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        axes.set_title(title)
        _label(axes)
        axes.ticklabel_format(axis="x", style="sci", scilimits=(3, 3), useMathText=True)
        for number, curve in enumerate(curves):
            steps, returns = zip(*curve, strict=True)
            label = f"ours ({len(curves)})" if number == 0 else None
            axes.plot(steps, returns, color=_BLUE, linewidth=1.2, alpha=0.75, label=label)
        if not curves:
            axes.text(0.5, 0.5, "not run yet", ha="center", transform=axes.transAxes)
            continue
        if published is not None:
            axes.axhline(published, color=_RED, linestyle="--", linewidth=1.2, label="published")
        axes.legend(loc="lower right", frameon=False)
    figure.savefig(file)
