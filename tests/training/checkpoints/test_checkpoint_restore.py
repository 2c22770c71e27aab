"""Back into the model: all or nothing, and only into what it was taken from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from training import CheckpointConfig, OperationsManager  # noqa: E402
from training.checkpoints import files, restore  # noqa: E402
from training.errors import CheckpointError, CheckpointForeign  # noqa: E402

EVERY_STEP = CheckpointConfig(save_interval_steps=1, async_save=False)


def stepped(model: Any, optimizer: Any) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def run(width: int = 3, kind: str = "Adam") -> tuple[Any, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Linear(width, 1))
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1)
    stepped(model, optimizer)
    return model, optimizer


def everything(model: Any, optimizer: Any) -> list[Any]:
    tensors = [value.clone() for value in model.state_dict().values()]
    for state in optimizer.state_dict()["state"].values():
        tensors += [torch.as_tensor(value).clone() for value in state.values()]
    return tensors


@pytest.fixture
def saved(tmp_path: Path) -> str:
    model, optimizer = run()
    with OperationsManager(tmp_path / "run", checkpoint_config=EVERY_STEP) as ops:
        ops.attach(model=model, optimizer=optimizer)
        return str(ops.on_training_step(1, {"loss": 1.0})["checkpoint_path"])


def refused(saved: str, told: str, model: Any, optimizer: Any) -> None:
    before = everything(model, optimizer)
    with pytest.raises(CheckpointForeign, match=told):
        restore.load(saved, model=model, optimizer=optimizer)
    after = everything(model, optimizer)
    assert all(one.equal(other) for one, other in zip(before, after, strict=True))


def test_it_goes_back_into_its_own(saved: str) -> None:
    model, optimizer = run()
    assert restore.load(saved, model=model, optimizer=optimizer) == ["model", "optimizer"]
    again, other = run()
    restore.load(saved, model=again, optimizer=other)
    pairs = zip(everything(model, optimizer), everything(again, other), strict=True)
    assert all(one.equal(two) for one, two in pairs)


def test_a_link_to_a_checkpoint_is_that_checkpoint(saved: str, tmp_path: Path) -> None:
    link = tmp_path / "latest.pt"
    link.symlink_to(saved)
    model, _ = run()
    assert restore.load(link, model=model) == ["model"]


def test_a_model_of_another_shape_changes_nothing(saved: str) -> None:
    refused(saved, r"0\.weight has shape \(3, 2\); this model wants \(4, 2\)", *run(width=4))


def test_another_model_changes_nothing(saved: str) -> None:
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.Adam(model.parameters())
    refused(saved, "it is of another model: 2 tensors are missing", model, optimizer)


def test_the_optimizer_of_another_model_changes_nothing(saved: str) -> None:
    model, _ = run()
    other = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 1))
    fresh = torch.optim.Adam(other.parameters())
    refused(saved, "the optimizer's exp_avg has another shape than its parameter", model, fresh)
    stepped(other, fresh)
    refused(saved, "the optimizer's exp_avg has another shape than its parameter", model, fresh)


def test_an_optimizer_of_another_kind_changes_nothing(saved: str) -> None:
    refused(saved, "it is of another optimizer", *run(kind="SGD"))


def test_a_part_that_fails_last_puts_all_back(tmp_path: Path) -> None:
    class Part:
        def __init__(self) -> None:
            self.value = 1

        def state_dict(self) -> dict[str, Any]:
            return {"value": self.value}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            if state["value"] == 1:
                self.value = 1
                raise ValueError("no more ones")
            self.value = state["value"]

    model, optimizer = run()
    part = Part()
    with OperationsManager(tmp_path, checkpoint_config=EVERY_STEP) as ops:
        ops.attach(model=model, optimizer=optimizer, extra={"part": part})
        ops.on_training_step(1, {"loss": 1.0})
        part.value = 2
        stepped(model, optimizer)
        before = everything(model, optimizer)
        result = ops.on_training_step(2, {"loss": float("nan")})
        assert result["rollback_path"] is None
        assert any("no more ones" in event for event in result["events"])
        after = everything(model, optimizer)
    assert all(one.equal(other) for one, other in zip(before, after, strict=True))
    assert part.value == 2


def test_a_rollback_passes_by_a_corrupt_checkpoint_and_says_so(tmp_path: Path) -> None:
    model, optimizer = run()
    with OperationsManager(tmp_path, checkpoint_config=EVERY_STEP) as ops:
        ops.attach(model=model, optimizer=optimizer)
        older = ops.on_training_step(1, {"loss": 1.0})["checkpoint_path"]
        newer = ops.on_training_step(2, {"loss": 1.0})["checkpoint_path"]
        raw = bytearray(Path(newer).read_bytes())
        raw[len(raw) // 2] ^= 1
        Path(newer).write_bytes(raw)
        result = ops.on_training_step(3, {"loss": float("nan")})
        assert result["rollback_path"] == older
        assert any("passed by" in event and newer in event for event in result["events"])


def test_a_state_that_is_not_finite_is_an_event(tmp_path: Path) -> None:
    model, optimizer = run()
    with OperationsManager(tmp_path, checkpoint_config=EVERY_STEP) as ops:
        ops.attach(model=model, optimizer=optimizer)
        model[0].bias.data[0] = float("inf")
        result = ops.on_training_step(1, {"loss": 1.0})
        assert result["checkpoint_path"] is None
        assert any("state.model.0.bias is not finite" in event for event in result["events"])


def test_a_skipped_save_is_an_event_even_where_failures_raise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CheckpointConfig(save_interval_steps=1, on_save_error="raise", when_busy="skip")
    with OperationsManager(tmp_path, checkpoint_config=config) as ops:
        ops.on_training_step(1, {"loss": 1.0}, {"w": torch.ones(2)})
        slots = [ops.store._staging.take(wait=True) for _ in range(2)]
        result = ops.on_training_step(2, {"loss": 1.0}, {"w": torch.ones(2)})
        for slot in slots:
            ops.store._staging.give_back(slot)
    assert result["checkpoint_path"] is None
    assert any("still being written" in event for event in result["events"])


def test_a_folder_and_a_plain_file_are_told_apart_from_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="it is a folder; name one of the files in it"):
        files.load(tmp_path)
    torch.save({"w": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"no model\.json beside it: never committed, or no"):
        files.load(tmp_path / "model.pt")
