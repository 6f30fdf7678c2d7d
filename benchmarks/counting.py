"""One training step's FLOPs, bytes, kernels and host syncs, counted while it is traced.

The step runs on fake tensors under `memory.fake_cuda`. Each operator that it calls is seen below
autograd, so forward, backward, recomputation and the optimizer are counted alike. Operators of
our own are counted by what they run inside.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from launches import launch_of, on_card, tensors
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from peft_whisper.memory import fake_cuda

aten, Key = torch.ops.aten, torch._C.DispatchKey
KERNELS_OF = ("aten", "prims", "prim", "bitsandbytes")  # others' operators run those of these
# The host waits for their result, or for the size of it.
WAITS = {
    aten._local_scalar_dense,
    aten.item,
    aten.is_nonzero,
    aten.equal,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.repeat_interleave,
    aten.bincount,
}
# torch's table has the products that make a new tensor alone.
flop_registry.setdefault(aten.addmm_, flop_registry[aten.addmm])
flop_registry.setdefault(aten.baddbmm_, flop_registry[aten.baddbmm])
PINNED = "in_pinned_memory"  # attribute of a fake tensor that stands for a pinned one
FOREIGN = ("/torch/", "/benchmarks/counting.py", "/unittest/", "/contextlib.py", "/memory/")


@dataclass(frozen=True, order=True)
class Place:
    """Where an operator ran: forward, backward or update; of which part of the model; its name."""

    stage: str
    part: str
    operator: str


@dataclass(frozen=True)
class Sync:
    """The host waited for the card: what it called, in which stage, at which line."""

    stage: str
    what: str
    where: str


@dataclass
class Tally:
    """Sums by place, and every sync in order.

    The parts are encoder, decoder (with all that is not the encoder) and optimizer.
    """

    flops: Counter[Place] = field(default_factory=Counter)
    moved: Counter[Place] = field(default_factory=Counter)  # bytes read and written
    kernels: Counter[Place] = field(default_factory=Counter)
    syncs: list[Sync] = field(default_factory=list)


class Meter(TorchDispatchMode):
    """Counts while `watching`; `stage` is what the step does outside of forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.tally = Tally()
        self._stage = "update"
        self._hearing = False  # the encoder's forward is going on
        self._heard = range(0)  # autograd's numbers of the encoder's nodes

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and saying so costs as much as counting

    def micro_step(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, all of which is a micro-step: its forward, or its backward."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            before, self._stage = self._stage, "forward"
            try:
                return work(*args, **kwargs)
            finally:
                self._stage = before

        return watched

    def watch_encoder(self, encoder: torch.nn.Module) -> None:
        """Tell what the encoder does from all else, in backward too."""

        def begin(*_: Any) -> None:
            self._hearing = True
            self._heard = range(torch.autograd._get_sequence_nr(), 0)

        def end(*_: Any) -> None:
            self._hearing = False
            self._heard = range(self._heard.start, torch.autograd._get_sequence_nr())

        encoder.conv1.register_forward_pre_hook(begin)
        encoder.layer_norm.register_forward_hook(end)

    def watching(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, counted."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self._syncs_of_python(), self:
                return work(*args, **kwargs)

        return watched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (key := _written_in_python(func)) is not None:
            with self:
                return func._op_dk(key, *args, **kwargs)
        self._count_sync(func, args)
        out = func(*args, **kwargs)
        self._count_copy(func, args, kwargs, out)
        launch = launch_of(func, args, kwargs, out)
        if launch.kernels:
            place = Place(self._now(), self._part(), str(func))
            self.tally.kernels[place] += launch.kernels
            self.tally.moved[place] += launch.moved
            if formula := flop_registry.get(func._overloadpacket):
                self.tally.flops[place] += formula(*args, **kwargs, out_val=out)
        return out

    def _now(self) -> str:
        walking = torch._C._current_graph_task_id() != -1
        return "backward" if walking else self._stage

    def _part(self) -> str:
        if self._now() == "update":
            return "optimizer"
        node = torch._C._current_autograd_node()
        heard = self._hearing if node is None else node._sequence_nr() in self._heard
        return "encoder" if heard else "decoder"

    def _count_sync(self, func: Any, args: Any) -> None:
        packet = func._overloadpacket
        if not any(map(on_card, tensors(args))):
            return
        if packet in WAITS:
            self._sync(str(packet))
        elif packet in (aten.index, aten.index_put, aten.index_put_) and any(
            one.dtype in (torch.bool, torch.uint8) for one in tensors(args[1])
        ):
            self._sync(f"{packet} with a mask")

    def _count_copy(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """A copy between the host and the card, for which the host waits unless told otherwise."""
        source = {aten._to_copy: 0, aten.copy_: 1}.get(func._overloadpacket)
        if source is None or kwargs.get("non_blocking") or args[2:3] == (True,):
            return
        there, here = on_card(args[source]), on_card(out)
        if there != here:
            self._sync("copy to the host" if there else "copy to the card")

    def _sync(self, what: str) -> None:
        self.tally.syncs.append(Sync(self._now(), what, _caller()))

    def _count_python_sync(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """As `_count_sync`, of what the fake card answers before an operator is called."""
        if name == "tensor" and on_card(out):
            self._sync("torch.tensor on the card")
        elif name == "to" and on_card(out) and not on_card(args[0]):
            if not kwargs.get("non_blocking"):
                self._sync("copy to the card")
            elif not hasattr(args[0], PINNED):
                self._sync("copy to the card from memory that is not pinned")

    @contextmanager
    def _syncs_of_python(self) -> Iterator[None]:
        real, tolist = fake_cuda._CudaFunctions.answer, FakeTensor.tolist

        def answer(functions: Any, func: Any, name: str, args: Any, kwargs: Any) -> Any:
            out = real(functions, func, name, args, kwargs)
            self._count_python_sync(name, args, kwargs, out)
            return out

        def listed(tensor: FakeTensor) -> Any:  # a fake one asks for its elements one by one
            known = len(self.tally.syncs)
            out = tolist(tensor)
            if on_card(tensor):
                del self.tally.syncs[known:]
                self._sync("tolist")
            return out

        waited = mock.Mock(side_effect=lambda *_: self._sync("torch.cuda.synchronize"))
        with (
            mock.patch.object(fake_cuda._CudaFunctions, "answer", answer),
            mock.patch.object(FakeTensor, "tolist", listed),
            mock.patch.object(torch.cuda, "synchronize", waited),
        ):
            yield


def _written_in_python(func: Any) -> Any:
    """Where the operator is made of other operators, the key of its code; else None."""
    own = func.namespace not in KERNELS_OF
    keys = (Key.CUDA, Key.CompositeExplicitAutograd) if own else ()
    for key in (*keys, Key.CompositeImplicitAutograd):
        if func.has_kernel_for_dispatch_key(key):
            return key
    return None


def _caller() -> str:
    """The line that made the host wait: the nearest that is not torch's or the counter's."""
    frame = sys._getframe(1)
    while frame.f_back and any(part in frame.f_code.co_filename for part in FOREIGN):
        frame = frame.f_back
    path = frame.f_code.co_filename.rpartition("site-packages/")[2]
    return f"{'/'.join(path.split('/')[-3:])}:{frame.f_lineno}"
