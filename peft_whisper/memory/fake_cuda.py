"""Tensors on a CUDA card that is not there: shapes, types and lifetimes, without storage.

torch's FakeTensorMode gives forward. What it does not give on a machine without a card, and how it
is mended here (torch 2.13; all of it undone on leaving):

- C++ asks a fake tensor for its device, and autograd would look for CUDA's device guard and
  streams. Here C++ sees the `meta` tensor that a fake one is made of, so backward runs on the CPU's
  queue; Python still sees cuda:0. (It is faster too: else each question costs a call of Python.)
- C++ then takes no tensor for a CUDA one, so what CUDA builds do above the dispatcher is done
  here: autocast, fused dropout, the choice of attention kernel. Checked against C++'s own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from peft_whisper.memory.fake_mode import FakeMode

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)
CUDA = torch.device("cuda", 0)
ANSWERS = {
    "torch.cuda.amp.common.amp_definitely_not_available": False,
    "torch.cuda.is_bf16_supported": True,
    "torch.cuda.synchronize": None,
    "torch.cuda.empty_cache": None,
    "bitsandbytes.functional.prefetch_tensor": None,
    "bitsandbytes.functional.fill": None,
}


@contextmanager
def fake_cuda(flash: bool) -> Iterator[None]:
    """All tensors made inside have no storage, and those on "cuda" behave as on a card.

    `flash`: the card has flash attention for 16 bits (compute capability 8.0 or more).
    """
    real = torch.Tensor._make_subclass

    def make(*args: Any, **kwargs: Any) -> Any:
        of = kwargs.get("device_for_backend_keys")
        if of is not None and of.type == "cuda":
            kwargs["dispatch_device"] = False  # C++ sees the `meta` tensor inside
        return real(*args, **kwargs)

    functions = _CudaFunctions(flash)
    with ExitStack() as stack:
        patch = stack.enter_context
        patch(mock.patch.object(torch.Tensor, "_make_subclass", make))
        patch(mock.patch.object(torch.nn.Module, "_apply", _apply))
        patch(mock.patch.object(torch, "clear_autocast_cache", functions.casts.clear))
        for name, answer in ANSWERS.items():
            patch(mock.patch(name, return_value=answer))
        # bitsandbytes keeps paged state in memory that CUDA moves: the host's, when space is short.
        patch(mock.patch("bitsandbytes.functional.get_paged", _on_host))
        patch(_FakeCudaMode(allow_non_fake_inputs=True))
        patch(functions)
        yield


@contextmanager
def fake_cpu() -> Iterator[None]:
    """All tensors made inside have no storage and are the CPU's, where C++ needs no help."""
    with (
        mock.patch.object(torch.nn.Module, "_apply", _apply),
        FakeMode(allow_non_fake_inputs=True),
        _Answers(),
    ):
        yield


class _FakeCudaMode(FakeMode):
    """C++ factories that copied the answer `meta` make cuda tensors again."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = kwargs.get("device") if kwargs else None
        if device is not None and torch.device(device).type == "meta":
            kwargs = {**kwargs, "device": CUDA}
        return super().dispatch(func, types, args, kwargs or {})


def _on_host(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    made: Any = torch.empty(shape, dtype=dtype)
    made.is_paged = True
    return made


def _apply(self: torch.nn.Module, fn: Any, recurse: bool = True) -> torch.nn.Module:
    """nn.Module._apply for fakes: torch's own swaps tensors in place, and fakes have weakrefs."""
    done: dict[int, torch.nn.Parameter] = {}
    with torch.no_grad():
        for module in self.modules() if recurse else [self]:
            for name, old in module._parameters.items():
                if old is None:
                    continue
                if id(old) not in done:
                    new = fn(old)
                    if new is not old and not isinstance(new, torch.nn.Parameter):
                        new = torch.nn.Parameter(new, old.requires_grad)
                    done[id(old)] = new
                module._parameters[name] = done[id(old)]
            for name, buffer in module._buffers.items():
                module._buffers[name] = buffer if buffer is None else fn(buffer)
    return self


class _Answers(TorchFunctionMode):
    """Answers to the questions about values that a training step asks; and backward inside it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.answer(func, getattr(func, "__name__", ""), args, kwargs or {})

    def answer(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        if name == "tolist":  # a loss and a norm: finite
            return [0.0] * args[0].numel() if args[0].ndim else 0.0
        if name == "backward":
            return self._backward(*args, **kwargs)
        return func(*args, **kwargs)

    def _backward(self, loss: Tensor, *_: Any, **__: Any) -> None:
        """loss.backward() with this mode on, or recomputation would run without it."""
        with self:
            _engine_run_backward(
                (loss,),
                (torch.ones_like(loss),),
                False,
                False,
                (),
                allow_unreachable=True,
                accumulate_grad=True,
            )


# Of the lists in aten/src/ATen/autocast_mode.h, what Whisper and its training call.
LOW = {"linear", "matmul", "mm", "bmm", "addmm", "conv1d", "scaled_dot_product_attention"}
FP32 = {"layer_norm", "exp", "log", "pow", "rsqrt", "norm", "nll_loss"}
FP32_UNLESS_GIVEN = {"softmax", "log_softmax", "sum"}
ABOVE = {"to", "tensor", "dropout", "tolist", "backward"} | LOW | FP32 | FP32_UNLESS_GIVEN


class _CudaFunctions(_Answers):
    """What CUDA builds do above the dispatcher."""

    def __init__(self, flash: bool):
        super().__init__()
        self.flash = flash
        self.casts: dict[int, Tensor] = {}  # of weights, until the outermost autocast ends

    def answer(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        if name not in ABOVE:
            return func(*args, **kwargs)
        if name == "to" and (device := _device_in(args[1:], kwargs)) is not None:
            return _move(args[0], device, args[1:], kwargs)
        if name == "tensor" and _device_in((), kwargs) is not None:
            made = func(*args, **{key: one for key, one in kwargs.items() if key != "device"})
            return _move(made, CUDA, (), {})
        if name == "dropout":
            return self._dropout(*args, **kwargs)
        if torch.is_autocast_enabled("cuda") and (dtype := self._autocast_to(name, kwargs)):
            args = [self._cast(one, dtype) for one in args]
            kwargs = {key: self._cast(one, dtype) for key, one in kwargs.items()}
        if name == "scaled_dot_product_attention" and args[0].device.type == "cuda":
            return self._attention(*args, **kwargs)
        return super().answer(func, name, args, kwargs)

    @staticmethod
    def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return aten.native_dropout(x, p, True)[0] if training and p > 0 else x

    def _autocast_to(self, name: str, kwargs: dict[str, Any]) -> torch.dtype | None:
        if name in LOW:
            return torch.get_autocast_dtype("cuda")
        given = kwargs.get("dtype") is not None
        single = name in FP32 or (name in FP32_UNLESS_GIVEN and not given)
        return torch.float32 if single else None

    def _cast(self, one: Any, dtype: torch.dtype) -> Any:
        if isinstance(one, list | tuple):
            return type(one)(self._cast(each, dtype) for each in one)
        if not isinstance(one, Tensor) or not one.is_floating_point() or one.dtype == dtype:
            return one
        kept = one.dtype == torch.float32 and one.requires_grad and one.is_leaf
        if dtype not in HALF or not kept or not torch.is_autocast_cache_enabled():
            return one.to(dtype)
        if id(one) not in self.casts:
            self.casts[id(one)] = one.to(dtype)
        return self.casts[id(one)]

    def _attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """The choice of aten/native/transformers/cuda/sdp_utils.cpp: flash, or else efficient."""
        if self.flash and q.dtype in HALF and attn_mask is None and q.shape[-1] <= 256:
            return aten._scaled_dot_product_flash_attention(
                q, k, v, dropout_p, is_causal, False, scale=scale
            )[0]
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill_(
                    ~attn_mask, -math.inf
                )
            if spare := -attn_mask.shape[-1] % 8:  # pad_bias<8>
                attn_mask = F.pad(attn_mask, (0, spare))[..., :-spare]
            attn_mask = attn_mask.expand(*q.shape[:3], k.shape[2])
        learns = torch.is_grad_enabled() and any(one.requires_grad for one in (q, k, v))
        return aten._scaled_dot_product_efficient_attention(
            q, k, v, attn_mask, learns, dropout_p, is_causal, scale=scale
        )[0]


def _device_in(args: Any, kwargs: dict[str, Any]) -> torch.device | None:
    """The card that a call of .to() names; None where it names none."""
    named = [
        one for one in (*args[:1], kwargs.get("device")) if isinstance(one, str | torch.device)
    ]
    device = torch.device(named[0]) if named else None
    return CUDA if device is not None and device.type == "cuda" else None


def _move(tensor: Tensor, device: torch.device, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """tensor.to(device, ...): C++ would ask CUDA, or compare with `meta` and copy."""
    given = [one for one in (*args, kwargs.get("dtype")) if isinstance(one, torch.dtype)]
    dtype = given[0] if given else tensor.dtype
    if tensor.device == device and tensor.dtype == dtype:
        return tensor
    if tensor.device.type == "cuda":
        return tensor.to(dtype)
    return torch.empty(tensor.shape, device=device, dtype=dtype)  # a constant would be computed
