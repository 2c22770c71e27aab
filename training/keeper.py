"""Keeps a run's checkpoints and takes the run back to one: the hands of `OperationsManager`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.attached import Attached
from training.config import CheckpointConfig
from training.errors import CheckpointError, SaveFailed, TrainingError
from training.recovery import Decision
from training.tracks import as_float

if TYPE_CHECKING:  # it needs torch, and a run without checkpoints does not
    from training.checkpoints.files import Loaded
    from training.checkpoints.store import CheckpointStore

ModelState = Mapping[str, Any] | Callable[[], Mapping[str, Any]]
_SEED_STEP = 1_000_003
_log = logging.getLogger("training")


@dataclass(frozen=True, slots=True)
class Return:
    """A rollback that was carried out.

    Attributes:
        path: the checkpoint.
        step: its step.
        restored: the attached parts that went back.
        passed_by: newer checkpoints that could not be used, and why.
        in_force: what retunes had set when it was taken.
    """

    path: str
    step: int
    restored: list[str]
    passed_by: list[str]
    in_force: Mapping[str, float]


class Keeper:
    """Checkpoints out, checkpoints in.

    Args:
        folder: this run's own.
        config: read anew at each save.
        ops_state: the manager's own state, kept with each checkpoint.
        seed: where reseeding after a rollback starts from.

    Attributes:
        attached: the parts of the run.
        lr_scale: what the rollbacks so far made of the learning rate.
        rollbacks: how many there were.
    """

    def __init__(
        self,
        folder: str,
        config: Callable[[], CheckpointConfig],
        ops_state: Callable[[], dict[str, Any]],
        seed: int,
    ) -> None:
        self.attached = Attached()
        self.lr_scale = 1.0
        self.rollbacks = 0
        self._folder = folder
        self._config = config
        self._ops_state = ops_state
        self._seed = seed
        self._store: CheckpointStore | None = None
        self._restored_from: str | None = None

    @property
    def store(self) -> CheckpointStore:
        """The folder; opened when first needed.

        Raises:
            FolderBusy, SaveFailed: see `CheckpointStore`.
            ModuleNotFoundError: torch is not installed; names the extra.
        """
        if self._store is None:
            try:
                from training.checkpoints.store import CheckpointStore  # noqa: PLC0415
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    f"checkpoints need {error.name}: pip install 'downshift-gateway[training]'"
                ) from None
            config = self._config()
            self._store = CheckpointStore(
                self._folder,
                keep=config.max_checkpoints,
                writer=config.writer if config.async_save else "none",
            )
        return self._store

    def on_step(self) -> Sequence[Exception]:
        """A step ended: note how long it took; return the background saves that failed."""
        if self._store is None:
            return ()
        self._store.costs.step(writing=self._store.writing)
        return self._store.failures()

    def save(
        self,
        step: int,
        numbers: Mapping[str, Any],
        model_state: ModelState | None,
        *,
        healthy: bool = False,
    ) -> str | None:
        """Stage a checkpoint; its path, or None if there is nothing to save.

        Args:
            healthy: whether it need not prove itself first.

        Raises:
            SaveFailed, FolderBusy: see `CheckpointStore.save`.
        """
        if model_state is None and not self.attached:
            return None
        store, config = self.store, self._config()
        store.keep(config.max_checkpoints)
        store.when_busy = config.when_busy
        store.costs.pause()
        plain = _plain(numbers)
        score = plain.get("reward_mean")
        try:
            payload = self.attached.payload()
            if model_state is not None and "model" not in payload:
                payload["model"] = model_state() if callable(model_state) else model_state
            payload["ops"] = self._ops_state()
            return store.save(
                step,
                payload,
                metrics=plain,
                score=score,
                healthy=healthy,
                infinite=self.attached.infinite,
            )
        except (TrainingError, OSError):
            raise
        except Exception as error:  # whatever a part of the run makes of `state_dict()`
            raise SaveFailed(f"the state cannot be taken: {error!r}", path=self._folder) from error

    def go_back(self, decision: Decision) -> Return | None:
        """Carry out a decision to restore; None if nothing is left to return to.

        The last healthy checkpoint; if none has proved itself, the newest that has not.

        Raises:
            CheckpointForeign: that one is of another run; nothing has changed.
        """
        loaded = self.store.last("healthy") or self.store.last("candidate")
        if loaded is None:
            return None
        restored = self.attached.restore(loaded.payload, loaded.path, rng=False)
        self._restored_from = loaded.path
        self.rollbacks += 1
        self.store.attempt += 1
        self.store.costs.pause()
        before = self.lr_scale
        self.lr_scale *= decision.lr_factor
        ops = loaded.payload.get("ops", {})
        if "optimizer" in restored:
            before = float(ops.get("keeper", {}).get("lr_scale", 1.0))
        self._avoid_a_replay(before)
        in_force = ops.get("trials", {}).get("in_force", {})
        return Return(loaded.path, loaded.manifest.step, restored, loaded.passed_by, in_force)

    def return_to(self, path: str) -> Return:
        """Put one certain checkpoint back; errors as `go_back`, and of one that is gone."""
        loaded = self.store.load(path)
        restored = self.attached.restore(loaded.payload, loaded.path, rng=False)
        self.store.attempt += 1
        return Return(loaded.path, loaded.manifest.step, restored, [], {})

    @property
    def persist_s(self) -> float:
        """How long the last commit took; 0 before the first."""
        return self._store.costs.persist_s if self._store is not None else 0.0

    def suspect_last(self) -> None:
        """What was restored last led straight back into trouble: go past it."""
        if self._restored_from is not None:
            self.suspect(self._restored_from)

    def suspect(self, path: str) -> None:
        """That checkpoint proved bad."""
        self.store.suspect(path)

    def proved(self, path: str) -> bool:
        """That checkpoint proved good; False if it is not there, or not yet."""
        try:
            self.store.healthy(path)
        except CheckpointError:
            return False
        return True

    def name(self, path: str) -> str:
        """What a checkpoint of this folder is called, wherever the folder may go."""
        return Path(path).name

    def path(self, name: str) -> str:
        """Where a checkpoint of this folder lies."""
        return str(Path(self._folder, name))

    def resume(self) -> tuple[Loaded, list[str]] | None:
        """The newest good checkpoint, put back with the random generators; None if there is none.

        One that had no time to prove itself is good enough: the run knows what it had learned.

        Raises:
            CheckpointForeign: it is of another run; nothing has changed.
        """
        loaded = self.store.last("healthy", "candidate")
        if loaded is None:
            return None
        return loaded, self.attached.restore(loaded.payload, loaded.path, rng=True)

    def state_dict(self) -> dict[str, Any]:
        """What the rollbacks so far have made, in JSON types."""
        return {"rollbacks": self.rollbacks, "lr_scale": self.lr_scale}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        self.rollbacks, self.lr_scale = int(state["rollbacks"]), float(state["lr_scale"])

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until every checkpoint under way is on disk."""
        if self._store is not None:
            self._store.flush(timeout_s)

    def close(self) -> None:
        """Flush, and let go of the folder. Idempotent."""
        if self._store is not None:
            self._store.close()
            for failure in self._store.failures():  # there is no further step to tell it with
                _log.warning("checkpoint failed: %s", failure)
            self._store = None

    def _avoid_a_replay(self, already: float) -> None:
        """The same random numbers and the same step size would lead to the same place.

        What a checkpoint taken after a rollback brought back is `already` scaled.
        """
        from training.checkpoints.state import reseed  # noqa: PLC0415

        if self.attached.optimizer is not None:
            for group in self.attached.optimizer.param_groups:
                group["lr"] *= self.lr_scale / already if already > 0.0 else 1.0
        reseed(self._seed + _SEED_STEP * self.rollbacks)


def _plain(numbers: Mapping[str, Any]) -> dict[str, float]:
    plain = {}
    for name, value in numbers.items():
        number = as_float(value)
        if number is not None and math.isfinite(number):
            plain[name] = number
    return plain
