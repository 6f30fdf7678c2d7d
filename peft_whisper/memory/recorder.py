"""Births and deaths of storages while torch works, in order, with what they are for."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import is_non_overlapping_and_dense_or_false as is_dense
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)
READS = (aten._local_scalar_dense.default, aten.item.default)
PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "temporaries")


@dataclass
class Timeline:
    """What happened: `events` holds i for the birth and ~i for the death of storage i."""

    events: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # bytes of storage i
    made_by: list[str] = field(default_factory=list)  # the operation
    parts: dict[int, str] = field(default_factory=dict)  # of PARTS, where it was said
    phases: list[tuple[int, str]] = field(default_factory=list)  # (first event, name)
    flops: int = 0
    repeated_flops: int = 0  # of these, done again because backward had nothing kept


class Recorder(TorchDispatchMode):
    """While on, writes down each storage of `device` as it comes and goes.

    `scratch`: by operator, the bytes that it takes and gives back by itself, from its arguments.
    """

    def __init__(self, device: str, scratch: Mapping[Any, Callable[..., int]]):
        super().__init__()
        self.device, self.line, self.scratch = device, Timeline(), scratch
        self._repeating = False
        self._live: dict[int, int] = {}  # storage's address -> number
        self._watch: dict[int, Any] = {}  # number -> weak reference
        last_uses()  # counted now: inside, the probe would be recorded

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and saying so costs as much as recording

    def phase(self, name: str) -> None:
        """What happens from now on belongs to `name`."""
        self.line.phases.append((len(self.line.events), name))

    def label(self, part: str, tensors: Iterable[Any]) -> None:
        """Say what these tensors' storages are for; those said before stay what they are."""
        for tensor in tensors:
            if isinstance(tensor, Tensor) and (number := self._see(tensor, part)) is not None:
                self.line.parts.setdefault(number, part)

    def layer(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """`forward` of a layer, whose FLOPs count as repeated when backward calls it again."""

        def watched(*args: Any) -> Any:
            self._repeating = torch._C._current_graph_task_id() != -1
            try:
                return forward(*args)
            finally:
                self._repeating = False

        return watched

    def _birth(self, size: int, made_by: str) -> int:
        line, number = self.line, len(self.line.sizes)
        line.sizes.append(size)
        line.made_by.append(made_by)
        line.events.append(number)
        return number

    def _death(self, key: int, number: int, _reference: Any = None) -> None:
        self._live.pop(key, None)
        self._watch.pop(number, None)
        self.line.events.append(~number)

    def _see(self, tensor: Tensor, made_by: Any) -> int | None:
        if tensor.device.type != self.device:
            return None
        storage = tensor.untyped_storage()
        key = storage._cdata
        number = self._live.get(key)
        if number is not None and storage.nbytes() != self.line.sizes[number]:
            self._death(key, number)  # resized in place
            number = None
        if number is None:
            number = self._live[key] = self._birth(storage.nbytes(), str(made_by))
            gone = functools.partial(self._death, key, number)
            self._watch[number] = weakref.ref(storage, gone)
        return number

    def _passing(self, size: int, made_by: str) -> None:
        """Memory that a kernel takes and gives back by itself."""
        self.line.events.append(~self._birth(size, made_by))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return func(*args)
        kwargs = kwargs or {}
        if func in READS and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else 0  # .item() of what has no value
        if func is aten.add.Tensor and _sums_gradients(args, kwargs):
            return args[0] if isinstance(args[0], FakeTensor) else args[0].add_(args[1])
        out = func(*args, **kwargs)
        for one in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(one, Tensor):
                self._see(one, func)
        self._count(func, args, kwargs, out)
        if func in self.scratch:
            self._passing(self.scratch[func](*args), f"{func} scratch")
        scratch = _cuda_scratch if self.device == "cuda" else _cpu_scratch
        if size := scratch(func, args):
            self._passing(size, f"{func} scratch")
        return out

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        formula: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if formula is None:
            return
        flops = formula(*args, **kwargs, out_val=out)
        self.line.flops += flops
        if self._repeating:
            self.line.repeated_flops += flops


def _uses(tensor: Tensor) -> int:
    count: int = tensor._use_count()  # type: ignore[attr-defined]
    return count + torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


@functools.cache
def last_uses() -> int:
    """What `_uses` says in a dispatch mode of a gradient that autograd's buffer alone holds."""
    seen = []

    class Probe(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is aten.add.Tensor and torch._C._current_graph_task_id() != -1:
                seen.append(_uses(args[0]))
            return func(*args, **(kwargs or {}))

    with torch.enable_grad(), Probe():
        x, w = torch.zeros(2, 2, requires_grad=True), torch.zeros(2, 2)
        torch.autograd.grad((x @ w).sum() + (x @ (w + 1)).sum(), x)
    return max(seen)


def _sums_gradients(args: Any, kwargs: Any) -> bool:
    """Whether autograd, were no mode on, would sum these two gradients of one value in place.

    Where it holds the last reference it does (torch/csrc/autograd/input_buffer.cpp), except while
    a dispatch mode is on: left so, a full fine-tune would seem 9 % larger than it is.
    """
    if torch._C._current_graph_task_id() == -1 or torch.is_grad_enabled() or kwargs:
        return False
    if len(args) != 2 or not isinstance(args[1], Tensor):
        return False
    first, second = args
    same = first.shape == second.shape and first.dtype == second.dtype
    return same and _uses(first) <= last_uses() and is_dense(first)


def _cpu_scratch(func: Any, args: Any) -> int:
    """Bytes of the copies that the CPU makes where two tensors of different types are added."""
    if func not in (aten.add_.Tensor, aten.add.Tensor) or not isinstance(args[1], Tensor):
        return 0
    common = torch.promote_types(args[0].dtype, args[1].dtype)
    cast = [one for one in args[:2] if one.dtype != common and one.ndim]
    return sum(one.numel() * common.itemsize for one in cast)


def _cuda_scratch(func: Any, args: Any) -> int:
    """Bytes that a CUDA kernel takes inside itself, which no shape function shows."""
    name = func._schema.name
    if name.endswith("flash_attention_backward"):  # fp32 sum of dq, and delta; rows padded to 128
        batch, heads, rows, width = args[1].shape
        return batch * heads * _up(rows, 128) * (_up(width, 32) + 1) * 4
    if name.endswith("efficient_attention_backward"):  # the same, where q is 16 bits
        batch, heads, rows, width = args[1].shape
        sums = _up(width, 32) if args[1].dtype in HALF else 0
        return batch * heads * _up(rows, 32) * (sums + 1) * 4
    return 0


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
