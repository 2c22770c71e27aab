"""One checkpoint back into a model, for whoever loads it by hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from training.attached import Attached
from training.checkpoints import files
from training.checkpoints.writer import flush_all


def load(path: str | os.PathLike[str], *, model: Any = None, optimizer: Any = None) -> list[str]:
    """Verify a checkpoint and put it back, all or nothing.

    One that a manager of this process is still writing is waited for.

    Returns:
        What was restored.

    Raises:
        CheckpointError: missing, corrupt or of another model; nothing has changed.
    """
    flush_all()
    attached = Attached()
    attached.model, attached.optimizer = model, optimizer
    return attached.restore(files.load(Path(path)), os.fspath(path), rng=False)
