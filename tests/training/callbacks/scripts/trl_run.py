"""Transformers' Trainer and TRL's GRPO on a tiny GPT-2 with random weights; nothing is loaded."""

from __future__ import annotations

import math
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from scenarios import FOLDER, Steps, holds, inside, manager, same, tell, weights
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import GRPOConfig, GRPOTrainer

from training.callbacks.trl import OperationsCallback

WORDS = ["<pad>", "<end>", "<unk>", "rose", "oud", "musk", "amber", "iris", "cedar", "lime"]
SETTINGS: dict[str, Any] = {
    "output_dir": str(FOLDER / "host"),
    "use_cpu": True,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
}


def language() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )


def model(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": len(WORDS)}
    return GPT2LMHeadModel(GPT2Config(**size, bos_token_id=1, eos_token_id=1, pad_token_id=0))


class Diary(TrainerCallback):
    """Stands behind ours: what the host has in hand after each step."""

    def __init__(self, ours: OperationsCallback, trainer: Any) -> None:
        self.ours, self.trainer = ours, trainer
        self.results: dict[int, dict[str, Any]] = {}
        self.returns: list[dict[str, Any]] = []
        self.logged: list[dict[str, float]] = []
        self.began_at = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        self.began_at = state.global_step
        self.weights_at_start = weights(parts["model"])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **parts: Any) -> None:
        if "loss" in logs:
            self.logged.append(dict(logs))
        self._note(state, parts["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        self._note(state, parts["model"])

    def _note(self, state: Any, module: Any) -> None:
        result = self.ours.watch.last
        if not result or any(result is known for known in self.results.values()):
            return
        self.results[state.global_step] = result
        if result["rollback_path"]:
            payload = inside(self.ours.watch.ops, result["rollback_path"])
            self.returns.append(
                {
                    "step": state.global_step,
                    "to": result["restored_step"],
                    "restored": result["restored"],
                    "weights_are_the_saved": same(module, payload["model"]),
                    "completions_discarded": getattr(self.trainer, "_buffered_inputs", 0) is None,
                }
            )


class Host(Trainer):
    """A trainer that can be struck."""

    nan_at = 0
    wreck: tuple[int, ...] = ()

    def training_step(self, module: Any, *rest: Any, **more: Any) -> torch.Tensor:
        if self.state.global_step + 1 in self.wreck:
            wreck(module)
        return super().training_step(module, *rest, **more)

    def compute_loss(self, module: Any, *rest: Any, **more: Any) -> Any:
        loss = super().compute_loss(module, *rest, **more)
        return loss * math.nan if self.state.global_step + 1 == self.nan_at else loss


def wreck(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 100.0)


def host(ops: Any, steps: int, *, seed: int = 0, resume: bool = False, **settings: Any) -> Any:
    tokens = language()("rose oud musk amber iris cedar")["input_ids"]
    data = [{"input_ids": tokens, "labels": tokens}] * 64
    arguments = TrainingArguments(**{**SETTINGS, "max_steps": steps, **settings})
    trainer = Host(model=model(seed), args=arguments, train_dataset=data)
    return watched(trainer, ops, resume=resume)


def watched(trainer: Any, ops: Any, *, resume: bool = False) -> Any:
    ours = OperationsCallback(ops, trainer, resume=resume)
    diary = Diary(ours, trainer)
    trainer.add_callback(ours)
    trainer.add_callback(diary)
    return trainer, ours, diary


def calm() -> None:
    """Six steps, the loss told at every third; then three more by another trainer."""
    ops = manager("calm")
    falling = {"logging_steps": 3, "lr_scheduler_type": "linear"}
    trainer, _, diary = host(ops, 6, **falling)
    trainer.train()
    saved = {s: r["checkpoint_path"] for s, r in diary.results.items() if r["checkpoint_path"]}
    tell(
        "calm",
        versions=[transformers.__version__, trl.__version__],
        looked_at=list(diary.results),
        saved=list(saved),
        holds=holds(ops, saved[6]),
        anomalies=[str(r["anomaly"]) for r in diary.results.values() if r["anomaly"]],
    )
    ops.close()
    again = manager("calm")
    other, _, later = host(again, 9, seed=1, resume=True, **falling)
    other.train()
    again.close()
    tell(
        "resumed",
        began_at=later.began_at,
        same_weights=later.weights_at_start.equal(weights(trainer.model)),
        looked_at=list(later.results),
        schedule=other.lr_scheduler.last_epoch,
        losses=[diary.logged[-1]["loss"], later.logged[0]["loss"]],
    )


def gradient() -> None:
    """The loss of the third step is NaN: with operations, and without."""
    ops = manager("gradient")
    trainer, _, diary = host(ops, 5)
    trainer.nan_at = 3
    moved: list[bool] = []

    class Begin(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            self.steps = Steps(parts["model"], parts["optimizer"].optimizer)
            self.steps.moved = moved

    trainer.add_callback(Begin())
    trainer.train()
    ops.close()
    alone = host(manager("alone"), 5)[0]
    alone.callback_handler.callbacks = alone.callback_handler.callbacks[:-2]
    alone.nan_at = 3
    alone.train()
    tell(
        "gradient",
        moved=moved,
        finite=bool(torch.isfinite(weights(trainer.model)).all()),
        finite_without=bool(torch.isfinite(weights(alone.model)).all()),
        logged_losses_are_finite=all(math.isfinite(told["loss"]) for told in diary.logged),
        anomalies=[str(r["anomaly"]) for r in diary.results.values() if r["anomaly"]],
        steps=trainer.state.global_step,
    )


def collapse() -> None:
    """The weights are wrecked before the fifth and the eighth step."""
    ops = manager("collapse", cooldown_steps=0)
    trainer, _, diary = host(ops, 10)
    trainer.wreck = (5, 8)
    trainer.train()
    ops.close()
    tell(
        "collapse",
        returns=diary.returns,
        lr=[told["learning_rate"] for told in diary.logged],
        steps=trainer.state.global_step,
        last_loss=diary.logged[-1]["loss"],
    )


def halt() -> None:
    """Wrecked twice, with one rollback allowed."""
    ops = manager("halt", cooldown_steps=0, max_rollbacks=1)
    trainer, ours, _ = host(ops, 20)
    trainer.wreck = (4, 6)
    trainer.train()
    ops.close()
    tell("halt", steps=trainer.state.global_step, events=ours.watch.last["events"])


def grpo() -> None:
    """Completions are worth the share of one word, until their rewards collapse."""
    noted: list[float] = []
    calls = [0]

    class Noting(GRPOTrainer):  # type: ignore[misc]
        def compute_loss(self, *rest: Any, **more: Any) -> Any:
            noted.append(self.entropy_coef)
            return super().compute_loss(*rest, **more)

    def rewards(completions: list[str], **_: Any) -> list[float]:
        calls[0] += 1
        fallen = -1000.0 if calls[0] == 5 else 0.0
        return [10.0 + text.count("oud") + fallen for text in completions]

    ops = manager("grpo", cooldown_steps=0)
    arguments = GRPOConfig(
        **SETTINGS,
        max_steps=7,
        num_generations=2,
        max_completion_length=6,
        entropy_coef=0.01,
        steps_per_generation=1,
        bf16=False,
    )
    trainer = Noting(
        model=model(),
        reward_funcs=rewards,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["rose oud", "musk amber", "iris", "lime"] * 8}),
        processing_class=language(),
    )
    trainer, _, diary = watched(trainer, ops)
    trainer.train()
    ops.close()
    tell(
        "grpo",
        entropy_coef=noted,
        saved=[s for s, r in diary.results.items() if r["checkpoint_path"]],
        metrics=sorted(diary.results[1]["metrics"]),
        returns=diary.returns,
        steps=trainer.state.global_step,
    )


calm()
gradient()
collapse()
halt()
grpo()
