"""The stub and the load generator in C, compiled when first needed."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

_HERE = Path(__file__).parent


@functools.cache
def compiled(name: str) -> Path | None:
    """`stub` or `load` as a program, None where there is no C compiler (or no epoll)."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    source = _HERE / f"{name}.c"
    program = _HERE / "build" / name
    if compiler is None:
        return None
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(exist_ok=True)
        command = [compiler, "-O2", "-o", str(program), str(source)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
    return program
