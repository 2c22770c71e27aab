"""Lightning's Trainer on one linear layer."""

from __future__ import annotations

import logging
import math
import warnings
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from scenarios import FOLDER, Steps, holds, inside, manager, same, tell, weights

from training.callbacks.lightning import OperationsCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")


class Host(LightningModule):
    """A regression that can be struck."""

    def __init__(self, seed: int = 0, *, by_hand: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = torch.nn.Linear(4, 1)
        self.entropy_coef = 0.0
        self.automatic_optimization = not by_hand
        self.nan_at = 0
        self.wreck: tuple[int, ...] = ()
        self.noted: list[float] = []
        self.lr: list[float] = []

    def training_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
        step = self.trainer.global_step + 1
        if step in self.wreck:
            with torch.no_grad():
                self.layer.weight.add_(1000.0)
        self.noted.append(self.entropy_coef)
        self.lr.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        loss = (self.layer(batch) - batch.sum(dim=1, keepdim=True)).square().mean()
        self.log("entropy", loss.detach() + 1.0)
        self.log("reward", 10.0)
        if step == self.nan_at:  # the loss is finite, its gradient is not
            self.layer.weight.register_hook(self._spoil)
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def _spoil(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.nan if self.trainer.global_step + 1 == self.nan_at else gradient

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        constant = torch.optim.lr_scheduler.LambdaLR(optimizer, _one)
        return [optimizer], [{"scheduler": constant, "interval": "step"}]


def _one(step: int) -> float:
    return 1.0


class Diary(Callback):
    """Stands behind ours: what the host has in hand after each batch."""

    def __init__(self, ours: OperationsCallback) -> None:
        self.ours = ours
        self.results: dict[int, dict[str, Any]] = {}
        self.returns: list[dict[str, Any]] = []
        self.began_at = -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.began_at = trainer.global_step
        self.weights_at_start = weights(pl_module)
        self.steps = Steps(pl_module, trainer.optimizers[0])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        step, result = trainer.global_step, self.ours.watch.last
        if not result or any(result is known for known in self.results.values()):
            return
        self.results[step] = result
        if result["rollback_path"]:
            payload = inside(self.ours.watch.ops, result["rollback_path"])
            self.returns.append(
                {
                    "step": step,
                    "to": result["restored_step"],
                    "restored": result["restored"],
                    "weights_are_the_saved": same(pl_module, payload["model"]),
                }
            )


def fit(
    host: Host, ops: Any, steps: int, *, resume: bool = False, **settings: Any
) -> tuple[Any, OperationsCallback, Diary]:
    ours = OperationsCallback(ops, resume=resume)
    diary = Diary(ours)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        callbacks=[ours, diary],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    torch.manual_seed(3)
    data = torch.utils.data.DataLoader(torch.randn(16, 4), batch_size=4)  # type: ignore[arg-type]
    trainer.fit(host, data)
    return trainer, ours, diary


def calm() -> None:
    """Six steps of two batches each; then three more by another trainer."""
    ops = manager("calm")
    host = Host()
    trainer, _, diary = fit(host, ops, 6, accumulate_grad_batches=2)
    saved = {s: r["checkpoint_path"] for s, r in diary.results.items() if r["checkpoint_path"]}
    trainer.save_checkpoint(FOLDER / "host.ckpt")
    kept = torch.load(FOLDER / "host.ckpt", weights_only=True)["callbacks"]
    tell(
        "calm",
        version=lightning.__version__,
        looked_at=list(diary.results),
        entropy_coef=host.noted[::2],
        saved=list(saved),
        holds=holds(ops, saved[6]),
        metrics=sorted(diary.results[1]["metrics"]),
        anomalies=[str(r["anomaly"]) for r in diary.results.values() if r["anomaly"]],
        in_the_trainers_checkpoint=kept["OperationsCallback"]["last_step"],
    )
    ops.close()
    again = manager("calm")
    other, _, later = fit(Host(seed=1), again, 9, resume=True)
    again.close()
    tell(
        "resumed",
        began_at=later.began_at,
        same_weights=later.weights_at_start.equal(weights(host)),
        looked_at=list(later.results),
        schedule=other.lr_scheduler_configs[0].scheduler.last_epoch,
    )


def gradient() -> None:
    """The gradient of the third step is NaN: with operations, without, and by hand."""
    found: dict[str, Any] = {}
    for name, by_hand in (("automatic", False), ("manual", True)):
        ops = manager(f"gradient {name}")
        host = Host(by_hand=by_hand)
        host.nan_at = 3
        trainer, _, diary = fit(host, ops, 5)
        ops.close()
        found[name] = {
            "moved": diary.steps.moved,
            "finite": bool(torch.isfinite(weights(host)).all()),
            "steps": trainer.global_step,
            "events": [event for r in diary.results.values() for event in r["events"]],
            "rollbacks": len(diary.returns),
        }
    alone = Host()
    alone.nan_at = 3
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_steps=5, enable_model_summary=False, **quiet)  # type: ignore[arg-type]
    trainer.fit(alone, torch.utils.data.DataLoader(torch.randn(16, 4), batch_size=4))  # type: ignore[arg-type]
    tell("gradient", finite_without=bool(torch.isfinite(weights(alone)).all()), **found)


def collapse() -> None:
    """The weights are wrecked before the fifth and the eighth step."""
    ops = manager("collapse", cooldown_steps=0)
    host = Host()
    host.wreck = (5, 8)
    trainer, _, diary = fit(host, ops, 10)
    ops.close()
    last = diary.results[10]["metrics"]["loss"]
    tell("collapse", returns=diary.returns, lr=host.lr, steps=trainer.global_step, last_loss=last)


def halt() -> None:
    """Wrecked twice, with one rollback allowed."""
    ops = manager("halt", cooldown_steps=0, max_rollbacks=1)
    host = Host()
    host.wreck = (4, 6)
    trainer, ours, _ = fit(host, ops, 20)
    ops.close()
    tell("halt", steps=trainer.global_step, events=ours.watch.last["events"])


def crash() -> None:
    """The host dies of something else: the checkpoint being written is whole all the same."""
    ops = manager("crash")
    ops.checkpoint_config.async_save = True

    class Dies(Host):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.trainer.global_step == 2:
                raise RuntimeError("the host's own trouble")

    try:
        fit(Dies(), ops, 5)
        died = False
    except RuntimeError:
        died = True
    written = [path.name for path in (FOLDER / "crash").glob("*.pt")]
    ops.close()
    tell("crash", died=died, written=written)


calm()
gradient()
collapse()
halt()
crash()
