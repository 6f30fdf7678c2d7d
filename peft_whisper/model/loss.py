"""Cross-entropy over the vocabulary without ever holding all logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 512  # tokens whose logits exist at once: 100 MiB in fp32 at 51,866 words


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum over tokens of -log softmax(hidden @ weight.T)[target], computed in fp32.

    Logits are made and used up a chunk at a time, together with their gradient, so that none is
    kept for backward and no product is repeated. Matrices are multiplied in `hidden`'s type, or
    in autocast's.

    Args:
        hidden: (n, d_model), what the decoder gives at the tokens that carry loss.
        weight: (vocabulary, d_model).
        targets: int64 (n,).

    Returns:
        float32 scalar.
    """
    return _SummedCrossEntropy.apply(hidden, weight, targets)


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        kind = hidden.device.type
        dtype = hidden.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        # Summed over the chunks in fp32, or 16 bits would swallow the later ones.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if for_weight else None
        with torch.autocast(kind, enabled=False):
            matrix = weight.to(dtype)
            for at in range(0, len(targets), CHUNK):
                rows, target = hidden[at : at + CHUNK].to(dtype), targets[at : at + CHUNK, None]
                logits = F.linear(rows, matrix).float()
                shares = logits.log_softmax(-1)
                total -= shares.gather(1, target).sum()
                if not (for_hidden or for_weight):
                    continue
                ones = torch.full_like(target, -1, dtype=shares.dtype)
                slope = shares.exp_().scatter_add_(1, target, ones).to(dtype)
                if grad_hidden is not None:
                    grad_hidden[at : at + CHUNK] = slope @ matrix
                if grad_weight is not None:
                    grad_weight += slope.T @ rows
        ctx.weight_dtype = weight.dtype
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (scale,) = grads
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * scale.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * scale).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None
