"""What a run's state must be: finite to be saved, of this very model to be put back."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import Any

import torch

from training.checkpoints.staging import Slot, finite
from training.errors import CheckpointForeign, SaveFailed


def not_finite(value: Any, place: str = "state", but: Collection[str] = frozenset()) -> str | None:
    """The place of the first tensor with a NaN or an infinity in it; None if all is well.

    Args:
        but: places that may be so.
    """
    if place in but:
        return None
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point() and not value.is_complex():
            return None
        return None if finite(value) else place
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list) and not (value and type(value[0]) in (int, float)):
        items = enumerate(value)
    for key, item in items:
        bad = not_finite(item, f"{place}.{key}", but)
        if bad is not None:
            return bad
    return None


def see_that_it_is_finite(slot: Slot, but: Collection[str] = frozenset()) -> None:
    """Raises SaveFailed, naming the place, if what is staged is not; see `not_finite`."""
    if not slot.is_finite():
        place = not_finite(slot.value(), but=but)
        if place is not None:
            raise SaveFailed(f"{place} is not finite; what is broken is not saved")


def rng_state() -> dict[str, Any]:
    """Every random generator's state, in types `torch.load(weights_only=True)` gives back."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "torch": torch.get_rng_state(),
    }
    try:
        import numpy as np  # noqa: PLC0415
    except ImportError:
        pass
    else:
        numpy: Any = np.random.get_state(legacy=False)
        state["numpy"] = {
            "name": numpy["bit_generator"],
            "keys": torch.from_numpy(numpy["state"]["key"].astype("int64")),
            "position": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "cached": float(numpy["gauss"]),
        }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put every generator back where `rng_state` found it."""
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    torch.set_rng_state(state["torch"])
    if "numpy" in state:
        import numpy as np  # noqa: PLC0415

        numpy = state["numpy"]
        np.random.set_state(
            (
                numpy["name"],
                numpy["keys"].numpy().astype("uint32"),
                numpy["position"],
                numpy["has_gauss"],
                numpy["cached"],
            )
        )
    if "cuda" in state and torch.cuda.is_available():
        # There may be fewer of them here than where it was taken.
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


def reseed(seed: int) -> None:
    """Seed every generator: after a rollback the same seed would replay the same spike."""
    random.seed(seed)
    torch.manual_seed(seed)
    try:
        import numpy as np  # noqa: PLC0415
    except ImportError:
        return
    np.random.seed(seed % 2**32)


def check_fits(model: Any, saved: Mapping[str, Any], path: str) -> None:
    """See that a saved model fits, before anything is put into it.

    Raises:
        CheckpointForeign: a tensor is missing, too much, or of another shape; names it.
    """
    own = model.state_dict()
    missing = sorted(own.keys() - saved.keys())
    extra = sorted(saved.keys() - own.keys())
    if missing or extra:
        raise CheckpointForeign(
            f"it is of another model: {len(missing)} tensors are missing {missing[:3]}, "
            f"{len(extra)} unknown {extra[:3]}",
            path=path,
        )
    for name, tensor in own.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        other = saved[name]
        if not isinstance(other, torch.Tensor) or other.shape != tensor.shape:
            shape = tuple(getattr(other, "shape", ()))
            raise CheckpointForeign(
                f"{name} has shape {shape}; this model wants {tuple(tensor.shape)}", path=path
            )


def check_optimizer(optimizer: Any, saved: Any, path: str) -> None:
    """See that a saved optimizer is of this kind and of these parameters.

    `load_state_dict` itself compares only counts: moments of another shape would go in and fail in
    the next step.

    Raises:
        CheckpointForeign: names what differs.
    """
    try:
        groups, states = saved["param_groups"], saved["state"]
        ours = [group["params"] for group in optimizer.param_groups]
        theirs = [group["params"] for group in groups]
        known = set(optimizer.param_groups[0]) ^ set(groups[0])
    except (KeyError, TypeError, IndexError):
        raise CheckpointForeign("its optimizer's state is none", path=path) from None
    if known & _KINDS:
        raise CheckpointForeign(
            f"it is of another optimizer: {sorted(known & _KINDS)} are not common to both",
            path=path,
        )
    if [len(each) for each in ours] != [len(each) for each in theirs]:
        raise CheckpointForeign("it is of an optimizer of other parameters", path=path)
    flat = (
        (parameter, states.get(number, {}))
        for mine, numbers in zip(ours, theirs, strict=True)
        for parameter, number in zip(mine, numbers, strict=True)
    )
    for parameter, state in flat:
        own = optimizer.state.get(parameter, {})
        for name, value in state.items():
            wanted = own.get(name, parameter if name in _MOMENTS else None)
            if not isinstance(value, torch.Tensor) or not isinstance(wanted, torch.Tensor):
                continue
            if value.shape != wanted.shape:
                raise CheckpointForeign(
                    f"the optimizer's {name} has another shape than its parameter", path=path
                )


# What tells one kind of optimizer from another, whatever the version of torch.
_KINDS = frozenset(("betas", "momentum", "alpha", "rho", "lr_decay", "etas", "lambd", "max_iter"))
# What has the shape of its parameter in torch's own optimizers.
_MOMENTS = frozenset(
    ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "exp_inf")
)
