"""peft's LoRA layer, y = W x + b + s B (A drop(x)), as one sum forward and one sweep backward.

Written as modules, it keeps a dropped copy of each input, adds up gradients that could be products'
sums, and takes some sixty steps of autograd. Here three operators (lora_ops.py) do it, for one
layer or for several that read the same input, as q, k and v do. Kept for backward are x, which
other layers keep too, and the mask of what was dropped; B's product is added into W's as it is
made, and so are the gradients of x.

Files, merging and all else are peft's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from peft_whisper.model.lora_ops import own
from peft_whisper.model.quantized import FrozenLinear


class Linear(PeftLinear):
    """LoRA beside a frozen linear layer, which may be held in 8 or 4 bits."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., inputs) -> (..., outputs), in autocast's type or that of `x`."""
        if args or kwargs or not self.usual():
            return super().forward(x, *args, **kwargs)
        return _products(x, [self], [])[0]

    def usual(self) -> bool:
        """Whether one adapter works beside the base, and as LoRA's paper has it."""
        active = self.active_adapters
        one = len(active) == 1 and active[0] in self.lora_A and active[0] not in self.lora_variant
        return one and not (self.merged or self.disable_adapters)

    def share(self) -> float:
        """Of the inputs, dropped before A; 0 but in training."""
        dropout: Any = self.lora_dropout[self.active_adapters[0]]  # Identity where none are
        return getattr(dropout, "p", 0.0) if self.training else 0.0


def products(x: Tensor, linears: Sequence[nn.Module]) -> list[Tensor]:
    """What frozen layers of one width, some with LoRA beside them, make of the same input.

    Adapters that work alike see one draw of dropout, each by its own A: the input is read and
    dropped once, and its gradient is one sum. All else goes through the layers one by one.

    Args:
        x: (..., inputs).

    Returns:
        for each layer (..., outputs), in autocast's type or that of `x`.
    """
    adapted = [one for one in linears if isinstance(one, Linear)]
    looks = {(one.r[one.active_adapters[0]], one.share()) for one in adapted if one.usual()}
    if len(looks) != 1 or not all(one.usual() for one in adapted):
        return [one(x) for one in linears]
    plain = [one for one in linears if not isinstance(one, Linear)]
    made = dict(zip((*adapted, *plain), _products(x, adapted, plain), strict=True))
    return [made[one] for one in linears]


def _products(x: Tensor, adapted: Sequence[Linear], plain: Sequence[Any]) -> tuple[Tensor, ...]:
    """As `products`, first of those with LoRA, then of those without."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    name, share = adapted[0].active_adapters[0], adapted[0].share()
    downs = [one.lora_A[name].weight.to(x.dtype) for one in adapted]
    ups = [one.lora_B[name].weight.to(x.dtype) for one in adapted]
    bases = [*(one.base_layer for one in adapted), *plain]
    scales = [one.scaling[name] for one in adapted]
    with torch.autocast(kind, enabled=False):
        inner = _Down.apply(x, share, *downs)
        return _Up.apply(x, inner, bases, scales, share, *downs, *ups)


class _Down(torch.autograd.Function):
    """A drop(x). It keeps what `_Up` needs, whose backward does the work of both.

    So a layer that is computed again in backward can stop here, before its last and widest product
    (fc2), whose output nothing asks for.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float, *downs: Tensor) -> Tensor:
        inner, mask = own.lora_down(x, downs, share, x.device.type == "cpu")
        ctx.save_for_backward(x, inner, mask if share else None)
        ctx.set_materialize_grads(False)
        return inner

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return (None,) * len(ctx.needs_input_grad)


class _Up(torch.autograd.Function):
    """W x + b + s B inner; and W x + b of layers without LoRA."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        inner: Tensor,
        bases: Sequence[nn.Linear],
        scales: Sequence[float],
        share: float,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        adapters = len(scales)
        ctx.kept, ctx.bases, ctx.scales, ctx.share = inner.grad_fn, bases, scales, share
        ctx.weights = weights[:adapters], weights[adapters:]
        made, parts = [], inner.chunk(adapters, -1)
        for base, *part in zip(bases[:adapters], parts, ctx.weights[1], scales, strict=True):
            matrix, bias = _matrix(base, x.dtype), _bias(base, x.dtype)
            made.append(own.lora_up(x, matrix, bias, *part))
        for base in bases[adapters:]:
            matrix, bias = _matrix(base, x.dtype), _bias(base, x.dtype)
            made.append(nn.functional.linear(x, matrix, bias))
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x, inner, mask), (downs, ups) = ctx.kept.saved_tensors, ctx.weights
        matrices, for_x = [_matrix(base, x.dtype) for base in ctx.bases], ctx.needs_input_grad[0]
        of_x, of_downs, of_ups = own.lora_backward(
            grads, x, mask, inner, matrices, downs, ups, ctx.scales, ctx.share, for_x
        )
        of_weights = *of_downs.chunk(len(downs)), *of_ups.chunk(len(ups))
        return of_x if for_x else None, None, None, None, None, *of_weights


def _matrix(base: nn.Linear, dtype: torch.dtype) -> Tensor:
    """The base's weight (outputs, inputs) in `dtype`."""
    return base.dequantized(dtype) if isinstance(base, FrozenLinear) else base.weight.to(dtype)


def _bias(base: nn.Linear, dtype: torch.dtype) -> Tensor | None:
    return None if base.bias is None else base.bias.to(dtype)
