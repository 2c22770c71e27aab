"""A handful of the thousand worlds, and that a seed is the same world everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.simulator.faults import Outage
from tests.simulation import campaign, compare
from tests.simulation.__main__ import main
from tests.simulation.compare import OURS, POLICIES, Tally
from tests.simulation.report import Run, markdown
from tests.simulation.schedule import MODES, schedule
from tests.simulation.world import play

ROOT = Path(__file__).parents[2]
_DIGEST = """
from tests.simulation.schedule import schedule
from tests.simulation.world import play
print(play(schedule(7, 90)).digest)
"""


@pytest.mark.parametrize("seed", range(5))
def test_every_invariant_holds(seed: int) -> None:
    played = play(schedule(seed, 250))
    assert not played.broken
    assert played.checks > 20 * len(played.outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [787, *range(2000, 2010)])
def test_every_invariant_holds_elsewhere(seed: int) -> None:
    assert not play(schedule(seed)).broken


def test_a_seed_is_the_same_world_every_time_and_in_every_process() -> None:
    here = play(schedule(7, 90)).digest
    assert here == play(schedule(7, 90)).digest
    assert here != play(schedule(8, 90)).digest
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        [sys.executable, "-c", _DIGEST],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == here


def test_all_faults_leave_time_to_recover() -> None:
    for seed in range(20):
        world = schedule(seed)
        assert max(world.plan(mode).heals_at for mode in MODES) <= world.horizon_s - 360.0
        assert 800 < len(world.asks) < 1300
        assert [ask.at for ask in world.asks] == sorted(ask.at for ask in world.asks)


def test_a_failing_seed_says_how_to_play_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = campaign.World(17, 10, 100, "d", 0.1, {OURS: Tally()}, ["seed 17, 3.000 s: broken"])
    monkeypatch.setattr("tests.simulation.__main__.campaign", lambda *_, **__: iter([world]))
    monkeypatch.setattr(sys, "argv", ["simulation", "--schedules", "1"])
    assert main() == 1
    assert "again: python -m tests.simulation --replay 17" in capsys.readouterr().out


def test_a_replay_tells_the_faults_and_the_digest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.simulation.__main__.schedule", lambda seed: schedule(seed, 60))
    monkeypatch.setattr(sys, "argv", ["simulation", "--replay", "7"])
    assert main() == 0
    told = capsys.readouterr().out
    assert "creative: Outage(" in told
    assert play(schedule(7, 60)).digest in told


def test_a_crash_is_a_broken_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_: object) -> None:
        raise ZeroDivisionError("in a corner")

    monkeypatch.setattr(compare, "ours", crash)
    assert campaign.play((5, True)).broken == ["seed 5 ended in ZeroDivisionError('in a corner')"]


def test_what_is_kept_is_not_played_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import msgspec

    kept = tmp_path / "worlds.jsonl"
    parts = [
        campaign.World(3, 10, 100, "d", 1.0, {OURS: Tally(asked=10, waits={-3: 9})}, []),
        campaign.World(3, 0, 0, "", 2.0, {p: Tally(asked=10) for p in POLICIES[1:]}, []),
    ]
    kept.write_bytes(b"\n".join(map(msgspec.json.encode, parts)) + b"\n")
    monkeypatch.setattr("multiprocessing.get_context", lambda _: _NoProcesses())
    world = list(campaign.campaign(range(3, 4), compared=1, processes=1, keep=kept))[-1]
    assert (world.requests, world.cpu_s) == (10, 3.0)
    assert world.tallies[OURS].waits == {-3: 9}
    assert set(world.tallies) == set(POLICIES)


class _NoProcesses:
    """A pool without workers, for when nothing is left to do."""

    def Pool(self, *_: object, **__: object) -> _NoProcesses:  # noqa: N802 - its name there
        return self

    def __enter__(self) -> _NoProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        """Nobody to stop."""

    def imap_unordered(self, _: object, tasks: object) -> list[object]:
        assert not tasks
        return []


def test_measures_are_what_they_say() -> None:
    world = schedule(4, 200)
    played, ours = compare.ours(world)
    assert ours.asked == sum(
        ask.once and outcome.error != "cancelled"
        for outcome in played.outcomes
        for ask in [world.asks[outcome.number]]
    )
    assert ours.native <= ours.answered == sum(ours.waits.values())
    assert ours.answered + sum(ours.errors.values()) == ours.asked
    assert ours.calls == sum(stat.started for stat in played.stats.values())
    outages = [f for faults in world.faults.values() for f in faults if isinstance(f, Outage)]
    assert ours.dead_s == pytest.approx(sum(outage.end - outage.start for outage in outages))


def test_the_page_says_where_a_peer_is_better() -> None:
    tallies = {
        policy: Tally(asked=100, answered=90, calls=100, uncached=100) for policy in POLICIES
    }
    tallies["cooldown 5 s"].answered = 95
    world = campaign.World(0, 100, 5000, "d", 1.0, tallies, [])
    page = markdown(Run([world], [world], ["--schedules", "1"]))
    assert "- availability: 90.00% here; cooldown 5 s 95.00%." in page
    assert "none was broken" in page
