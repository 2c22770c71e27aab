"""Any sequence of saves, verdicts, pins, restarts and damage leaves the promises standing."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

torch = pytest.importorskip("torch")

from training.checkpoints.store import CheckpointStore  # noqa: E402
from training.errors import CheckpointError  # noqa: E402

picks = st.integers(0, 30)


class Store(RuleBasedStateMachine):
    """Beside the store, a list of what was committed, with the verdicts on each."""

    @initialize(keep=st.integers(2, 5))
    def start(self, keep: int) -> None:
        self.folder, self.keep = Path(tempfile.mkdtemp()), keep
        self.known: dict[str, dict[str, Any]] = {}
        self.number = 0
        self.settled = True  # whether the last change of `keep` has had its commit
        self.open()

    def open(self) -> None:
        self.store = CheckpointStore(self.folder, keep=self.keep, writer="none")

    def names(self) -> list[str]:
        return [Path(path).name for path in self.store.paths()]

    def pick(self, number: int) -> str | None:
        names = self.names()
        return names[number % len(names)] if names else None

    @rule(
        step=st.integers(0, 6),
        healthy=st.booleans(),
        score=st.none() | st.floats(-5, 5, allow_nan=False) | st.just(float("nan")),
    )
    def save(self, step: int, healthy: bool, score: float | None) -> None:
        self.number += 1
        value = torch.full((3,), float(self.number))
        path = self.store.save(step, {"model": {"w": value}}, healthy=healthy, score=score)
        name = Path(path).name
        gone = name in self.known and not self.known[name]["there"]
        assert name not in self.known or gone or name not in self.names()[:-1]
        self.known[name] = {
            "value": float(self.number),
            "healthy": healthy,
            "score": None if score is None or math.isnan(score) else score,
            "bad": False,
            "corrupt": False,
            "pinned": False,
            "there": True,
            "order": self.number,
        }
        assert self.names()[-1] == name  # never zero after a commit; the newest is there
        self.settled = True

    @rule(number=picks)
    def tag(self, number: int) -> None:
        if name := self.pick(number):
            self.store.healthy(name)
            self.known[name]["healthy"] = True

    @rule(number=picks)
    def suspect(self, number: int) -> None:
        if name := self.pick(number):
            self.store.suspect(name)
            self.known[name]["bad"] = True

    @rule(number=picks, pinned=st.booleans())
    def pin(self, number: int, pinned: bool) -> None:
        if name := self.pick(number):
            self.store.pin(name, pinned=pinned)
            self.known[name]["pinned"] = pinned
            self.settled = self.settled and pinned

    @rule(number=picks)
    def corrupt(self, number: int) -> None:
        if name := self.pick(number):
            path = self.folder / name
            raw = bytearray(path.read_bytes())
            raw[len(raw) // 2] ^= 1
            path.write_bytes(raw)
            self.known[name]["corrupt"] = not self.known[name]["corrupt"]

    @rule(keep=st.integers(2, 5))
    def another_keep(self, keep: int) -> None:
        self.store.keep(keep)
        self.keep, self.settled = keep, False

    @rule()
    def restart(self) -> None:
        before = self.names()
        self.store.close()
        (self.folder / ".tmp-1-step_000000001_000.pt").write_bytes(b"half")
        self.open()
        assert self.names() == before
        self.settled = False

    @rule()
    def go_back(self) -> None:
        alive = [
            (one["order"], name)
            for name, one in self.known.items()
            if name in self.names() and one["healthy"] and not one["bad"]
        ]
        whole = [each for each in alive if not self.known[each[1]]["corrupt"]]
        found = self.store.last_healthy()
        if not whole:
            assert found is None
        else:
            assert found is not None
            name = max(whole)[1]
            assert Path(found.path).name == name
            assert found.payload["model"]["w"].eq(self.known[name]["value"]).all()
        passed = [name for order, name in alive if not whole or order > max(whole)[0]]
        for name in passed:
            self.known[name]["bad"] = True

    @rule(number=picks)
    @precondition(lambda self: self.names())
    def load(self, number: int) -> None:
        name = self.pick(number)
        assert name is not None
        try:
            payload = self.store.load(self.folder / name).payload
        except CheckpointError:
            assert self.known[name]["corrupt"]
        else:
            assert payload["model"]["w"].eq(self.known[name]["value"]).all()

    @invariant()
    def the_promises(self) -> None:
        if not hasattr(self, "store"):
            return
        names = self.names()
        on_disk = sorted(path.name for path in self.folder.glob("*.pt"))
        assert on_disk == sorted(names)
        present = {name: self.known[name] for name in names}
        # What an earlier commit took away, while a newer one was healthy, nobody asks for again.
        before = [one for one in self.known.values() if one["there"]]
        for name, one in self.known.items():
            one["there"] = name in names
        good = [one for one in before if one["healthy"] and not one["bad"]]
        if good:  # no commit ever takes away the last healthy one
            newest = max(good, key=lambda one: one["order"])
            assert newest["there"]
        scored = [one for one in self.known.values() if one["score"] is not None and not one["bad"]]
        best = max(scored, key=lambda one: (one["score"], one["order"])) if scored else None
        if best is not None and not any(one["bad"] for one in self.known.values()):
            assert best["there"]
        assert all(one["there"] for one in self.known.values() if one["pinned"])
        if self.settled and not any(one["bad"] for one in present.values()):
            pinned = sum(one["pinned"] or one is best for one in present.values())
            assert len(names) <= max(self.keep, pinned + 2)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)


TestStore = Store.TestCase
TestStore.settings = settings(
    max_examples=int(os.environ.get("STORE_EXAMPLES", "25")), stateful_step_count=20, deadline=None
)
