"""The table, with what chance allows, and the plot."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import gymnasium
import numpy as np
import torch

from tests.benchmarks.report import machine, slug, table
from tests.benchmarks.training_proof.faults import FAULTS
from tests.benchmarks.training_proof.run import ARMS, SAVE_EVERY, Outcome

_RESAMPLED = 10_000
_COLORS = {"no ops": "#9a6b00", "literal rule": "#7a3fbf", "ours": "#0b7a4b"}
_LEGEND = f"""\
CartPole-v1, 8 environments x 32 steps, one batch of 256, 20 epochs, gae_lambda 0.8, gamma 0.98,
learning rate 1e-3 and clip range 0.2 falling to 0 in a straight line; a step of the operations is
an update. The fault begins half-way; what comes before it is trained once for each arm and seed.

- **no ops**: nothing watches.
- **literal rule**: the guide's loop: `AnomalyConfig(profile="spec")` without a cooldown, a limit or
  a slower learning rate or probation, which the guide does not know; `load_checkpoint` puts the
  weights back.
- **ours**: the defaults, with `attach(model, optimizer)`.

Both save every {SAVE_EVERY} updates instead of every 500, or so short a run would never save.
*Final* is the mean return of 30 new episodes of the policy that is left, acting at its best (500 is
the most there is); a policy that gives no numbers any more counts 0. *Last 100* is the mean true
return of the last 100 training episodes. *Lost* are updates made and thrown away by rollbacks.
Brackets: 95 % bootstrap intervals ({_RESAMPLED:,} resamples of the seeds; pairs stay together).
With one seed there is none, with three to five it is a rough one."""


def document(outcomes: Sequence[Outcome]) -> str:
    """Everything, as Markdown."""
    seeds = sorted({each.seed for each in outcomes})
    updates = sorted({each.updates for each in outcomes})
    sources = {arm: sorted({e.source for e in outcomes if e.arm == arm}) for arm in ARMS}
    spent = sum(each.seconds for each in outcomes)
    head = [
        f"# Training with something broken, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC",
        "",
        f"- Machine: {machine()}; {platform.system()} {platform.release()}; load average"
        f" {os.getloadavg()[0]:.1f}",
        f"- Python {platform.python_version()}, torch {torch.__version__}, gymnasium"
        f" {gymnasium.__version__}, numpy {np.__version__}; one thread a run",
        f"- `python -m tests.benchmarks.training_proof`: seeds {seeds}, updates {updates},"
        f" {len(outcomes)} runs, {spent / 60:.0f} minutes of processor time",
        "- `training/` by hash: " + "; ".join(f"{a} {', '.join(s)}" for a, s in sources.items()),
    ]
    columns = ["fault", "arm", "final", "last 100", "lost", "rollbacks", "ended", "seeds"]
    rows = [row for fault in FAULTS for row in _rows(fault.name, outcomes)]
    pairs = ["fault", "ours - no ops", "ours - literal rule", "ours / healthy no ops"]
    compared = [_compared(fault.name, outcomes) for fault in FAULTS]
    told = [f"- **{fault.name}**: {fault.told}" for fault in FAULTS]
    parts = ["\n".join(head), _LEGEND, "\n".join(told), "## By fault and arm", table(columns, rows)]
    parts += ["## Pairs: final return, the same seeds", table(pairs, compared)]
    return "\n\n".join(parts) + "\n"


def keep(outcomes: Sequence[Outcome], text: str, folder: Path) -> str:
    """Write table, plot and raw figures, which `--raw` reads again; returns where."""
    seeds = sorted({outcome.seed for outcome in outcomes})
    day = time.strftime("%Y-%m-%d", time.gmtime())
    name = f"training_proof_seeds_{seeds[0]}_to_{seeds[-1]}_{slug(machine())}_{day}"
    folder.mkdir(exist_ok=True)
    plot(outcomes, folder / f"{name}.png")
    whole = f"{text}\n![Learning curves]({name}.png)\n"
    (folder / f"{name}.md").write_text(whole, encoding="utf-8")
    lines = [json.dumps({k: _rounded(v) for k, v in asdict(e).items()}) for e in outcomes]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """One panel a fault, one line an arm: the mean over the seeds, each seed faintly."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 3, figsize=(12, 8), sharex=True, sharey=True)
    for axis, fault in zip(axes.flat, FAULTS, strict=True):
        for arm in ARMS:
            some = [e for e in outcomes if e.fault == fault.name and e.arm == arm]
            if not some:
                continue
            curves = np.array([each.curve for each in some])
            for curve in curves if len(curves) > 1 else ():
                axis.plot(curve, color=_COLORS[arm], alpha=0.2, linewidth=0.8)
            style = "--" if arm == "no ops" else "-"  # where two coincide, both are seen
            width = 1.4 if arm == "no ops" else 2.0
            axis.plot(
                curves.mean(0), style, color=_COLORS[arm], linewidth=width, label=arm,
                zorder=4 if arm == "no ops" else 3,
            )  # fmt: skip
        axis.axvline(outcomes[0].updates // 2, color="#888", linestyle=":", linewidth=1)
        axis.set_title(fault.name, fontsize=11)
        axis.set_ylim(0, 520)
        axis.grid(alpha=0.25)
    for axis in axes[-1]:
        axis.set_xlabel("update")
    for axis in axes[:, 0]:
        axis.set_ylabel("return, last 20 episodes")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=3, frameon=False)
    seeds = len({each.seed for each in outcomes})
    figure.suptitle(
        f"PPO on CartPole-v1: something breaks at the dotted line ({seeds} seed"
        f"{'s' if seeds > 1 else ''})",
        x=0.01,
        ha="left",
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _rows(fault: str, outcomes: Sequence[Outcome]) -> list[list[str]]:
    rows = []
    for arm in ARMS:
        some = [each for each in outcomes if each.fault == fault and each.arm == arm]
        if not some:
            continue
        crashed, halted = sum(bool(e.crashed) for e in some), sum(bool(e.halted) for e in some)
        ends = [f"{crashed} crashed"] * bool(crashed) + [f"{halted} halted"] * bool(halted)
        rows.append(
            [
                fault,
                arm,
                _interval([each.final for each in some]),
                f"{np.mean([each.last100 for each in some]):.0f}",
                f"{np.mean([each.lost for each in some]):.1f}",
                f"{np.mean([each.rollbacks for each in some]):.1f}",
                ", ".join(ends) or "whole",
                str(len(some)),
            ]
        )
    return rows


def _compared(fault: str, outcomes: Sequence[Outcome]) -> list[str]:
    def finals(name: str, arm: str) -> dict[int, float]:
        return {e.seed: e.final for e in outcomes if e.fault == name and e.arm == arm}

    ours = finals(fault, "ours")
    row = [fault]
    for arm in ARMS[:2]:
        theirs = finals(fault, arm)
        row.append(_interval([ours[s] - theirs[s] for s in ours.keys() & theirs.keys()], sign=True))
    healthy = finals("healthy", "no ops")
    shares = [ours[s] / healthy[s] for s in ours.keys() & healthy.keys() if healthy[s]]
    return [*row, f"{np.mean(shares):.0%}" if shares else "-"]


def _interval(values: Sequence[float], *, sign: bool = False) -> str:
    """Mean and 95 % percentile bootstrap interval."""
    if not values:
        return "-"
    form = "{:+.0f}" if sign else "{:.0f}"
    mean = form.format(np.mean(values))
    if len(values) < 2:
        return mean
    draws = np.random.default_rng(0).choice(values, (_RESAMPLED, len(values))).mean(1)
    low, high = (form.format(each) for each in np.percentile(draws, (2.5, 97.5)))
    return f"{mean} [{low}, {high}]"


def _rounded(fact: object) -> object:
    if isinstance(fact, list):
        return [_rounded(each) for each in fact]
    return round(fact, 2) if isinstance(fact, float) else fact
