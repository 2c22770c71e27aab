"""Files that hold what people said or used: for their owner's eyes."""

from __future__ import annotations

import os
from contextlib import suppress


def make_private(path: str) -> None:
    """Make a file that only its owner may read, unless it is there: an owner who opened it to
    others meant to. What SQLite puts beside a database has the database's permissions.
    """
    if path in ("", ":memory:"):
        return
    with suppress(OSError):  # it is there, or cannot be: whoever opens it says why
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
