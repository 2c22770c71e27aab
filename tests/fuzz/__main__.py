"""`python -m tests.fuzz --minutes 5 sse`: coverage-guided fuzzing with atheris, for as long as you
like; see README.md. Without atheris: random bytes, which find less.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

CORPUS = Path(__file__).resolve().parents[2] / "build" / "fuzz"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "target", help="what to fuzz: sse, http1, request, service, config, answers"
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (1)")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="what was found of interest")
    parser.add_argument("--again", type=Path, help="run this one input, and nothing else")
    given = parser.parse_args()
    try:
        import atheris  # type: ignore[import-untyped]
    except ImportError:
        atheris = None
    if atheris is not None and given.again is None:
        with atheris.instrument_imports(include=["gateway"]):
            from tests.fuzz.targets import TARGETS
    else:
        from tests.fuzz.targets import TARGETS
    target = TARGETS[given.target]
    if given.again is not None:
        target(given.again.read_bytes())
        return 0
    if atheris is None:
        return _randomly(target, given.minutes)
    corpus = given.corpus / given.target
    corpus.mkdir(parents=True, exist_ok=True)
    options = [
        sys.argv[0],
        str(corpus),
        f"-max_total_time={round(given.minutes * 60)}",
        f"-artifact_prefix={corpus}-",
        "-max_len=2048",
        "-len_control=0",  # a short input is an empty request
        "-timeout=10",
        "-rss_limit_mb=2048",
    ]
    atheris.Setup(options, target)
    atheris.Fuzz()  # exits
    return 0


def _randomly(target: Callable[[bytes], None], minutes: float) -> int:
    sys.stderr.write("atheris is not installed (pip install atheris): random bytes\n")
    dice, runs, end = random.Random(), 0, time.monotonic() + minutes * 60
    while time.monotonic() < end:
        data = dice.randbytes(dice.randrange(400))
        try:
            target(data)
        except BaseException:
            sys.stderr.write(f"input: {data!r}\n")
            raise
        runs += 1
    print(f"{runs} runs, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
