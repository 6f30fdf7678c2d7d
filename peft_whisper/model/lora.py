"""peft's LoRA layer, y = W x + b + s B (A drop(x)), as one sum forward and one sweep backward.

Written as modules, it keeps a dropped copy of each input, adds up gradients that could be products'
sums, and takes some sixty steps of autograd. Here three operators (lora_ops.py) do it. Kept for
backward are x, which other layers keep too, and the mask of what was dropped; B's product is added
into W's as it is made, and so are the gradients of x.

Files, merging and all else are peft's.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from peft_whisper.model.lora_ops import lora
from peft_whisper.model.quantized import FrozenLinear


class Linear(PeftLinear):
    """LoRA beside a frozen linear layer, which may be held in 8 or 4 bits."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., inputs) -> (..., outputs), in autocast's type or that of `x`."""
        active = self.active_adapters
        usual = len(active) == 1 and active[0] in self.lora_A and not (args or kwargs)
        if not usual or self.merged or self.disable_adapters or active[0] in self.lora_variant:
            return super().forward(x, *args, **kwargs)
        (name,) = active
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        down, up = self.lora_A[name].weight.to(x.dtype), self.lora_B[name].weight.to(x.dtype)
        dropout: Any = self.lora_dropout[name]  # Identity where nothing is dropped
        share = getattr(dropout, "p", 0.0) if self.training else 0.0
        with torch.autocast(kind, enabled=False):
            inner = _Down.apply(x, down, up, share)
            return _Up.apply(x, inner, down, up, self.base_layer, self.scaling[name], share)


class _Down(torch.autograd.Function):
    """A drop(x). It keeps what `_Up` needs, whose backward does the work of both.

    So a layer that is computed again in backward can stop here, before its last and widest product
    (fc2), whose output nothing asks for.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, share: float) -> Tensor:
        on_cpu = x.device.type == "cpu"
        inner, mask = lora.lora_down(x, down, share, on_cpu)
        ctx.save_for_backward(x, inner, mask if share else None)
        ctx.weights = down, up
        ctx.set_materialize_grads(False)
        return inner

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, None, None, None


class _Up(torch.autograd.Function):
    """W x + b + s B inner."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        inner: Tensor,
        down: Tensor,
        up: Tensor,
        base: nn.Linear,
        scale: float,
        share: float,
    ) -> Tensor:
        ctx.kept, ctx.base, ctx.scale, ctx.share = inner.grad_fn, base, scale, share
        bias = None if base.bias is None else base.bias.to(x.dtype)
        return lora.lora_up(x, _matrix(base, x.dtype), bias, inner, up, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        (x, inner, mask), (down, up) = ctx.kept.saved_tensors, ctx.kept.weights
        matrix, for_x = _matrix(ctx.base, grad.dtype), ctx.needs_input_grad[0]
        of_x, of_down, of_up = lora.lora_backward(
            grad, x, mask, inner, matrix, down, up, ctx.scale, ctx.share, for_x
        )
        return of_x if for_x else None, None, of_down, of_up, None, None, None


def _matrix(base: nn.Linear, dtype: torch.dtype) -> Tensor:
    """The base's weight (outputs, inputs) in `dtype`."""
    return base.dequantized(dtype) if isinstance(base, FrozenLinear) else base.weight.to(dtype)
