"""Copies of a run's state that training cannot reach: into the same memory, save after save.

`state_dict()` gives the live parameters; what is kept by reference changes with the next step. A
fresh copy of 100 MB costs eight times as long as one into memory that is already there, most of
it page faults. So there are two slots: one may be written while the next is filled.
"""

from __future__ import annotations

import cmath
import mmap
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from training.errors import SaveFailed

SLOTS = 2
_SCALARS = frozenset((str, int, float, bool, type(None)))
_KEYS = frozenset((str, int))
_ALIGNED = 64  # bytes: every tensor starts at a cache line


@dataclass(slots=True)
class Leaf:
    """Where a tensor was: its number."""

    number: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in a slot's memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class _Unfit(Exception):
    """What cannot be saved; each level on the way out adds where it was."""

    def __init__(self, told: str) -> None:
        self.told = told
        self.place: list[str] = []


def outlined(value: Any, tensors: list[torch.Tensor]) -> Any:
    """`value` with its tensors moved to `tensors`; tuples become lists, numpy arrays tensors.

    Raises:
        SaveFailed: something that is neither a tensor nor JSON; names the place.
    """
    try:
        return value if type(value) in _SCALARS else _outlined(value, tensors)
    except _Unfit as unfit:
        raise SaveFailed(f"state{''.join(reversed(unfit.place))} {unfit.told}") from None


def _outlined(value: Any, tensors: list[torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_quantized:
            raise _Unfit("is a sparse or quantized tensor; save it with .to_dense()")
        tensors.append(value.detach() if value.requires_grad else value)
        return Leaf(len(tensors) - 1)
    if isinstance(value, (dict, Mapping)):
        return _outlined_mapping(value, tensors)
    if isinstance(value, (list, tuple)):
        if set(map(type, value)) <= _SCALARS:  # a thousand rewards, a generator's 625 words
            return list(value)
        items = _outlined_mapping(dict(enumerate(value)), tensors, "[{}]")
        return list(items.values())
    plain = _from_numpy(value)
    return plain if type(plain) in _SCALARS else _outlined(plain, tensors)


def _outlined_mapping(
    value: Mapping[Any, Any], tensors: list[torch.Tensor], place: str = ".{}"
) -> dict[Any, Any]:
    found = {}
    key: Any = None
    try:
        for key, item in value.items():
            found[key] = item if type(item) in _SCALARS else _outlined(item, tensors)
    except _Unfit as unfit:
        unfit.place.append(place.format(key))
        raise
    if not set(map(type, found)) <= _KEYS:
        for key in found:
            if not isinstance(key, (str, int)):
                raise _Unfit(f"has the key {key!r}; keys are strings or whole numbers")
    return found


def filled(value: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """The reverse of `outlined`."""
    if isinstance(value, Leaf):
        return tensors[value.number]
    if isinstance(value, dict):
        return {key: filled(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        if set(map(type, value)) <= _SCALARS:
            return value
        return [filled(item, tensors) for item in value]
    return value


def copied(value: Any) -> Any:
    """A copy that shares no memory with the original, on the CPU."""
    tensors: list[torch.Tensor] = []
    tree = outlined(value, tensors)
    return filled(
        tree, [each.clone() if each.device.type == "cpu" else each.cpu() for each in tensors]
    )


def tensors_in(memory: Any, places: Sequence[Place]) -> list[torch.Tensor]:
    """The tensors that lie in a slot's memory, each with a storage of its own size."""
    found = []
    for place in places:
        count = 1
        for length in place.shape:
            count *= length
        flat = (
            torch.frombuffer(memory, dtype=place.dtype, count=count, offset=place.offset)
            if count
            else torch.empty(0, dtype=place.dtype)
        )
        found.append(flat.reshape(place.shape))
    return found


class Slot:
    """Memory for one state, allocated anew only when the state changes its shape.

    Args:
        shared: memory another process can map: see `descriptor`.

    Attributes:
        tree: what was staged, without its tensors.
        places: where the tensors lie.
        tensors: the copies; to be read after `ready`.
        size: bytes in use.
        descriptor: of the shared memory; None if it is our own.
    """

    def __init__(self, *, shared: bool) -> None:
        self.descriptor = _shared_memory() if shared else None
        self.tree: Any = None
        self.places: list[Place] = []
        self.tensors: list[torch.Tensor] = []
        self.size = 0
        self._memory: Any = None
        self._wanted: list[tuple[torch.Size, torch.dtype]] | None = None
        self._numbers: list[torch.Tensor] = []
        self._copies: Any = None

    def fill(self, value: Any) -> None:
        """Copy `value` in. Raises SaveFailed if it cannot be saved."""
        tensors: list[torch.Tensor] = []
        tree = outlined(value, tensors)
        on_cuda = _on_one_gpu(tensors)  # from several, plain copies that wait
        wanted = [(tensor.shape, tensor.dtype) for tensor in tensors]
        if wanted != self._wanted:
            self._lay_out(tensors, pinned=on_cuda)
            self._wanted = wanted
        self.tree = tree
        if on_cuda:
            self._copies = _copy_beside(self.tensors, tensors)
        else:
            for copy, tensor in zip(self.tensors, tensors, strict=True):
                copy.copy_(tensor)

    def ready(self) -> None:
        """Wait for copies from a GPU."""
        if self._copies is not None:
            self._copies.synchronize()
            self._copies = None

    def value(self) -> Any:
        """What was staged; it is the slot's own memory, and valid until the next `fill`."""
        self.ready()
        return filled(self.tree, self.tensors)

    def is_finite(self) -> bool:
        """Whether there is neither NaN nor infinity in it; one pass over each kind of number."""
        self.ready()
        return all(map(finite, self._numbers))

    def close(self) -> None:
        """Let go of the memory."""
        self.tensors, self._numbers, self._memory, self.places = [], [], None, []
        self._wanted = None
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def _lay_out(self, tensors: Sequence[torch.Tensor], *, pinned: bool) -> None:
        self._wanted = None  # should there be no memory, what was laid out before is gone, too
        offset, found, runs = 0, {}, []
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            start = offset  # numbers of a kind lie together, with zeros in the gaps
            for number, tensor in enumerate(tensors):
                if tensor.dtype == dtype:
                    found[number] = Place(offset, tuple(tensor.shape), dtype)
                    offset += -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
            if dtype.is_floating_point or dtype.is_complex:
                runs.append(Place(start, ((offset - start) // dtype.itemsize,), dtype))
        self.tensors, self._numbers = [], []
        self._memory = self._allocate(max(offset, 1), pinned=pinned)
        self.places, self.size = [found[number] for number in range(len(tensors))], offset
        self.tensors = tensors_in(self._memory, self.places)
        self._numbers = tensors_in(self._memory, runs)

    def _allocate(self, size: int, *, pinned: bool) -> Any:
        if self.descriptor is not None:
            os.ftruncate(self.descriptor, 0)
            os.ftruncate(self.descriptor, size)  # zeros
            return mmap.mmap(self.descriptor, size)
        if pinned:
            return torch.zeros(size, dtype=torch.uint8, pin_memory=True).numpy()
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)  # 512 times fewer page faults in the first save
        return memory


class Staging:
    """The slots of one folder's writer.

    Args:
        shared: see `Slot`.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self.slots = [Slot(shared=shared) for _ in range(SLOTS)]
        self._free = list(self.slots)
        self._changed = threading.Condition()

    def take(self, *, wait: bool) -> Slot | None:
        """A free slot, the one last used if it is; None if both are taken and `wait` is False."""
        with self._changed:
            while wait and not self._free:
                self._changed.wait()
            return self._free.pop() if self._free else None

    def give_back(self, slot: Slot) -> None:
        """What was in it is written, or will never be."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify()

    def close(self) -> None:
        """Let go of all memory; nothing may be under way."""
        for slot in self.slots:
            slot.close()


def finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    if tensor.dtype.itemsize == 1:  # torch does not add 8-bit floats
        tensor = tensor.float()
    # One pass and no copy: a sum is finite only if every part is, short of overflow.
    return cmath.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())


def _copy_beside(copies: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> Any:
    """Copy from a GPU on a stream of its own; return the event that ends it.

    The present stream waits for the copies before its next kernel, so that the optimizer's next
    step cannot overtake them; the host waits for nothing. Written by the book, not tested on a GPU.
    """
    device = next(tensor.device for tensor in tensors if tensor.device.type == "cuda")
    present, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(present)
    with torch.cuda.stream(side):
        for copy, tensor in zip(copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        done = torch.cuda.Event()
        done.record(side)
    present.wait_stream(side)
    return done


def _shared_memory() -> int:
    """A descriptor of memory without a name: it is gone with the last process that holds it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("checkpoint")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _on_one_gpu(tensors: Sequence[torch.Tensor]) -> bool:
    for tensor in tensors:
        if not tensor.is_cpu:
            return len({each.device for each in tensors if each.is_cuda}) == 1
    return False


def _from_numpy(value: Any) -> Any:
    if not (hasattr(value, "__array__") and hasattr(value, "dtype")):
        raise _Unfit(
            f"is a {type(value).__name__}; a checkpoint holds tensors, numbers, strings, "
            "lists and dicts"
        )
    try:
        plain = torch.from_numpy(value.copy()) if getattr(value, "ndim", 0) else value.item()
    except TypeError:
        plain = None
    if plain is None or not isinstance(plain, (torch.Tensor, str, int, float, bool)):
        raise _Unfit(f"is of numpy's {value.dtype}, which torch does not have")
    return plain
