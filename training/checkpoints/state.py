"""What goes into a checkpoint: tensors and JSON types, nothing that needs a pickle to come back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch

from training.errors import CheckpointForeign, SaveFailed

_SCALARS = (str, int, float, bool, type(None))


def staged(value: Any, place: str = "state") -> Any:
    """A copy that shares no memory with the original: training may go on while it is written.

    `state_dict()` gives the live parameters; what is kept by reference changes with the next step.
    Tensors come to the CPU; tuples become lists; numpy arrays become tensors.

    Raises:
        SaveFailed: something that is neither tensor nor JSON; names the place.
    """
    if isinstance(value, torch.Tensor):
        tensor = value.detach()
        return tensor.clone() if tensor.device.type == "cpu" else tensor.cpu()
    if isinstance(value, Mapping):
        return {_key(key, place): staged(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [staged(item, f"{place}[{number}]") for number, item in enumerate(value)]
    if type(value) in _SCALARS:
        return value
    if hasattr(value, "__array__") and hasattr(value, "dtype"):
        return torch.from_numpy(value.copy()) if getattr(value, "ndim", 0) else value.item()
    raise SaveFailed(
        f"{place} is a {type(value).__name__}; a checkpoint holds tensors, numbers, strings, lists "
        "and dicts"
    )


def _key(key: Any, place: str) -> Any:
    if isinstance(key, (str, int)):
        return key
    raise SaveFailed(f"{place} has the key {key!r}; keys are strings or whole numbers")


def not_finite(value: Any, place: str = "state") -> str | None:
    """The place of the first tensor with a NaN or an infinity in it; None if all is well."""
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point() and not value.is_complex():
            return None
        # One pass and no copy: a sum is finite only if every part is, short of overflow.
        if torch.isfinite(value.sum()) or bool(torch.isfinite(value).all()):
            return None
        return place
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        bad = not_finite(item, f"{place}.{key}")
        if bad is not None:
            return bad
    return None


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
        torch.cuda.set_rng_state_all(state["cuda"])


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
