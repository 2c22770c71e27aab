"""What the operations module raises, and what it merely reports.

    TrainingError
    ├── CheckpointError                names the file and the remedy
    │   ├── CheckpointCorrupt          size, hash or content is not what was committed
    │   ├── CheckpointForeign          well-formed, but not ours, or of another model
    │   └── SaveFailed                 disk full, folder unwritable, state that cannot be saved
    │       └── SaveSkipped            the two before it are still being written
    ├── FolderBusy                     another manager writes into this folder
    └── FeedbackRejected (ValueError)  names the field

Training is never killed by its own safety net: a failed save is an event unless the caller asked
for `on_save_error="raise"`.
"""

from __future__ import annotations


class TrainingError(Exception):
    """Base of everything this package raises on purpose."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be used or made; `path` says which."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class CheckpointCorrupt(CheckpointError):
    """The file is not what was committed."""


class CheckpointForeign(CheckpointError):
    """The file is whole, but holds something else than what is wanted."""


class SaveFailed(CheckpointError):
    """Nothing was committed; older checkpoints are as they were."""


class SaveSkipped(SaveFailed):
    """Left out as asked for by `when_busy="skip"`; always reported, never raised by a step."""


class FolderBusy(TrainingError):
    """Another manager writes into this folder."""


class FeedbackRejected(TrainingError, ValueError):
    """A rating that cannot be used; the message names the field."""
