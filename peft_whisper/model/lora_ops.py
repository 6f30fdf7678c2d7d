"""The three operators of LoRA layers, each in torch's own kernels and on any device.

Layers that read one input share its dropout: their A's are one product, and the gradient of what
they read is one sum. Of n layers the A's (n rank, inputs) and B's (n outputs, rank) are stacked.

To torch each is one operator (operators.py), whose shapes, FLOPs and memory are said here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peft_whisper.model.operators import define, own

__all__ = ["own"]  # with the three operators of this file in it

STEPS = 1 << 16  # so finely is the share of dropped inputs kept on a CPU


def lora_down(
    x: Tensor, downs: Sequence[Tensor], share: float, on_cpu: bool
) -> tuple[Tensor, Tensor]:
    """A drop(x), and the mask of drop: bool on a card, factors on a CPU, empty without dropout.

    Args:
        x: (..., inputs).
        downs: each A, (rank, inputs); their products (..., rank) follow one another.
        share: of the inputs that are dropped; the others grow by 1 / (1 - share).
    """
    down = _stacked(downs)
    if not share:
        return _product(x, down.t()), x.new_empty(0)
    if on_cpu:
        seen, mask = _drop(x, share)
    else:
        seen, mask = torch.ops.aten.native_dropout(x, share, True)
    return _product(seen, down.t()), mask


def _drop(x: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """As native_dropout, whose draw of 64 bits for each input takes longer than W's product.

    torch's generator gives the seed alone: its Mersenne twister takes 10 ns a word, SFC64 3.
    """
    seed = int(torch.empty((), dtype=torch.int64).random_())
    words = np.random.SFC64(seed).random_raw(-(-x.numel() // 4))
    bits = torch.from_numpy(words.view(np.int16))[: x.numel()].view(x.shape)
    mask = torch.empty_like(x, memory_format=torch.contiguous_format)
    torch.ge(bits, round(share * STEPS) - STEPS // 2, out=mask).mul_(1 / (1 - share))
    return x * mask, mask


def lora_up(
    x: Tensor, matrix: Tensor, bias: Tensor | None, inner: Tensor, up: Tensor, scale: float
) -> Tensor:
    """W x + b + s B inner: (..., outputs).

    Args:
        x: (..., inputs).
        matrix: W, (outputs, inputs).
        inner: A drop(x), (..., rank).
        up: B, (outputs, rank).
    """
    y = torch.nn.functional.linear(x, matrix, bias)
    _rows(y).addmm_(_rows(inner), up.t(), alpha=scale)
    return y


def lora_backward(
    grads: Sequence[Tensor],
    x: Tensor,
    mask: Tensor | None,
    inner: Tensor,
    matrices: Sequence[Tensor],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    scales: Sequence[float],
    share: float,
    for_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (empty unless asked for), the A's and the B's, of `grads`, those of each y.

    Layers without LoRA come last, with a gradient and a matrix each.
    """
    rows, of_y, count = _rows(x), [_rows(grad) for grad in grads], len(ups)
    of_inner = inner.new_empty(len(rows), inner.shape[-1])
    of_up = inner.new_empty(count * len(ups[0]), len(downs[0]))
    parts = _rows(inner).chunk(count, 1), of_inner.chunk(count, 1), of_up.chunk(count)
    for grad, up, scale, part, of_part, of_b in zip(of_y[:count], ups, scales, *parts, strict=True):
        _scaled_product(grad.t(), part, scale, of_b)
        _scaled_product(grad, up, scale, of_part)
    of_down = of_inner.t() @ (rows if mask is None else _dropped(rows, _rows(mask), share))
    if not for_x:
        return x.new_empty(0), of_down, of_up
    of_x = of_y[0] @ matrices[0]
    for grad, matrix in zip(of_y[1:], matrices[1:], strict=True):
        of_x.addmm_(grad, matrix)
    down = _stacked(downs)
    if mask is None:
        of_x.addmm_(of_inner, down)
    elif mask.dtype == torch.bool:
        of_x.addcmul_(of_inner @ down, _rows(mask), value=1 / (1 - share))
    else:
        of_x.addcmul_(of_inner @ down, _rows(mask))
    return of_x.view(x.shape), of_down, of_up


def _dropped(x: Tensor, mask: Tensor, share: float) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.ops.aten.native_dropout_backward(x, mask, 1 / (1 - share))
    return x * mask


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    return (_rows(x) @ matrix).view(*x.shape[:-1], -1)


def _scaled_product(a: Tensor, b: Tensor, scale: float, out: Tensor) -> None:
    """scale * a @ b in one kernel."""
    torch.addmm(out, a, b, beta=0, alpha=scale, out=out)


def _stacked(downs: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(downs)) if len(downs) > 1 else downs[0]


def _down_meta(
    x: Tensor, downs: Sequence[Tensor], share: float, on_cpu: bool
) -> tuple[Tensor, Tensor]:
    mask = x.new_empty(x.shape if share else 0, dtype=x.dtype if on_cpu else torch.bool)
    return x.new_empty(*x.shape[:-1], len(downs) * len(downs[0])), mask


def _up_meta(x: Tensor, matrix: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(matrix))


def _backward_meta(grads: Any, x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    _mask, inner, _matrices, downs, ups, _scales, _share, for_x = others
    of_down = x.new_empty(inner.shape[-1], x.shape[-1])
    of_up = x.new_empty(len(ups) * len(ups[0]), len(downs[0]))
    return x.new_empty(x.shape if for_x else 0), of_down, of_up


def _down_flops(x: Tensor, downs: Sequence[Tensor], *_: Any, **__: Any) -> int:
    return 2 * x.numel() * sum(map(len, downs))


def _up_flops(x: Tensor, matrix: Tensor, _bias: Any, inner: Tensor, *_: Any, **__: Any) -> int:
    return 2 * (x.numel() + inner.numel()) * len(matrix)


def _backward_flops(grads: Sequence[Tensor], x: Tensor, *others: Any, **__: Any) -> int:
    _mask, inner, matrices, _downs, ups, _scales, _share, for_x = others
    of_up = of_inner = 2 * inner.numel() * len(ups[0])
    of_down = 2 * inner.numel() * x.shape[-1]
    of_x = (2 * x.numel() * sum(map(len, matrices)) + of_down) if for_x else 0
    return of_up + of_inner + of_down + of_x


def _down_scratch(x: Tensor, downs: Sequence[Tensor], share: float, _on_cpu: bool) -> int:
    return (x.nbytes if share else 0) + _stacked_bytes(downs)


def _backward_scratch(
    _grads: Any, x: Tensor, _mask: Any, inner: Tensor, _matrices: Any, downs: Any, *others: Any
) -> int:
    share = others[-2]
    return inner.nbytes + (x.nbytes if share else 0) + _stacked_bytes(downs)


def _stacked_bytes(downs: Sequence[Tensor]) -> int:
    return sum(down.nbytes for down in downs) if len(downs) > 1 else 0


define(
    "(Tensor x, Tensor[] downs, float share, bool on_cpu) -> (Tensor, Tensor)",
    lora_down,
    _down_meta,
    _down_flops,
    _down_scratch,
)
define(
    "(Tensor x, Tensor matrix, Tensor? bias, Tensor inner, Tensor up, float scale) -> Tensor",
    lora_up,
    _up_meta,
    _up_flops,
    None,
)
define(
    "(Tensor[] grads, Tensor x, Tensor? mask, Tensor inner, Tensor[] matrices, Tensor[] downs, "
    "Tensor[] ups, float[] scales, float share, bool for_x) -> (Tensor, Tensor, Tensor)",
    lora_backward,
    _backward_meta,
    _backward_flops,
    _backward_scratch,
)
