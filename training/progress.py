"""What is seen of a run: a table, TensorBoard logs, a plot, a progress bar, and Ctrl-C."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from training import curves
from training.run import Settings

_COLUMNS = (
    "update",
    "steps",
    "reward",
    "event",
    "loss",
    "policy_loss",
    "value_loss",
    "entropy",
    "approx_kl",
    "clip_fraction",
    "grad_norm",
    "explained_variance",
    "learning_rate",
)


class Log:
    """`progress.csv` and TensorBoard: one row an update; a resumed run goes on where it was."""

    def __init__(
        self, folder: Path, first: int, settings: Settings, tell: Callable[[str], None]
    ) -> None:
        self.folder, self.notes = folder, list[str]()
        self._tell, self._settings = tell, settings
        self._file = folder / "progress.csv"
        self._rows = [row for row in _read(self._file) if row["update"] < first]
        self._board = _tensorboard(folder / "tensorboard", self._steps(first))
        if self._board is None:
            self._note("no TensorBoard logs: pip install tensorboard")

    def __enter__(self) -> Self:
        partial = self._file.with_suffix(f".{os.getpid()}")
        self._out = partial.open("w", encoding="utf-8", newline="")
        self._csv = csv.DictWriter(self._out, _COLUMNS, extrasaction="ignore")
        self._csv.writeheader()
        self._csv.writerows(self._rows)
        partial.replace(self._file)
        return self

    def __exit__(self, *error: object) -> None:
        self._out.close()
        if self._board is not None:
            self._board.close()

    def write(self, number: int, stats: dict[str, float], result: dict[str, Any]) -> None:
        """Note an update and what the operations made of it."""
        event = "rollback" if result["rollback_path"] else ""
        event = event or ("checkpoint" if result["checkpoint_path"] else "")
        row = {"reward": None, **stats, "update": number, "steps": self._steps(number + 1)}
        self._rows.append({**row, "event": event})
        self._csv.writerow(self._rows[-1])
        self._out.flush()
        for line in result["events"]:
            if not line.startswith("step "):  # anomalies that are only reported: in the plot's way
                self._tell(f"update {number}: {line}")
        if self._board is not None:
            for name, value in {**stats, "entropy_coef": result["entropy_coef"]}.items():
                self._board.add_scalar(f"train/{name}", value, row["steps"])
            for line in result["events"]:
                self._board.add_text("operations", line, row["steps"])

    def count(self, event: str) -> int:
        """How often something happened in the whole run."""
        return sum(row["event"] == event for row in self._rows)

    def draw(self) -> None:
        """Draw `curve.png`; without matplotlib a note."""
        s = self._settings
        try:
            curves.learning_curve(self._rows, f"{s.env}, seed {s.seed}", self.folder / "curve.png")
        except ModuleNotFoundError as error:
            self._note(f"no plot: {error}")

    def _steps(self, update: int) -> int:
        return (update - 1) * self._settings.n_envs * self._settings.n_steps

    def _note(self, line: str) -> None:
        self.notes.append(line)
        self._tell(f"note: {line}")


class Lines:
    """Progress for a file or a pipe: a line every tenth of the run."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    @contextlib.contextmanager
    def __call__(self, done: int, updates: int) -> Iterator[Callable[[int, float, float], None]]:
        """The context in which updates are shown."""

        def show(number: int, reward: float, speed: float) -> None:
            if number % max(1, updates // 10) == 0:
                told = "no episode has ended" if math.isnan(reward) else f"return {reward:.1f}"
                self._tell(f"update {number}/{updates}: {told}, {speed:,.0f} steps/s")

        yield show


@contextlib.contextmanager
def bar(done: int, updates: int) -> Iterator[Callable[[int, float, float], None]]:
    """Progress for a terminal: a bar, the return, the speed, the time left."""
    from rich import progress  # noqa: PLC0415

    columns = (
        progress.BarColumn(),
        progress.TextColumn("{task.completed}/{task.total} updates"),
        progress.TextColumn("{task.description}"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns) as shown:
        task = shown.add_task("", total=updates, completed=done)

        def show(number: int, reward: float, speed: float) -> None:
            told = f"return {reward:7.1f}  {speed:,.0f} steps/s"
            shown.update(task, completed=number, description=told)

        yield show


class Interrupt:
    """Turns the first Ctrl-C, or SIGTERM, into a wish: the update under way is finished and saved.

    The second one is a KeyboardInterrupt as ever.

    Attributes:
        asked: whether the run is to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *told: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as rows:
        return [
            {
                **row,
                "update": int(row["update"]),
                "steps": int(row["steps"]),
                "reward": float(row["reward"]) if row["reward"] else None,
            }
            for row in csv.DictReader(rows)
        ]


def _tensorboard(folder: Path, purge_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=purge_step)
