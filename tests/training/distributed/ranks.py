"""One rank of a small run, started as a process of its own by the tests beside it.

Arguments: rank, size, port, folder, scenarios with + between. Prints one JSON object a line.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from training.config import CheckpointConfig
from training.distributed import DistributedOperations, OutOfStep


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def weights(model: torch.nn.Module) -> list[float]:
    return [round(float(p.detach().sum()), 6) for p in model.parameters()]


class Run:
    def __init__(self, rank: int, folder: str) -> None:
        torch.manual_seed(7)
        self.rank, self.folder = rank, folder
        self.model = DistributedDataParallel(torch.nn.Linear(4, 2))
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.01)
        self.ops = DistributedOperations(
            folder,
            model=self.model,
            optimizer=self.optimizer,
            checkpoint_config=CheckpointConfig(save_interval_steps=5),
        )
        torch.manual_seed(100 + rank)

    def step(self, number: int, **metrics: float) -> dict[str, Any]:
        self.optimizer.zero_grad()
        self.model(torch.randn(8, 4)).pow(2).mean().backward()
        self.optimizer.step()
        result = self.ops.on_training_step(number, {"loss": 1.0, "reward": 5.0, **metrics})
        tell(
            step=number,
            kind=result["anomaly"].kind if result["anomaly"] else None,
            seen_by=result["seen_by"],
            restored=result["restored_step"],
            saved=bool(result["checkpoint_path"]),
            lr_scale=result["lr_scale"],
            lr=self.optimizer.param_groups[0]["lr"],
            halt=result["halt"],
            weights=weights(self.model),
            events=result["events"],
        )
        return result


def out_of_step(run: Run) -> None:
    try:
        run.step(20 + run.rank)
    except OutOfStep as error:
        tell(error=str(error))


def one_sees(run: Run) -> None:
    """NaN on the last rank only, twice; then more often than the ladder has rungs."""
    for number in range(1, 13):
        broken = number in (8, 10) and run.rank == 1
        run.step(number, **({"loss": float("nan")} if broken else {}))
    for number in range(13, 16):
        run.step(number, **({"loss": float("inf")} if run.rank == 0 else {}))
    out_of_step(run)


def die(run: Run) -> None:
    """Rank 1 is killed after step 13; rank 0 must not hang."""
    for number in range(1, 14):
        run.step(number)
    run.ops.flush()
    if run.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        run.step(14)
    except RuntimeError as error:
        tell(lost_peer=str(error)[:80])
        os._exit(3)  # as a launcher would end it


def resume(run: Run) -> None:
    found = run.ops.resume()
    tell(resumed=found["step"] if found else None, passed_by=found["passed_by"] if found else [])
    for number in range((found["step"] if found else 0) + 1, 14):
        run.step(number)


def guarded(run: Run) -> None:
    """Ranks that do not average: NaN gradients on the last rank only, at steps 3 and 7."""
    for number in range(1, 9):
        broken = number in (3, 7) and run.rank == 1
        run.optimizer.zero_grad()
        loss = run.model.module(torch.ones(2, 4)).pow(2).mean()
        (loss * float("nan") if broken else loss).backward()
        run.optimizer.step()
        told = {"loss": float("nan") if broken else loss.item()}
        result = run.ops.on_training_step(number, told)
        tell(
            step=number,
            weights=weights(run.model),
            dropped=run.ops.guard.dropped if run.ops.guard else None,
            restored=result["restored_step"],
            events=result["events"],
        )


def apart(run: Run) -> None:
    """Each rank is a run of its own, in a group of its own, and takes its own time."""
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    model = torch.nn.Linear(2, 1)
    ops = DistributedOperations(
        f"{run.folder}/{run.rank}",
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        checkpoint_config=CheckpointConfig(save_interval_steps=2),
        process_group=groups[run.rank],
    )
    for number in range(1, 4 + 3 * run.rank):
        ops.on_training_step(number, {"loss": 1.0})
    found = ops.resume()
    tell(resumed=found["step"] if found else None, size=ops.peers.size, rank=ops.peers.rank)
    ops.close()


def main() -> None:
    rank, size, port, folder, scenario = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=int(rank),
        world_size=int(size),
        timeout=datetime.timedelta(seconds=30),
    )
    run = Run(int(rank), folder)
    for part in scenario.split("+"):  # a process costs more than what it plays
        globals()[part](run)
    run.ops.close()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
