"""Two processes, gloo between them: one mind, one folder of checkpoints, one of them killed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training.checkpoints.manifest import read_manifest

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = Path(__file__).with_name("ranks.py")
Told = list[dict[str, Any]]


def both(folder: Path, scenario: str, *, codes: tuple[int, int] = (0, 0)) -> tuple[Told, Told]:
    """Run a scenario in two processes; what each of them told."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(rank), "2", port, str(folder), scenario],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        answers = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    found = tuple(rank.returncode for rank in ranks)
    assert found == codes, "\n".join(error for _, error in answers)
    first, second = ([json.loads(line) for line in out.splitlines()] for out, _ in answers)
    return first, second


def agreed(told: Told) -> Told:
    """Less what is each rank's own business."""
    return [{name: fact for name, fact in line.items() if name != "events"} for line in told]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Told]:
    """A run of 13 steps whose rank 1 was killed; its folder and what rank 0 told."""
    folder = tmp_path_factory.mktemp("killed")
    first, second = both(folder, "die", codes=(3, -9))
    assert agreed(first[:13]) == agreed(second)
    assert "lost_peer" in first[-1]  # rank 0 did not wait for the dead
    return folder, first


def test_what_one_rank_sees_all_act_upon(tmp_path: Path) -> None:
    first, second = both(tmp_path / "run", "one_sees")
    assert agreed(first) == agreed(second)
    steps = {line["step"]: line for line in first if "step" in line}
    assert [step for step, line in steps.items() if line["restored"] is not None] == [8, 10, 13]
    assert (steps[8]["kind"], steps[8]["seen_by"], steps[8]["restored"]) == ("non_finite", 1, 5)
    assert steps[8]["weights"] == steps[5]["weights"]
    assert steps[8]["events"] == [steps[8]["events"][-1]]  # rank 0 itself saw nothing
    assert steps[8]["lr_scale"] == 1.0
    assert steps[10]["lr_scale"] < 1.0  # the second rung
    assert steps[13]["lr_scale"] < steps[10]["lr_scale"]
    assert all(line["lr"] == pytest.approx(0.01 * line["lr_scale"]) for line in steps.values())
    assert steps[14]["halt"]
    assert steps[15]["halt"]
    assert first[-1] == second[-1] == {"error": "the ranks are at steps 20 to 21"}


def test_both_resume_where_both_were_and_go_on_bit_for_bit(killed: tuple[Path, Told]) -> None:
    folder, before = killed
    copy = folder.with_name("resumed")
    shutil.copytree(folder, copy)
    first, second = both(copy, "resume")
    assert agreed(first) == agreed(second)
    assert first[0] == {"resumed": 10, "passed_by": []}
    assert agreed(first[1:]) == agreed(before[10:13])


def test_a_flipped_bit_in_one_shard_makes_both_fall_back(killed: tuple[Path, Told]) -> None:
    folder, before = killed
    copy = folder.with_name("flipped")
    shutil.copytree(folder, copy)
    newest = sorted(copy.glob("step_*.pt"))[-1]
    shard = next(newest.glob("__1_*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    uncommitted = copy / "step_000000011_000.pt"  # newer, and without a manifest
    shutil.copytree(newest, uncommitted)

    first, second = both(copy, "resume")
    assert agreed(first) == agreed(second)
    assert first[0]["resumed"] == 5
    assert "is not what was committed" in first[0]["passed_by"][0]
    assert agreed(first[1:6]) == agreed(before[5:10])  # as it was, bit for bit
    assert read_manifest(newest).health == "corrupt"
    assert not uncommitted.exists()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Told, Told]:
    """Eight steps of one run of two ranks, then a run of each rank's own: what both told."""
    return both(tmp_path_factory.mktemp("guarded") / "run", "guarded+apart")


def test_an_update_is_dropped_on_all_ranks_or_on_none(guarded: tuple[Told, Told]) -> None:
    first, second = (told[:8] for told in guarded)
    assert agreed(first) == agreed(second)
    assert [line["dropped"] for line in first] == [0, 0, 1, 1, 1, 1, 2, 2]
    before, after = first[1::4], first[2::4]
    for step, one in zip(before, after, strict=True):
        assert step["weights"] == one["weights"]  # rank 0, whose own gradients were well, too
    assert first[3]["weights"] != first[2]["weights"]
    assert all(line["restored"] is None for line in first)  # nothing to go back from
    told = ["updates dropped for their gradients, on all ranks: 1"]
    assert first[2]["events"][:1] == told
    assert second[6]["events"][0].startswith("step 7")
    assert told[0] in second[6]["events"]


def test_a_group_of_its_own_is_a_run_of_its_own(guarded: tuple[Told, Told]) -> None:
    first, second = (told[8:] for told in guarded)
    assert first == [{"resumed": 2, "size": 1, "rank": 0}]
    assert second == [{"resumed": 6, "size": 1, "rank": 0}]
