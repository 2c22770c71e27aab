"""What a checkpoint can hold beyond weights, once the manager knows the parts of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

from training.errors import CheckpointForeign


class Stateful(Protocol):
    """Anything whose whole state can be taken and put back."""

    def state_dict(self) -> Any:
        """The state: tensors and JSON types."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Become `state`."""
        ...


class Attached:
    """The parts of one run: model, optimizer, and whatever else has a state.

    Attributes:
        model, optimizer: as given, None if not.
        extra: further parts by name.
        infinite: where the model's buffers were not finite when it was attached, such as the -inf
            of an attention mask: nothing that training broke, so no reason not to save.
    """

    def __init__(self) -> None:
        self.model: Any = None
        self.infinite: frozenset[str] = frozenset()
        self.optimizer: Any = None
        self.extra: dict[str, Stateful] = {}

    def add(self, model: Any, optimizer: Any, extra: Mapping[str, Stateful]) -> None:
        """Take parts in; None leaves what there is.

        Raises:
            TypeError: one cannot be saved and put back; nothing was taken in.
        """
        for name, part in {"model": model, "optimizer": optimizer, **extra}.items():
            if part is not None and not (
                callable(getattr(part, "state_dict", None))
                and callable(getattr(part, "load_state_dict", None))
            ):
                kind = type(part).__name__
                raise TypeError(
                    f"attach({name}=...): a {kind} has no state_dict() and load_state_dict(); "
                    "attach what holds the weights, such as a torch.nn.Module or an optimizer"
                )
        if model is not None:
            self.model, self.infinite = model, _infinite_buffers(model)
        self.optimizer = self.optimizer if optimizer is None else optimizer
        self.extra.update(extra)

    def __bool__(self) -> bool:
        return self.model is not None or self.optimizer is not None or bool(self.extra)

    def payload(self) -> dict[str, Any]:
        """The state of every part, and of the random generators."""
        from training.checkpoints.state import rng_state  # noqa: PLC0415

        return {"rng": rng_state(), **self._parts()}

    def _parts(self) -> dict[str, Any]:
        payload: dict[str, Any] = {}
        if self.model is not None:
            payload["model"] = self.model.state_dict()
        if self.optimizer is not None:
            payload["optimizer"] = self.optimizer.state_dict()
        if self.extra:
            payload["extra"] = {name: part.state_dict() for name, part in self.extra.items()}
        return payload

    def restore(self, payload: Mapping[str, Any], path: str, *, rng: bool) -> list[str]:
        """Put every part back, or none.

        Args:
            rng: whether the random generators go back, too: for a resume, not for a rollback.

        Returns:
            What was restored.

        Raises:
            CheckpointForeign: it is of another run; nothing has changed.
        """
        from training.checkpoints.staging import copied  # noqa: PLC0415
        from training.checkpoints.state import (  # noqa: PLC0415
            check_fits,
            check_optimizer,
            set_rng_state,
        )

        if self.model is not None and "model" in payload:
            check_fits(self.model, payload["model"], path)
        if self.optimizer is not None and "optimizer" in payload:
            check_optimizer(self.optimizer, payload["optimizer"], path)
        before = copied(self._parts())
        try:
            restored = self._put(payload)
        except Exception as error:
            self._put(before)
            raise CheckpointForeign(f"it does not fit this run: {error}", path=path) from error
        if rng and "rng" in payload:
            set_rng_state(payload["rng"])
            restored.append("rng")
        return restored

    def _put(self, payload: Mapping[str, Any]) -> list[str]:
        restored = []
        if self.model is not None and "model" in payload:
            self.model.load_state_dict(payload["model"])
            restored.append("model")
        if self.optimizer is not None and "optimizer" in payload:
            self.optimizer.load_state_dict(payload["optimizer"])
            restored.append("optimizer")
        saved = payload.get("extra", {})
        for name, part in self.extra.items():
            if name in saved:
                part.load_state_dict(_counted(saved[name], part.state_dict()))
                restored.append(name)
        return restored


def _infinite_buffers(model: Any) -> frozenset[str]:
    buffers = getattr(model, "named_buffers", None)
    if buffers is None:
        return frozenset()
    from training.checkpoints.state import not_finite  # noqa: PLC0415

    places = ((f"state.model.{name}", buffer) for name, buffer in buffers())
    return frozenset(place for place, buffer in places if not_finite(buffer) is not None)


def _counted(saved: Any, own: Any) -> Any:
    """`saved` with counters where `own` has them: a checkpoint knows plain dicts only, and
    `MultiStepLR` asks its milestones for more."""
    if isinstance(saved, dict) and isinstance(own, Mapping):
        inside = {name: _counted(value, own.get(name)) for name, value in saved.items()}
        return Counter(inside) if isinstance(own, Counter) else inside
    if isinstance(saved, list) and isinstance(own, (list, tuple)) and len(saved) == len(own):
        return [_counted(value, there) for value, there in zip(saved, own, strict=True)]
    return saved
